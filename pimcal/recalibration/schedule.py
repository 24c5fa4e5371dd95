"""When the next scheduled look at a device is due: `every`, `cron`, or both.

A schedule is a value: `begin` makes one, `follow` is called at each turn of the loop, `looked` after each scheduled
look. `every` counts monotonic time on a fixed grid, so that each interval has one look whatever the wall clock does.
`cron` follows the wall clock, in the profile's time zone. Looks that were missed are made up for by a single one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from cronsim import CronSim

from pimcal.profile.local_time import zone
from pimcal.recalibration.clock import Moment

if TYPE_CHECKING:
    from pimcal.profile import Recalibration

STEP_BACK_S = 60.0  # a wall clock set back by less waits until it has caught up, and repeats nothing
CRON_GAP_S = 30.0  # between two looks by cron, so that a clock that jumps to and fro causes no flood


class Slot(NamedTuple):
    """A planned look: when the schedule has it, and when it is due, later by its share of the jitter."""

    at_s: float
    due_s: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """The next look by interval (monotonic seconds) and by cron (wall seconds).

    `cron` is the first of its times after the wall time `cron_after_s`, and not looked at before the monotonic time
    `cron_free_s`.
    """

    every: Slot | None
    cron: Slot | None
    cron_after_s: float
    cron_free_s: float = -math.inf

    def every_in_s(self, now: Moment) -> float:
        """Seconds until the look by interval is due; zero or less: it is due, infinity: there is none."""
        return math.inf if self.every is None else self.every.due_s - now.monotonic_s

    def cron_in_s(self, now: Moment) -> float:
        """The same for the look by cron."""
        if self.cron is None:
            return math.inf
        return max(self.cron.due_s - now.wall_s, self.cron_free_s - now.monotonic_s)

    def next_in_s(self, now: Moment) -> float:
        """Seconds until the next look of either kind is due."""
        return min(self.every_in_s(now), self.cron_in_s(now))

    def due_since_s(self, now: Moment) -> float:
        """The wall time of the earliest planned look that is due; infinity where none is."""
        by_interval = now.wall_s - now.monotonic_s + self.every.at_s if self.every else math.inf
        by_cron = self.cron.at_s if self.cron else math.inf
        return min(
            by_interval if self.every_in_s(now) <= 0 else math.inf,
            by_cron if self.cron_in_s(now) <= 0 else math.inf,
        )


def begin(settings: Recalibration, now: Moment, generator: Random, last_look: Moment | None = None) -> Schedule:
    """The schedule of a process that starts at `now`, going on from the `last_look` that an earlier one had.

    Times that passed in between are due at once, as one look. Without a last look the first one comes with the first
    interval or cron time from now on. `generator` draws the jitter.
    """
    since = last_look or now
    every = None
    if settings.every is not None:
        every = _slot(settings, since.monotonic_s + settings.every.total_seconds(), generator)
    return Schedule(every, _cron_slot(settings, since.wall_s, generator), since.wall_s)


def follow(settings: Recalibration, schedule: Schedule, now: Moment, generator: Random) -> Schedule:
    """The schedule where the wall clock is now: set back behind an earlier cron time, it waits for that one."""
    after_s = now.wall_s + STEP_BACK_S
    if schedule.cron is None or after_s >= schedule.cron_after_s or schedule.cron_in_s(now) <= 0:
        return schedule
    earlier = _cron_slot(settings, after_s, generator)
    if earlier is None or earlier.at_s >= schedule.cron.at_s:
        return schedule
    return replace(schedule, cron=earlier, cron_after_s=after_s)


def looked(settings: Recalibration, schedule: Schedule, now: Moment, generator: Random) -> Schedule:
    """The schedule after a look at `now`, which serves everything that was due. What is not due yet stays."""
    every = schedule.every
    if every is not None and settings.every is not None and schedule.every_in_s(now) <= 0:
        every = _slot(settings, _after(every.at_s, settings.every.total_seconds(), now.monotonic_s), generator)
    if schedule.cron_in_s(now) > 0:
        return replace(schedule, every=every)
    return Schedule(every, _cron_slot(settings, now.wall_s, generator), now.wall_s, now.monotonic_s + CRON_GAP_S)


def _after(at_s: float, every_s: float, now_s: float) -> float:
    """The first point of the grid after `now_s`; a rounding error never gives the present one again."""
    later_s = at_s + (math.floor((now_s - at_s) / every_s) + 1) * every_s
    return later_s if later_s > now_s else later_s + every_s


def _cron_slot(settings: Recalibration, after_s: float, generator: Random) -> Slot | None:
    """The first time of the cron expression after a wall time; None where there is no expression, or no more time.

    Where clocks are put forward or back, times of day that are left out or come twice give one look, as in Debian's
    cron; expressions with a `*` for hour or minute follow the clock.
    """
    if settings.cron is None:
        return None
    local = datetime.fromtimestamp(after_s, zone(settings.timezone))
    for at in CronSim(settings.cron, local):
        # Of a time of day that comes twice cronsim gives the first, which may be over already.
        if at.timestamp() > after_s:
            return _slot(settings, at.timestamp(), generator)
    return None


def _slot(settings: Recalibration, at_s: float, generator: Random) -> Slot:
    delay_s = generator.uniform(0.0, settings.jitter.total_seconds()) if settings.jitter else 0.0
    return Slot(at_s, at_s + delay_s)
