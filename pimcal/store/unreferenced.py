"""Files of records that no generation names."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from contextlib import suppress

from pimcal.errors import StorageError
from pimcal.store.database import Database
from pimcal.store.tensors import SUFFIX, file_of


def drop_unreferenced(database: Database, hashes: Collection[str]) -> None:
    """Take back files whose rows were not written, as far as that is possible now; gc finds them otherwise."""
    if not hashes:
        return
    with suppress(StorageError), database.transaction() as connection:
        needed = referenced(connection)
        for sha256 in hashes:
            path = file_of(database.folder, sha256)
            if path.name not in needed:
                path.unlink(missing_ok=True)


def referenced(connection: sqlite3.Connection) -> set[str]:
    """The names of the files that a generation needs."""
    rows = connection.execute("SELECT DISTINCT sha256 FROM generations WHERE collected_at IS NULL")
    return {f"{row['sha256']}{SUFFIX}" for row in rows}
