"""Decisions: what is done when, what holds it back, and the sentences that explain it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from random import Random
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pimcal.profile import Recalibration
from pimcal.recalibration.clock import Moment
from pimcal.recalibration.decide import Decision, History, decide
from pimcal.recalibration.limits import quiet
from pimcal.recalibration.schedule import begin, follow, looked
from pimcal.recalibration.triggers import BUILT_IN, Readings, Trigger, Verdict

NOON_S = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()
HOUR_S = 3600.0


def section(**values: object) -> Recalibration:
    return Recalibration.model_validate_json(json.dumps(values))


def at(time_s: float) -> Moment:
    """A moment, in seconds after noon."""
    return Moment(NOON_S + time_s, 500.0 + time_s)


def readings(time_s: float, probe_error: float | None = None, temperature_c: float = 25.0) -> Readings:
    return Readings(at=at(time_s), probe_error=probe_error, telemetry={"temperature_c": temperature_c})


def decided(
    section: Recalibration,
    now: Readings,
    attempts: tuple[float, ...] = (0,),
    rejected: int = 0,
    triggers: Mapping[str, Trigger] = BUILT_IN,
) -> Decision:
    """The decision on a device that was calibrated, and first looked at, at noon."""
    schedule = begin(section, at(0), Random(0))
    history = History(calibrated=readings(0), attempts=tuple(map(at, attempts)), rejected=rejected)
    return decide(section, schedule, history, now, triggers)


# --- what is done, and what is said


def test_a_trigger_recalibrates_and_says_by_how_much() -> None:
    watched = section(when=[{"temperature_change_c": 5}])
    decision = decided(watched, readings(60, temperature_c=31.2))
    assert decision.lines() == ("calibrate: temperature is 6.2 degC from that at the last calibration (limit 5)",)
    assert decision.next_look_s == 0


def test_what_is_held_back_says_until_when_and_what_for() -> None:
    capped = section(when=[{"temperature_change_c": 5}], max_per_hour=3)
    decision = decided(capped, readings(4200, temperature_c=31.2), (3900, 4000, 4100))
    assert decision.lines() == (
        "wait: 3 recalibrations in the last hour (max_per_hour 3), free again at 14:05 UTC",
        "wait: to recalibrate then, because temperature is 6.2 degC from that at the last calibration (limit 5)",
    )
    assert decision.next_look_s == 60


def test_nothing_to_do_says_how_far_each_trigger_is_and_when_the_next_look_comes() -> None:
    both = section(every="1h", when=[{"temperature_change_c": 5}, {"probe_error": 0.1}], max_age="30d")
    decision = decided(both, readings(1800, temperature_c=26))
    assert decision.lines() == (
        "nothing: temperature is 1 degC from that at the last calibration (limit 5)",
        "nothing: there was no probe since the last calibration",
        "nothing: the calibration is 30m old (max_age 30d)",
        "nothing: the tiles are as the last calibration found them",
        "nothing: the next look is due at 13:00 UTC",
    )


def test_without_a_calibration_the_first_thing_is_to_make_one() -> None:
    empty = section()
    decision = decide(empty, begin(empty, at(0), Random(0)), History(), readings(0))
    assert decision.lines() == ("calibrate: there is no calibration of this device and model yet",)


def test_an_empty_schedule_does_nothing_but_notice_tiles_that_were_programmed_anew() -> None:
    assert decided(section(), readings(1e6)).lines()[-1] == "nothing: no look is scheduled"
    decision = decided(section(), replace(readings(9), programming="boot 2"))
    assert decision.lines() == (
        "calibrate: the device was programmed anew since the last calibration (unknown then, boot 2 now)",
    )


def test_a_scheduled_look_recalibrates_where_no_trigger_needs_a_probe() -> None:
    for more in ({}, {"when": [{"temperature_change_c": 5}]}):
        decision = decided(section(every="1h", **more), readings(3660))
        assert decision.lines() == ("calibrate: a look is due since 13:00 UTC (every 1h)",)


def test_a_scheduled_look_probes_where_a_trigger_needs_it_and_the_probe_decides() -> None:
    probing = section(every="1h", cron="0 * * * *", when=[{"probe_error": 0.02}])
    assert decided(probing, readings(3660)).lines() == (
        "probe: a look is due since 13:00 UTC (every 1h, cron 0 * * * *)",
    )
    assert decided(probing, readings(1900, probe_error=0.01)).kind == "nothing"
    decision = decided(probing, readings(1900, probe_error=0.03))
    assert decision.lines() == ("calibrate: the probe's error is 0.03 (limit 0.02)",)


def test_a_trigger_of_a_plugin_may_need_the_probe_too() -> None:
    triggers = {"mine": Trigger(lambda now, before, limit: Verdict(False, "calm"), needs_probe=True)}
    assert decided(section(every="1h", when=[{"mine": 1}]), readings(3660), triggers=triggers).kind == "probe"


def test_all_reasons_to_recalibrate_are_told() -> None:
    several = section(every="1h", when=[{"temperature_change_c": 5}, {"age_h": 1}])
    decision = decided(several, readings(3660, temperature_c=0))
    assert decision.kind == "calibrate"
    assert [reason.split()[0] for reason in decision.reasons] == ["temperature", "the", "a"]


# --- what holds back


def test_the_cooldown_is_told_and_a_look_that_waited_comes_once_it_is_over() -> None:
    cooled = section(every="1h", cooldown="2h")
    decision = decided(cooled, readings(3660), (60,))
    assert decision.lines()[0] == "wait: the last recalibration was 1h ago (cooldown 2h), free again at 14:01 UTC"
    assert decision.next_look_s == HOUR_S
    assert decided(cooled, readings(7260), (60,)).kind == "calibrate"


def test_attempts_that_were_not_activated_are_repeated_after_ever_longer_times() -> None:
    watched = section(when=[{"temperature_change_c": 5}])
    for rejected, wait_s in ((1, 600), (2, 1200), (3, 2400), (8, 76_800), (9, 86_400), (5000, 86_400)):
        for time_s, kind in ((wait_s - 1, "wait"), (wait_s, "calibrate")):
            assert decided(watched, readings(time_s, temperature_c=0), (0,), rejected).kind == kind
    decision = decided(watched, readings(60, temperature_c=0), (0,), 2)
    assert decision.reasons[0] == "the last 2 recalibrations were not activated, free again at 12:20 UTC"


def test_a_probe_is_held_back_by_quiet_hours_only() -> None:
    probing = section(every="1h", when=[{"probe_error": 0.02}], cooldown="9h", max_per_hour=1)
    decision = decided(probing, readings(3660, probe_error=0.5), (3600,))
    assert decision.kind == "probe"
    assert decision.reasons[-1] == "to recalibrate then, because the probe's error is 0.5 (limit 0.02)"
    quiet = section(every="1h", when=[{"probe_error": 0.02}], quiet_hours="13:00-15:30", timezone="Asia/Kathmandu")
    decision = decide(
        quiet, begin(quiet, at(-5 * HOUR_S), Random(0)), History(calibrated=readings(-9e4)), readings(-4 * HOUR_S)
    )
    assert decision.lines() == (
        "wait: quiet hours (13:00-15:30), which end at 15:30 +0545",
        "wait: to probe then, because a look is due since 13:45 +0545 (every 1h)",
    )


def test_an_upper_age_reports_overdue_but_waits_for_the_end_of_quiet_hours() -> None:
    aged = section(max_age="1h", quiet_hours=["12:30-14:00", "14:00-15:00"])
    assert not decided(aged, readings(3599)).overdue
    decision = decided(aged, readings(3600))
    assert (decision.kind, decision.overdue) == ("wait", True)
    assert decision.lines() == (
        "wait: quiet hours (12:30-14:00, 14:00-15:00), which end at 15:00 UTC",
        "wait: to recalibrate then, because the calibration is 1h old (max_age 1h)",
    )
    decision = decided(aged, readings(3 * HOUR_S))
    assert (decision.kind, decision.overdue) == ("calibrate", True)


# --- simulated days


def is_quiet(now: Moment, windows: list[str], zone: str) -> bool:
    """By comparing texts: independent of how minutes are counted elsewhere."""
    clock = datetime.fromtimestamp(now.wall_s, ZoneInfo(zone)).strftime("%H:%M")
    pairs = (window.split("-") for window in windows)
    return any((start <= clock < end) if start < end else (clock >= start or clock < end) for start, end in pairs)


# The day before clocks change, in zones that change by an hour, by half an hour and at midnight.
CHANGES = [
    ("Europe/Berlin", datetime(2026, 3, 28, 7, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2026, 10, 24, 7, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 3, 7, 12, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 4, 4, 3, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 10, 3, 3, tzinfo=UTC)),
    ("America/Santiago", datetime(2026, 4, 4, 15, tzinfo=UTC)),
    ("America/Santiago", datetime(2026, 9, 5, 15, tzinfo=UTC)),
    ("UTC", datetime(2026, 6, 1, tzinfo=UTC)),
]

times_of_day = st.integers(0, 1439).map(lambda minute: f"{minute // 60:02}:{minute % 60:02}")
near_changes = st.sampled_from(["00:00", "01:00", "01:59", "02:00", "02:30", "03:00", "23:00", "23:59"])
windows = (
    st.tuples(times_of_day | near_changes, times_of_day | near_changes)
    .filter(lambda pair: pair[0] != pair[1])
    .map("-".join)
)


@given(window=windows, change=st.sampled_from(CHANGES), later_s=st.floats(0, 40 * HOUR_S))
@settings(deadline=None)
def test_quiet_hours_end_where_the_local_clock_leaves_them(
    window: str, change: tuple[str, datetime], later_s: float
) -> None:
    zone, day = change
    kept = section(quiet_hours=window, timezone=zone)
    now = Moment(day.timestamp() + later_s, 0.0)
    hold = quiet(kept, now)
    assert (hold is not None) == is_quiet(now, [window], zone)
    if hold is not None:
        end_s = now.wall_s + hold.free_in_s
        assert not is_quiet(Moment(end_s + 1e-3, 0.0), [window], zone)
        minutes = range(int(now.wall_s // 60) + 1, round(end_s / 60))
        assert all(is_quiet(Moment(minute * 60.0, 0.0), [window], zone) for minute in minutes)


@dataclass
class Device:
    """A device whose every recalibration takes `run_s`, on clocks that may jump."""

    now: Moment
    run_s: float
    starts: list[Moment] = field(default_factory=list)
    ends: list[Moment] = field(default_factory=list)
    probes: list[Moment] = field(default_factory=list)

    def pass_time(self, seconds: float, jump_s: float = 0.0) -> None:
        self.now = Moment(self.now.wall_s + seconds + jump_s, self.now.monotonic_s + seconds)

    def recalibrate(self) -> None:
        self.starts.append(self.now)
        self.pass_time(self.run_s)
        self.ends.append(self.now)


ALWAYS = {**BUILT_IN, "always": Trigger(lambda now, before, limit: Verdict(True, "it always fires"))}


def live(section: Recalibration, device: Device, total_s: float, jumps: Mapping[int, float]) -> None:
    """A loop that sleeps as long as it is told to; `jumps`: the wall clock's, by the number of the turn."""
    generator, end_s = Random(1), device.now.monotonic_s + total_s
    schedule, calibrated, error = begin(section, device.now, generator), None, None
    for turn in itertools.count():
        if device.now.monotonic_s >= end_s:
            return
        seen = Readings(at=device.now, probe_error=error)
        schedule = follow(section, schedule, seen.at, generator)
        decision = decide(section, schedule, History(calibrated=calibrated, attempts=tuple(device.ends)), seen, ALWAYS)
        if decision.kind == "calibrate":
            device.recalibrate()
            calibrated, error = replace(seen, at=device.now), None
        elif decision.kind == "probe":
            device.probes.append(device.now)
            error = 0.0
        if decision.kind in ("calibrate", "probe"):
            schedule = looked(section, schedule, seen.at, generator)
            assert decision.next_look_s == 0
        else:
            assert decision.next_look_s >= 1
        assert decision.reasons
        device.pass_time(decision.next_look_s, jumps.get(turn, 0.0))


