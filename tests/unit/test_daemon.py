"""`pimcal daemon` as a process: started, asked, signalled, killed."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing

import numpy as np
import pytest

import pimcal
from pimcal.daemon.client import ask
from pimcal.store import Key, Store

from .board_peers import Hosts

FAST = ("--speed", "3600")


@pytest.fixture
def hosts(nursery, tmp_path):
    """Beside the folder in which the tests' own commands run."""
    folder = tmp_path / "daemon"
    folder.mkdir()
    return Hosts(nursery, folder)


@pytest.fixture
def network(hosts, lab):
    """A file with a network that waits in its own code: `slow` a little at each call, `stuck` for ever in its ninth.

    With `held` no device is open before there is a file `go` beside the hosts.
    """
    path = hosts.beside / "waiting.py"
    path.write_text(
        textwrap.dedent(f"""
        import copy, itertools, sys, time
        from pathlib import Path
        import torch
        from safetensors.torch import load_file
        sys.path.insert(0, {str(lab.folder)!r})
        from network import net

        count = itertools.count(1)  # kept on a module, it would be put back after each measurement

        class Wait(torch.nn.Module):
            def __init__(self, seconds, calls):
                super().__init__()
                self.seconds, self.calls = seconds, calls

            def __deepcopy__(self, memo):
                return self

            def forward(self, x):
                if next(count) > self.calls:
                    Path({str(hosts.beside / "waits")!r}).touch()
                    time.sleep(self.seconds)
                return x

        def made(seconds, calls):
            model = net()
            model.load_state_dict(load_file({lab.weights!r}))
            return torch.nn.Sequential(Wait(seconds, calls), model.eval())

        class Held(torch.nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def __deepcopy__(self, memo):
                while not Path({str(hosts.beside / "go")!r}).exists():
                    time.sleep(0.01)
                return Held(copy.deepcopy(self.inner, memo))

            def forward(self, x):
                return self.inner(x)

        def held():
            return Held(made(0, 10**9))

        def slow():
            return made(0.05, 1)

        def stuck():
            return made(600, 8)
        """)
    )
    return path


def active(daemon):
    with Store.open(daemon.store) as store:
        found = store.generations(states=["active"])
    assert len(found) <= 1
    return found[0].id if found else None


# --- from start to stop


def test_it_calibrates_at_first_then_goes_on_from_the_store(daemon):
    daemon.started()
    first = daemon.until(lambda status: status["ready"])
    assert first["counters"]["activations"] == 1
    assert first["last_look"]["outcome"] == "activated"
    assert (first["device"], first["process"]) == ("gaussian-mul-7", pytest.approx(first["process"]))
    done = daemon.stopped()
    assert (done.code, done.out) == (0, "")
    assert active(daemon) == first["generation"]
    assert not daemon.socket.exists()

    daemon.started()
    second = daemon.until(lambda status: status["last_look"])
    assert second["generation"] == first["generation"]
    assert second["counters"]["activations"] == 0
    assert second["last_look"]["outcome"] == "fine"
    assert daemon.stopped().code == 0


def test_it_looks_by_its_schedule_and_undoes_drift(daemon):
    daemon.started(*FAST, state="waiting")
    daemon.until(lambda status: status["counters"]["activations"] >= 3)
    assert daemon.stopped().code == 0
    with Store.open(daemon.store, read_only=True) as store:
        kinds = {event.details["decision"] for event in store.journal.history() if event.kind == "decision"}
        assert {"probe", "calibrate"} <= kinds
        assert len(store.journal.probes()) >= 3
        assert len(store.generations(states=["active"])) == 1


def test_run_now_looks_at_once_and_on_request_calibrates(daemon):
    daemon.started()
    daemon.until(lambda status: status["ready"])
    daemon.ask(do="run-now")
    daemon.until(lambda status: status["last_look"]["outcome"] == "fine")
    before = daemon.status["counters"]["looks"]
    daemon.ask(do="run-now", calibrate=True)
    daemon.until(lambda status: status["counters"]["looks"] > before)
    assert daemon.status["last_look"]["reason"].startswith("calibrate: asked for by run-now")


