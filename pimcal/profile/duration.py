"""Durations as people write them: `15m`, `1h30m`, `30d`, `2w`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

_UNITS_S = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
LONGEST = timedelta(days=36_525)  # a century: no device lives as long
_PATTERN = r"^(?=.)([0-9]{1,6}w)?([0-9]{1,6}d)?([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$"


def parse_duration(text: object) -> timedelta:
    """Weeks, days, hours, minutes and seconds, in this order and each with its unit. ValueError otherwise."""
    if isinstance(text, timedelta):
        return text
    if not isinstance(text, str) or not re.fullmatch(_PATTERN, text):
        raise ValueError("a duration is written with units, for example 45s, 15m, 1h30m or 30d")
    parts = re.findall(r"([0-9]+)([wdhms])", text)
    return timedelta(seconds=sum(int(number) * _UNITS_S[unit] for number, unit in parts))


def parse_sensible(text: object) -> timedelta:
    """The same up to `LONGEST`."""
    duration = parse_duration(text)
    if duration > LONGEST:
        raise ValueError(f"a duration of more than a century ({LONGEST.days}d) is a slip")
    return duration


def format_duration(duration: timedelta) -> str:
    """A text that `parse_duration` reads back, in days and smaller units; whole seconds."""
    rest, parts = round(duration.total_seconds()), []
    for unit, unit_s in list(_UNITS_S.items())[1:]:
        number, rest = divmod(rest, unit_s)
        parts += [f"{number}{unit}"] if number else []
    return "".join(parts) or "0s"


def _parse_positive(text: object) -> timedelta:
    duration = parse_sensible(text)
    if not duration:
        raise ValueError("a duration above zero is needed")
    return duration


_JSON = (
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": _PATTERN, "examples": ["15m", "1h30m", "30d"]}),
)
Duration = Annotated[timedelta, PlainValidator(parse_sensible), *_JSON]
PositiveDuration = Annotated[timedelta, PlainValidator(_parse_positive), *_JSON]
