"""What holds a recalibration back: quiet hours, cooldown, the cap per hour, and attempts that came to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from pimcal.profile.duration import format_duration
from pimcal.profile.local_time import zone
from pimcal.recalibration.clock import Moment, clock_time

if TYPE_CHECKING:
    from pimcal.profile import Recalibration

HOUR_S = 3600.0
RETRY_S = 600.0  # after one attempt that was not activated; doubles with each further one, up to a day
RETRY_LONGEST_S = 86_400.0


class Hold(NamedTuple):
    """A reason to wait, and for how many seconds."""

    reason: str
    free_in_s: float


def holds(settings: Recalibration, now: Moment, attempts: Sequence[Moment], rejected: int) -> list[Hold]:
    """All that holds a recalibration back at `now`.

    `attempts`: the ends of earlier recalibrations, activated or not, oldest first: at least those of the last hour and
    the newest. `rejected`: how many in a row, up to now, were not activated.
    """
    found = (
        quiet(settings, now),
        _cooldown(settings, now, attempts),
        _cap(settings, now, attempts),
        _retry(settings, now, attempts, rejected),
    )
    return [hold for hold in found if hold is not None]


def quiet(settings: Recalibration, now: Moment) -> Hold | None:
    """Quiet hours, in which nothing begins that takes device time, by local time: also where clocks are changed."""
    if not _quiet_min(settings, now.wall_s):
        return None
    end_s = now.wall_s
    while left_min := _quiet_min(settings, end_s):
        end_s = _nearer(settings, end_s, left_min)
    hours = ", ".join(map(str, settings.quiet_hours))
    told = clock_time(end_s, now, zone(settings.timezone))
    return Hold(f"quiet hours ({hours}), which end at {told}", end_s - now.wall_s)


def _nearer(settings: Recalibration, wall_s: float, left_min: float) -> float:
    """The end of a window that has `left_min` left; the next minute, where clocks are changed before that."""
    end_s = float(round(wall_s + left_min * 60))
    offsets = {datetime.fromtimestamp(at_s, zone(settings.timezone)).utcoffset() for at_s in (wall_s, end_s)}
    return end_s if len(offsets) == 1 else (wall_s // 60 + 1) * 60


def _quiet_min(settings: Recalibration, wall_s: float) -> float:
    """Minutes until the last of the windows around a wall time ends, 0 where it is in none."""
    if not settings.quiet_hours:
        return 0.0
    at = datetime.fromtimestamp(wall_s, zone(settings.timezone))
    minute = at.hour * 60 + at.minute + at.second / 60 + at.microsecond / 60e6
    return max(window.remaining_min(minute) for window in settings.quiet_hours)


def _cooldown(settings: Recalibration, now: Moment, attempts: Sequence[Moment]) -> Hold | None:
    if settings.cooldown is None or not attempts:
        return None
    left_s = settings.cooldown.total_seconds() - now.since(attempts[-1])
    ago = told_duration(now.since(attempts[-1]))
    told = f"the last recalibration was {ago} ago (cooldown {format_duration(settings.cooldown)})"
    return _hold(settings, now, told, left_s)


def _cap(settings: Recalibration, now: Moment, attempts: Sequence[Moment]) -> Hold | None:
    recent = [attempt for attempt in attempts if now.since(attempt) < HOUR_S]
    if settings.max_per_hour is None or len(recent) < settings.max_per_hour:
        return None
    left_s = HOUR_S - now.since(recent[-settings.max_per_hour])
    plural = "s" if len(recent) > 1 else ""
    told = f"{len(recent)} recalibration{plural} in the last hour (max_per_hour {settings.max_per_hour})"
    return _hold(settings, now, told, left_s)


def _retry(settings: Recalibration, now: Moment, attempts: Sequence[Moment], rejected: int) -> Hold | None:
    if not rejected or not attempts:
        return None
    wait_s = min(RETRY_S * 2.0 ** min(rejected - 1, 30), RETRY_LONGEST_S)
    told = "the last recalibration was" if rejected == 1 else f"the last {rejected} recalibrations were"
    return _hold(settings, now, f"{told} not activated", wait_s - now.since(attempts[-1]))


def _hold(settings: Recalibration, now: Moment, reason: str, left_s: float) -> Hold | None:
    if left_s <= 0:
        return None
    return Hold(f"{reason}, free again at {clock_time(now.wall_s + left_s, now, zone(settings.timezone))}", left_s)


def told_duration(seconds: float) -> str:
    """A duration for people: to the minute from an hour on, else to the second."""
    unit_s = 60 if seconds >= HOUR_S else 1
    return format_duration(timedelta(seconds=round(seconds / unit_s) * unit_s))