def test_pause_makes_no_decisions_until_resume(daemon):
    daemon.started(*FAST)
    daemon.until(lambda status: status["ready"])
    daemon.ask(do="pause")
    paused = daemon.until(lambda status: status["state"] == "paused")
    assert paused["ready"]
    assert paused["paused"]
    looks = paused["counters"]["looks"]
    with pytest.raises(AssertionError, match="came not"):
        _for_a_while(daemon, lambda status: status["counters"]["looks"] > looks)
    with Store.open(daemon.store) as store:
        first = store.generations()[0]
        added = store.add_candidate(store.record(first.id), "the same once more")
        store.activate(added.id, "by hand")
    daemon.until(lambda status: status["generation"] == added.id)  # a rollback counts in a pause, too
    assert daemon.status["counters"]["looks"] == looks
    daemon.ask(do="resume")
    daemon.until(lambda status: status["counters"]["looks"] > looks)


def _for_a_while(daemon, reached):
    """Some simulated hours."""
    import time

    end_s = time.monotonic() + 2
    while time.monotonic() < end_s:
        if reached(daemon.ask(do="status")):
            return
        time.sleep(0.05)
    raise AssertionError("it came not to that")


def test_release_closes_the_device_and_takes_it_back(daemon):
    daemon.started(*FAST)
    daemon.ask(**{"do": "release", "for": "1h"})
    released = daemon.until(lambda status: status["state"] == "released")
    assert not released["ready"]
    assert released["released_until"]
    daemon.until(lambda status: status["ready"])
    daemon.ask(**{"do": "release", "for": "4w"})
    daemon.until(lambda status: status["state"] == "released")
    daemon.ask(do="resume")
    daemon.until(lambda status: status["ready"])


def test_commands_of_the_command_line_reach_it(daemon, pimcal_run):
    where = ("--store", daemon.store)
    absent = pimcal_run("daemon", "status", *where)
    assert absent.code == 69
    assert f"no daemon answers at {daemon.socket}: there is no such socket (it may still be starting)" in absent.err
    assert "Errno" not in absent.err
    mistaken = pimcal_run("daemon", "release", "--for", "30x", *where)
    assert mistaken.code == 2
    assert "--for '30x': a duration is written with units" in mistaken.err
    daemon.started()
    daemon.until(lambda status: status["ready"])
    assert pimcal_run("daemon", "status", *where, "--json").json["device"] == "gaussian-mul-7"
    _check_table(pimcal_run("daemon", "status", *where).out, daemon.status)
    for command in (["pause"], ["resume"], ["release", "--for", "30m"], ["run-now"], ["run-now", "--calibrate"]):
        done = pimcal_run("daemon", *command, *where)
        assert (done.code, done.out) == (0, f"told the daemon: {command[0]}\n"), done
    refused = pimcal_run("daemon", "release", "--for", "soon", *where)
    assert refused.code == 2
    assert "a duration is written with units" in refused.err
    assert "give its --store" in pimcal_run("daemon", "status").err
    daemon.until(lambda status: status["counters"]["looks"] > 2)
    assert pimcal_run("daemon", "stop", *where).code == 0
    done = daemon.wait()
    assert done.code == 0
    told = [line.split(" ", 2)[2] for line in done.err.splitlines()]
    assert told[told.index("asked for: stop") + 1] == "stopping: asked for"
    assert told.count("asked for: release") == 1
    shown = pimcal_run("why", *where, "--limit", "3", "--json").json["decisions"]
    assert len(shown) == 3
    every = pimcal_run("why", *where, "--limit", "1000", "--json").json["decisions"]
    assert shown == every[-3:]
    assert [one["at"] for one in every] == sorted(one["at"] for one in every)
    assert "asked for by run-now" in pimcal_run("why", *where).out


