"""Connections to a store's database: one that writes, and short ones that read."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from pimcal.errors import StorageError
from pimcal.files import check_writable
from pimcal.store.faults import damaged, faults_told, foreign, no_store, too_new, too_old
from pimcal.store.schema import APPLICATION_ID, VERSION, missing_parts


def database_file(folder: Path) -> Path:
    return folder / "store.db"


def connect(file: Path, mode: str, wait_s: float) -> sqlite3.Connection:
    """A connection without implicit transactions, which waits up to `wait_s` for others."""
    uri = f"{file.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=wait_s, isolation_level=None)
    connection.row_factory = sqlite3.Row
    return connection


def open_writer(folder: Path, wait_s: float) -> sqlite3.Connection:
    """A connection that may write; the store may be of an older version still.

    Raises StorageError where there is no store, a newer one, or one that may not be written.
    """
    check_there(folder)
    _check_own(folder)
    check_writable(folder)
    with faults_told(folder):
        connection = connect(database_file(folder), "rw", wait_s)
        try:
            check_version(connection, folder)
            set_up(connection, folder)
        except BaseException:
            connection.close()
            raise
    return connection


def _check_own(folder: Path) -> None:
    """Links within a store lead to what is not the store's, and would be written."""
    names = ("store.db", "store.db-wal", "store.db-shm", "store.db-journal", "tensors")
    if links := [folder / name for name in names if (folder / name).is_symlink()]:
        raise StorageError(
            f"{links[0]} is a symbolic link, and nothing is written through it; put the file itself there, or link the "
            "whole folder"
        )


def set_up(connection: sqlite3.Connection, folder: Path) -> None:
    """Readers beside one writer, commits that are on the disk, references that hold."""
    if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise StorageError(f"store {folder}: this file system has no shared memory; put the store on a local disk")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def read(folder: Path, query: str, parameters: tuple[object, ...], wait_s: float) -> list[sqlite3.Row]:
    """The rows that a query gives, on a connection for it alone: a reader keeps nothing open and changes nothing."""
    check_there(folder)
    with faults_told(folder):
        try:
            return _ask(folder, query, parameters, "ro", wait_s)
        except sqlite3.OperationalError:
            if _in_use(folder) or os.access(folder, os.W_OK):
                raise
        return _ask_unlocked(folder, query, parameters, wait_s)


def _ask_unlocked(folder: Path, query: str, parameters: tuple[object, ...], wait_s: float) -> list[sqlite3.Row]:
    """For a store that nobody has open, in a folder where not even SQLite's locks can be made."""
    before = database_file(folder).stat()
    found = _ask(folder, query, parameters, "ro&immutable=1", wait_s)
    if _in_use(folder) or database_file(folder).stat().st_mtime_ns != before.st_mtime_ns:
        return read(folder, query, parameters, wait_s)  # somebody who may write came in between
    return found


def _ask(folder: Path, query: str, parameters: tuple[object, ...], mode: str, wait_s: float) -> list[sqlite3.Row]:
    with closing(connect(database_file(folder), mode, wait_s)) as connection:
        version = check_version(connection, folder)
        if version < VERSION:
            raise too_old(folder, version)
        return connection.execute(query, parameters).fetchall()


def _in_use(folder: Path) -> bool:
    return (folder / "store.db-wal").exists()


def check_there(folder: Path) -> None:
    """Raise StorageError where there is no store in `folder`."""
    try:
        if folder.exists() and not folder.is_dir():
            raise StorageError(f"{folder} is a file, and a store is a folder; name another place")
        if not database_file(folder).is_file():
            raise no_store(folder)
    except OSError as error:
        raise StorageError(f"cannot look into {folder}: {error.strerror}; name another folder") from error


def check_version(connection: sqlite3.Connection, folder: Path) -> int:
    """The schema's version.

    Raises StorageError where it is newer than this pimcal, or the file is no store, DamagedStoreError where it has not
    what its version has.
    """
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise foreign(folder)
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > VERSION:
        raise too_new(folder, version)
    if version < 1:
        raise damaged(folder, f"its schema is {version}, and the first one was 1")
    if missing := missing_parts(connection, version):
        raise damaged(folder, f"of schema {version} it lacks: {', '.join(missing)}")
    return version
