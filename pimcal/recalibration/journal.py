"""Where the engine writes what it does: a protocol, and one that only remembers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from pimcal.calibration.gate import Verdict
from pimcal.events import Event
from pimcal.recalibration.outcome import Run
from pimcal.recalibration.probe import Probe
from pimcal.record import Record


class Journal(Protocol):
    """Where the engine writes what it does, in the order in which it happens. A generation is known by a text."""

    def add_probe(self, probe: Probe) -> None: ...
    def add_run(self, run: Run) -> None: ...
    def add_candidate(self, record: Record, reason: str) -> str: ...
    def activate(self, generation: str, verdict: Verdict) -> None:
        """Make a candidate the active generation, at once and durably; after an exception it is not active."""

    def reject(self, generation: str, reason: str) -> None: ...
    def add_event(self, event: Event) -> None: ...


@dataclass(slots=True)
class MemoryJournal:
    """A journal for tests and for planning on a simulated clock. Records are kept with their generation's state."""

    probes: list[Probe] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    states: list[str] = field(default_factory=list)

    def add_probe(self, probe: Probe) -> None:
        self.probes.append(probe)

    def add_run(self, run: Run) -> None:
        self.runs.append(run)

    def add_candidate(self, record: Record, reason: str) -> str:
        self.records.append(record)
        self.states.append("candidate")
        return str(len(self.records) - 1)

    def activate(self, generation: str, verdict: Verdict) -> None:
        self.states = ["retired" if state == "active" else state for state in self.states]
        self.states[int(generation)] = "active"
        self.records[int(generation)] = verdict.record

    def reject(self, generation: str, reason: str) -> None:
        self.states[int(generation)] = "rejected"

    def add_event(self, event: Event) -> None:
        self.events.append(event)

    @property
    def active(self) -> Record | None:
        return next(
            (record for record, state in zip(self.records, self.states, strict=True) if state == "active"), None
        )
