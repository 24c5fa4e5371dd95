"""`pimcal board`: every command on a virtual board, and what it says when there is none."""

import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from pimcal_serial.lock import BoardLock
from pimcal_serial.simulator.ports import PtyPort, TcpPort
from pimcal_serial.simulator.serve import serving
from pimcal_serial.simulator.settings import ArraySettings, BoardSettings

SETTINGS = BoardSettings(tiles=3, rows=24, cols=16, serial_number="SIM-42", max_payload=256)


@pytest.fixture(autouse=True)
def own_locks(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture(params=[PtyPort, lambda: TcpPort(0)], ids=["pty", "tcp"])
def port(request):
    where = request.param()
    with serving(SETTINGS, where):
        yield where.address


@contextmanager
def answering(reply):
    """A peer at the end of a terminal that answers each burst of bytes with `reply`; the terminal's path."""
    ours, theirs = pty.openpty()
    stop_reading, stop = os.pipe()

    def run():
        import select

        while True:
            ready, _, _ = select.select([ours, stop_reading], [], [])
            if stop_reading in ready:
                return
            os.read(ours, 4096)
            os.write(ours, reply)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield os.ttyname(theirs)
    finally:
        os.write(stop, b"x")
        thread.join()
        for handle in (ours, theirs, stop_reading, stop):
            os.close(handle)


# --- every command


def test_list_prints_ports(pimcal_run):
    assert isinstance(pimcal_run("board", "list", "--json").json["ports"], list)
    assert pimcal_run("board", "list").code == 0


def test_info_tells_what_the_board_announces(pimcal_run, port):
    found = pimcal_run("board", "info", "--port", port, "--json").json
    assert (found["serial_number"], found["tiles"], found["rows"], found["cols"]) == ("SIM-42", 3, 24, 16)
    assert (found["tiles_tested"], found["tiles_failed"]) == (3, [])
    assert found["temperature_c"] == 25.0
    assert "SIM-42" in pimcal_run("board", "info", "--port", port).out


def test_echo_counts_what_came_back(pimcal_run, port):
    found = pimcal_run("board", "echo", "--port", port, "--count", "20", "--size", "200", "--json").json
    assert (found["frames"], found["bytes"], found["repeats"]) == (20, 4000, 0)


def test_echo_of_more_than_the_board_takes_is_refused(pimcal_run):
    done = pimcal_run("board", "echo", "--port", "sim:", "--size", "100000")
    assert done.code == 2
    assert "takes at most 4096 bytes" in done.err


def test_bench_gives_shares_of_the_line_rate(pimcal_run):
    port = PtyPort()
    with serving(SETTINGS, port, 921600):
        found = pimcal_run(
            "board", "bench", "--port", port.address, "--baud", "921600", "--seconds", "0.2", "--json"
        ).json
    assert found["line_bytes_per_s"] == 92160
    assert found["to_board_share"] == pytest.approx(found["to_board_bytes_per_s"] / 92160)
    assert 0 < found["round_trip_median_ms"] <= found["round_trip_max_ms"]


def test_bench_gives_no_shares_of_a_rate_that_the_line_does_not_have(pimcal_run, port):
    found = pimcal_run("board", "bench", "--port", port, "--baud", "9600", "--seconds", "0.05", "--json").json
    assert found["to_board_bytes_per_s"] > 0
    assert "to_board_share" not in found


def test_weights_and_products_go_through_files(pimcal_run, port):
    rng = np.random.default_rng(0)
    weights, inputs = rng.integers(-127, 128, (24, 16)), rng.integers(-127, 128, (50, 24))
    np.save("w.npy", weights)
    np.save("x.npy", inputs)
    done = pimcal_run("board", "program", "--port", port, "--tile", "2", "--weights", "w.npy")
    assert "tile 2 holds 24 x 16 weights, as written" in done.err
    assert pimcal_run("board", "readback", "--port", port, "--tile", "2", "--out", "r.npy").code == 0
    assert np.array_equal(np.load("r.npy"), weights)
    assert pimcal_run("board", "mvm", "--port", port, "--tile", "2", "--inputs", "x.npy", "--out", "y.npy").code == 0
    assert np.array_equal(np.load("y.npy"), inputs @ weights)


def test_weights_that_a_tile_does_not_take_are_told(pimcal_run):
    port = PtyPort()
    np.save("weights.npy", np.full((20, 10), 3, np.int8))
    with serving(SETTINGS.model_copy(update={"array": ArraySettings(stuck_cells=0.1, seed=5)}), port):
        done = pimcal_run("board", "program", "--port", port.address, "--weights", "weights.npy", "--tile", "1")
        pimcal_run("board", "readback", "--port", port.address, "--tile", "1", "--out", "held.npy")
    wrong = np.argwhere(np.load("held.npy") != 3)
    assert (done.code, done.out) == (69, "")
    assert f"tile 1 holds other weights than were written: {len(wrong)} of 200 differ" in done.err
    assert f"the first in row {wrong[0][0]}, column {wrong[0][1]}" in done.err


def test_a_file_of_no_numbers_is_told(pimcal_run):
    Path("text.npy").write_text("1 2 3")
    for name, told in {"text.npy": "is no .npy file of numbers", "none.npy": "No such file"}.items():
        done = pimcal_run("board", "program", "--port", "sim:", "--weights", name)
        assert (done.code, done.out) == (65, "")
        assert told in done.err
        assert "pickle" not in done.err
        assert "Errno" not in done.err


def test_mvm_can_bring_its_weights(pimcal_run):
    np.save("w.npy", np.eye(6, 3, dtype=np.int8))
    np.save("x.npy", np.arange(12.0).reshape(2, 6))
    arguments = ("--weights", "w.npy", "--inputs", "x.npy", "--out", "y.npy")
    assert pimcal_run("board", "mvm", "--port", "sim:", *arguments).code == 0
    assert np.load("y.npy").tolist() == [[0, 1, 2], [6, 7, 8]]


def test_reset_empties_the_tiles(pimcal_run, port):
    np.save("w.npy", np.ones((4, 4), np.int8))
    pimcal_run("board", "program", "--port", port, "--weights", "w.npy")
    done = pimcal_run("board", "reset", "--port", port)
    assert done.code == 0
    assert "has restarted (boot id" in done.err
    done = pimcal_run("board", "readback", "--port", port, "--out", "r.npy")
    assert done.code == 2
    assert "the tile holds no weights; program it first" in done.err


@pytest.mark.parametrize("where", ["--pty", "--tcp"])
def test_simulate_is_a_board_until_it_is_stopped(pimcal_run, tmp_path, where):
    place = str(tmp_path / "board") if where == "--pty" else "0"
    command = [sys.executable, "-m", "pimcal", "board", "simulate", where, place, "-O", "device.simulator.tiles=5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        address = running.stdout.readline().strip()
        assert pimcal_run("board", "info", "--port", address, "--json").json["tiles"] == 5
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0


# --- traces


@pytest.fixture
def products(pimcal_run, port):
    """The traced products of random vectors with random weights, in y.npy; the board is gone afterwards."""
    rng = np.random.default_rng(0)
    np.save("w.npy", rng.integers(-127, 128, (24, 16)))
    np.save("x.npy", rng.integers(-127, 128, (50, 24)))
    arguments = ("--weights", "w.npy", "--inputs", "x.npy", "--out", "y.npy", "--tile", "1")
    assert pimcal_run("board", "mvm", "--port", port, *arguments, "--trace", "session.trace").code == 0
    return np.load("y.npy")


def test_a_traced_command_runs_again_without_the_board(pimcal_run, products):
    arguments = ("--weights", "w.npy", "--inputs", "x.npy", "--out", "again.npy", "--tile", "1")
    assert pimcal_run("board", "mvm", "--port", "replay:session.trace", *arguments).code == 0
    assert np.array_equal(np.load("again.npy"), products)
    done = pimcal_run("board", "readback", "--port", "replay:session.trace", "--out", "r.npy")
    assert done.code == 65
    assert "the recording session.trace has no answer to request 2: READBACK on tile 0" in done.err


def test_a_trace_is_shown_frame_by_frame(pimcal_run, products):
    found = pimcal_run("board", "trace", "session.trace", "--json").json
    assert found["summary"]["frames"]["HELLO"] == {"sent": 1, "received": 1}
    kinds = {row["type"] for row in found["rows"]}
    assert {"EVENT", "HELLO", "PROGRAM", "MVM"} <= kinds
    sent = [row for row in found["rows"] if (row["type"], row["direction"]) == ("MVM", "sent")]
    assert sum(int(row["meaning"].split()[0]) for row in sent) >= 50
    assert all(row["tile"] == 1 and "rows 0 to 23, columns 0 to" in row["meaning"] for row in sent)
    shown = pimcal_run("board", "trace", "session.trace").out
    for text in ("pimsim SIM-42, firmware pimsim, 3 tiles of 24 x 16", "of 24 x 16, id", "sent_bytes", "repeats"):
        assert text in shown


def test_a_trace_is_shown_in_part(pimcal_run, products):
    rows = pimcal_run("board", "trace", "session.trace", "--type", "hello", "--type", "MVM", "--json").json["rows"]
    assert {row["type"] for row in rows} == {"HELLO", "MVM"}
    limited = pimcal_run("board", "trace", "session.trace", "--type", "MVM", "--limit", "2", "--json").json
    assert limited["rows"] == [row for row in rows if row["type"] == "MVM"][:2]
    assert limited["summary"] == pimcal_run("board", "trace", "session.trace", "--json").json["summary"]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("trace", "w.npy"), 65, "w.npy is no trace of a session with a board"),
        (("trace", "no-such.trace"), 65, "no-such.trace cannot be read: No such file"),
        (("trace", "session.trace", "--type", "MMV"), 2, "--type MMV: no such type; did you mean 'MVM'?"),
        (
            ("info", "--port", "sim:", "--trace", "session.trace"),
            2,
            "session.trace exists, and a trace replaces nothing",
        ),
        (("info", "--port", "replay:session.trace", "--trace", "new.trace"), 78, "that file is the trace"),
        (("info", "--port", "replay:w.npy"), 65, "w.npy is no trace"),
        (("info", "--profile", "board_virtual", "--trace", "w.npy"), 2, "w.npy exists"),
    ],
)
def test_a_mistake_with_a_trace_is_told(pimcal_run, products, arguments, code, told):
    done = pimcal_run("board", *arguments)
    assert (done.code, done.out) == (code, "")
    assert told in done.err


