"""Moments on the two clocks that matter: the one on the wall, which may jump, and the one that only runs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, tzinfo


@dataclass(frozen=True, slots=True)
class Moment:
    """One instant on both clocks, in seconds.

    `wall_s`: since 1970 in UTC, for cron and quiet hours; may jump both ways. `monotonic_s`: from any zero, never goes
    back, for intervals and ages; its zero must be the same for all moments that are compared.
    """

    wall_s: float
    monotonic_s: float

    def since(self, earlier: Moment) -> float:
        """Seconds that passed between `earlier` and this moment, whatever the wall clock did."""
        return self.monotonic_s - earlier.monotonic_s

    @classmethod
    def remembered(cls, wall_s: float, now: Moment) -> Moment:
        """A moment of which only the wall time was kept, as a process finds it that starts at `now`.

        What lies in the future of a clock that was set back counts as now: intervals then end late, by at most one.
        """
        ago_s = max(0.0, now.wall_s - wall_s)
        return cls(now.wall_s - ago_s, now.monotonic_s - ago_s)


def clock_time(wall_s: float, now: Moment, zone: tzinfo) -> str:
    """A time in `zone` for people, `14:05 UTC`; with its date where that is not today."""
    at = datetime.fromtimestamp(wall_s, zone)
    today = at.date() == datetime.fromtimestamp(now.wall_s, zone).date()
    return f"{at:%H:%M %Z}" if today else f"{at:%Y-%m-%d %H:%M %Z}"
