"""What to do now, and why: nothing, a probe, a recalibration, or wait. Pure; the daemon acts on it.

Rules, in the order in which they hold:

1. A recalibration is wanted where there is none yet, the tiles were programmed anew, `max_age` is reached, a trigger of
   `when` fired, or a scheduled look is due and no trigger needs a probe.
2. It waits for all of: the end of quiet hours, of the cooldown, of the hour that has `max_per_hour`, and a time after
   attempts that were not activated. Nothing overrides these, `max_age` neither: it reports the calibration as overdue
   and recalibrates as soon as they allow it.
3. A scheduled look is a probe where a trigger needs one. Only quiet hours hold it back: a probe costs little, and the
   operator sees how far a device drifted that may not be recalibrated yet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from pimcal.profile.duration import format_duration
from pimcal.profile.local_time import zone
from pimcal.recalibration.clock import clock_time
from pimcal.recalibration.limits import Hold, holds, quiet, told_duration
from pimcal.recalibration.triggers import BUILT_IN, Readings, Trigger, Verdict, evaluate, reprogrammed

if TYPE_CHECKING:
    from pimcal.profile import Recalibration
    from pimcal.recalibration.clock import Moment
    from pimcal.recalibration.schedule import Schedule

WATCH_S = 60.0  # the longest time between two decisions where there is something to watch; else IDLE_S
IDLE_S = 3600.0
SHORTEST_S = 1.0  # so that rounding never makes a loop that waits for nothing

Kind = Literal["nothing", "probe", "calibrate", "wait"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, all reasons as sentences, and after how many seconds to decide anew (0: once it is done).

    `overdue`: the calibration in use is older than `max_age`.
    """

    kind: Kind
    reasons: tuple[str, ...]
    next_look_s: float
    overdue: bool = False

    def lines(self) -> tuple[str, ...]:
        """The reasons, each after the kind."""
        return tuple(f"{self.kind}: {reason}" for reason in self.reasons)


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What a decision needs to know of the past.

    `calibrated`: the readings when the active calibration was made, None where there is none. `attempts`: the ends of
    recalibrations, activated or not, oldest first: at least those of the last hour and the newest. `rejected`: how many
    in a row, up to now, were not activated.
    """

    calibrated: Readings | None = None
    attempts: tuple[Moment, ...] = ()
    rejected: int = 0


class _Look(NamedTuple):
    """What the triggers and the schedule ask for: reasons to recalibrate, to probe, and what keeps quiet."""

    calibrate: tuple[str, ...]
    probe: tuple[str, ...]
    calm: tuple[str, ...]


def decide(
    settings: Recalibration,
    schedule: Schedule,
    history: History,
    readings: Readings,
    triggers: Mapping[str, Trigger] = BUILT_IN,
) -> Decision:
    """What to do at `readings.at`, by the rules above.

    `schedule` was brought to that moment by `schedule.follow`. `triggers`: those that a profile may name; plugins' ones
    come from `registry.triggers()`.
    """
    now = readings.at
    look = _look(settings, schedule, history, readings, triggers)
    held = holds(settings, now, history.attempts, history.rejected)
    still = quiet(settings, now)
    overdue = _too_old(settings, history, now).fired
    if look.calibrate and not held:
        return Decision("calibrate", look.calibrate, 0.0, overdue)
    if look.probe and not still:
        waiting = _waiting(held, look.calibrate) if look.calibrate else ()
        return Decision("probe", (*look.probe, *waiting), 0.0, overdue)
    if look.calibrate:
        return Decision("wait", _waiting(held, look.calibrate), _wait_s(settings, schedule, now, held), overdue)
    if look.probe and still:
        return Decision(
            "wait", (still.reason, *_wanted("probe", look.probe)), _capped(settings, still.free_in_s), overdue
        )
    upcoming = _upcoming_s(settings, schedule, history, now)
    return Decision("nothing", (*look.calm, *_announced(settings, upcoming, now)), _capped(settings, upcoming))


def _look(
    settings: Recalibration,
    schedule: Schedule,
    history: History,
    readings: Readings,
    triggers: Mapping[str, Trigger],
) -> _Look:
    before = history.calibrated
    if before is None:
        return _Look(("there is no calibration of this device and model yet",), (), ())
    verdicts = list(_verdicts(settings, history, readings, before, triggers))
    calibrate = tuple(verdict.reason for verdict in verdicts if verdict.fired)
    calm = tuple(verdict.reason for verdict in verdicts if not verdict.fired)
    due = _due(settings, schedule, readings.at)
    if any(triggers[name].needs_probe for name in _named(settings)):
        return _Look(calibrate, due, calm)
    return _Look(calibrate + due, (), calm)


def _named(settings: Recalibration) -> dict[str, float]:
    return {name: limit for one in settings.when for name, limit in one.items()}


def _verdicts(
    settings: Recalibration,
    history: History,
    readings: Readings,
    before: Readings,
    triggers: Mapping[str, Trigger],
) -> Iterator[Verdict]:
    for name, limit in _named(settings).items():
        yield evaluate(name, triggers[name], readings, before, limit)
    if settings.max_age is not None:
        yield _too_old(settings, history, readings.at)
    yield reprogrammed(readings, before)


def _too_old(settings: Recalibration, history: History, now: Moment) -> Verdict:
    if settings.max_age is None or history.calibrated is None:
        return Verdict(False, "there is no upper age")
    age_s = now.since(history.calibrated.at)
    told = f"the calibration is {told_duration(max(0.0, age_s))} old (max_age {format_duration(settings.max_age)})"
    return Verdict(age_s >= settings.max_age.total_seconds(), told)


def _due(settings: Recalibration, schedule: Schedule, now: Moment) -> tuple[str, ...]:
    since_s = schedule.due_since_s(now)
    if math.isinf(since_s):
        return ()
    by = []
    if schedule.every_in_s(now) <= 0 and settings.every is not None:
        by.append(f"every {format_duration(settings.every)}")
    if schedule.cron_in_s(now) <= 0:
        by.append(f"cron {settings.cron}")
    return (f"a look is due since {clock_time(since_s, now, zone(settings.timezone))} ({', '.join(by)})",)


def _waiting(held: list[Hold], wanted: tuple[str, ...]) -> tuple[str, ...]:
    return (*(hold.reason for hold in held), *_wanted("recalibrate", wanted))


def _wanted(what: str, reasons: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"to {what} then, because {reason}" for reason in reasons)


def _wait_s(settings: Recalibration, schedule: Schedule, now: Moment, held: list[Hold]) -> float:
    """Until nothing holds any more; until the next look, where that is a probe that may come before."""
    free_s = max(hold.free_in_s for hold in held)
    next_s = schedule.next_in_s(now)
    return _capped(settings, min(free_s, next_s) if next_s > 0 else free_s)


def _upcoming_s(settings: Recalibration, schedule: Schedule, history: History, now: Moment) -> float:
    """Seconds until the schedule or the upper age asks for something; infinity where neither will."""
    next_s = schedule.next_in_s(now)
    if settings.max_age is None or history.calibrated is None:
        return next_s
    return min(next_s, settings.max_age.total_seconds() - now.since(history.calibrated.at))


def _announced(settings: Recalibration, upcoming_s: float, now: Moment) -> tuple[str, ...]:
    if math.isinf(upcoming_s):
        return ("no look is scheduled",)
    return (f"the next look is due at {clock_time(now.wall_s + upcoming_s, now, zone(settings.timezone))}",)


def _capped(settings: Recalibration, seconds: float) -> float:
    """Triggers are watched, and a wall clock that jumps is noticed, within a minute."""
    watching = settings.when or settings.cron or settings.quiet_hours
    return max(SHORTEST_S, min(seconds, WATCH_S if watching else IDLE_S))