def _check_table(text, status):
    """What people get of a status."""
    head, *lines = text.splitlines()
    assert head.split() == ["field", "value"]
    rows = {name: " ".join(told) for name, *told in map(str.split, lines)}
    assert [*rows][:3] == ["state", "ready", "problems"]
    assert rows["device"] == "gaussian-mul-7"
    assert rows["model_hash"] == status["model_hash"][:12]
    for told in rows["telemetry"].split(", "):
        assert len(told.split(": ")[1].replace(".", "").lstrip("0")) <= 6 or "." not in told
    assert all(line == line.rstrip() for line in [head, *lines])


@pytest.mark.parametrize("command", [["release", "--for", "30m"], ["stop"]])
def test_what_a_daemon_does_not_do_in_time_is_not_taken_for_done(
    daemon, hosts, network, pimcal_run, monkeypatch, command
):
    monkeypatch.setattr("pimcal.cli.daemon.PATIENCE_S", 0.3)
    daemon.start(model=f"{network}:stuck")
    daemon.until(lambda status: (hosts.beside / "waits").exists())
    done = pimcal_run("daemon", *command, "--store", daemon.store)
    assert done.code == 69, done.err
    assert "look at its log" in done.err


# --- signals and sudden ends


def test_sigterm_in_the_middle_of_a_calibration_leaves_nothing_half_done(daemon, network):
    daemon.start(model=f"{network}:slow")
    daemon.until(lambda status: status["state"] == "working")
    done = daemon.stopped()
    assert done.code == 0, done.err
    assert "stopping: SIGTERM" in done.err
    assert "what was in force stays in force" in done.err
    assert active(daemon) is None
    assert not list((daemon.store / "tensors").glob("*"))


def test_a_second_signal_hurries(daemon, hosts, network):
    daemon.start(model=f"{network}:stuck")
    daemon.until(lambda status: (hosts.beside / "waits").exists())
    daemon.kill(signal.SIGTERM)
    daemon.ask(do="status")  # it heard the first
    done = daemon.stopped()
    assert done.code == -signal.SIGTERM
    assert "stopped at once, at the second signal" in done.err


def test_sigint_is_told_apart(daemon):
    done = daemon.started().stopped(signal.SIGINT)
    assert done.code == 130
    assert done.err.splitlines()[-1].endswith(" INFO stopped")


def test_the_log_begins_with_what_was_started(daemon):
    first, *others = daemon.started().stopped().err.splitlines()
    assert f"INFO pimcal {pimcal.__version__}: profile {daemon.profile}, model " in first
    assert first.endswith(f"store {daemon.store}, process {daemon.status['process']}")
    assert others


def test_after_kill_9_it_starts_again_with_what_was_in_force(daemon):
    daemon.started()
    generation = daemon.until(lambda status: status["ready"])["generation"]
    daemon.ask(do="run-now", calibrate=True)
    daemon.kill(signal.SIGKILL)
    assert daemon.wait().code == -signal.SIGKILL
    assert daemon.socket.exists()
    before = active(daemon)
    daemon.started()
    assert daemon.until(lambda status: status["ready"])["generation"] == before
    assert generation is not None
    assert daemon.stopped().code == 0


def test_sighup_takes_a_good_profile_and_keeps_the_last_good_one(daemon):
    daemon.started()
    daemon.until(lambda status: status["ready"])

    daemon.write({"every": "1h", "max_age": "30d"})
    daemon.kill(signal.SIGHUP)
    daemon.until(lambda status: any("(max_age 30d)" in line for line in status["decision"]))

    daemon.write({"every": "soon"})
    daemon.kill(signal.SIGHUP)
    problem = daemon.until(lambda status: "configuration" in status["problems"])["problems"]["configuration"]
    assert f"daemon.yaml:{_line(daemon, 'every')}:" in problem
    assert "a duration is written with units" in problem
    assert daemon.status["ready"]

    daemon.write(device={"noise": "mul", "eta0": 0.1})
    daemon.kill(signal.SIGHUP)
    daemon.until(lambda status: "device.eta0" in status["problems"].get("configuration", ""))

    daemon.write()
    daemon.kill(signal.SIGHUP)
    daemon.until(lambda status: not status["problems"])
    assert daemon.stopped().code == 0


