"""The daemon with a board at a cable: released to others, pulled out, reset, gone for long."""

import signal
from functools import partial

import pytest

from pimcal.store import Store
from pimcal_serial.frames import MessageType

from .board_peers import Hosts

PEER = "pimsim-pty"
PROBED = {"every": "1h", "when": [{"probe_error": 0.02}]}


@pytest.fixture
def hosts(nursery, tmp_path, monkeypatch):
    """Beside the folder in which the tests' own commands run; they share the boards' locks."""
    folder = tmp_path / "daemon"
    folder.mkdir()
    made = Hosts(nursery, folder)
    monkeypatch.setenv("XDG_RUNTIME_DIR", made.environment["XDG_RUNTIME_DIR"])
    return made


def looked_since(before, status):
    return status["counters"]["looks"] > before["counters"]["looks"]


def at(daemon, port, **settings):
    """Its profile: a board at a port, which is given up soon."""
    device = {"port": port, "margin_s": 0.1, "connect_s": 1.0, "reconnect_s": 0.2, **settings}
    daemon.write(PROBED, device=device, backend="serial", gate={"max_drop": 1.0})


def test_while_it_is_released_others_can_use_the_board(daemon, peers, pimcal_run):
    with peers.running(PEER) as board:
        at(daemon, board.address)
        daemon.started()
        generation = daemon.until(lambda status: status["ready"])["generation"]
        refused = pimcal_run("board", "info", "--port", board.address)
        assert refused.code == 75, refused.err
        assert pimcal_run("daemon", "release", "--for", "30m", "--store", daemon.store).code == 0
        assert pimcal_run("board", "info", "--port", board.address).code == 0
        daemon.ask(do="resume")
        assert daemon.until(lambda status: status["ready"])["generation"] == generation
        assert daemon.stopped().code == 0


def test_a_board_that_is_pulled_out_is_found_again(daemon, peers, hosts):
    with peers.cabled(PEER) as cable:
        at(daemon, cable.address)
        daemon.started()
        generation = daemon.until(lambda status: status["ready"])["generation"]
        for times in (1, 2):
            cable.unplug(3)
            daemon.ask(do="run-now")
            lost = daemon.until(lambda status: status["state"] == "lost")
            assert not lost["ready"]
            assert cable.address in lost["problems"]["device lost"]
            back = daemon.until(lambda status: status["ready"])
            assert (back["generation"], back["counters"]["lost"]) == (generation, times)
            assert not back["problems"]
            daemon.until(partial(looked_since, lost))
        done = daemon.stopped()
    assert done.code == 0
    assert done.err.count("WARNING device lost") == 2  # told once, however often it was tried
    with Store.open(daemon.store, read_only=True) as store:
        alerts = [event.details["kind"] for event in store.journal.history() if event.kind == "alert"]
        assert alerts == ["device lost", "device back"] * 2
        assert len(store.generations(states=["active"])) == 1


def test_what_is_asked_for_while_the_board_is_lost_is_done_when_it_is_back(daemon, peers):
    with peers.cabled(PEER) as cable:
        at(daemon, cable.address)
        daemon.started()
        first = daemon.until(lambda status: status["ready"])["generation"]
        cable.unplug(6)
        daemon.ask(do="run-now")
        daemon.until(lambda status: status["state"] == "lost")
        for _ in range(5):
            daemon.ask(do="run-now", calibrate=True)
        back = daemon.until(lambda status: status["ready"] and status["generation"] != first)
        assert back["counters"]["activations"] == 2
        assert daemon.stopped().code == 0


def test_a_board_that_came_back_with_other_tiles_is_not_used(daemon, peers):
    with peers.running(PEER, serial_number="SAME") as board:
        at(daemon, board.address)
        daemon.started()
        generation = daemon.until(lambda status: status["ready"])["generation"]
        daemon.ask(do="release", **{"for": "30m"})
        released = daemon.until(lambda status: status["state"] == "released")
        assert released["generation"] == generation
    with peers.running(PEER, serial_number="SAME", tiles=9) as other:
        at(daemon, other.address)
        daemon.kill(signal.SIGHUP)
        daemon.ask(do="resume")
        lost = daemon.until(lambda status: "is not what it was" in status["problems"].get("device lost", ""))
        assert "9, it was 8" in lost["problems"]["device lost"]
        assert lost["generation"] == generation
        assert daemon.stopped().code == 0


