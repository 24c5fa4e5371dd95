"""A check of cron expressions, so that a broken schedule is an error with a line, not a missed run."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from itertools import islice, pairwise
from typing import NamedTuple

from cronsim import CronSim, CronSimError

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_ITEM = re.compile(r"(?:\*|(\w+)(?:-(\w+))?)(?:/([0-9]+))?")
_START = datetime(2000, 1, 1)
_SOME = 50  # runs that are looked at for the shortest time between two


class _Field(NamedTuple):
    """`high`: the last value that is another one than those before; `alias`: one more name of the lowest.

    `unit`: of an interval as long as a step, where durations have one.
    """

    name: str
    low: int
    high: int
    names: dict[str, int]
    unit: str = ""
    alias: int | None = None

    @property
    def highest(self) -> int:
        return self.high if self.alias is None else self.alias

    def number(self, text: str) -> int | None:
        found = self.names.get(text, int(text) if re.fullmatch(r"[0-9]{1,3}", text) else -1)
        return found if self.low <= found <= self.highest else None


_FIELDS = (
    _Field("minute", 0, 59, {}, "m"),
    _Field("hour", 0, 23, {}, "h"),
    _Field("day of the month", 1, 31, {}, "d"),
    _Field("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    _Field("day of the week", 0, 6, {name: number for number, name in enumerate(_DAYS)}, "d", alias=7),
)


def check_cron(text: str) -> str:
    """The expression, if it has five valid fields (POSIX crontab plus steps and names).

    Raises ValueError for another one, for steps that mean something else than an interval, and for days that never
    come.
    """
    fields = text.split()
    if len(fields) != len(_FIELDS):
        raise ValueError('a cron expression has five fields, for example "0 */6 * * *" for every six hours')
    for written, field in zip(fields, _FIELDS, strict=True):
        for item in written.lower().split(","):
            _check_item(item, field, written)
    try:
        CronSim(text, _START)
    except CronSimError as error:
        raise ValueError("never comes: none of its months has such a day") from error
    return text


def shortest_gap(text: str) -> timedelta:
    """The shortest time between two runs of a checked expression, of those that come first."""
    runs = list(islice(CronSim(text, _START), _SOME))
    return min((later - earlier for earlier, later in pairwise(runs)), default=timedelta.max)


def _check_item(item: str, field: _Field, written: str) -> None:
    match = _ITEM.fullmatch(item)
    if match is None:
        raise _no_field(field, written)
    start, end, step = match.groups()
    first = field.low if start is None else field.number(start)
    last = field.high if start is None else first if end is None else field.number(end)
    if first is None or last is None or (step and not int(step)):
        raise _no_field(field, written)
    if first > last:
        raise ValueError(f"'{item}' runs backwards; write {_around(field, first, last)} in its place")
    if step:
        _check_step(item, field, first, last, int(step), alone=start is not None and end is None)


def _check_step(item: str, field: _Field, first: int, last: int, step: int, *, alone: bool) -> None:
    if alone:  # crontab has no such step, and the programs that take it differ in what it means
        raise ValueError(f"'{item}' steps from a single {field.name}; write {first}-{field.high}/{step}, or {first}")
    if step > last - first:
        every = f", or every: {step}{field.unit} for an interval" if field.unit else ""
        raise ValueError(
            f"'{item}' would mean {field.name} {first} alone, as a step of {step} leaves {first} to {last} at once; "
            f"write {first}{every}"
        )


def _around(field: _Field, first: int, last: int) -> str:
    """A range over the end of a field, as two."""
    parts = (first, field.high), (field.low, last)
    return ",".join(f"{low}-{high}" if low != high else str(low) for low, high in parts)


def _no_field(field: _Field, written: str) -> ValueError:
    return ValueError(
        f"'{written}' is no {field.name} of a cron expression ({field.low} to {field.highest}, *, a-b, */n, a,b)"
    )