def _line(daemon, key):
    """Where a key of the profile stands."""
    lines = daemon.profile.read_text().splitlines()
    return next(number for number, line in enumerate(lines, start=1) if f'"{key}"' in line)


# --- one at a time


def test_a_second_daemon_on_the_device_is_refused(daemon, lab, hosts):
    daemon.started()
    environment = os.environ | hosts.environment
    for more in ([], ["--socket", str(hosts.beside / "other.sock")]):
        command = [sys.executable, "-m", "pimcal", "daemon", *map(str, daemon.options()), *more]
        second = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=hosts.folder)
        assert second.returncode == 75, second.stderr
        assert f"process {hosts.process_id}" in second.stderr
    assert daemon.ask(do="status")["device"]
    assert daemon.stopped().code == 0


# --- the service manager


def test_systemd_is_told_and_the_watchdog_fed(daemon, hosts):
    address = hosts.beside / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(address))
        listening.settimeout(60)
        hosts.environment = hosts.environment | {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "2000000"}
        daemon.start()
        heard = [*_until(listening, "READY=1"), *_until(listening, "WATCHDOG=1")]
        assert any(line.startswith("STATUS=") and "gaussian-mul-7" in line for line in heard)
        daemon.kill(signal.SIGHUP)
        heard = _until(listening, "READY=1")
        assert "RELOADING=1" in heard
        assert any(line.startswith("MONOTONIC_USEC=") for line in heard)
        daemon.kill(signal.SIGTERM)
        _until(listening, "STOPPING=1")
        assert daemon.wait().code == 0


def test_a_reload_before_the_device_is_open_does_not_tell_that_it_is(daemon, hosts, network):
    address = hosts.beside / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(address))
        listening.settimeout(60)
        hosts.environment = hosts.environment | {"NOTIFY_SOCKET": str(address)}
        daemon.start(model=f"{network}:held")
        daemon.until(lambda status: status["state"] == "starting")
        daemon.write({"every": "soon"})
        daemon.kill(signal.SIGHUP)
        daemon.until(lambda status: "configuration" in status["problems"])
        daemon.write()
        daemon.kill(signal.SIGHUP)
        daemon.until(lambda status: not status["problems"])
        heard = _so_far(listening)
        assert any(line.startswith("STATUS=starting") for line in heard)
        assert not {"READY=1", "RELOADING=1"} & set(heard)
        (hosts.beside / "go").touch()
        _until(listening, "READY=1")
        daemon.kill(signal.SIGTERM)
        _until(listening, "STOPPING=1")
        assert daemon.wait().code == 0


def _so_far(listening):
    heard = []
    listening.setblocking(False)
    try:
        while True:
            heard += listening.recv(4096).decode().splitlines()
    except BlockingIOError:
        listening.settimeout(60)
    return heard


def _until(listening, wanted):
    heard = []
    while wanted not in heard:
        heard += listening.recv(4096).decode().splitlines()
    return heard


def test_the_watchdog_goes_hungry_while_the_worker_is_stuck(daemon, hosts, network):
    address = hosts.beside / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(address))
        listening.settimeout(60)
        hosts.environment = hosts.environment | {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "600000"}
        daemon.start(model=f"{network}:stuck")
        daemon.until(lambda status: (hosts.beside / "waits").exists())
        listening.settimeout(1.5)
        with pytest.raises(TimeoutError):
            _until(listening, "what never comes")
        assert daemon.ask(do="status")["state"] == "working"


def test_logs_are_lines_or_json(daemon):
    done = daemon.started("--log-format", "json").stopped()
    found = [json.loads(line) for line in done.err.splitlines()]
    assert {"time", "level", "logger", "message"} == set(found[0])
    assert found[-1]["message"] == "stopped"
    for line in daemon.started().stopped().err.splitlines():
        assert line[:4].isdecimal()
        assert line.split()[1] in ("INFO", "WARNING")


