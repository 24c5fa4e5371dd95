"""Bytes to a board and back, over whatever pyserial can open. Knows nothing of frames."""

from __future__ import annotations

import errno
import grp
import os
import select
import socket
import stat
import termios
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pimcal.errors import DeviceUnavailableError, MissingExtraError
from pimcal_serial.lock import busy, who_has_open

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

_READ_BYTES = 1 << 16
_WRITE_BYTES = 2048  # at once to a port whose time-out for writing counts even if the line is only slow
_PAUSE_S = 0.001
_TICK_S = 0.02


class LinkError(Exception):
    """The port failed: unplugged, closed by the peer, or gone for another reason."""


class Transport(Protocol):
    """An open port. All methods raise LinkError when the port is gone."""

    def exchange(self, outgoing: bytes | bytearray, timeout_s: float) -> tuple[int, bytes]:
        """Write and read what is possible now; waits up to `timeout_s` until something is.

        Returns how many bytes of `outgoing` were taken, and what was received. Reading while there is still something
        to write keeps both sides from waiting for one another with full buffers.
        """
        ...

    def set_baud(self, baud: int) -> None:
        """Change the line's rate, after everything was sent."""
        ...

    def close(self) -> None: ...


@contextmanager
def _link_errors() -> Iterator[None]:
    """Every way in which unplugging shows, as one error; pyserial's own is a kind of OSError."""
    try:
        yield
    except (OSError, termios.error) as error:
        raise LinkError(str(error)) from error


def _set_rate(port: Any, baud: int) -> None:
    try:
        with _link_errors():
            port.baudrate = baud
    except ValueError as error:
        raise LinkError(f"the port cannot do {baud} bit/s: {error}") from error


class FileTransport:
    """A port with a file descriptor: terminals and sockets, read and written without pyserial in between."""

    def __init__(self, port: Any) -> None:
        """`port`: pyserial's, open."""
        self._port = port
        self._descriptor = port.fileno()
        os.set_blocking(self._descriptor, False)
        self._reading, self._both = select.poll(), select.poll()
        self._reading.register(self._descriptor, select.POLLIN)
        self._both.register(self._descriptor, select.POLLIN | select.POLLOUT)

    def exchange(self, outgoing: bytes | bytearray, timeout_s: float) -> tuple[int, bytes]:
        with _link_errors():
            ready = (self._both if outgoing else self._reading).poll(max(0.0, timeout_s) * 1000)
            events = ready[0][1] if ready else 0
            received = self._read() if events & ~select.POLLOUT else b""
            return (self._write(outgoing) if events & select.POLLOUT else 0), received

    def _read(self) -> bytes:
        try:
            received = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return b""
        if not received:
            raise LinkError("the other side has closed the connection")
        return received

    def _write(self, outgoing: bytes | bytearray) -> int:
        try:
            return os.write(self._descriptor, outgoing)
        except BlockingIOError:
            return 0

    def set_baud(self, baud: int) -> None:
        _set_rate(self._port, baud)

    def close(self) -> None:
        with suppress(OSError, termios.error):
            self._port.close()


