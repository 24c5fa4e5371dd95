"""What a run of the engine tells: what it checked, found and did, why, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pimcal.recalibration.golden import Spot
from pimcal.recalibration.probe import Probe, TileState
from pimcal.recalibration.state import State

Outcome = Literal["fine", "activated", "kept", "failed"]
AttemptOutcome = Literal["activated", "rejected", "nothing to do", "failed"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One remedy: what the gate measured before and after, None where it did not come to that; why it ended so."""

    remedy: str
    outcome: AttemptOutcome
    reason: str
    record_id: str | None = None
    before: float | None = None
    after: float | None = None


@dataclass(slots=True)
class Spent:
    """Matrix-vector products by purpose, accepting answers being part of the probe; and cells that were written."""

    probe_mvms: int = 0
    remedy_mvms: int = 0
    gate_mvms: int = 0
    programmed_cells: int = 0

    @property
    def mvms(self) -> int:
        return self.probe_mvms + self.remedy_mvms + self.gate_mvms


@dataclass(frozen=True, slots=True)
class Run:
    """What a run checked, found and did, and why.

    `fine`: no drift. `activated`: a remedy is in force. `kept`: what is in force is as good as it was when calibrated,
    in spite of drift, or was judged to be no worse than a calibration of today. `failed`: drift, and no remedy helped:
    what was in force is in force. `probes`: the look and, where that found drift, the longer one that confirms it.
    `tiles`: what each was found to be.
    """

    outcome: Outcome
    reason: str
    state: State
    ended_s: float
    probes: tuple[Probe, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    spent: Spent = field(default_factory=Spent)

    @property
    def tiles(self) -> Mapping[Spot, TileState]:
        return {spot: tile.state for spot, tile in self.probes[-1].tiles.items()} if self.probes else {}
