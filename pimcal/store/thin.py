"""Removing old probes and telemetry, which come with every look at a device; what was removed stays in history."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, NamedTuple

from pimcal.store.clock import iso
from pimcal.store.events import THINNED, write_event
from pimcal.store.generations import Key

if TYPE_CHECKING:
    from pimcal.store.store import Store


class Thinned(NamedTuple):
    """How many probes and how many readings of telemetry were removed."""

    probes: int
    readings: int


def thin_out(store: Store, older_than_s: float, reason: str) -> Thinned:
    """Remove probes and readings of telemetry that are older, in one transaction.

    The newest probe of each device and model stays, and the newest reading of each name: the daemon goes on from there.
    """
    with store.database.transaction() as connection:
        now = store.clock()
        before = now - older_than_s
        removed = _remove_probes(connection, before)
        for key, probes, mvms in removed:
            details = {"probes": probes, "mvms": mvms, "before": iso(before)}
            write_event(connection, now, THINNED, reason, key=key, details=details)
        readings = _remove_readings(connection, before)
        if readings:
            write_event(connection, now, THINNED, reason, details={"readings": readings, "before": iso(before)})
    return Thinned(sum(probes for _, probes, _ in removed), readings)


_OLD_PROBES = "FROM probes WHERE at < ? AND seq NOT IN (SELECT max(seq) FROM probes GROUP BY device, model_hash)"
_OLD_READINGS = "FROM telemetry WHERE at < ? AND seq NOT IN (SELECT max(seq) FROM telemetry GROUP BY device, name)"


def _remove_probes(connection: sqlite3.Connection, before: float) -> list[tuple[Key, int, int]]:
    """How many went of each device and model, and what these had taken of the device (MVMs)."""
    query = f"SELECT device, model_hash, count(*), sum(mvms) {_OLD_PROBES} GROUP BY device, model_hash"
    found = [(Key(device, model), probes, mvms) for device, model, probes, mvms in connection.execute(query, (before,))]
    if found:
        connection.execute(f"DELETE {_OLD_PROBES}", (before,))
    return found


def _remove_readings(connection: sqlite3.Connection, before: float) -> int:
    return connection.execute(f"DELETE {_OLD_READINGS}", (before,)).rowcount
