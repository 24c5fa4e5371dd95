"""Durations: read with their units, written so that they can be read again."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimcal.profile.duration import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("0s", timedelta()),
        ("45s", timedelta(seconds=45)),
        ("1h30m", timedelta(hours=1, minutes=30)),
        ("365d", timedelta(days=365)),
        ("2w", timedelta(weeks=2)),
        ("1w1d1h1m1s", timedelta(weeks=1, days=1, hours=1, minutes=1, seconds=1)),
    ],
)
def test_units_are_weeks_days_hours_minutes_and_seconds(text, duration):
    assert parse_duration(text) == duration


@pytest.mark.parametrize("text", ["", "5", "1x", "-1s", "1s1m", "1d1w", "1.5h", " 1s", "1S", None, 5])
def test_anything_else_is_refused_with_examples(text):
    with pytest.raises(ValueError, match="a duration is written with units, for example 45s, 15m, 1h30m or 30d"):
        parse_duration(text)


@given(st.integers(0, 10**9))
def test_what_is_written_is_read_back(seconds):
    assert parse_duration(format_duration(timedelta(seconds=seconds))) == timedelta(seconds=seconds)


def test_times_are_written_in_days_not_weeks():
    assert [format_duration(timedelta(days=days)) for days in (7, 30, 365)] == ["7d", "30d", "365d"]
