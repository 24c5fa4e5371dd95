"""A store's database: queries, and transactions that happen whole or not at all."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pimcal.errors import StorageError
from pimcal.store.connection import check_version, open_writer, read
from pimcal.store.faults import damaged, faults_told, too_old
from pimcal.store.schema import VERSION

T = TypeVar("T")


class Database:
    """Open from construction to `close`, for the thread that opened it; `read_only` holds nothing open at all."""

    def __init__(self, folder: Path, *, read_only: bool, wait_s: float) -> None:
        self.folder = folder
        self._wait_s = wait_s
        self._writer = None if read_only else open_writer(folder, wait_s)

    def rows(self, query: str, *parameters: object) -> list[sqlite3.Row]:
        """All rows that a query gives."""
        if self._writer is None:
            return read(self.folder, query, parameters, self._wait_s)
        with faults_told(self.folder):
            return self._writer.execute(query, parameters).fetchall()

    def read(self, make: Callable[[sqlite3.Row], T], query: str, *parameters: object) -> list[T]:
        """What `make` makes of each row. Raises DamagedStoreError where that raises ValueError."""
        rows = self.rows(query, *parameters)
        try:
            return [make(row) for row in rows]
        except (ValueError, RecursionError) as error:
            raise damaged(self.folder, str(error)) from error

    @contextmanager
    def transaction(self, *, migrating: bool = False) -> Iterator[sqlite3.Connection]:
        """A block that alone may write; what it wrote is on the disk behind it, or nothing where it raises.

        Raises StoreBusyError where another process writes for too long, StorageError where the store was opened for
        reading, or was brought to another version since.
        """
        if self._writer is None:
            raise StorageError(f"store {self.folder} is not open for writing; open it without read_only=True")
        with faults_told(self.folder), _committed(self._writer):
            version = check_version(self._writer, self.folder)
            if version < VERSION and not migrating:
                raise too_old(self.folder, version)
            yield self._writer

    def shorten_log(self) -> None:
        """Take SQLite's log, which may have megabytes, into the database file, as far as readers and the disk allow."""
        if self._writer is not None:
            with suppress(StorageError), faults_told(self.folder):
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Let go of the files; a second call does nothing. What comes later reads only."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


@contextmanager
def _committed(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # after some errors SQLite has already undone it
            connection.execute("ROLLBACK")
        raise