# --- wrong configurations


def test_a_broken_schedule_is_told_with_line_and_column(daemon):
    daemon.write({"cron": "61 * * * *"})
    done = daemon.start().wait()
    assert done.code == 78
    assert f"daemon.yaml:{_line(daemon, 'cron')}:11:" in done.err
    assert not daemon.store.exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--model", "nowhere.py:net"], "there is no file"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--data", "npz:nowhere.npz"], "nowhere.npz"),
        (["--metric", "accuracie"], "accuracy"),
        (["--profile", "gausian_mul"], "gaussian_mul"),
    ],
)
def test_a_wrong_model_profile_or_data_set_is_a_wrong_configuration(daemon, hosts, change, told):
    done = hosts.run("daemon", *daemon.options(), *change)
    assert done.code == 78, done.err
    assert told in done.err
    assert not daemon.store.exists()


@pytest.mark.parametrize(("images", "told"), [(0, "few.npz: 'images' is empty"), (1, "too few"), (64, "too few")])
def test_a_data_set_without_images_to_judge_by_is_a_wrong_configuration(daemon, hosts, lab, tmp_path, images, told):
    whole, few = np.load(lab.data.removeprefix("npz:")), tmp_path / "few.npz"
    np.savez(few, **{name: whole[name][:images] for name in whole})
    done = hosts.run("daemon", *daemon.options(), "--data", f"npz:{few}")
    assert done.code == 78, done.err
    assert told in done.err
    assert not daemon.store.exists()


def test_what_it_cannot_do_without_is_named(daemon, pimcal_run):
    done = pimcal_run("daemon", "--profile", daemon.profile)
    assert done.code == 2
    assert "--model, --data, --store" in done.err


def test_a_model_or_a_profile_that_does_not_match_the_store_is_told(daemon, lab, hosts):
    daemon.started()
    daemon.until(lambda status: status["ready"])
    daemon.stopped()

    other = hosts.run("daemon", *daemon.options(weights=False))  # the same network, untrained
    assert other.code == 78, other.err
    assert "for another model" in other.err

    daemon.write(device={"noise": "mul", "eta0": 0.4, "seed": 7})
    profile = daemon.start().wait()
    assert profile.code == 78, profile.err
    assert "device.eta0: 0.3 there, 0.4 here" in profile.err

    before = active(daemon)
    daemon.started("--new")
    assert daemon.until(lambda status: status["ready"])["generation"] != before


def test_time_cannot_pass_faster_on_a_device_that_has_no_simulated_clock(daemon):
    daemon.write(device={}, backend="ideal")
    done = daemon.start(*FAST).wait()
    assert done.code == 78
    assert "no simulated clock" in done.err


# --- the store


def _set(store, pragma):
    with closing(sqlite3.connect(store / "store.db")) as connection:
        connection.execute(f"PRAGMA {pragma}")
        connection.commit()


def _from_the_future(store):
    _set(store, "user_version = 99")


def _of_another_program(store):
    _set(store, "application_id = 7")


def _no_database(store):
    for name in ("store.db-wal", "store.db-shm"):
        (store / name).unlink(missing_ok=True)
    (store / "store.db").write_bytes(b"nonsense " * 1000)


def _damaged_record(store):
    (path,) = (store / "tensors").glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _missing_record(store):
    (path,) = (store / "tensors").glob("*.safetensors")
    path.unlink()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_from_the_future, "has schema 99, written by a newer pimcal"),
        (_of_another_program, "is a database of another program"),
        (_no_database, "store.db is no database"),
        (_damaged_record, "its content is not what was written"),
        (_missing_record, "No such file or directory"),
    ],
)
def test_a_store_that_no_restart_can_mend_is_a_wrong_configuration(daemon, spoil, told):
    daemon.started()
    daemon.until(lambda status: status["ready"])
    assert daemon.stopped().code == 0
    spoil(daemon.store)
    done = daemon.start().wait()
    assert done.code == 78, done.err
    assert told in done.err
    assert not daemon.socket.exists()


