"""Where a virtual board is plugged in: a pseudo-terminal, a TCP port, or a socket within the process."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import socket
import struct
import termios
import tty
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from pimcal.errors import DeviceBusyError, DeviceUnavailableError, StorageError, UsageError

_TCGETS2 = 0x802C542A  # as asm-generic has it; its structure ends in the input and the output rate
_TERMIOS2_BYTES = 44
_NO_RATE = 50  # bit/s: a terminal that no host has set


class Port(Protocol):
    """A place for a board. `fd` is the host's connection, `listening` where hosts come in; None where there is none."""

    fd: int | None
    listening: int | None

    @property
    def address(self) -> str:
        """What a profile's `port:` would be."""
        ...

    @property
    def rate(self) -> int | None:
        """The line rate that the host has set, in bit/s; None where lines have none, or no host has set it."""
        ...

    def plug(self) -> None:
        """Appear. May be called again after `unplug`."""
        ...

    def unplug(self) -> None:
        """Vanish. May be called when nothing is plugged in."""
        ...

    def accept(self) -> None:
        """Take the host that waits at `listening`."""
        ...

    def hang_up(self) -> None:
        """The host has left."""
        ...


class PtyPort:
    """A pseudo-terminal, at `path` if given: a link that is there while the board is plugged in.

    `plug` raises UsageError where something else is at `path`, StorageError where the link cannot be made.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.fd: int | None = None
        self.listening: int | None = None
        self._path = path
        self._slave: int | None = None

    @property
    def address(self) -> str:
        return str(self._path.absolute() if self._path else self._slave_name)  # a profile's port begins with /

    @property
    def rate(self) -> int | None:
        found = None if self._slave is None else terminal_rate(self._slave)
        return None if found == _NO_RATE else found

    def plug(self) -> None:
        self.fd, self._slave = pty.openpty()
        self._slave_name = os.ttyname(self._slave)
        tty.setraw(self._slave)  # and left open here, as a terminal without readers would fail
        _set_no_rate(self._slave)
        os.set_blocking(self.fd, False)
        try:
            if self._path is not None:
                link_terminal(self._path, self._slave_name)
        except BaseException:
            self.unplug()
            raise

    def unplug(self) -> None:
        if self.fd is None or self._slave is None:
            return
        if self._path is not None:
            unlink_terminal(self._path, self._slave_name)
        os.close(self._slave)
        os.close(self.fd)
        self.fd = self._slave = None

    def accept(self) -> None:
        pass

    def hang_up(self) -> None:
        pass


def link_terminal(path: Path, terminal: str) -> None:
    """Let the terminal appear at `path`, too. Raises UsageError where something else is there, StorageError."""
    if path.is_symlink() and not path.exists():
        path.unlink()  # of a board that was killed
    try:
        path.symlink_to(terminal)
    except FileExistsError as error:
        raise UsageError(_taken(path)) from error
    except OSError as error:
        raise StorageError(f"cannot make {path}: {error.strerror}; give a path in a folder of yours") from error


def _taken(path: Path) -> str:
    if path.is_symlink() and path.readlink().is_relative_to("/dev/pts"):
        return (
            f"{path} is a link to {path.readlink()}, a terminal that somebody has open; if it was left by a board that "
            "was killed, remove it"
        )
    return f"{path} exists; give a path where the board's terminal can appear"


def unlink_terminal(path: Path, terminal: str) -> None:
    """Undo `link_terminal`."""
    if path.is_symlink() and str(path.readlink()) == terminal:
        path.unlink()


def terminal_rate(fd: int) -> int | None:
    """The output rate of an open terminal in bit/s, whether it has a constant or not; None where it tells none."""
    try:
        told = fcntl.ioctl(fd, _TCGETS2, bytes(_TERMIOS2_BYTES))
    except OSError:
        return None
    (rate,) = struct.unpack("I", told[-4:])
    return int(rate)


def _set_no_rate(fd: int) -> None:
    attributes = termios.tcgetattr(fd)
    attributes[4] = attributes[5] = termios.B50
    termios.tcsetattr(fd, termios.TCSANOW, attributes)


class TcpPort:
    """A TCP port on 127.0.0.1 for one host at a time; 0 is any free one.

    `plug` raises DeviceBusyError where the port is taken, DeviceUnavailableError where it is not allowed.
    """

    def __init__(self, port: int = 0) -> None:
        self.fd: int | None = None
        self.listening: int | None = None
        self.port = port
        self._listener: socket.socket | None = None
        self._host: socket.socket | None = None

    @property
    def address(self) -> str:
        return f"socket://127.0.0.1:{self.port}"

    @property
    def rate(self) -> int | None:
        return None

    def plug(self) -> None:
        try:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=1)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            reason = os.strerror(error.errno or 0)  # the error's own text repeats the address
            message = f"cannot listen on port {self.port}: {reason}; give another one, or 0 for any free one"
            raise (DeviceBusyError if taken else DeviceUnavailableError)(message) from error
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self.listening = self._listener.fileno()

    def unplug(self) -> None:
        if self._listener is not None:
            self._listener.close()  # first, so that a host that is cut off does not come in again at once
        self.listening = self._listener = None
        self.hang_up()

    def accept(self) -> None:
        if self._listener is None:
            return
        with suppress(OSError):  # the host left again
            self._host, _ = self._listener.accept()
            self._host.setblocking(False)
            self._host.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.fd = self._host.fileno()

    def hang_up(self) -> None:
        if self._host is not None:
            self._host.close()
        self.fd = self._host = None


class LocalPort:
    """Connected sockets; `hosts` has the host's end of each `plug`, which the host closes."""

    def __init__(self) -> None:
        self.fd: int | None = None
        self.listening: int | None = None
        self.hosts: list[socket.socket] = []
        self._board: socket.socket | None = None

    @property
    def address(self) -> str:
        return "a socket within this process"

    @property
    def rate(self) -> int | None:
        return None

    def plug(self) -> None:
        self._board, host = socket.socketpair()
        self.hosts.append(host)
        self._board.setblocking(False)
        self.fd = self._board.fileno()

    def unplug(self) -> None:
        self.hang_up()

    def accept(self) -> None:
        pass

    def hang_up(self) -> None:
        if self._board is not None:
            self._board.close()
        self.fd = self._board = None