@given(
    max_per_hour=st.integers(1, 5),
    cooldown_min=st.integers(0, 300),
    quiet_hours=st.lists(windows, max_size=2),
    change=st.sampled_from(CHANGES),
    run_s=st.sampled_from([0.0, 0.25, 40.0, 900.0]),
    jumps=st.dictionaries(st.integers(0, 500), st.floats(-1e5, 1e5), max_size=4),
    schedule=st.sampled_from([{}, {"every": "7m"}, {"cron": "*/10 * * * *", "jitter": "3m"}]),
)
@settings(deadline=None, max_examples=15)
def test_no_limit_is_ever_broken_by_triggers_that_fire_all_the_time(
    max_per_hour: int,
    cooldown_min: int,
    quiet_hours: list[str],
    change: tuple[str, datetime],
    run_s: float,
    jumps: dict[int, float],
    schedule: dict[str, str],
) -> None:
    zone, day = change
    always: dict[str, object] = {"when": [{"always": 1}], "max_per_hour": max_per_hour, "timezone": zone}
    try:
        limited = section(cooldown=f"{cooldown_min}m", quiet_hours=quiet_hours, **always, **schedule)
    except ValueError:  # the whole day is quiet
        return
    device = Device(Moment(day.timestamp(), 1e5 / 3), run_s)
    live(limited, device, 36 * HOUR_S, jumps)
    started = [start.monotonic_s for start in device.starts]
    assert all(later - first >= HOUR_S for first, later in zip(started, started[max_per_hour:], strict=False))
    for end, start in zip(device.ends, device.starts[1:], strict=False):
        assert start.since(end) >= cooldown_min * 60
    assert not any(is_quiet(start, quiet_hours, zone) for start in device.starts)
    if not jumps and not quiet_hours:
        hour_s = HOUR_S + run_s  # attempts are counted from their end
        least = 36 * HOUR_S / max(hour_s, max_per_hour * (cooldown_min * 60 + run_s + 1)) - 1
        assert len(started) >= max_per_hour * int(least), "what may be done is done"


