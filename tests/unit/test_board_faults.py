"""What is wrong with a port, with its peer, or with what a tile is to hold: end to end, on every peer."""

import grp
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import tty
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from .board_peers import FIRMWARE, PEERS

WITHOUT_PRIVILEGE = """
import ctypes, os, sys
DROP_FROM_BOUNDING_SET, MAY_OPEN_ANYTHING = 24, 1
ctypes.CDLL(None).prctl(DROP_FROM_BOUNDING_SET, MAY_OPEN_ANYTHING, 0, 0, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def pimcal(*arguments, wrapped=()):
    """A process beside that of `hosts`."""
    command = [sys.executable, *wrapped, "-m", "pimcal", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@contextmanager
def terminal():
    """Both ends of a pseudo-terminal; the path of the second."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    try:
        yield ours, os.ttyname(theirs)
    finally:
        os.close(ours)
        os.close(theirs)


@contextmanager
def answering(reply):
    """A terminal where somebody sends `reply(what came)`."""
    with terminal() as (line, path):
        waiting, wake = os.pipe()

        def run():
            while waiting not in select.select([line, waiting], [], [])[0]:
                os.write(line, reply(os.read(line, 65536)))

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield path
        finally:
            os.write(wake, b"x")
            thread.join()
            os.close(waiting)
            os.close(wake)


# --- the port


def test_a_port_that_does_not_exist_is_told(hosts, tmp_path):
    done = hosts.run("board", "info", "--port", tmp_path / "ttyUSB7")
    assert (done.code, done.out) == (69, "")
    assert f"there is no port {tmp_path / 'ttyUSB7'} (serial ports here: " in done.err
    assert "is the board plugged in?" in done.err


@pytest.mark.parametrize("kind", ["socket", "rfc2217"])
def test_an_address_where_nobody_listens_is_told(hosts, kind):
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    done = hosts.run("board", "info", "--port", f"{kind}://127.0.0.1:{free}")
    assert (done.code, done.out) == (69, "")
    assert f"cannot open {kind}://127.0.0.1:{free}: Connection refused; check the address, the cable" in done.err


@pytest.mark.parametrize("path", ["/", "/dev/null", __file__])
def test_a_path_that_is_no_serial_port_is_told(hosts, path):
    done = hosts.run("board", "info", "--port", path)
    assert (done.code, done.out) == (69, "")
    assert f"error: {path} is no serial port; see pimcal board list" in done.err


