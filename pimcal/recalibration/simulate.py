"""A device on its simulated clock, kept right by the same decisions and the same engine as a real one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pimcal.calibration.gate import Verdict
from pimcal.events import Event
from pimcal.recalibration.clock import Moment
from pimcal.recalibration.outcome import Run
from pimcal.recalibration.probe import Probe
from pimcal.recalibration.upkeep import Turn, Upkeep
from pimcal.record import Record

MIDNIGHT_S = 1_767_571_200.0  # Monday, 2026-01-05 00:00 UTC, when every simulation begins: for cron and quiet hours


@dataclass(slots=True)
class Clock:
    """Simulated time: seconds since the start, and the wall clock that goes with them."""

    elapsed_s: float = 0.0

    def now(self) -> Moment:
        return Moment(MIDNIGHT_S + self.elapsed_s, self.elapsed_s)

    def wall_s(self) -> float:
        return MIDNIGHT_S + self.elapsed_s


@dataclass(slots=True)
class Tally:
    """A journal that counts: recalibrations that were put in force, candidates that were not, probes."""

    recalibrations: int = 0
    rejected: int = 0
    looks: int = 0

    def add_probe(self, probe: Probe) -> None:
        self.looks += 1

    def add_run(self, run: Run) -> None: ...

    def add_candidate(self, record: Record, reason: str) -> str:
        return record.id

    def activate(self, generation: str, verdict: Verdict) -> None:
        self.recalibrations += 1

    def reject(self, generation: str, reason: str) -> None:
        self.rejected += 1

    def add_event(self, event: Event) -> None: ...


class Simulation:
    """The operator's part in a simulation. `turn` decides and does what was decided; it knows when to call it again.

    The engine's clock and `now` are to be the same one; whoever moves it advances the device as well.
    """

    def __init__(self, upkeep: Upkeep, on_turn: Callable[[Turn], None] = lambda turn: None) -> None:
        self._upkeep, self._on_turn = upkeep, on_turn

    def turn(self) -> float:
        """Decide and act, until there is nothing left to do now; after how many seconds to call it again."""
        while True:
            turn = self._upkeep.decide()
            self._on_turn(turn)
            if turn.decision.kind == "probe":
                self._look()
            elif turn.decision.kind == "calibrate":
                self._upkeep.calibrate(turn)
            else:
                return self._upkeep.pause_s(turn.decision)
            self._upkeep.looked()

    def _look(self) -> None:
        look = self._upkeep.probe()
        if look is None:
            self._upkeep.look()
        else:
            self._upkeep.engine.journal.add_probe(look)
