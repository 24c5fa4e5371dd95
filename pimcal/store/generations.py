"""A generation: one calibration record in a store, with its state and how it came to it."""

from __future__ import annotations

import hashlib
import sqlite3
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from pimcal.errors import UsageError
from pimcal.store.clock import iso
from pimcal.stored import Hash, Number, Seconds, Text, Truth, checked

if TYPE_CHECKING:
    from pimcal.record import Record

State = Literal["candidate", "active", "retired", "rejected"]
ID_DIGITS = 12


class Key(NamedTuple):
    """What at most one generation is active for: a device's identity and the hash of a model."""

    device: Text
    model_hash: Text

    @classmethod
    def of_row(cls, row: sqlite3.Row) -> Self:
        """Of a row that begins with both. Raises ValueError."""
        return checked(cls, {"device": row[0], "model_hash": row[1]})

    @classmethod
    def of(cls, record: Record) -> Self:
        """What a record was made for."""
        return cls(record.made_with.device, record.made_with.model_hash)

    def __str__(self) -> str:
        return f"device {self.device} with model {self.model_hash[:12]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One record in a store. Times are Unix seconds.

    `parent` was active when this one came. `sha256` names the file of its record; `collected_at` says when gc removed
    that. `activated_at` and `retired_at` (also of a rejection) are the latest.
    """

    id: Text
    device: Text
    model_hash: Text
    profile_hash: Text
    record_id: Text
    sha256: Hash
    method: Text
    parent: Text | None
    state: State
    reason: Text
    metric: Text | None
    metric_before: Number | None
    metric_after: Number | None
    created_at: Seconds
    activated_at: Seconds | None = None
    retired_at: Seconds | None = None
    collected_at: Seconds | None = None
    pinned: Truth = False

    @classmethod
    def of(cls, row: sqlite3.Row) -> Self:
        """Raises ValueError for what is no such row."""
        values = dict(row)
        pinned = {0: False, 1: True}.get(values["pinned"], values["pinned"])  # SQLite has no truth values
        return checked(cls, {**values, "pinned": pinned})

    @property
    def key(self) -> Key:
        return Key(self.device, self.model_hash)

    def as_dict(self) -> dict[str, Any]:
        """All of it for JSON, times in ISO 8601."""
        return {name: iso(value) if name.endswith("_at") else value for name, value in asdict(self).items()}


COLUMNS = ", ".join(field.name for field in fields(Generation))


def insert(
    connection: sqlite3.Connection, record: Record, sha256: str, parent: str | None, reason: str, at: float
) -> Generation:
    """A new candidate's row. Its id depends on what it is and where in the store it stands, on nothing random."""
    made = record.made_with
    seq = connection.execute("SELECT coalesce(max(seq), 0) + 1 FROM generations").fetchone()[0]
    identity = f"{seq} {sha256} {made.device} {made.model_hash} {at}"
    generation = Generation(
        id=hashlib.sha256(identity.encode()).hexdigest()[:ID_DIGITS],
        device=made.device,
        model_hash=made.model_hash,
        profile_hash=made.profile_hash,
        record_id=record.id,
        sha256=sha256,
        method=record.method,
        parent=parent,
        state="candidate",
        reason=reason,
        metric=made.metric,
        metric_before=made.before,
        metric_after=made.after,
        created_at=at,
    )
    values = (seq, *asdict(generation).values())
    connection.execute(f"INSERT INTO generations (seq, {COLUMNS}) VALUES ({', '.join('?' * len(values))})", values)
    return generation


def change(connection: sqlite3.Connection, generation_id: str, **values: object) -> None:
    """Overwrite some of a generation's columns."""
    columns = ", ".join(f"{name} = ?" for name in values)
    connection.execute(f"UPDATE generations SET {columns} WHERE id = ?", (*values.values(), generation_id))


def only(prefix: str, found: list[Generation], folder: Path) -> Generation:
    """The one generation that a prefix of its id means. Raises UsageError where it means none, or several."""
    if not (found and prefix):
        raise UsageError(f"no generation's id starts with {prefix!r}; `pimcal records list --store {folder}` shows all")
    exact = [generation for generation in found if generation.id == prefix]
    if len(found) > 1 and not exact:
        several = ", ".join(f"{generation.id} ({generation.state})" for generation in found)
        raise UsageError(f"{prefix!r} is the beginning of several ids: {several}; write one more digit or all")
    return (exact or found)[0]