@pytest.mark.parametrize("where", [("--port", "sim:"), ("--profile", "board_virtual")])
@pytest.mark.parametrize("command", ["info", "echo", "bench", "reset"])
def test_every_command_can_be_traced(pimcal_run, command, where):
    name, short = "odd: name #1.trace", ["--seconds", "0.01"] if command == "bench" else []
    assert pimcal_run("board", command, *where, "--trace", name, *short).code == 0
    assert pimcal_run("board", "trace", name, "--json").json["summary"]["requests"] > 1


# --- mistakes and faults


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ((), 2, "by --port or by --profile"),
        (("--port", "sim:", "--profile", "board_virtual"), 2, "by one of them"),
        (("--port", "COM3"), 78, "is none of: a device path"),
        (("--port", "sim:", "--baud", "99999999999"), 78, "baud"),
        (("--profile", "ideal"), 78, "no board on a serial port"),
        (("--profile", "no_such"), 78, "no profile is called"),
        (("--port", "/dev/no-such-port"), 69, "there is no port /dev/no-such-port"),
        (("--port", "usb:NO-SUCH"), 69, "no USB serial port has the serial number NO-SUCH"),
    ],
)
def test_a_board_that_is_not_there_is_told(pimcal_run, arguments, code, told):
    done = pimcal_run("board", "info", *arguments)
    assert (done.code, done.out) == (code, "")
    assert told in done.err