@given(
    quiet_hours=st.lists(windows, min_size=1, max_size=2),
    change=st.sampled_from(CHANGES),
    jumps=st.dictionaries(st.integers(0, 500), st.floats(-1e5, 1e5), max_size=3),
    schedule=st.sampled_from([{"every": "20m", "jitter": "19m"}, {"cron": "*/5 * * * *"}, {"cron": "30 2 * * *"}]),
)
@settings(deadline=None, max_examples=15)
def test_no_probe_and_no_recalibration_begins_in_quiet_hours(
    quiet_hours: list[str], change: tuple[str, datetime], jumps: dict[int, float], schedule: dict[str, str]
) -> None:
    zone, day = change
    kept = {"when": [{"probe_error": 0.1}], "max_age": "5h", "timezone": zone}
    try:
        silent = section(quiet_hours=quiet_hours, **kept, **schedule)
    except ValueError:  # the whole day is quiet
        return
    device = Device(Moment(day.timestamp(), 0.0), 1.5)
    live(silent, device, 40 * HOUR_S, jumps)
    assert not any(is_quiet(moment, quiet_hours, zone) for moment in device.starts + device.probes)
    assert device.starts, "quiet hours end"


def test_looks_that_fell_into_quiet_hours_are_made_up_for_by_one() -> None:
    device = Device(at(0), 1.0)
    live(section(every="1h", quiet_hours="13:30-18:15"), device, 8 * HOUR_S, {})
    times = [datetime.fromtimestamp(start.wall_s, UTC).strftime("%H:%M") for start in device.starts]
    assert times == ["12:00", "13:00", "18:15", "19:00"]


@given(
    every_min=st.integers(1, 300), hop=st.dictionaries(st.integers(0, 60), st.floats(-1e8, 1e8), max_size=9), more=...
)
@settings(deadline=None)
def test_without_limits_each_interval_has_one_recalibration_whatever_the_clock_does(
    every_min: int, hop: dict[int, float], more: bool
) -> None:
    device = Device(at(0), 0.5)
    total_s = 20 * every_min * 60.0
    live(section(every=f"{every_min}m", when=[{"age_h": 1e6}] if more else []), device, total_s, hop)
    intervals = [round(start.since(at(0)) // (every_min * 60)) for start in device.starts]
    assert intervals == list(range(len(intervals)))
    assert len(intervals) == 20


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu"])
def test_times_in_sentences_are_in_the_time_zone_of_the_profile(zone: str) -> None:
    decision = decided(section(every="1h", timezone=zone), readings(60))
    assert decision.reasons[-1].endswith({"UTC": "13:00 UTC", "Asia/Kathmandu": "18:45 +0545"}[zone])
