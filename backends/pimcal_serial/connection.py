"""From settings to an open board: lock, port, session."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from pimcal import __version__
from pimcal.errors import DeviceUnavailableError
from pimcal_serial.lock import BoardLock
from pimcal_serial.session import Session, Timing
from pimcal_serial.settings import SIMULATED, SerialSettings
from pimcal_serial.transport import DirectTransport, LinkError, Transport, lock_name, open_port, resolve_port


class Connection:
    """A session with the board, and the lock that keeps others away from it."""

    def __init__(self, settings: SerialSettings) -> None:
        """Raises DeviceUnavailableError, DeviceBusyError, MissingExtraError."""
        self._settings = settings
        self._virtual = _Virtual(settings) if settings.port == SIMULATED else None
        self._lock = None if self._virtual else BoardLock(lock_name(resolve_port(settings.port)))
        try:
            self.session = Session(
                self._connect,
                Timing(
                    None if self._virtual else settings.baud,
                    settings.margin_s,
                    settings.connect_s,
                    settings.reconnect_s,
                ),
                name=f"the board on {settings.port}",
                host=f"pimcal {__version__}",
            )
            self._check_serial_number()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> Transport:
        if self._virtual:
            return self._virtual.transport()
        return open_port(self._settings.port, self._settings.baud, self._settings.margin_s)

    def _check_serial_number(self) -> None:
        wanted, found = self._settings.serial_number, self.session.info.serial_number
        if wanted is not None and wanted != found:
            raise DeviceUnavailableError(
                f"the board on {self._settings.port} has the serial number {found or '(none)'}, "
                f"the profile wants {wanted}; plug that one in, or correct device.serial_number"
            )

    def close(self) -> None:
        """Leave the board answering, and to others."""
        if hasattr(self, "session"):
            self.session.close()
        if self._lock:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Virtual:
    """The virtual board of port `sim:`, which lives on while its port is opened again."""

    def __init__(self, settings: SerialSettings, clock: Callable[[], float] = time.monotonic) -> None:
        from pimcal_serial.simulator.faults import virtual_board
        from pimcal_serial.simulator.settings import BoardSettings

        self._board, self._clock = virtual_board(settings.simulator or BoardSettings()), clock
        self._unplugged_until_s: float | None = None
        self._greeting = self._board.start(clock())

    def transport(self) -> Transport:
        """Raises DeviceUnavailableError while the board is unplugged."""
        if self._unplugged_until_s is not None:
            if self._clock() < self._unplugged_until_s:
                raise DeviceUnavailableError("the virtual board is unplugged")
            self._unplugged_until_s = None
            self._greeting = self._board.start(self._clock())
        return DirectTransport(self._receive, self._clock)

    def _receive(self, data: bytes, now_s: float) -> bytes:
        from pimcal_serial.simulator.faults import Unplugged

        if self._unplugged_until_s is not None:
            raise LinkError("unplugged")
        greeting, self._greeting = self._greeting, b""
        try:
            return greeting + self._board.receive(data, now_s)
        except Unplugged as fault:
            self._unplugged_until_s = now_s + fault.off_s
            raise LinkError("unplugged") from fault
