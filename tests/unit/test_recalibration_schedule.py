"""Scheduled looks on a simulated clock: intervals, cron, both, and clocks that jump."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from random import Random
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pimcal.profile import Recalibration
from pimcal.recalibration.clock import Moment, clock_time
from pimcal.recalibration.schedule import CRON_GAP_S, begin, follow, looked

START_S = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
HOUR_S = 3600.0


def section(**values: object) -> Recalibration:
    return Recalibration.model_validate_json(json.dumps(values))


def looks(section: Recalibration, moments: Iterable[Moment], seed: int = 0) -> list[Moment]:
    """The moments at which a loop that decides at `moments` would look."""
    generator, found = Random(seed), []
    moments = iter(moments)
    schedule = begin(section, next(moments), generator)
    for now in moments:
        schedule = follow(section, schedule, now, generator)
        if schedule.next_in_s(now) <= 0:
            found.append(now)
            schedule = looked(section, schedule, now, generator)
            assert schedule.next_in_s(now) > 0, "a look serves all that is due"
    return found


def steady(step_s: float, total_s: float, wall_s: float = START_S, monotonic_s: float = 1000.0) -> list[Moment]:
    return [Moment(wall_s + i * step_s, monotonic_s + i * step_s) for i in range(int(total_s / step_s) + 1)]


def jumping(steps: Iterable[tuple[float, float]], monotonic_s: float) -> list[Moment]:
    """Moments after steps of time that passes, and of the wall clock's own jumps."""
    moments = [Moment(START_S, monotonic_s)]
    for passed_s, jump_s in steps:
        last = moments[-1]
        moments.append(Moment(last.wall_s + passed_s + jump_s, last.monotonic_s + passed_s))
    return moments


jumps = st.just(0.0) | st.floats(-4e8, 4e8) | st.floats(-7200, 7200)


@given(
    every_s=st.integers(60, 90_000),
    jitter_share=st.sampled_from([0.0, 0.1, 0.5]),
    steps=st.lists(st.tuples(st.floats(0.01, 0.49) | st.sampled_from([0.25, 0.125]), jumps), max_size=150),
    monotonic_s=st.floats(0, 1e7),
    seed=st.integers(0, 99),
)
def test_each_interval_has_exactly_one_look_whatever_the_wall_clock_does(
    every_s: int, jitter_share: float, steps: list[tuple[float, float]], monotonic_s: float, seed: int
) -> None:
    every = section(every=f"{every_s}s", jitter=f"{int(every_s * jitter_share)}s")
    moments = jumping([(share * every_s, jump_s) for share, jump_s in steps], monotonic_s)
    passed = [(moment.monotonic_s - monotonic_s) / every_s + 1e-6 for moment in moments]
    intervals = [int((look.monotonic_s - monotonic_s) / every_s + 1e-6) for look in looks(every, moments, seed)]
    assert intervals == list(range(1, len(intervals) + 1))
    assert len(intervals) in (int(passed[-1]), int(passed[-1]) - 1), "of the last one the jitter may be left"


def test_looks_that_were_missed_are_made_up_for_by_one_and_the_grid_stays() -> None:
    moments = [Moment(START_S + s, s) for s in (0, 3599, 3600, 3601, 20_000, 20_001, 21_599, 21_600)]
    assert [look.monotonic_s for look in looks(section(every="1h"), moments)] == [3600, 20_000, 21_600]


def test_looks_by_cron_that_were_missed_are_made_up_for_by_one() -> None:
    moments = [Moment(START_S + s, s) for s in (0, 899, 900, 20_000, 20_001, 20_700)]
    assert [look.monotonic_s for look in looks(section(cron="*/15 * * * *"), moments)] == [900, 20_000, 20_700]