def test_a_connection_that_is_refused_is_told(pimcal_run):
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    done = pimcal_run("board", "info", "--port", f"socket://127.0.0.1:{free}")
    assert done.code == 69
    assert "cannot open socket://127.0.0.1" in done.err


def test_silence_is_told(pimcal_run):
    ours, theirs = pty.openpty()
    done = pimcal_run("board", "info", "--port", os.ttyname(theirs))
    os.close(ours)
    os.close(theirs)
    assert done.code == 69
    assert "is silent: nothing came back" in done.err


def test_a_peer_that_is_no_board_is_told(pimcal_run):
    with answering(b"\r\nlogin: ") as path:
        done = pimcal_run("board", "info", "--port", path)
    assert done.code == 69
    assert "is not a PIM board, or has another baud rate" in done.err


def test_another_version_is_told(pimcal_run):
    where = PtyPort()
    with serving(BoardSettings(protocol_version=2), where):
        done = pimcal_run("board", "info", "--port", where.address)
    assert done.code == 69
    assert "speaks version 2 of the protocol, this is version 1" in done.err


def test_a_busy_port_says_who_has_it(pimcal_run, port):
    held = BoardLock(port)
    done = pimcal_run("board", "info", "--port", port)
    held.release()
    assert done.code == 75
    assert f"in use by process {os.getpid()} (" in done.err
    assert pimcal_run("board", "info", "--port", port).code == 0


