"""The store's time: Unix seconds, UTC, from a clock that is passed in."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], float]
_FIRST_S, _LAST_S = (datetime(*date, tzinfo=UTC).timestamp() for date in ((1, 1, 1), (9999, 12, 31)))


def iso(seconds: float | None) -> str | None:
    """Unix seconds as people and other programs read them: ISO 8601, UTC; of the years 1 to 9999 the nearest."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(max(_FIRST_S, min(seconds, _LAST_S)), UTC).isoformat(timespec="seconds")