class QueueTransport:
    """A port that pyserial reads in a thread of its own (rfc2217), so that writing cannot block reading.

    `port` has a short time-out, which stays: setting it would negotiate all settings of the port with the server anew.
    """

    def __init__(self, port: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._port, self._clock = port, clock

    def exchange(self, outgoing: bytes | bytearray, timeout_s: float) -> tuple[int, bytes]:
        with _link_errors():
            if outgoing:
                return self._port.write(bytes(outgoing[:_WRITE_BYTES])), self._waiting()
            deadline_s = self._clock() + timeout_s
            received = self._waiting()
            while not received and self._clock() < deadline_s:
                received = self._port.read(1) + self._waiting()
            return 0, received

    def _waiting(self) -> bytes:
        """What has arrived. A connection that has ended counts as one byte, and reading it tells."""
        waiting = self._port.in_waiting
        return bytes(self._port.read(waiting)) if waiting else b""

    def set_baud(self, baud: int) -> None:
        _set_rate(self._port, baud)

    def close(self) -> None:
        connection = getattr(self._port, "_socket", None)
        with suppress(OSError):
            self._port.close()
        if connection is not None:
            connection.close()  # pyserial does not where the other side has gone


class DirectTransport:
    """A board within this process: `receive(data, now_s)` gives the bytes that it answers."""

    def __init__(self, receive: Callable[[bytes, float], bytes], clock: Callable[[], float] = time.monotonic) -> None:
        self._receive, self._clock = receive, clock

    def exchange(self, outgoing: bytes | bytearray, timeout_s: float) -> tuple[int, bytes]:
        received = self._receive(bytes(outgoing), self._clock())
        if not outgoing and not received:
            time.sleep(max(0.0, min(timeout_s, _PAUSE_S)))
        return len(outgoing), received

    def set_baud(self, baud: int) -> None:
        """Nothing travels at any rate here."""

    def close(self) -> None: ...


def resolve_port(port: str) -> str:
    """The device path of `usb:SERIAL`, and other ports as they are. Raises DeviceUnavailableError."""
    if not port.startswith("usb:"):
        return port
    wanted = port.removeprefix("usb:")
    found = {entry.serial_number: entry.device for entry in _list_ports() if entry.serial_number}
    if wanted not in found:
        there = f"there are: {', '.join(sorted(found))}" if found else "there is none at all"
        raise DeviceUnavailableError(
            f"no USB serial port has the serial number {wanted} ({there}); see pimcal board list"
        )
    return str(found[wanted])


def lock_name(port: str) -> str:
    """What all names of one port have in common: links to a device file are followed."""
    return port if "://" in port else os.path.realpath(port)


def open_port(port: str, baud: int, timeout_s: float) -> Transport:
    """Open a device path, `usb:SERIAL`, `socket://host:port` or `rfc2217://host:port`.

    Raises DeviceUnavailableError (no such port, no permission, no connection), DeviceBusyError, MissingExtraError.
    """
    serial = _pyserial()
    path = resolve_port(port)
    is_url, is_remote = "://" in path, path.startswith("rfc2217://")
    options: dict[str, Any] = {} if is_url else {"exclusive": True}
    try:
        opened = serial.serial_for_url(path, baudrate=baud, timeout=_TICK_S if is_remote else timeout_s, **options)
    except (OSError, ValueError, termios.error) as error:
        raise _not_opened(path, error) from error
    if is_remote:
        return QueueTransport(opened)
    if not is_url:
        # Some adapters hold back what they received for 16 ms; pseudo-terminals have no such mode.
        with suppress(OSError, ValueError, NotImplementedError, AttributeError):
            opened.set_low_latency_mode(True)
    else:
        with suppress(OSError, AttributeError):
            opened._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return FileTransport(opened)


def _not_opened(port: str, error: Exception) -> Exception:
    code, reason = _cause(error)
    if code in (errno.EWOULDBLOCK, errno.EBUSY):
        return busy(port, who_has_open(port))
    if code == errno.EACCES:
        return DeviceUnavailableError(f"no permission to open {port}; {_remedy(port)}")
    if code == errno.ENOENT or ("://" not in port and not Path(port).exists()):
        there = ", ".join(entry.device for entry in _list_ports()) or "none"
        return DeviceUnavailableError(f"there is no port {port} (serial ports here: {there}); is the board plugged in?")
    if code in (errno.ENOTTY, errno.EISDIR):
        return DeviceUnavailableError(f"{port} is no serial port; see pimcal board list")
    return DeviceUnavailableError(f"cannot open {port}: {reason}; check the address, the cable and the board's power")


def _cause(error: Exception) -> tuple[int | None, str]:
    """Number and words of the system's error, which pyserial puts into one of its own."""
    inner = error.__context__ or error
    if len(inner.args) == 2 and isinstance(inner.args[0], int):
        return inner.args[0], str(inner.args[1])
    return None, str(inner)


def _remedy(port: str) -> str:
    """What helps a user who may not open a device file."""
    with suppress(OSError, KeyError):  # in a folder of somebody else's, or of a group without a name
        status = Path(port).stat()
        if status.st_gid and status.st_mode & stat.S_IRGRP and status.st_mode & stat.S_IWGRP:
            group = grp.getgrgid(status.st_gid).gr_name
            return f"add yourself to the group that owns it (sudo usermod -aG {group} $USER), then log in again"
    return "its group may not, either: ask the machine's administrator for access"


def list_ports() -> list[dict[str, str]]:
    """Serial ports of this machine: device, `usb:SERIAL` where they have one, description."""
    return [
        {
            "device": entry.device,
            "port": f"usb:{entry.serial_number}" if entry.serial_number else entry.device,
            "description": entry.description or "",
        }
        for entry in sorted(_list_ports())
    ]


def _list_ports() -> list[Any]:
    _pyserial()
    from serial.tools.list_ports import comports

    return list(comports())


def _pyserial() -> ModuleType:
    try:
        import serial
    except ModuleNotFoundError as error:
        raise MissingExtraError("a board on a serial port", "pyserial", "serial") from error
    return serial
