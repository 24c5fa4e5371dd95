"""Making a store, and bringing an older one up to date."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pimcal
from pimcal.errors import StorageError
from pimcal.files import check_writable, sync_folder
from pimcal.store.clock import Clock
from pimcal.store.connection import connect, database_file, set_up
from pimcal.store.database import Database
from pimcal.store.events import write_event
from pimcal.store.faults import faults_told
from pimcal.store.schema import APPLICATION_ID, PARTS, VERSION

STAGE = ".new-"  # a process that was killed may leave such a folder; gc removes it


def create(folder: Path, clock: Clock) -> None:
    """Make an empty store in `folder`. It appears whole: the database is linked into place when it is done.

    Where another process makes one at the same time, one of the two stays. Raises StorageError.
    """
    check_writable(folder)
    try:
        (folder / "tensors").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=STAGE) as stage:
            file = Path(stage) / "store.db"
            with faults_told(folder), closing(connect(file, "rwc", 0)) as connection:
                set_up(connection, folder)
                _upgrade(connection, 0, clock)
            _link(file, database_file(folder))
        sync_folder(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise StorageError(
            f"cannot make a store in {folder}: {error.strerror or error}; name another folder"
        ) from error


def _link(file: Path, place: Path) -> None:
    with file.open("rb") as content:
        os.fsync(content.fileno())
    try:
        place.hardlink_to(file)
    except FileExistsError:
        if not place.is_file():  # else another process was faster
            raise


def migrate(database: Database, clock: Clock) -> int:
    """Bring a store up to date, in one transaction; returns the version that it had."""
    with database.transaction(migrating=True) as connection:
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version < VERSION:
            _upgrade(connection, version, clock)
    return version


def migrate_folder(folder: Path, clock: Clock = time.time, wait_s: float = 10.0) -> int:
    """As `migrate`, for a store that is not open. `Store.open` for writing does the same."""
    database = Database(folder, read_only=False, wait_s=wait_s)
    try:
        return migrate(database, clock)
    finally:
        database.close()


def _upgrade(connection: sqlite3.Connection, version: int, clock: Clock) -> None:
    for statement in (statement for part in PARTS[version:] for statement in part):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
    details = {"from": version, "to": VERSION, "pimcal": pimcal.__version__}
    write_event(connection, clock(), "migrated" if version else "created", f"schema {VERSION}", details=details)