def test_a_store_that_another_process_writes_to_is_worth_another_start(daemon):
    daemon.started().stopped()
    with Store.open(daemon.store) as store, store.database.transaction():
        done = daemon.start().wait()
    assert done.code == 75, done.err
    assert daemon.started().stopped().code == 0


def test_another_generation_is_put_in_force_when_the_store_says_so(daemon, pimcal_run):
    daemon.write({"every": "1000w"})
    daemon.started()
    first = daemon.until(lambda status: status["ready"])["generation"]
    with Store.open(daemon.store) as store:
        generation = store.generations()[0]
        copied = store.add_candidate(store.record(generation.id), "the same once more")
        store.activate(copied.id, "by hand")
    daemon.ask(do="run-now")
    daemon.until(lambda status: status["generation"] == copied.id)
    assert pimcal_run("records", "rollback", "--store", daemon.store).code == 0
    daemon.ask(do="run-now")
    daemon.until(lambda status: status["generation"] == first)
    assert isinstance(generation.key, Key)


def test_a_store_that_is_locked_stops_nobody(daemon):
    daemon.started()
    generation = daemon.until(lambda status: status["ready"])["generation"]
    with Store.open(daemon.store) as store, store.database.transaction():
        daemon.ask(do="run-now", calibrate=True)
        stuck = daemon.until(lambda status: "store" in status["problems"])
        assert "being written by another process" in stuck["problems"]["store"]
        assert (stuck["generation"], stuck["ready"]) == (generation, True)
    daemon.ask(do="run-now")
    daemon.until(lambda status: "store" not in status["problems"])
    assert daemon.stopped().code == 0


# --- its socket


def test_what_comes_over_the_socket_does_not_hurt(daemon):
    daemon.started()
    assert oct(daemon.socket.stat().st_mode & 0o777) == "0o600"
    for content, told in (
        (b"nonsense\n", "one line with a JSON object"),
        (b"[" * 4000 + b"\n", "JSON"),
        (b"[1]\n", "is a JSON object"),
        (b"\xff\x00\n", "JSON"),
        (b"x" * 100_000, "at most 4096 bytes"),
        (b'{"do": "explode"}\n', "there is no request 'explode'"),
        (b'{"do": ["status"]}\n', "there is no request"),
        (b'{"do": "release", "for": 5}\n', "`for` must be a text"),
        (b'{"do": "release"}\n', "needs `for`"),
        (b'{"do": "release", "for": "0s"}\n', "above zero"),
        (b'{"do": "release", "for": "200000d"}\n', "30d is the longest"),
        (b'{"do": "release", "for": "30d1s"}\n', "30d is the longest"),
    ):
        assert told in json.loads(_said(daemon.socket, content))["error"]
    assert _said(daemon.socket, b'{"do": "sta') == b""  # hung up in the middle
    silent = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(20)]
    for client in silent[:15]:
        client.connect(str(daemon.socket))
    assert daemon.until(lambda status: True)["device"]
    for client in silent:
        client.close()
    assert daemon.stopped().code == 0


def _said(path, content):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(30)
        client.connect(str(path))
        try:
            client.sendall(content)
            client.shutdown(socket.SHUT_WR)
            return client.makefile("rb").read()
        except (BrokenPipeError, ConnectionResetError):
            return client.makefile("rb").read()


def test_a_socket_path_that_is_too_long_for_the_kernel_works(daemon, hosts):
    daemon.store = hosts.beside / ("long" * 30) / "store"
    daemon.socket = daemon.store / "daemon.sock"
    daemon.started()
    assert ask(daemon.socket, {"do": "status"})["device"]
    assert daemon.stopped().code == 0


def test_a_file_in_the_place_of_the_socket_is_left_alone(daemon, hosts):
    path = hosts.beside / "precious"
    path.write_text("mine")
    done = daemon.start("--socket", path).wait()
    assert done.code == 74
    assert "no socket" in done.err
    assert path.read_text() == "mine"