def test_interval_and_cron_together_give_the_looks_of_both_and_one_where_they_meet() -> None:
    moments = steady(60, 3 * HOUR_S)
    both = {look.monotonic_s for look in looks(section(every="25m", cron="0 * * * *"), moments)}
    every = {look.monotonic_s for look in looks(section(every="25m"), moments)}
    cron = {look.monotonic_s for look in looks(section(cron="0 * * * *"), moments)}
    assert both == every | cron
    assert len(both) == 7 + 3
    assert looks(section(every="1h", cron="0 * * * *"), moments) == looks(section(every="1h"), moments)


@given(jitter_s=st.integers(1, 3599), seed=st.integers(0, 999))
def test_the_jitter_delays_by_at_most_its_length_and_follows_the_generator(jitter_s: int, seed: int) -> None:
    delayed = section(every="1h", cron="30 * * * *", jitter=f"{jitter_s}s")
    now = Moment(START_S, 50.0)
    schedule = begin(delayed, now, Random(seed))
    assert schedule.every is not None
    assert schedule.cron is not None
    assert schedule.every.at_s == 3650
    assert schedule.cron.at_s == START_S + 1800
    for slot in (schedule.every, schedule.cron):
        assert 0 <= slot.due_s - slot.at_s <= jitter_s
    assert schedule == begin(delayed, now, Random(seed))
    assert schedule != begin(delayed, now, Random(seed + 1))


def test_nothing_is_due_without_a_schedule() -> None:
    schedule = begin(section(), Moment(START_S, 0.0), Random(0))
    assert math.isinf(schedule.next_in_s(Moment(START_S + 1e9, 1e9)))
    assert math.isinf(schedule.due_since_s(Moment(START_S + 1e9, 1e9)))


# --- cron and local time


@given(
    minutes=st.lists(st.integers(0, 59), min_size=1, max_size=3, unique=True),
    hours=st.lists(st.integers(0, 23), min_size=1, max_size=3, unique=True),
    start_min=st.integers(0, 400_000),
)
@settings(max_examples=30)
def test_cron_in_utc_looks_at_exactly_the_minutes_that_match(
    minutes: list[int], hours: list[int], start_min: int
) -> None:
    cron = section(cron=f"{','.join(map(str, minutes))} {','.join(map(str, hours))} * * *")
    moments = steady(60, 2 * 86_400, START_S + start_min * 60)
    expected = [
        moment
        for moment in moments[1:]
        if (at := datetime.fromtimestamp(moment.wall_s, UTC)).minute in minutes and at.hour in hours
    ]
    assert looks(cron, moments) == expected


ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Asia/Kathmandu", "UTC"]


@given(zone=st.sampled_from(ZONES), minute=st.integers(0, 59), hour=st.integers(0, 23), offset_s=st.integers(0, 599))
@settings(max_examples=12, deadline=None)
def test_a_time_of_day_gives_one_look_on_each_local_day_of_a_year(
    zone: str, minute: int, hour: int, offset_s: int
) -> None:
    cron = section(cron=f"{minute} {hour} * * *", timezone=zone)
    first = datetime(2026, 1, 1, tzinfo=ZoneInfo(zone)).timestamp()
    moments = steady(600, 365 * 86_400, first - 1 + offset_s - 600)
    days = [datetime.fromtimestamp(look.wall_s, ZoneInfo(zone)).date() for look in looks(cron, moments)]
    assert all(day - before == timedelta(days=1) for before, day in itertools.pairwise(days))
    assert len(days) >= 364


def test_cron_follows_the_time_zone_of_the_profile() -> None:
    moments = steady(60, 86_400)
    for zone in ZONES:
        (look,) = looks(section(cron="30 3 * * *", timezone=zone), moments)
        assert datetime.fromtimestamp(look.wall_s, ZoneInfo(zone)).strftime("%H:%M") == "03:30"


# --- clocks that jump


