"""docs/how-to/first-board.md: its commands run, its messages are those that pimcal prints, its udev rule is one."""

import grp
import os
import pty
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import serial
from serial.tools.list_ports_common import ListPortInfo

from pimcal_serial.frames import Frame, MessageType, encode_frame
from pimcal_serial.lock import BoardLock
from pimcal_serial.simulator.ports import PtyPort
from pimcal_serial.simulator.serve import serving
from pimcal_serial.simulator.settings import BoardSettings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/how-to/first-board.md").read_text()
RULES = ROOT / "backends/pimcal_serial/udev/70-pim-board.rules"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
MESSAGES = re.findall(
    r"^\| `(.*?)` \|", TEXT.partition("When it does not work")[2].partition("Without a message")[0], re.M
)


@pytest.fixture(autouse=True)
def own_locks(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@contextmanager
def in_background(arguments):
    """A board of a command; its address."""
    command = [sys.executable, "-m", "pimcal", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def usb_port(device, serial_number):
    entry = ListPortInfo(str(device))
    entry.serial_number = serial_number
    return entry


# --- commands


def test_the_page_works_from_top_to_bottom(pimcal_run, tmp_path, monkeypatch):
    """With the reference firmware where the page's board is plugged in."""
    pytest.importorskip("sklearn", reason="the page's network classifies scikit-learn's digits")
    needed = ("cc", "make", "arm-none-eabi-gcc", "qemu-system-arm")
    if not all(map(shutil.which, needed)):
        pytest.skip(f"needs {', '.join(needed)}")
    place = tmp_path / "pim-board"
    monkeypatch.setattr("serial.tools.list_ports.comports", lambda: [usb_port(place, "PIM-0001")])
    board = ("board", "firmware", "--run", "--pty", str(place), "--define", "PIM_SERIAL=PIM-0001")
    with in_background(board), ExitStack() as running:
        printed = "".join(follow(language, text, pimcal_run, running) for language, text in BLOCKS)
    assert "read back as written: True" in printed


def follow(language, text, pimcal_run, running):
    """Do what a block says; what its program prints."""
    printed = StringIO()
    if language == "yaml":
        Path(text.split()[1]).write_text(text)
    if language == "python":
        with redirect_stdout(printed):
            exec(compile(text, "first-board.md", "exec"), {})
    if language == "console":
        for line in text.splitlines():
            prompt, program, *arguments = shlex.split(line)
            assert (prompt, program) == ("$", "pimcal")
            if "simulate" in arguments or "--run" in arguments:
                running.close()  # the board before
                address = running.enter_context(in_background(arguments))
                assert address == f"socket://127.0.0.1:{arguments[-1]}"
            else:
                done = pimcal_run(*arguments)
                assert done.code == 0, f"{line}\n{done.err}"
    return printed.getvalue()


# --- messages


@pytest.fixture
def terminal():
    """A terminal with nobody at its other end: our end, and its path."""
    ours, theirs = pty.openpty()
    yield ours, os.ttyname(theirs)
    os.close(ours)
    os.close(theirs)


@contextmanager
def answering(ours, reply):
    """Whatever is sent to a terminal is answered by `reply`."""
    stopped, stop = os.pipe()

    def run():
        import select

        while stopped not in (ready := select.select([ours, stopped], [], [])[0]):
            assert ready
            os.read(ours, 4096)
            os.write(ours, reply)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        os.write(stop, b"x")
        thread.join()
        os.close(stopped)
        os.close(stop)


def profile(**device):
    lines = [f"  {key}: {value}" for key, value in device.items()]
    Path("p.yaml").write_text("\n".join(["schema: pimcal/1", "backend: serial", "device:", *lines, ""]))
    return ("--profile", "p.yaml")


def no_port(told, monkeypatch, terminal):
    return told("--port", "/dev/no-such-port")


def no_usb_port(told, monkeypatch, terminal):
    return told("--port", "usb:PIM-0001")


def no_permission(told, monkeypatch, terminal):
    from pimcal_serial.transport import _not_opened  # root may open everything

    Path("port").touch()
    Path("port").chmod(0o660)
    os.chown("port", -1, os.getgid() or next(group.gr_gid for group in grp.getgrall() if group.gr_gid))
    return str(_not_opened("port", PermissionError(13, "Permission denied")))


def busy(told, monkeypatch, terminal):
    lock = BoardLock(terminal[1])
    try:
        return told("--port", terminal[1])
    finally:
        lock.release()


def busy_elsewhere(told, monkeypatch, terminal):
    with serial.Serial(terminal[1], exclusive=True):
        return told("--port", terminal[1])


def silent(told, monkeypatch, terminal):
    return told(*profile(port=terminal[1], connect_s=0.3))


def no_board(told, monkeypatch, terminal):
    with answering(terminal[0], b"\r\nlogin: "):
        return told(*profile(port=terminal[1], connect_s=0.3))


def no_hello(told, monkeypatch, terminal):
    with answering(terminal[0], encode_frame(Frame(MessageType.ECHO | 0x80, 0))):
        return told(*profile(port=terminal[1], connect_s=0.3))


def other_version(told, monkeypatch, terminal):
    with serving(BoardSettings(protocol_version=2), PtyPort()) as server:
        return told("--port", server.port.address)


def other_board(told, monkeypatch, terminal):
    return told(*profile(port="'sim:'", serial_number="PIM-0001"))


def nobody_listens(told, monkeypatch, terminal):
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    return told("--port", f"socket://127.0.0.1:{free}")


def lost(told, monkeypatch, terminal):
    faults = "{faults: {unplug_at: [2], unplugged_s: 100.0}}"
    return told(*profile(port="'sim:'", reconnect_s=0.2, simulator=faults))


def not_programmed(told, monkeypatch, terminal):
    return told("--port", "sim:", "--out", "w.npy", command="readback")


def no_pyserial(told, monkeypatch, terminal):
    monkeypatch.setitem(sys.modules, "serial", None)
    return told("--port", "/dev/ttyUSB0")


def no_compiler(told, monkeypatch, terminal):
    monkeypatch.setenv("PATH", "")
    return told("--run", "--tcp", "0", command="firmware")


PROVOKED = (
    no_port,
    no_usb_port,
    no_permission,
    busy,
    busy_elsewhere,
    silent,
    no_board,
    no_hello,
    other_version,
    other_board,
    nobody_listens,
    lost,
    not_programmed,
    no_pyserial,
    no_compiler,
)


def pattern(message):
    return re.compile(".+".join(map(re.escape, message.split("..."))))


@pytest.mark.parametrize("provoke", PROVOKED, ids=lambda function: function.__name__)
def test_a_message_is_on_the_page_as_it_is_printed(pimcal_run, monkeypatch, terminal, provoke):
    monkeypatch.setattr("serial.tools.list_ports.comports", list)

    def told(*arguments, command="info"):
        done = pimcal_run("board", command, *arguments)
        assert done.code != 0
        (message,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
        return message.removeprefix("error: ")

    message = provoke(told, monkeypatch, terminal)
    assert [row for row in MESSAGES if pattern(row).fullmatch(message)], message


def test_no_message_is_on_the_page_that_is_not_provoked():
    assert len(MESSAGES) == len(PROVOKED)


# --- the udev rule

ASSIGNMENT = re.compile(r'(?P<key>[A-Z]+)(\{(?P<name>\w+)\})?(?P<sign>==|!=|=|\+=)"(?P<value>[^"]*)"')
MATCHED = {"ACTION", "SUBSYSTEM", "SUBSYSTEMS", "DRIVER", "ATTR", "ATTRS", "ENV"}
ASSIGNED = {"SYMLINK", "GROUP", "MODE", "TAG", "ENV", "ATTR"}


def test_the_page_shows_the_shipped_rule():
    assert [text for language, text in BLOCKS if language == "udev"] == [RULES.read_text()]


def test_the_rule_matches_before_it_assigns_and_always_names_the_board():
    lines = [line for line in RULES.read_text().splitlines() if line and not line.startswith("#")]
    for line in lines:
        parts = [ASSIGNMENT.fullmatch(part) for part in line.split(", ")]
        assert all(parts), line
        matching = [part["sign"] in ("==", "!=") for part in parts]
        assert matching == sorted(matching, reverse=True)
        assert all(part["key"] in (MATCHED if match else ASSIGNED) for part, match in zip(parts, matching, strict=True))
        assert any(match and part["value"] == "PIM-0001" for part, match in zip(parts, matching, strict=True))
    # systemd gives access to who sits at the computer in 73-seat-late.rules.
    assert int(RULES.name.partition("-")[0]) < 73


def test_udev_accepts_the_rule():
    if not shutil.which("udevadm") or subprocess.run(["udevadm", "verify", "--help"], capture_output=True).returncode:
        pytest.skip("needs udevadm verify, of systemd 254 or later")
    subprocess.run(["udevadm", "verify", "--resolve-names=never", str(RULES)], check=True)
