"""The store's time: Unix seconds, UTC, from a clock that is passed in."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], float]


def iso(seconds: float | None) -> str | None:
    """Unix seconds as people and other programs read them: ISO 8601, UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
