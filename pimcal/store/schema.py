"""The store's tables, version by version: a store of version n is what the first n parts make.

A published part never changes; what is new goes into another part behind it. Times are Unix seconds (UTC).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from functools import cache

APPLICATION_ID = 0x70696D63  # "pimc": tells a store from any other SQLite file

_VERSION_1 = (
    """
    CREATE TABLE generations (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        device TEXT NOT NULL,
        model_hash TEXT NOT NULL,
        profile_hash TEXT NOT NULL,
        record_id TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        method TEXT NOT NULL,
        parent TEXT REFERENCES generations (id),
        state TEXT NOT NULL CHECK (state IN ('candidate', 'active', 'retired', 'rejected')),
        reason TEXT NOT NULL,
        metric TEXT,
        metric_before REAL,
        metric_after REAL,
        created_at REAL NOT NULL,
        activated_at REAL,
        retired_at REAL,
        collected_at REAL,
        CHECK (collected_at IS NULL OR state IN ('retired', 'rejected'))
    )
    """,
    "CREATE UNIQUE INDEX one_active ON generations (device, model_hash) WHERE state = 'active'",
    """
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY,
        at REAL NOT NULL,
        kind TEXT NOT NULL,
        device TEXT,
        model_hash TEXT,
        generation TEXT REFERENCES generations (id),
        reason TEXT NOT NULL,
        details TEXT NOT NULL
    )
    """,
    "CREATE INDEX events_by_generation ON events (generation)",
    "CREATE INDEX events_by_key ON events (device, model_hash, kind)",
    "CREATE TRIGGER events_stay BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'history is append-only'); END",
    "CREATE TRIGGER events_are_fixed BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'history is append-only'); END",
    """
    CREATE TRIGGER events_are_not_replaced BEFORE INSERT ON events
    WHEN EXISTS (SELECT 1 FROM events WHERE seq = NEW.seq)
    BEGIN SELECT RAISE(ABORT, 'history is append-only'); END
    """,
    """
    CREATE TABLE runs (
        seq INTEGER PRIMARY KEY,
        at REAL NOT NULL,
        kind TEXT NOT NULL,
        device TEXT NOT NULL,
        model_hash TEXT NOT NULL,
        generation TEXT REFERENCES generations (id),
        outcome TEXT NOT NULL,
        reason TEXT NOT NULL,
        images INTEGER NOT NULL,
        mvms INTEGER NOT NULL,
        programmed_cells INTEGER NOT NULL,
        link_bytes INTEGER NOT NULL,
        seconds REAL NOT NULL
    )
    """,
    """
    CREATE TABLE probes (
        seq INTEGER PRIMARY KEY,
        at REAL NOT NULL,
        device TEXT NOT NULL,
        model_hash TEXT NOT NULL,
        statistic REAL,
        threshold REAL NOT NULL,
        mvms INTEGER NOT NULL,
        tiles TEXT NOT NULL
    )
    """,
)

_VERSION_2 = (
    "ALTER TABLE generations ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0 CHECK (pinned IN (0, 1))",
    """
    CREATE TABLE telemetry (
        seq INTEGER PRIMARY KEY,
        at REAL NOT NULL,
        device TEXT NOT NULL,
        name TEXT NOT NULL,
        value REAL
    )
    """,
    "CREATE INDEX telemetry_by_name ON telemetry (device, name, at)",
)

_VERSION_3 = (  # each index ends with seq, in whose order the newest are looked for
    "CREATE INDEX runs_by_key ON runs (device, model_hash)",
    "CREATE INDEX probes_by_key ON probes (device, model_hash)",
    "DROP INDEX telemetry_by_name",
    "CREATE INDEX telemetry_by_name ON telemetry (device, name)",
)

PARTS = (_VERSION_1, _VERSION_2, _VERSION_3)
VERSION = len(PARTS)

_COLUMNS = """
    SELECT tables.name, columns.name FROM sqlite_master AS tables JOIN pragma_table_info(tables.name) AS columns
    WHERE tables.type = 'table'
"""


def missing_parts(connection: sqlite3.Connection, version: int) -> list[str]:
    """The tables, and columns of tables, that a store of this version has and this database lacks."""
    found = _columns(connection)
    missing: list[str] = []
    for table, columns in _expected(version).items():
        lacking = columns - found.get(table, set())
        missing += [f"table {table}"] if table not in found else [f"{table}.{name}" for name in sorted(lacking)]
    return missing


@cache
def _expected(version: int) -> Mapping[str, set[str]]:
    with closing(sqlite3.connect(":memory:")) as connection:
        for statement in (statement for part in PARTS[:version] for statement in part):
            connection.execute(statement)
        return _columns(connection)


def _columns(connection: sqlite3.Connection) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for table, column in connection.execute(_COLUMNS):
        found.setdefault(table, set()).add(column)
    return found
