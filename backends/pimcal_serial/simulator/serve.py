"""Serve a virtual board over a port, until it is stopped."""

from __future__ import annotations

import os
import secrets
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from pimcal.errors import UsageError
from pimcal_serial.simulator.faults import Unplugged, VirtualBoard, virtual_board
from pimcal_serial.simulator.pacing import PacedLine
from pimcal_serial.simulator.ports import LocalPort, Port, PtyPort, TcpPort
from pimcal_serial.simulator.settings import BoardSettings

_TICK_S = 0.02  # how often a board hears of the time when nothing else happens
_FIFO = 16384  # bytes that a paced line holds, enough to keep it busy while this process is not scheduled
_BACKLOG = 1 << 16  # bytes that a host has not read when no more is taken from it
_READ = 1 << 16
_OTHER_RATE = bytes(byte ^ 0xAA for byte in range(256))  # bits sampled at other times; no frame survives it


class Server:
    """A board at a port. Made, it is plugged in; `run` serves until `stop`, which any thread or signal may call."""

    def __init__(
        self,
        board: VirtualBoard,
        port: Port,
        baud: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`baud`: pace the line until the board is asked for another rate; None: as fast as it goes."""
        self.port = port
        self._board, self._baud, self._clock = board, baud, clock
        self._inward, self._outward, self._outgoing = PacedLine(), PacedLine(), bytearray()
        self._stopping = False
        self._plug()
        self._waking, self._wake = socket.socketpair()
        self._wake.setblocking(False)

    def run(self) -> None:
        """Serve; unplugs the board at the end."""
        try:
            while not self._stopping:
                self._step()
        finally:
            self.close()

    def stop(self) -> None:
        """End `run` soon."""
        self._stopping = True
        with suppress(OSError):  # it is ending already
            self._wake.send(b"\0")

    def close(self) -> None:
        """Unplug the board; `run` does so itself."""
        self.port.unplug()
        self._waking.close()
        self._wake.close()

    def _plug(self) -> None:
        self.port.plug()
        self._forget()
        now_s = self._clock()
        self._outward.put(self._board.start(now_s), now_s, self._rate())

    def _forget(self) -> None:
        self._inward.clear()
        self._outward.clear()
        self._outgoing.clear()

    def _rate(self) -> int | None:
        return self._baud and (self._board.rate or self._baud)

    def _as_read(self, data: bytes, rate: int | None) -> bytes:
        """What the other side of a line reads: something else where the two have different rates."""
        same = rate is None or self.port.rate in (None, rate)
        return data if same else data.translate(_OTHER_RATE)

    def _step(self) -> None:
        try:
            self._work(self._clock())
        except Unplugged as fault:
            self.port.unplug()
            select.select([self._waking], [], [], fault.off_s)
            self._plug()
        self._exchange()

    def _work(self, now_s: float) -> None:
        """Let the board see what has arrived, and the time."""
        rate = self._rate()  # an answer travels at the rate that its request came with
        sent = self._board.receive(self._inward.take(now_s), now_s)
        if sent:
            self._outward.put(self._as_read(sent, rate), now_s, rate)
        self._outgoing += self._outward.take(now_s)

    def _exchange(self) -> None:
        """Wait for the host, the line, or the clock; read and write."""
        fd, listening = self.port.fd, self.port.listening
        reading: list[int | socket.socket] = [self._waking]
        if fd is None:
            reading += [] if listening is None else [listening]
        elif self._room():
            reading.append(fd)
        writing = [fd] if fd is not None and self._outgoing else []
        readable, writable, _ = select.select(reading, writing, [], self._pause_s())
        if fd is None and listening in readable:
            self.port.accept()
        elif fd is not None:
            self._transfer(fd, fd in readable, bool(writable))

    def _room(self) -> int:
        """How many bytes may be read."""
        if len(self._outward) + len(self._outgoing) >= _BACKLOG:
            return 0
        return _FIFO - len(self._inward) if self._baud else _READ

    def _pause_s(self) -> float:
        due_s = min(self._inward.due_s(), self._outward.due_s())
        return min(max(0.0, due_s - self._clock()), _TICK_S)

    def _transfer(self, fd: int, readable: bool, writable: bool) -> None:
        try:
            if writable:
                del self._outgoing[: os.write(fd, self._outgoing)]
            if readable:
                self._read(fd)
        except BlockingIOError:
            pass
        except OSError:
            self._lose_host()

    def _read(self, fd: int) -> None:
        data = os.read(fd, self._room())
        if data:
            rate = self._rate()
            self._inward.put(self._as_read(data, rate), self._clock(), rate)
        else:
            self._lose_host()

    def _lose_host(self) -> None:
        self.port.hang_up()
        self._forget()


@contextmanager
def serving(
    settings: BoardSettings, port: Port, baud: int | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[Server]:
    """Serve a board in a thread of its own while the block runs."""
    server = Server(virtual_board(settings, _new_boot_id()), port, baud, clock)
    thread = threading.Thread(target=server.run, name="pimsim", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


class Connection:
    """A host's end of a virtual board within this process."""

    def __init__(self, settings: BoardSettings, baud: int | None = None) -> None:
        self._port, self._opened = LocalPort(), ExitStack()
        self._opened.enter_context(serving(settings, self._port, baud))

    @property
    def socket(self) -> socket.socket:
        """The host's end; another one after the board was unplugged and is back."""
        return self._port.hosts[-1]

    def read(self, size: int = _READ, timeout_s: float | None = None) -> bytes:
        """At most `size` bytes, as soon as there are any; none where the board is gone. Raises TimeoutError."""
        self.socket.settimeout(timeout_s)
        return self.socket.recv(size)

    def write(self, data: bytes) -> None:
        """Raises OSError where the board is gone."""
        self.socket.settimeout(None)
        self.socket.sendall(data)

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        """Stop the board, too."""
        self._opened.close()
        for host in self._port.hosts:
            host.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def connect(settings: BoardSettings, baud: int | None = None) -> Connection:
    """A virtual board within this process; close the connection to end it."""
    return Connection(settings, baud)


def simulate(
    settings: BoardSettings,
    pty_path: Path | None = None,
    tcp_port: int | None = None,
    baud: int | None = None,
    on_ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve a virtual board until SIGINT or SIGTERM: over TCP where `tcp_port` is given, else over a pseudo-terminal.

    `on_ready` gets the address that a profile's `port:` needs. Raises UsageError, DeviceBusyError,
    DeviceUnavailableError or StorageError where the port is not to be had. For the main thread only.
    """
    if pty_path is not None and tcp_port is not None:
        raise UsageError("a virtual board has one port; give a terminal's path or a TCP port, not both")
    port: Port = PtyPort(pty_path) if tcp_port is None else TcpPort(tcp_port)
    server = Server(virtual_board(settings, _new_boot_id()), port, baud)
    with _stopped_by_signals(server):
        on_ready(port.address)
        server.run()


@contextmanager
def _stopped_by_signals(server: Server) -> Iterator[None]:
    before = {number: signal.signal(number, lambda *_: server.stop()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _new_boot_id() -> int:
    """Another one than that of the process before."""
    return secrets.randbelow(2**31) + 1
