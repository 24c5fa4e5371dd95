"""Why a daemon did what it did, from a store's history."""

from __future__ import annotations

from pimcal.daemon.journal import RUN_KIND
from pimcal.store import Store
from pimcal.store.events import COLUMNS, Event

KINDS = ("decision", RUN_KIND, "alert", "activated", "rolled_back")


def reasons(store: Store, limit: int) -> list[Event]:
    """The newest decisions, what came of them, and alerts; the newest first."""
    places = ", ".join("?" * len(KINDS))
    query = f"SELECT {COLUMNS} FROM events WHERE kind IN ({places}) ORDER BY seq DESC LIMIT ?"
    return [Event.of(row) for row in store.database.rows(query, *KINDS, limit)]
