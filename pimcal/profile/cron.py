"""A check of cron expressions, so that a broken schedule is an error with a line, not a missed run."""

from __future__ import annotations

import re
from datetime import datetime

from cronsim import CronSim, CronSimError

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of the month", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    ("day of the week", 0, 7, {name: number for number, name in enumerate(_DAYS)}),
)
_ITEM = re.compile(r"(\*|(\w+)(?:-(\w+))?)(?:/([0-9]{1,3}))?")


def check_cron(text: str) -> str:
    """The expression, if it has five valid fields (POSIX crontab plus steps and names).

    Raises ValueError for another one, and for days that never come.
    """
    fields = text.split()
    if len(fields) != len(_FIELDS):
        raise ValueError('a cron expression has five fields, for example "0 */6 * * *" for every six hours')
    for field, (name, low, high, names) in zip(fields, _FIELDS, strict=True):
        if not all(_is_item(item, low, high, names) for item in field.lower().split(",")):
            raise ValueError(f"'{field}' is no {name} of a cron expression ({low} to {high}, *, a-b, */n, a,b)")
    try:
        CronSim(text, datetime(2000, 1, 1))
    except CronSimError as error:
        raise ValueError("never comes: none of its months has such a day") from error
    return text


def _is_item(item: str, low: int, high: int, names: dict[str, int]) -> bool:
    match = _ITEM.fullmatch(item)
    if match is None or (match[4] is not None and int(match[4]) == 0):
        return False
    if match[1] == "*":
        return True
    first = _number(match[2], names)
    last = _number(match[3], names) if match[3] else first
    return low <= first <= last <= high


def _number(text: str, names: dict[str, int]) -> int:
    return names.get(text, int(text) if re.fullmatch(r"[0-9]{1,3}", text) else -1)
