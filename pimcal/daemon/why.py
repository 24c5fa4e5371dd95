"""Why a daemon did what it did: what of a store's history tells that."""

from __future__ import annotations

from pimcal.daemon.journal import RUN_KIND

KINDS = ("decision", RUN_KIND, "alert", "activated", "rolled_back")
