"""Times of day as people write them: quiet hours such as `22:00-06:00`, and the time zone they are in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Annotated
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, PlainValidator, WithJsonSchema

from pimcal.suggest import did_you_mean

DAY_MIN = 24 * 60
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_PATTERN = f"^{_TIME}-(?:{_TIME}|24:00)$"


@dataclass(frozen=True, slots=True)
class DayWindow:
    """A part of every day, from `start_min` to just before `end_min`, minutes since midnight; may run over midnight."""

    start_min: int
    end_min: int

    def __str__(self) -> str:
        return f"{_clock_time(self.start_min)}-{_clock_time(self.end_min)}"

    def remaining_min(self, minute: float) -> float:
        """Minutes until the window ends for a minute of the day inside it, 0 outside."""
        length = (self.end_min - self.start_min) % DAY_MIN
        return max(0.0, length - (minute - self.start_min) % DAY_MIN)


def parse_window(text: object) -> DayWindow:
    """`22:00-06:00` as a window. Raises ValueError where it is none."""
    if isinstance(text, DayWindow):
        return text
    if not isinstance(text, str) or not re.fullmatch(_PATTERN, text):
        raise ValueError('quiet hours are written "22:00-06:00", from 00:00 to 24:00')
    start_min, end_min = (int(part[:2]) * 60 + int(part[3:]) for part in text.split("-"))
    if start_min == end_min % DAY_MIN:
        raise ValueError("quiet hours that begin and end at one time would last the whole day or not at all")
    return DayWindow(start_min, end_min)


def check_timezone(name: str) -> str:
    """The name, if the time zone database has it; else ValueError."""
    try:
        zone(name)
    except (ValueError, KeyError, OSError) as error:  # also what stands for a folder or leads out of the database
        known = available_timezones()
        hint = did_you_mean(name, known) if known else "; install the zones with: pip install tzdata"
        raise ValueError(f'not a time zone; names are those of the IANA database, as "Europe/Berlin"{hint}') from error
    return name


def zone(name: str) -> tzinfo:
    """The time zone of a checked name. UTC needs no database."""
    return UTC if name == "UTC" else ZoneInfo(name)


def _clock_time(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _as_tuple(value: object) -> object:
    """One window may be written without a list; validators in strict mode want a tuple."""
    return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, str) else value


def _leave_time(windows: tuple[DayWindow, ...]) -> tuple[DayWindow, ...]:
    if windows and all(any(window.remaining_min(minute) for window in windows) for minute in range(DAY_MIN)):
        raise ValueError("together the quiet hours last the whole day, so that nothing could ever be done")
    return windows


_WINDOW_SCHEMA = {"type": "string", "pattern": _PATTERN, "examples": ["22:00-06:00"]}
_Window = Annotated[
    DayWindow, PlainValidator(parse_window), PlainSerializer(str, return_type=str), WithJsonSchema(_WINDOW_SCHEMA)
]
QuietHours = Annotated[
    tuple[_Window, ...],
    BeforeValidator(_as_tuple),
    AfterValidator(_leave_time),
    WithJsonSchema({"anyOf": [_WINDOW_SCHEMA, {"type": "array", "items": _WINDOW_SCHEMA}]}),
]
TimeZone = Annotated[str, AfterValidator(check_timezone)]
