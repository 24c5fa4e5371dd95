"""History: what happened to a store, when and why. Events are only ever added."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pimcal.store.generations import Key
from pimcal.stored import Details, Seconds, Text, checked


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of history: `at` in Unix seconds, `kind` (activated, rejected, ...), `generation` if it is about one."""

    at: Seconds
    kind: Text
    device: Text | None
    model_hash: Text | None
    generation: Text | None
    reason: Text
    details: Details

    @classmethod
    def of(cls, row: sqlite3.Row) -> Self:
        """Raises ValueError for what is no such row."""
        return checked(cls, {**dict(row), "details": json_of(row["details"])})


def json_of(text: object) -> Any:
    """Raises ValueError, RecursionError for what is no JSON."""
    if not isinstance(text, str):
        raise ValueError(f"no JSON text, but {type(text).__name__}")
    return json.loads(text)


THINNED = "thinned"  # the kind of what tells which probes and readings gc has removed
COLUMNS = "at, kind, device, model_hash, generation, reason, details"


def write_event(
    connection: sqlite3.Connection,
    at: float,
    kind: str,
    reason: str,
    *,
    key: Key | None = None,
    generation: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Add a line to history, within the transaction of what it tells of."""
    device, model_hash = key or (None, None)
    values = (at, kind, device, model_hash, generation, reason, json.dumps(details or {}, sort_keys=True))
    connection.execute(f"INSERT INTO events ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)


def activations(history: Iterable[tuple[str, str]]) -> list[str]:
    """The generations that became active, in order and without what was rolled back; the last one is active.

    `history`: kind and generation of all `activated` and `rolled_back` events of one device and model.
    """
    found: list[str] = []
    for kind, generation in history:
        if kind == "activated":
            found.append(generation)
            continue
        while found and found[-1] != generation:
            found.pop()
    return found