@pytest.mark.parametrize(
    ("mode", "remedy"),
    [(0o000, "its group may not, either: ask the machine's administrator"), (0o060, "sudo usermod -aG {group} $USER")],
)
def test_a_port_that_may_not_be_opened_is_told(mode, remedy, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with terminal() as (_, path):
        groups = [group for group in os.getgroups() if group] or [grp.getgrnam("tty").gr_gid]
        os.chown(path, -1, groups[0])
        Path(path).chmod(mode)
        done = pimcal("board", "info", "--port", path, wrapped=("-c", WITHOUT_PRIVILEGE))
    assert (done.returncode, done.stdout) == (69, "")
    assert f"no permission to open {path}" in done.stderr
    assert remedy.format(group=grp.getgrgid(groups[0]).gr_name) in done.stderr


@pytest.mark.parametrize("kind", PEERS)
def test_a_port_in_use_says_by_whom_and_is_free_afterwards(hosts, peers, kind, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", hosts.environment["XDG_RUNTIME_DIR"])
    with peers.cabled(kind) as cable:
        begun = threading.Event()
        cable.at(3, range(256), begun.set)
        holder = hosts.start("board", "bench", "--port", cable.address, "--seconds", 1000)
        assert begun.wait(30)
        second = pimcal("board", "info", "--port", cable.address)
        os.kill(holder, signal.SIGINT)
        first = hosts.wait()
        third = hosts.run("board", "info", "--port", cable.address)
    assert (second.returncode, second.stdout) == (75, "")
    holding = f"process {holder} (pimcal board bench --port {cable.address} --seconds 1000)"
    assert f"in use by {holding}; wait until it is done, or end it" in second.stderr
    assert (first.code, first.out) == (130, "")
    assert (third.code, third.err) == (0, "")


def test_another_program_that_has_the_port_is_named(hosts):
    script = "import fcntl, sys; fcntl.flock(handle := open(sys.argv[1]), fcntl.LOCK_EX); print(); sys.stdin.read()"
    with terminal() as (_, path):
        pipe = subprocess.PIPE
        with subprocess.Popen([sys.executable, "-c", script, path], stdin=pipe, stdout=pipe) as other:
            other.stdout.readline()
            done = hosts.run("board", "info", "--port", path)
            other.stdin.close()
    assert (done.code, done.out) == (75, "")
    assert f"{path} is in use by " in done.err
    assert f"process {other.pid} ({sys.executable} -c import fcntl" in done.err


def test_a_folder_for_locks_that_cannot_be_made_is_told(hosts, tmp_path):
    (tmp_path / "file").touch()
    hosts.environment["XDG_RUNTIME_DIR"] = str(tmp_path / "file")
    done = hosts.run("board", "info", "--port", "/dev/ttyUSB0")
    assert (done.code, done.out) == (69, "")
    assert "cannot take the lock of /dev/ttyUSB0" in done.err
    assert "Not a directory; set XDG_RUNTIME_DIR to a folder of yours" in done.err


# --- the peer


STRANGERS = {
    "silence": (lambda _: b"", "is silent: nothing came back; check its power, the cable, and the baud rate"),
    "login": (lambda _: b"\r\nlogin: ", "is not a PIM board, or has another baud rate: "),
    "modem": (lambda data: data + b"\r\nERROR\r\n", "the board on "),
    "echo": (lambda data: data, "the board on "),
    "zeros": (lambda _: bytes(100), "is not a PIM board, or has another baud rate: "),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_peer_that_is_no_board_is_told(hosts, stranger):
    reply, told = STRANGERS[stranger]
    with answering(reply) as path:
        done = hosts.run("board", "info", "--profile", hosts.profile(path, connect_s=0.3))
    assert (done.code, done.out) == (69, "")
    assert done.err.startswith(f"error: the board on {path} ")
    assert told in done.err


def test_a_peer_that_hangs_up_is_told(hosts):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = f"socket://127.0.0.1:{server.getsockname()[1]}"
        thread = threading.Thread(target=lambda: server.accept()[0].close())
        thread.start()
        done = hosts.run("board", "info", "--port", port)
        thread.join()
    assert (done.code, done.out) == (69, "")
    assert f"the board on {port}: the port failed (" in done.err


@pytest.fixture(scope="module")
def sources_of_version_2(tmp_path_factory):
    """The firmware's, for a later version of the protocol."""
    folder = tmp_path_factory.mktemp("later") / "firmware"
    shutil.copytree(FIRMWARE, folder, ignore=shutil.ignore_patterns("build"))
    header = folder / "pim_frame.h"
    changed = header.read_text().replace("PIM_VERSION = 1,", "PIM_VERSION = 2,")
    assert changed != header.read_text()
    header.write_text(changed)
    return folder


@pytest.mark.parametrize("kind", PEERS)
def test_another_version_of_the_protocol_is_told(hosts, peers, kind, sources_of_version_2):
    with peers.cabled(kind, sources_of_version_2, protocol_version=2) as cable:
        done = hosts.run("board", "info", "--port", cable.address)
    assert (done.code, done.out) == (69, "")
    assert f"error: the board on {cable.address} speaks version 2 of the protocol, this is version 1; " in done.err
    assert "update the older of the two" in done.err


# --- tiles and weights


@pytest.fixture(scope="module", params=PEERS)
def board(request, peers):
    """A board that all tests of its kind share: what they do wrong leaves it answering."""
    with peers.cabled(request.param) as cable:
        yield cable


@pytest.fixture
def refused(hosts, board):
    """Run a command that must leave with `code`, say `told`, print and write nothing, and leave the board answering."""

    def check(code, told, *arguments, **arrays):
        for name, values in arrays.items():
            np.save(hosts.folder / f"{name}.npy", values)
        before = sorted(hosts.folder.iterdir())
        done = hosts.run(*arguments)
        assert (done.code, done.out) == (code, "")
        assert "error: " in done.err
        assert told in done.err
        assert sorted(hosts.folder.iterdir()) == before
        assert hosts.run("board", "echo", "--port", board.address, "--count", 1).code == 0

    return check


def test_another_board_than_the_profile_wants_is_told(hosts, board, refused):
    told = "the profile wants PIM-7; plug that one in, or correct device.serial_number"
    refused(69, told, "board", "info", "--profile", hosts.profile(board.address, serial_number="PIM-7"))


def test_a_tile_that_does_not_exist_is_refused(board, refused):
    at = ("--port", board.address, "--tile", 60000)
    told, w = "--tile 60000: the board's tiles are 0 to ", np.ones((2, 2), np.int8)
    refused(2, told, "board", "program", *at, "--weights", "w.npy", w=w)
    refused(2, told, "board", "readback", *at, "--out", "r.npy")
    refused(2, told, "board", "mvm", *at, "--inputs", "w.npy", "--out", "r.npy")


@pytest.mark.parametrize("shape", [(257, 1), (1, 257)])
def test_weights_that_are_too_large_for_a_tile_are_refused(board, refused, shape):
    told = f"weights of {shape[0]} x {shape[1]} do not fit a tile of 256 x 256"
    refused(65, told, "board", "program", "--port", board.address, "--weights", "w.npy", w=np.ones(shape))


@pytest.mark.parametrize(("value", "told"), [(-128, "must lie in -127 to 127"), (128, "no whole numbers of 8 bits")])
def test_weights_and_inputs_outside_of_the_range_are_refused(board, refused, value, told):
    at, fine, wrong = ("--port", board.address), np.ones((2, 2)), np.array([[1, value]])
    refused(65, told, "board", "program", *at, "--weights", "w.npy", w=wrong)
    refused(65, told, "board", "mvm", *at, "--weights", "f.npy", "--inputs", "w.npy", "--out", "y.npy", w=wrong, f=fine)


@pytest.mark.parametrize("key", ["count", "rows", "cols"])
def test_a_profile_that_wants_more_than_the_board_has_is_refused(hosts, lab, board, refused, key):
    told = f"the profile wants 60000; correct tiles.{key}"
    refused(78, told, "evaluate", *lab.on(hosts.profile(board.address)), "-O", f"tiles.{key}=60000")
