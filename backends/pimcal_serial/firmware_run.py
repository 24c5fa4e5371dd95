"""The reference firmware as a running board: on this computer, or on a microcontroller that QEMU emulates."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pimcal.errors import DeviceUnavailableError
from pimcal_serial.firmware_build import QEMU, Target
from pimcal_serial.simulator.ports import TcpPort, link_terminal, unlink_terminal

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TICK_S = 0.05
_ENDING_S = 5.0
_SHELL = 128  # what a shell adds to a signal's number

Process = subprocess.Popen[str]


@contextmanager
def leaving_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as an exception does, so that nothing is left behind."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(_SHELL + number)

    with _handled(signal.SIGTERM, signal.SIGHUP, by=leave):
        yield


def run(
    target: Target, program: Path, pty_path: Path | None, tcp_port: int | None, on_ready: Callable[[str], None]
) -> None:
    """Be a board, over TCP where `tcp_port` is given, else at the terminal `pty_path`, until a signal comes.

    `on_ready` gets the address that a profile's `port:` needs. Ends with KeyboardInterrupt upon SIGINT, SystemExit upon
    SIGTERM and SIGHUP; raises DeviceUnavailableError where the program ends by itself, and as `TcpPort` and
    `link_terminal` where the port is not to be had. For the main thread only.
    """
    caught: list[int] = []
    with _handled(*_SIGNALS, by=lambda number, frame: caught.append(number)):
        serving = _at_terminal(target, program, pty_path) if tcp_port is None else _on_tcp(target, program, tcp_port)
        with serving as (process, address):
            on_ready(address)
            while process.poll() is None and not caught:
                time.sleep(_TICK_S)
            if not caught:
                raise _ended(process)
    if caught[0] == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(_SHELL + caught[0])


@contextmanager
def _handled(*numbers: int, by: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, by) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _on_tcp(target: Target, program: Path, number: int) -> Iterator[tuple[Process, str]]:
    port = TcpPort(number)
    port.plug()
    try:
        if target.machine is None or port.listening is None:
            port.unplug()
            started = _started([str(program), "--tcp", str(port.port)])
        else:
            # QEMU takes over the open listener, so that nobody else can come in between.
            line = f"socket,id=line,fd={port.listening},server=on,wait=off,nodelay=on"
            command = [*_emulating(target.machine, program), "-chardev", line, "-serial", "chardev:line"]
            started = _started(command, (port.listening,))
    finally:
        port.unplug()
    with _ended_behind(started):
        if target.machine is None:
            _told(started, r"tcp (\S+)")
        yield started, port.address


@contextmanager
def _at_terminal(target: Target, program: Path, path: Path | None) -> Iterator[tuple[Process, str]]:
    with tempfile.TemporaryDirectory(prefix="pimcal-") as folder:
        own = Path(folder) / "line"
        command = (
            [str(program), "--pty", str(own)]
            if target.machine is None
            else [*_emulating(target.machine, program), "-serial", "pty"]
        )
        with _ended_behind(_started(command)) as process:
            told = _told(process, r"(?:pty|redirected to) (\S+)")
            terminal = os.path.realpath(told)
            with _linked(path, terminal):
                yield process, str(path.absolute() if path else terminal)


@contextmanager
def _linked(path: Path | None, terminal: str) -> Iterator[None]:
    # Held open: QEMU looks only once a second whether a host has come to a terminal that nobody has open.
    held = os.open(terminal, os.O_RDWR | os.O_NOCTTY)
    try:
        if path is not None:
            link_terminal(path, terminal)
        yield
    finally:
        if path is not None:
            unlink_terminal(path, terminal)
        os.close(held)


def _emulating(machine: str, program: Path) -> list[str]:
    return [QEMU, "-M", machine, "-kernel", str(program), "-display", "none", "-monitor", "none"]


def _started(command: list[str], descriptors: tuple[int, ...] = ()) -> Process:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        pass_fds=descriptors,
        process_group=0,  # a terminal's Ctrl-C is for this process alone, which then ends that one
    )


@contextmanager
def _ended_behind(process: Process) -> Iterator[Process]:
    """No process is left behind the block."""
    with process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_ENDING_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _told(process: Process, pattern: str) -> str:
    """What the program says in its first lines. Raises DeviceUnavailableError where it ends instead."""
    said = ""
    for line in process.stdout or ():
        said += line
        match = re.search(pattern, line)
        if match:
            return match[1]
    raise _ended(process, said)


def _ended(process: Process, said: str = "") -> DeviceUnavailableError:
    said += process.stdout.read() if process.stdout else ""
    return DeviceUnavailableError(f"the firmware has ended by itself (code {process.wait()}): {said.strip()}")
