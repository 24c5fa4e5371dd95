"""Why a daemon did what it did, from a store's history."""

from __future__ import annotations

from pimcal.daemon.journal import RUN_KIND
from pimcal.store import Store
from pimcal.store.events import Event

KINDS = ("decision", RUN_KIND, "alert", "activated", "rolled_back")


def reasons(store: Store, limit: int | None) -> list[Event]:
    """The newest decisions, what came of them, and alerts; the newest is the last."""
    return store.journal.history(kinds=KINDS, limit=limit)
