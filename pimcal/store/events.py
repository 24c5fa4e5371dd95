"""History: what happened to a store, when and why. Events are only ever added."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pimcal.store.generations import Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of history: `at` in Unix seconds, `kind` (activated, rejected, ...), `generation` if it is about one."""

    at: float
    kind: str
    device: str | None
    model_hash: str | None
    generation: str | None
    reason: str
    details: dict[str, Any]

    @classmethod
    def of(cls, row: sqlite3.Row) -> Self:
        return cls(**{**dict(row), "details": json.loads(row["details"])})


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