@given(
    at=st.integers(1, 600),
    jump_s=st.floats(-4e8, 4e8) | st.floats(-7200, 7200),
    period_min=st.sampled_from([5, 15, 60]),
)
@settings(deadline=None)
def test_a_jump_of_the_wall_clock_neither_floods_nor_stalls_cron(at: int, jump_s: float, period_min: int) -> None:
    cron = section(cron="0 * * * *" if period_min == 60 else f"*/{period_min} * * * *")
    moments = jumping([(30.0, jump_s if i == at else 0.0) for i in range(1200)], 5.0)
    period_s, times = period_min * 60, [look.monotonic_s for look in looks(cron, moments)]
    bounds = [moments[0].monotonic_s, *times, moments[-1].monotonic_s]
    longest = max(later - earlier for earlier, later in itertools.pairwise(bounds))
    assert longest <= 2 * period_s + 60
    assert len(times) <= 1200 * 30 / period_s + 2


def test_a_clock_set_back_by_a_second_repeats_no_look() -> None:
    moments = [Moment(START_S + s, m) for s, m in ((0, 0), (3600.1, 3600.1), (3599.6, 3600.2), (3600.5, 3700.0))]
    assert len(looks(section(cron="0 * * * *"), moments)) == 1


def test_a_clock_set_back_by_a_day_does_not_wait_for_a_day() -> None:
    moments = [Moment(START_S, 0.0), Moment(START_S + 3600, 3600.0), Moment(START_S + 4000 - 86_400, 4000.0)]
    moments += [Moment(START_S + 7199 - 86_400, 7199.0), Moment(START_S + 7200 - 86_400, 7200.0)]
    assert [look.monotonic_s for look in looks(section(cron="0 * * * *"), moments)] == [3600, 7200]


def test_a_look_that_waits_for_its_delay_survives_a_clock_set_back() -> None:
    delayed = section(cron="0 * * * *", jitter="50m")
    schedule = begin(delayed, Moment(START_S + 1, 0.0), Random(3))
    back = Moment(START_S - 600, 10.0)
    assert schedule.cron is not None
    again = follow(delayed, schedule, Moment(START_S + 3600 + 1, 20.0), Random(4))
    assert again == schedule
    earlier = follow(delayed, schedule, back, Random(4))
    assert earlier.cron is not None
    assert earlier.cron.at_s == START_S


@given(st.lists(st.tuples(st.floats(0.1, 20), st.floats(-1e6, 1e6)), max_size=200))
@settings(deadline=None)
def test_a_clock_that_jumps_to_and_fro_causes_no_flood(steps: list[tuple[float, float]]) -> None:
    times = [look.monotonic_s for look in looks(section(cron="*/5 * * * *"), jumping(steps, 0.0))]
    assert all(later - earlier >= CRON_GAP_S for earlier, later in itertools.pairwise(times))


# --- restarts


@pytest.mark.parametrize("schedule", [{"every": "1h"}, {"cron": "0 * * * *"}, {"every": "2h", "cron": "0 * * * *"}])
def test_a_restarted_process_makes_up_for_what_it_missed_with_one_look(schedule: dict[str, str]) -> None:
    again, now = section(**schedule), Moment(START_S, 7.0)
    started = begin(again, now, Random(0), Moment.remembered(START_S - 5.5 * HOUR_S, now))
    assert started.next_in_s(now) <= 0
    done = looked(again, started, now, Random(0))
    assert 0 < done.next_in_s(now) <= HOUR_S


def test_a_restarted_process_goes_on_with_the_interval_of_the_one_before() -> None:
    now = Moment(START_S, 7.0)
    started = begin(section(every="1h"), now, Random(0), Moment.remembered(START_S - 600, now))
    assert started.next_in_s(now) == 3000


def test_a_last_look_in_the_future_counts_as_now() -> None:
    now = Moment(START_S, 7.0)
    assert Moment.remembered(START_S + 1e6, now) == now


def test_a_time_is_written_with_its_zone_and_with_its_date_unless_it_is_today() -> None:
    now = Moment(START_S, 0.0)
    assert clock_time(START_S + 7500, now, UTC) == "14:05 UTC"
    assert clock_time(START_S + 86_400, now, ZoneInfo("Europe/Berlin")) == "2026-03-02 13:00 CET"
