"""Removing what nobody needs any more: old generations' tensors, and files that no row names."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pimcal.errors import StorageError
from pimcal.store.database import Database
from pimcal.store.events import write_event
from pimcal.store.generations import Key, change
from pimcal.store.migration import STAGE
from pimcal.store.reserve import keep_reserve, release_reserve
from pimcal.store.thin import Thinned, thin_out
from pimcal.store.unreferenced import referenced

if TYPE_CHECKING:
    from pimcal.store.store import Store


@dataclass(frozen=True, slots=True)
class Collected:
    """What gc removed: generations by id; how many files, with how many bytes; and how many probes and readings."""

    generations: tuple[str, ...]
    files: int
    bytes: int
    probes: int
    readings: int


def collect_garbage(store: Store, keep: int, reason: str, *, older_than_s: float | None = None) -> Collected:
    """Remove the tensors of retired and of rejected generations, but for the newest `keep` of each.

    The newest are counted for each device and model. Active and pinned generations, candidates, those that a rollback
    would go back to, and history stay. Files that no row names, as a killed process leaves them, go too. Probes and
    telemetry that are older than `older_than_s` go as well, where that is given. Readers may read meanwhile.

    On a full disk no row can be written before there is room: the store's reserve is used, the log is shortened and
    unnamed files go first. The generations' files follow when the rows that no longer need them are on the disk.
    """
    store.generations(collected=True)  # in a damaged store nothing is removed
    release_reserve(store.folder)
    try:
        return _collect(store, keep, reason, older_than_s)
    finally:
        keep_reserve(store.folder)


def _collect(store: Store, keep: int, reason: str, older_than_s: float | None) -> Collected:
    store.database.shorten_log()
    files = _remove_unreferenced(store.database)
    with store.database.transaction() as connection:
        needed = {previous.id for key in store.known_keys() if (previous := store.previous(key))}
        old = [(generation, key) for generation, key in _older_than(connection, keep) if generation not in needed]
        for generation, key in old:
            now = store.clock()
            change(connection, generation, collected_at=now)
            write_event(connection, now, "collected", reason, key=key, generation=generation)
    files += _remove_unreferenced(store.database)
    thinned = Thinned(0, 0) if older_than_s is None else thin_out(store, older_than_s, reason)
    store.database.shorten_log()
    return Collected(tuple(generation for generation, _ in old), len(files), sum(files), *thinned)


def _older_than(connection: sqlite3.Connection, keep: int) -> list[tuple[str, Key]]:
    """By the order of events, not by time: clocks jump."""
    rows = connection.execute(
        """
        SELECT id, device, model_hash FROM (
            SELECT generations.*, row_number() OVER (
                PARTITION BY device, model_hash, state
                ORDER BY (SELECT max(events.seq) FROM events
                          WHERE generation = generations.id AND kind IN ('retired', 'rejected')) DESC
            ) AS place
            FROM generations WHERE state IN ('retired', 'rejected') AND collected_at IS NULL AND NOT pinned
        ) WHERE place > ? ORDER BY seq
        """,
        (keep,),
    )
    return [(row["id"], Key(row["device"], row["model_hash"])) for row in rows]


def _remove_unreferenced(database: Database) -> list[int]:
    """The sizes of the files that went. Nobody writes meanwhile, so no file is about to be named."""
    with database.transaction() as connection:
        needed = referenced(connection)
        unnamed = [path for path in _files_of(database.folder / "tensors") if path.name not in needed]
        sizes = [_remove(path) for path in unnamed]
        for stage in database.folder.glob(f"{STAGE}*"):
            shutil.rmtree(stage, ignore_errors=True)
    return sizes


def _files_of(folder: Path) -> list[Path]:
    try:
        return [*folder.iterdir()]
    except OSError as error:
        raise StorageError(
            f"cannot look into {folder}: {error.strerror}; put a copy of the store in its place"
        ) from error


def _remove(path: Path) -> int:
    try:
        size = path.stat().st_size
        path.unlink()
    except OSError as error:
        raise StorageError(f"cannot remove {path}: {error.strerror}; the rest of the store is as it was") from error
    return size
