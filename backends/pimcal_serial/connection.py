"""From settings to an open board: lock, port, session."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pimcal import __version__
from pimcal.errors import DeviceUnavailableError, PimcalError
from pimcal.shown import one_line
from pimcal_serial.lock import BoardLock
from pimcal_serial.replay import ReplayedBoard, ReplaySession, TracedSession
from pimcal_serial.requests import BoardRestartedError, RefusedError
from pimcal_serial.session import Session, Timing
from pimcal_serial.settings import REPLAY, SIMULATED, SerialSettings
from pimcal_serial.trace import TraceWriter, traced
from pimcal_serial.transport import DirectTransport, LinkError, Transport, lock_name, open_port, resolve_port

logger = logging.getLogger("pimcal.serial")


class Connection:
    """A session with the board, and the lock that keeps others away from it."""

    def __init__(self, settings: SerialSettings) -> None:
        """Raises DeviceUnavailableError, DeviceBusyError, MissingExtraError.

        With a trace also UsageError and StorageError, with a recording DataError.
        """
        self._settings = settings
        self._here = _board_here(settings)
        self._lock = None if self._here else BoardLock(lock_name(resolve_port(settings.port)))
        self._trace: TraceWriter | None = None
        self._baud = settings.baud  # at which the port is opened
        try:
            if settings.trace is not None:
                self._trace = TraceWriter(Path(settings.trace), settings.port, settings.baud)
            self.session = self._session()
            self._check_serial_number()
            self._speed_up()
        except BaseException:
            self.close()
            raise

    def _session(self) -> Session:
        """Greet the board, also at the fast rate, where a run that was killed has left it."""
        settings = self._settings
        try:
            return self._session_at(settings.baud)
        except DeviceUnavailableError:
            if self._here or settings.fast_baud is None:
                raise
            with suppress(DeviceUnavailableError):
                return self._session_at(settings.fast_baud)
            raise

    def _session_at(self, baud: int) -> Session:
        settings, here = self._settings, self._here
        self._baud = baud
        options: dict[str, Any] = {
            "timing": Timing(None if here else baud, settings.margin_s, settings.connect_s, settings.reconnect_s),
            "name": f"the board on {settings.port}",
            "host": f"pimcal {__version__}",
        }
        if isinstance(here, ReplayedBoard):
            return ReplaySession(here, **options)
        connect = here.transport if here else self._open
        if self._trace:
            return TracedSession(self._trace, traced(connect, self._trace), **options)
        return Session(connect, **options)

    def _open(self) -> Transport:
        return open_port(self._settings.port, self._baud, self._settings.margin_s)

    def _speed_up(self) -> None:
        wanted = self._settings.fast_baud
        if self._here or wanted is None or wanted == self._baud:
            return
        try:
            self.session.set_baud(wanted)
        except (RefusedError, DeviceUnavailableError) as error:
            logger.warning("%s; it goes on at %d bit/s", error, self._baud)

    def _slow_down(self) -> None:
        """Leave the board at the rate at which others will look for it."""
        if self.session.baud not in (None, self._settings.baud):
            with suppress(PimcalError, BoardRestartedError):
                self.session.set_baud(self._settings.baud)

    def _check_serial_number(self) -> None:
        wanted, found = self._settings.serial_number, self.session.info.serial_number
        if wanted is not None and wanted != found:
            raise DeviceUnavailableError(
                f"the board on {self._settings.port} has the serial number {one_line(found) or '(none)'}, "
                f"the profile wants {wanted}; plug that one in, or correct device.serial_number"
            )

    def close(self) -> None:
        """Leave the board answering, and to others; ends the trace."""
        with ExitStack() as last:
            if self._lock:
                last.callback(self._lock.release)
                self._lock = None
            if self._trace:
                last.callback(self._trace.close)
            if hasattr(self, "session"):
                last.callback(self.session.close)
                self._slow_down()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _board_here(settings: SerialSettings) -> _Virtual | ReplayedBoard | None:
    """The board within this process; None for one at a port. Raises DataError for a recording that is none."""
    if settings.port.startswith(REPLAY):
        return ReplayedBoard(Path(settings.port.removeprefix(REPLAY)))
    return _Virtual(settings) if settings.port == SIMULATED else None


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
