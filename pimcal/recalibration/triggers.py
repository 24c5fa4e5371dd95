"""Drift triggers: what a profile's `when:` can name, and what tells that a calibration no longer fits.

A trigger compares the readings now with those at the last calibration and says whether its limit is reached, in a
sentence either way. It is a pure function; plugins add theirs through `pimcal_register_triggers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pimcal.recalibration.clock import Moment

RATE_TIME_S = 600.0  # the shortest time over which link errors are counted, or a single one would be a high rate
_LINK_ERRORS = ("link_repeats", "link_reopened")


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """What is known of a device at one moment, without using it.

    `telemetry`: by name and unit, as the backend tells it. `programming`: stands for what is on the tiles; another
    text means that they were programmed anew (a new boot id, another profile or model). `probe_error`: of the newest
    probe since the last calibration, None before it. `link_errors_per_h`: see the function of this name.
    """

    at: Moment
    telemetry: Mapping[str, float] = field(default_factory=dict)
    programming: str = ""
    probe_error: float | None = None
    link_errors_per_h: float | None = None


class Verdict(NamedTuple):
    """Whether a trigger fired, and why (not): a sentence without a full stop."""

    fired: bool
    reason: str


TriggerFunction = Callable[[Readings, Readings, float], Verdict]


@dataclass(frozen=True, slots=True)
class Trigger:
    """A function of the readings now, those at the last calibration, and the profile's limit.

    `needs_probe`: it looks at `probe_error`, so the schedule probes for it. `positive`: only limits above zero make
    sense. `largest`: the magnitude above which no limit could ever be reached.
    """

    function: TriggerFunction
    needs_probe: bool = False
    positive: bool = False
    largest: float = 1e9

    def __call__(self, now: Readings, before: Readings, limit: float) -> Verdict:
        return self.function(now, before, limit)


def probe_error(now: Readings, before: Readings, limit: float) -> Verdict:
    """The probe's error, in its own unit, reaches the limit. A probe that gives no number fired."""
    if now.probe_error is None:
        return Verdict(False, "there was no probe since the last calibration")
    fired = not now.probe_error < limit
    return Verdict(fired, f"the probe's error is {now.probe_error:.3g} (limit {limit:g})")


def temperature_change_c(now: Readings, before: Readings, limit: float) -> Verdict:
    """The temperature (telemetry `temperature_c`) is `limit` degrees Celsius away from that at the calibration."""
    return _change("temperature", "temperature_c", "degC", now, before, limit)


def supply_change_v(now: Readings, before: Readings, limit: float) -> Verdict:
    """The supply (telemetry `supply_v`) is `limit` volts away from that at the calibration."""
    return _change("supply", "supply_v", "V", now, before, limit)


def link_errors_above(now: Readings, before: Readings, limit: float) -> Verdict:
    """The link had `limit` errors an hour since the last look."""
    if now.link_errors_per_h is None:
        return Verdict(False, "the device tells no link errors")
    told = f"the link had {now.link_errors_per_h:.3g} errors an hour since the last look (limit {limit:g})"
    return Verdict(now.link_errors_per_h >= limit, told)


def age_h(now: Readings, before: Readings, limit: float) -> Verdict:
    """The calibration is `limit` hours old."""
    age = now.at.since(before.at) / 3600
    return Verdict(age >= limit, f"the calibration is {age:.3g} h old (limit {limit:g} h)")


BUILT_IN: dict[str, Trigger] = {
    "probe_error": Trigger(probe_error, needs_probe=True, positive=True, largest=1e3),
    "temperature_change_c": Trigger(temperature_change_c, positive=True, largest=1e3),
    "supply_change_v": Trigger(supply_change_v, positive=True, largest=1e3),
    "link_errors_per_h": Trigger(link_errors_above, positive=True),
    "age_h": Trigger(age_h, positive=True, largest=876_600),
}


def reprogrammed(now: Readings, before: Readings) -> Verdict:
    """The tiles hold something else, or the same programmed anew. Watched in every profile."""
    if now.programming == before.programming:
        return Verdict(False, "the tiles are as the last calibration found them")
    told = f"({before.programming or 'unknown'} then, {now.programming or 'unknown'} now)"
    return Verdict(True, f"the device was programmed anew since the last calibration {told}")


def evaluate(name: str, trigger: Trigger, now: Readings, before: Readings, limit: float) -> Verdict:
    """What a trigger says. One that raises, or gives no verdict, has not fired, and the sentence says what it did."""
    try:
        fired, reason = trigger(now, before, limit)
    except Exception as error:  # a plugin's: it must not stop the others
        return Verdict(False, f"trigger {name} failed with {type(error).__name__}: {error}")
    return Verdict(bool(fired), str(reason))


def link_errors_per_h(now: Mapping[str, float], at_look: Mapping[str, float], elapsed_s: float) -> float | None:
    """Requests that had to be repeated and links that had to be reopened, an hour, from two readings of telemetry.

    A counter that is lower now was opened anew and counts from zero. None where the device has no such counters.
    """
    known = [name for name in _LINK_ERRORS if name in now]
    if not known:
        return None
    before = {name: at_look.get(name, 0.0) for name in known}
    errors = sum(now[name] - before[name] if now[name] >= before[name] else now[name] for name in known)
    return errors * 3600 / max(elapsed_s, RATE_TIME_S)


def _change(what: str, key: str, unit: str, now: Readings, before: Readings, limit: float) -> Verdict:
    values = [readings.telemetry.get(key, math.nan) for readings in (now, before)]
    if not all(map(math.isfinite, values)):
        return Verdict(False, f"the device tells no {what}")
    change = abs(values[0] - values[1])
    return Verdict(
        change >= limit, f"{what} is {change:.3g} {unit} from that at the last calibration (limit {limit:g})"
    )
