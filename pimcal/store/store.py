"""The store: a directory with generations of calibration records, at most one of them active for a device and model."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self

from pimcal.errors import DataError, StorageError, UsageError
from pimcal.record import Record
from pimcal.store import tensors
from pimcal.store.clock import Clock
from pimcal.store.connection import database_file
from pimcal.store.database import Database
from pimcal.store.events import activations, write_event
from pimcal.store.faults import damaged
from pimcal.store.generations import COLUMNS, Generation, Key, State, change, insert, only
from pimcal.store.journal import Journal
from pimcal.store.migration import create, migrate
from pimcal.store.reserve import keep_reserve
from pimcal.store.unreferenced import drop_unreferenced

WAIT_S = 10.0


class Store:
    """Open it with `Store.open` or `Store.create`; close it, or use it as a context manager.

    `store.db` (SQLite) says what there is, `tensors/` holds the records, each in a file that is named by its SHA-256
    and on the disk before a row names it. Every change is one transaction with a line of history in it. Times are Unix
    seconds from `clock`. A store is used by the thread that opened it, and not across a fork.

    All methods raise StorageError where the disk, a permission or a damaged file is in the way, StoreBusyError (exit
    code 75) where another process writes for longer than `wait_s`, and UsageError for a generation that does not exist
    or whose state does not allow the change. Nothing is changed then. `generation_id` may be the beginning of an id, as
    long as it means one generation only.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self.folder = database.folder
        self.database = database
        self.clock = clock
        self.journal = Journal(database, clock)

    @classmethod
    def open(
        cls, folder: str | Path, *, read_only: bool = False, clock: Clock = time.time, wait_s: float = WAIT_S
    ) -> Self:
        """Open a store; one of an older pimcal is brought up to date, unless `read_only`.

        A reader keeps no file open, waits for nobody, and needs no permission to write.
        """
        database = Database(Path(folder), read_only=read_only, wait_s=wait_s)
        try:
            if read_only:
                database.rows("SELECT 1")  # a store that cannot be read is told now
            else:
                migrate(database, clock)
                keep_reserve(database.folder)
        except BaseException:
            database.close()
            raise
        return cls(database, clock)

    @classmethod
    def create(cls, folder: str | Path, *, clock: Clock = time.time, wait_s: float = WAIT_S) -> Self:
        """Open a store for writing, and make an empty one first where there is none."""
        if not database_file(Path(folder)).exists():
            create(Path(folder), clock)
        return cls.open(folder, clock=clock, wait_s=wait_s)

    def close(self) -> None:
        """Let go of the files; a second call does nothing."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # looking

    def known_keys(self) -> list[Key]:
        """The devices and models that there are generations for."""
        query = "SELECT DISTINCT device, model_hash FROM generations ORDER BY device, model_hash"
        return self.database.read(Key.of_row, query)

    def generations(
        self, key: Key | None = None, *, states: Collection[State] = (), collected: bool = False
    ) -> list[Generation]:
        """Generations, oldest first: of one device and model, or in some states; with `collected` also removed ones."""
        return [
            generation
            for generation in self.database.read(Generation.of, f"SELECT {COLUMNS} FROM generations ORDER BY seq")
            if key in (None, generation.key)
            and (not states or generation.state in states)
            and (collected or generation.collected_at is None)
        ]

    def generation(self, generation_id: str) -> Generation:
        """The generation with this id."""
        query = f"SELECT {COLUMNS} FROM generations WHERE substr(id, 1, ?) = ? ORDER BY seq"
        prefix = generation_id.lower()
        return only(prefix, self.database.read(Generation.of, query, len(prefix), prefix), self.folder)

    def active(self, key: Key) -> Generation | None:
        """The active generation of a device and model."""
        query = f"SELECT {COLUMNS} FROM generations WHERE device = ? AND model_hash = ?"
        there = self.database.read(Generation.of, query, *key)  # all: a state that is none must not read as "none"
        found = [generation for generation in there if generation.state == "active"]
        if len(found) > 1:
            raise damaged(self.folder, f"{len(found)} generations are active for {key}")
        return found[0] if found else None

    def previous(self, key: Key) -> Generation | None:
        """The generation that `rollback` would go back to."""
        rows = self.database.rows(
            "SELECT kind, generation FROM events WHERE device = ? AND model_hash = ? "
            "AND kind IN ('activated', 'rolled_back') ORDER BY seq",
            *key,
        )
        there = {generation.id: generation for generation in self.generations(key) if generation.state != "active"}
        earlier = reversed(activations((row["kind"], row["generation"]) for row in rows))
        return next((there[each] for each in earlier if each in there), None)

    def record(self, generation_id: str) -> Record:
        """A generation's record, found to be what was written."""
        return tensors.load(self.folder, self.generation(generation_id))

    def active_record(self, key: Key) -> Record | None:
        """The record of the active generation; None where there is none."""
        generation = self.active(key)
        while generation is not None:
            try:
                return tensors.load(self.folder, generation)
            except StorageError:
                now = self.active(key)
                if now is None or now.id == generation.id:
                    raise
                generation = now  # the first was replaced and removed while we looked
        return None

    # changing

    def add_candidate(
        self, record: Record, reason: str, *, kind: str = "candidate", details: Mapping[str, Any] | None = None
    ) -> Generation:
        """Keep a record, for the device and model that it was made with.

        `kind` and `details` are those of its line of history.
        """
        content = record.to_bytes()
        written: list[str] = []
        try:
            with self.database.transaction() as connection:
                sha256 = tensors.put(self.folder, content)
                written.append(sha256)
                parent = self.active(Key.of(record))
                generation = insert(connection, record, sha256, parent.id if parent else None, reason, self.clock())
                self._tell(connection, kind, generation, reason, details)
        except BaseException:
            drop_unreferenced(self.database, written)
            raise
        return generation

    def activate(self, generation_id: str, reason: str) -> Generation:
        """Make a generation the active one of its device and model, and retire the former, in one transaction."""
        with self.database.transaction() as connection:
            generation = self.generation(generation_id)
            if generation.state != "active":
                former = self.active(generation.key)
                self._switch(connection, former, generation, reason)
                self._tell(connection, "activated", generation, reason, {"former": former.id if former else None})
        return self.generation(generation.id)

    def reject(self, generation_id: str, reason: str) -> Generation:
        """Say that a candidate is not to be used."""
        with self.database.transaction() as connection:
            generation = self.generation(generation_id)
            if generation.state != "candidate":
                raise UsageError(
                    f"generation {generation.id} is {generation.state}, and only a candidate can be rejected; "
                    "to leave an active one, go back to another"
                )
            self._reject(connection, generation, reason)
        return self.generation(generation.id)

    def reject_leftovers(self, key: Key, reason: str) -> list[Generation]:
        """Reject the candidates that a killed process never decided about; returns them.

        For whoever alone calibrates for this device and model, before it begins. Imported candidates and pinned ones
        are the operator's, and stay.
        """
        with self.database.transaction() as connection:
            made = {event.generation for event in self.journal.history(key, kinds=("candidate",), limit=None)}
            there = self.generations(key, states=["candidate"])
            left = [each for each in there if each.id in made and not each.pinned]
            for generation in left:
                self._reject(connection, generation, reason)
        return [self.generation(generation.id) for generation in left]

    def rollback(self, key: Key, reason: str) -> Generation:
        """Go back to the generation that was active before the present one; returns it.

        Called again it goes back further. What gc removed is passed over. Raises DataError where there is none.
        """
        with self.database.transaction() as connection:
            active, before = self.active(key), self.previous(key)
            if active is None or before is None:
                raise DataError(f"there is nothing to go back to for {key} in store {self.folder}; calibrate again")
            self._switch(connection, active, before, reason)
            self._tell(connection, "rolled_back", before, reason, {"from": active.id})
        return self.generation(before.id)

    def pin(self, generation_id: str, reason: str) -> Generation:
        """Keep gc from removing a generation."""
        return self._set_pinned(generation_id, True, reason)

    def unpin(self, generation_id: str, reason: str) -> Generation:
        """Undo `pin`."""
        return self._set_pinned(generation_id, False, reason)

    def _set_pinned(self, generation_id: str, pinned: bool, reason: str) -> Generation:
        with self.database.transaction() as connection:
            generation = self.generation(generation_id)
            if generation.collected_at is not None:
                raise UsageError(f"generation {generation.id} was removed by gc, so there is nothing to keep")
            if generation.pinned != pinned:
                change(connection, generation.id, pinned=pinned)
                self._tell(connection, "pinned" if pinned else "unpinned", generation, reason)
        return self.generation(generation.id)

    def _reject(self, connection: sqlite3.Connection, generation: Generation, reason: str) -> None:
        change(connection, generation.id, state="rejected", reason=reason, retired_at=self.clock())
        self._tell(connection, "rejected", generation, reason)

    def _switch(
        self, connection: sqlite3.Connection, former: Generation | None, generation: Generation, reason: str
    ) -> None:
        tensors.content_of(self.folder, generation)  # what cannot be loaded does not become active
        now = self.clock()
        if former is not None:
            replaced = f"replaced by {generation.id}"
            change(connection, former.id, state="retired", reason=replaced, retired_at=now)
            self._tell(connection, "retired", former, replaced)
        change(connection, generation.id, state="active", reason=reason, activated_at=now, retired_at=None)

    def _tell(
        self,
        connection: sqlite3.Connection,
        kind: str,
        generation: Generation,
        reason: str,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        write_event(
            connection, self.clock(), kind, reason, key=generation.key, generation=generation.id, details=details
        )