def test_a_board_that_vanishes_is_lost(pimcal_run, tmp_path):
    profile = "schema: pimcal/1\nbackend: serial\ndevice: {port: 'sim:', reconnect_s: 0.3, simulator: {%s}}\n"
    (tmp_path / "here" / "p.yaml").write_text(profile % "faults: {unplug_at: [9], unplugged_s: 100.0}")
    done = pimcal_run("board", "echo", "--profile", "p.yaml")
    assert done.code == 69
    assert "device lost: the board on sim:" in done.err


@pytest.mark.parametrize(
    ("values", "code", "told"),
    [
        (np.full((2, 2), 300), 65, "no whole numbers of 8 bits"),
        (np.full((2, 2), 0.5), 65, "no whole numbers of 8 bits"),
        (np.full((2, 2), -128), 65, "must lie in -127 to 127"),
        (np.zeros(4), 65, "holds no matrix"),
        (np.zeros((300, 2)), 65, "do not fit a tile of 256 x 256"),
        (np.array([["a"]]), 65, "no whole numbers"),
    ],
)
def test_weights_that_no_tile_can_hold_are_refused(pimcal_run, values, code, told):
    np.save("w.npy", values)
    done = pimcal_run("board", "program", "--port", "sim:", "--weights", "w.npy")
    assert done.code == code
    assert told in done.err


def test_a_tile_that_does_not_exist_is_refused(pimcal_run):
    np.save("w.npy", np.ones((2, 2)))
    done = pimcal_run("board", "program", "--port", "sim:", "--tile", "4", "--weights", "w.npy")
    assert done.code == 2
    assert "the board's tiles are 0 to 3" in done.err


def test_vectors_of_another_length_are_refused(pimcal_run):
    np.save("w.npy", np.ones((2, 2)))
    np.save("x.npy", np.ones((2, 3)))
    done = pimcal_run("board", "mvm", "--port", "sim:", "--weights", "w.npy", "--inputs", "x.npy", "--out", "y.npy")
    assert done.code == 65
    assert "vectors of 3 values, tile 0 has 2 rows" in done.err


def test_a_real_boards_profile_cannot_be_simulated(pimcal_run):
    done = pimcal_run("board", "simulate", "--profile", "board_serial")
    assert done.code == 78
    assert "is for a real board (port /dev/ttyUSB0)" in done.err


def test_the_command_imports_neither_torch_nor_numpy_before_it_runs():
    script = "import sys, pimcal.cli.app as app; app.build(); print({'torch', 'numpy', 'serial'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
