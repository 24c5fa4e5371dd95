"""The engine's journal, kept in a store."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from pimcal.calibration.gate import Verdict
from pimcal.device import Cost
from pimcal.events import Event, RecalibrationAlert, RecalibrationFinished
from pimcal.recalibration.decide import Decision
from pimcal.recalibration.engine import Run
from pimcal.recalibration.probe import Probe, TileFinding
from pimcal.record import Record
from pimcal.store import Key, Store

logger = logging.getLogger(__name__)

DRIFT = 1.0  # a probe's statistic is relative to what counts as drift
RUN_KIND = "recalibration"
Told = tuple[str, str]


class StoreJournal:
    """Writes for one device and model. A candidate is written when it was judged, together with the verdict.

    All methods raise StorageError where the store cannot be written; nothing of the call is in it then.
    """

    def __init__(self, store: Store, key: Key, cost: Callable[[], Cost]) -> None:
        """`cost()`: what the device has cost so far."""
        self.store, self.key = store, key
        self._cost = cost
        self._start = cost().copy()
        self._judged: dict[str, tuple[Record, str]] = {}
        self._last_told: Told | None = None
        self._generation: str | None = None

    def begin(self) -> None:
        """A run of the engine begins: what the device costs from now on is its cost."""
        self._start = self._cost().copy()
        self._generation = None
        self._judged.clear()

    # what the engine writes

    def add_probe(self, probe: Probe) -> None:
        """`statistic` is drift from 1 on; by tile it is the share of its answers that has changed."""
        tiles = {f"{load}:{tile}": _change(found) for (load, tile), found in probe.tiles.items()}
        self.store.journal.add_probe(self.key, statistic=probe.statistic, threshold=DRIFT, tiles=tiles, mvms=probe.mvms)

    def add_run(self, run: Run) -> None:
        self.store.journal.add_run(
            self.key, kind=RUN_KIND, outcome=run.outcome, reason=run.reason, cost=self._cost().since(self._start),
            generation=self._generation,
        )  # fmt: skip

    def add_candidate(self, record: Record, reason: str) -> str:
        candidate = str(len(self._judged))
        self._judged[candidate] = record, reason
        return candidate

    def activate(self, generation: str, verdict: Verdict) -> None:
        added = self.store.add_candidate(verdict.record, self._judged[generation][1])
        self._generation = self.store.activate(added.id, verdict.reason).id

    def reject(self, generation: str, reason: str) -> None:
        record, why = self._judged[generation]
        self.store.reject(self.store.add_candidate(record, why).id, reason)

    def add_event(self, event: Event) -> None:
        match event:
            case RecalibrationFinished():
                details = {"outcome": event.outcome, "mvms": event.mvms}
                self._add(RUN_KIND, f"{event.outcome}: {event.reason}", details)
            case RecalibrationAlert():
                logger.warning("%s: %s", event.kind, event.message)
                self.alert(event.kind, event.message)

    # what the daemon writes

    def alert(self, kind: str, message: str) -> None:
        """Somebody should look at the device."""
        add_alert(self.store, self.key, kind, message)

    def decided(self, decision: Decision) -> None:
        """A decision with its reasons; of those to do nothing, or to wait, only the first in a row.

        What a later one would add are times of day, and there may be one a minute for weeks.
        """
        told = decision.kind, "" if decision.kind in ("nothing", "wait") else "; ".join(decision.reasons)
        if told != self._last_told or told[1]:
            details = {"decision": decision.kind, "reasons": decision.reasons, "overdue": decision.overdue}
            self._add("decision", f"{decision.kind}: {'; '.join(decision.reasons)}", details)
        self._last_told = told

    def asked(self, what: str) -> None:
        """Somebody asked for something."""
        self._add("decision", what, {"decision": "asked"})

    def readings(self, telemetry: Mapping[str, float]) -> None:
        if telemetry:
            self.store.journal.add_telemetry(self.key.device, telemetry)

    def _add(self, kind: str, reason: str, details: Mapping[str, Any]) -> None:
        self.store.journal.add_event(kind, reason, key=self.key, details=details)


def add_alert(store: Store, key: Key, kind: str, message: str) -> None:
    """A line of history that somebody should read. Raises StorageError."""
    store.journal.add_event("alert", f"{kind}: {message}", key=key, details={"kind": kind})


def _change(found: TileFinding) -> float:
    return math.hypot(*found.effects.values()) if found.effects else math.nan
