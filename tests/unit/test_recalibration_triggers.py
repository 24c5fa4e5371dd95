"""Drift triggers: when they fire, what they say, and what they make of missing or broken readings."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimcal.recalibration.clock import Moment
from pimcal.recalibration.triggers import (
    BUILT_IN,
    Readings,
    Trigger,
    Verdict,
    evaluate,
    link_errors_per_h,
    reprogrammed,
)


def readings(time_s: float = 0.0, probe_error: float | None = None, rate: float | None = None, **telemetry: float):
    moment = Moment(1e9 + time_s, time_s)
    return Readings(at=moment, telemetry=telemetry, probe_error=probe_error, link_errors_per_h=rate)


def fires(name: str, now: Readings, before: Readings, limit: float) -> tuple[bool, str]:
    return evaluate(name, BUILT_IN[name], now, before, limit)


def test_the_sentences_give_the_value_and_the_limit() -> None:
    before = readings(0, temperature_c=25.0, supply_v=3.3)
    now = readings(7200, probe_error=0.0312, rate=12.0, temperature_c=31.2, supply_v=3.25)
    assert fires("temperature_change_c", now, before, 5) == (
        True,
        "temperature is 6.2 degC from that at the last calibration (limit 5)",
    )
    assert fires("supply_change_v", now, before, 0.1) == (
        False,
        "supply is 0.05 V from that at the last calibration (limit 0.1)",
    )
    assert fires("probe_error", now, before, 0.02) == (True, "the probe's error is 0.0312 (limit 0.02)")
    assert fires("link_errors_per_h", now, before, 20) == (
        False,
        "the link had 12 errors an hour since the last look (limit 20)",
    )
    assert fires("age_h", now, before, 2) == (True, "the calibration is 2 h old (limit 2 h)")


@given(value=st.floats(-200, 200), before=st.floats(-200, 200), limit=st.floats(0.01, 400))
def test_a_change_fires_in_both_directions_from_its_limit_on(value: float, before: float, limit: float) -> None:
    for name, key in (("temperature_change_c", "temperature_c"), ("supply_change_v", "supply_v")):
        fired, _ = fires(name, readings(**{key: value}), readings(**{key: before}), limit)
        back, _ = fires(name, readings(**{key: before}), readings(**{key: value}), limit)
        assert fired == back == (value >= before + limit or value <= before - limit or abs(value - before) == limit)


@pytest.mark.parametrize("broken", [{}, {"temperature_c": math.nan}, {"temperature_c": math.inf}])
def test_a_reading_that_is_missing_or_no_number_fires_nothing_and_is_named(broken: dict[str, float]) -> None:
    whole = readings(temperature_c=20.0)
    for pair in ((readings(**broken), whole), (whole, readings(**broken))):
        assert fires("temperature_change_c", *pair, 5) == (False, "the device tells no temperature")


def test_a_probe_fires_from_its_limit_on_and_where_it_gives_no_number() -> None:
    for error, fired in ((0.019, False), (0.02, True), (math.inf, True), (math.nan, True), (None, False)):
        assert fires("probe_error", readings(probe_error=error), readings(), 0.02)[0] is fired
    assert BUILT_IN["probe_error"].needs_probe


def test_no_link_counters_fire_nothing() -> None:
    assert fires("link_errors_per_h", readings(), readings(), 1) == (False, "the device tells no link errors")
    assert link_errors_per_h({"temperature_c": 4}, {}, 100) is None


def test_link_errors_are_counted_by_the_hour_and_not_from_a_moment_alone() -> None:
    then, now = {"link_repeats": 10, "link_reopened": 1}, {"link_repeats": 14, "link_reopened": 3}
    assert link_errors_per_h(now, then, 7200) == 3
    assert link_errors_per_h(now, then, 1) == link_errors_per_h(now, then, 600) == 36


def test_a_link_that_was_opened_anew_counts_from_zero() -> None:
    assert link_errors_per_h({"link_repeats": 2}, {"link_repeats": 500}, 3600) == 2


def test_tiles_that_were_programmed_anew_are_noticed() -> None:
    old, new = (Readings(at=Moment(0, 0), programming=text) for text in ("boot 7", "boot 8"))
    assert not reprogrammed(old, old).fired
    fired, reason = reprogrammed(new, old)
    assert fired
    assert reason == "the device was programmed anew since the last calibration (boot 7 then, boot 8 now)"


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda now, before, limit: 1 / 0, "trigger mine failed with ZeroDivisionError: division by zero"),
        (lambda now, before, limit: True, "trigger mine failed with TypeError"),
        (lambda now: Verdict(True, "yes"), "trigger mine failed with TypeError"),
    ],
)
def test_a_broken_trigger_of_a_plugin_fires_nothing_and_says_so(function: Callable[..., Verdict], told: str) -> None:
    fired, reason = evaluate("mine", Trigger(function), readings(), readings(), 1.0)
    assert not fired
    assert reason.startswith(told)
