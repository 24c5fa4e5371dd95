"""Records and stores for the store's tests."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch

from pimcal.record import Provenance, Record

V1 = Path(__file__).parents[1] / "vectors" / "store_v1.sql"
MODEL = "ab" * 32


def made(value: float = 1.0, *, device: str = "board-1", model_hash: str = MODEL, channels: int = 4) -> Record:
    """A record whose corrections are told apart by `value`."""
    about = Provenance(
        pimcal="0.1.0", torch="2.11", backend="ideal", profile="ideal", profile_hash="p", model_hash=model_hash,
        device=device, firmware="", wall_time="2026-01-01T00:00:00+00:00", images=64, batches=1, mvms=10, seconds=0.5,
        metric="accuracy", before=0.5, after=0.75,
    )  # fmt: skip
    values = {"mean": torch.full((channels,), float(value)), "var": torch.ones(channels)}
    return Record(method="paired", corrections={"body.1": values}, made_with=about)


def ticking(start: float = 1_767_225_600.0, step: float = 1.0) -> Callable[[], float]:
    """A clock that goes on by `step` at each look; it starts with 2026."""
    now = start - step

    def clock() -> float:
        nonlocal now
        now += step
        return now

    return clock


def old_store(folder: Path) -> list[str]:
    """A store as version 1 left it: a retired and an active generation, by plain SQL; returns their ids."""
    (folder / "tensors").mkdir(parents=True)
    ids = ["0123456789ab", "fedcba987654"]
    with closing(sqlite3.connect(folder / "store.db", isolation_level=None)) as connection:
        connection.executescript("PRAGMA journal_mode = WAL;" + V1.read_text())
        connection.execute("INSERT INTO events VALUES (1, 100.0, 'created', NULL, NULL, NULL, 'schema 1', '{}')")
        for seq, (generation, state) in enumerate(zip(ids, ("retired", "active"), strict=True)):
            content = made(seq).to_bytes()
            sha256 = hashlib.sha256(content).hexdigest()
            (folder / "tensors" / f"{sha256}.safetensors").write_bytes(content)
            row = (seq + 1, generation, "board-1", MODEL, "p", made(seq).id, sha256, "paired", None, state, "better")
            row += ("accuracy", 0.5, 0.75, 100.0 + seq, 110.0 + seq, None, None)
            connection.execute(f"INSERT INTO generations VALUES ({', '.join('?' * len(row))})", row)
            event = (seq + 2, 110.0 + seq, "activated", "board-1", MODEL, generation, "better", "{}")
            connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)", event)
    return ids


def check_whole(folder: Path) -> list[sqlite3.Row]:
    """What must hold of any store whatever happened to it, found out with SQLite and hashlib alone; its generations."""
    with closing(sqlite3.connect(folder / "store.db")) as connection:
        connection.row_factory = sqlite3.Row
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        rows = connection.execute("SELECT * FROM generations").fetchall()
        events = connection.execute("SELECT * FROM events ORDER BY seq").fetchall()
    for key in {(row["device"], row["model_hash"]) for row in rows}:
        here = [row for row in rows if (row["device"], row["model_hash"]) == key]
        ever = any(e["kind"] in ("activated", "rolled_back") and (e["device"], e["model_hash"]) == key for e in events)
        assert sum(row["state"] == "active" for row in here) == ever
    for row in rows:
        if row["collected_at"] is None:
            path = folder / "tensors" / f"{row['sha256']}.safetensors"
            assert hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"]
    for path in (folder / "tensors").glob("[!.]*"):  # whether a row names it or not
        assert path.stem == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    return rows
