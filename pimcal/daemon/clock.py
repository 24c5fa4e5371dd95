"""The daemon's time. Everything in it takes a clock; only this file asks the operating system."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from pimcal.recalibration.clock import Moment


class Clock(Protocol):
    """What time it is, and how long its seconds last."""

    def now(self) -> Moment: ...

    def lasts_s(self, seconds: float) -> float:
        """Seconds of the operating system in which so many of this clock's pass."""


class SystemClock:
    """The machine's own clocks; with `speed` above 1 both run faster from now on, for simulated devices."""

    def __init__(
        self,
        speed: float = 1.0,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.speed = speed
        self._wall, self._monotonic = wall, monotonic
        self._start_s = monotonic()

    def now(self) -> Moment:
        monotonic_s = self._monotonic()
        ahead_s = (self.speed - 1) * (monotonic_s - self._start_s)
        return Moment(self._wall() + ahead_s, monotonic_s + ahead_s)

    def lasts_s(self, seconds: float) -> float:
        return seconds / self.speed


_LATEST_S = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()  # ISO 8601 has four digits for a year


def told_time(wall_s: float | None) -> str | None:
    """A time for people and programs: ISO 8601, UTC, to the second; what is later than the year 9999 is its end."""
    if wall_s is None:
        return None
    return datetime.fromtimestamp(min(wall_s, _LATEST_S), UTC).isoformat(timespec="seconds")