def test_a_board_that_goes_away_in_a_calibration_is_calibrated_when_it_is_back(daemon, peers):
    with peers.cabled(PEER) as cable:
        at(daemon, cable.address)
        cable.at(60, {MessageType.MVM, MessageType.MVM_GATHER}, lambda: cable.unplug(2))
        daemon.start()
        daemon.until(lambda status: status["state"] == "lost" or status["ready"])
        found = daemon.until(lambda status: status["ready"])
        assert found["counters"]["lost"] == 1
        assert not cable.waits
        assert daemon.stopped().code == 0


def test_a_board_that_was_without_power_is_programmed_anew_and_looked_at(daemon, peers):
    with peers.cabled(PEER) as cable:
        at(daemon, cable.address, reconnect_s=600.0)
        daemon.started()
        first = daemon.until(lambda status: status["ready"])
        looks = first["counters"]["looks"]
        cable.cut_power(0.1)
        daemon.ask(do="run-now")
        found = daemon.until(lambda status: status["counters"]["looks"] > looks and status["state"] == "waiting")
        assert found["telemetry"]["board_restarts"] == 1
        assert (found["last_look"]["outcome"], found["generation"]) == ("fine", first["generation"])
        assert found["counters"]["lost"] == 0  # the driver has found it again by itself
        assert daemon.stopped().code == 0


def test_another_board_at_the_port_is_not_taken_for_it(daemon, peers, hosts):
    with peers.running(PEER, serial_number="FIRST") as board:
        at(daemon, board.address)
        daemon.started()
        generation = daemon.until(lambda status: status["ready"])["generation"]
    with peers.running(PEER, serial_number="SECOND") as other:
        daemon.until(lambda status: True)
        at(daemon, other.address)
        daemon.kill(signal.SIGHUP)
        lost = daemon.until(lambda status: "SECOND" in status["problems"].get("device lost", ""))
        assert "FIRST" in lost["problems"]["device lost"]
        assert daemon.stopped().code == 0
    with Store.open(daemon.store, read_only=True) as store:
        assert [one.id for one in store.generations()] == [generation]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"port": "/dev/ttyNowhere"}, "/dev/ttyNowhere"),
        ({"port": "nonsense://somewhere"}, "nonsense"),
        ({"trace": "/nowhere/trace.bin"}, "/nowhere"),
    ],
)
def test_a_profile_that_does_not_reach_the_board_gives_way_to_the_one_that_did(daemon, peers, wrong, told):
    with peers.running(PEER) as board:
        at(daemon, board.address)
        daemon.started()
        first = daemon.until(lambda status: status["ready"])
        at(daemon, **{"port": board.address, **wrong})
        daemon.kill(signal.SIGHUP)
        back = daemon.until(lambda status: status["ready"] and "configuration" in status["problems"])
        assert told in back["problems"]["configuration"]
        assert "the former one holds" in back["problems"]["configuration"]
        assert (back["generation"], back["counters"]["lost"]) == (first["generation"], 0)
        daemon.ask(do="run-now")
        daemon.until(partial(looked_since, back))
        at(daemon, board.address, margin_s=0.2)
        daemon.kill(signal.SIGHUP)
        daemon.until(lambda status: status["ready"] and not status["problems"])
        done = daemon.stopped()
    assert done.code == 0
    assert "device lost" not in done.err
    with Store.open(daemon.store, read_only=True) as store:
        alerts = [event.details["kind"] for event in store.journal.history() if event.kind == "alert"]
    assert alerts == ["configuration"]


def test_where_neither_profile_reaches_the_board_both_are_tried(daemon, peers):
    with peers.cabled(PEER) as cable:
        at(daemon, cable.address)
        daemon.started()
        first = daemon.until(lambda status: status["ready"])
        cable.unplug(2)
        at(daemon, "/dev/ttyNowhere")
        daemon.kill(signal.SIGHUP)
        lost = daemon.until(lambda status: status["state"] == "lost")
        assert "/dev/ttyNowhere" in lost["problems"]["device lost"]
        back = daemon.until(lambda status: status["ready"])
        assert "/dev/ttyNowhere" in back["problems"]["configuration"]
        assert (back["generation"], back["counters"]["lost"]) == (first["generation"], 1)
        assert daemon.stopped().code == 0


def test_a_board_that_is_absent_at_the_start_is_told(daemon):
    at(daemon, "/dev/ttyNowhere")
    done = daemon.start().wait()
    assert done.code == 69
    assert "/dev/ttyNowhere" in done.err
