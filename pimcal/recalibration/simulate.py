"""A device on its simulated clock, kept right by the same decisions and the same engine as a real one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random

from pimcal.calibration.gate import Verdict
from pimcal.events import Event
from pimcal.profile.sections import Recalibration
from pimcal.recalibration.clock import Moment
from pimcal.recalibration.decide import Decision, History, decide
from pimcal.recalibration.engine import Engine, Run
from pimcal.recalibration.probe import Probe, probe
from pimcal.recalibration.schedule import Schedule, begin, follow, looked
from pimcal.recalibration.triggers import BUILT_IN, Readings, Trigger, evaluate, link_errors_per_h
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


@dataclass(frozen=True, slots=True)
class Turn:
    """One decision, and all that it was made from."""

    settings: Recalibration
    schedule: Schedule
    history: History
    readings: Readings
    decision: Decision


class Simulation:
    """The operator's part in a simulation. `turn` decides and does what was decided; it knows when to call it again.

    The engine's clock and `clock` are to be the same one; whoever moves it advances the device as well.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Recalibration,
        clock: Clock,
        generator: Random,
        triggers: Mapping[str, Trigger] = BUILT_IN,
        on_turn: Callable[[Turn], None] = lambda turn: None,
    ) -> None:
        """`generator` draws the jitter; `triggers`: those that a profile may name."""
        self.engine, self.settings, self.clock = engine, settings, clock
        self._generator, self._triggers, self._on_turn = generator, triggers, on_turn
        self._limits = {name: limit for one in settings.when for name, limit in one.items()}
        self._history = History()
        self._schedule = begin(settings, clock.now(), generator)
        self._probe_error: float | None = None
        self._at_look = engine.net.device.telemetry(), clock.now()

    def turn(self) -> float:
        """Decide and act, until there is nothing left to do now; after how many seconds to call it again."""
        while True:
            readings = self._readings()
            self._schedule = follow(self.settings, self._schedule, readings.at, self._generator)
            decision = decide(self.settings, self._schedule, self._history, readings, self._triggers)
            self._on_turn(Turn(self.settings, self._schedule, self._history, readings, decision))
            if decision.kind == "probe":
                self._look()
            elif decision.kind == "calibrate":
                self._calibrate(decision, readings)
            else:
                return self._pause_s(decision, readings.at)

    def _pause_s(self, decision: Decision, now: Moment) -> float:
        """A daemon decides every minute where triggers want watching; here it can be told that none will fire."""
        if decision.kind == "wait" or any(not self._triggers[name].needs_probe for name in self._limits):
            return decision.next_look_s
        return max(1.0, min(self._schedule.next_in_s(now), self._age_left_s(now)))

    def _age_left_s(self, now: Moment) -> float:
        calibrated, most = self._history.calibrated, self.settings.max_age
        return math.inf if calibrated is None or most is None else most.total_seconds() - now.since(calibrated.at)

    def _readings(self) -> Readings:
        now, telemetry = self.clock.now(), self.engine.net.device.telemetry()
        before, at = self._at_look
        errors = link_errors_per_h(telemetry, before, now.since(at))
        return Readings(at=now, telemetry=telemetry, probe_error=self._probe_error, link_errors_per_h=errors)

    def _look(self) -> None:
        accepted = self.engine.accepted
        if accepted is None:
            self._ended(self.engine.run(force=True))
        else:
            look = probe(self.engine.net, accepted, self.engine.sensitivity)
            self.engine.journal.add_probe(look)
            self._probe_error = look.error if look.drifted else 0.0  # what may be chance is no drift
        self._looked()

    def _calibrate(self, decision: Decision, readings: Readings) -> None:
        """The smallest remedy where a look can tell; a whole calibration where it is due by age or by schedule."""
        before = self._history.calibrated
        if before is not None and not (self._doubts(readings, before) and not decision.overdue):
            run = self.engine.recalibrate("; ".join(decision.reasons))
        else:
            run = self.engine.run(force=True)
        self._ended(run)
        self._looked()

    def _ended(self, run: Run) -> None:
        self._probe_error = None if run.outcome == "activated" else 0.0
        if run.outcome in ("activated", "kept", "failed"):
            self._attempted(self._history.rejected + 1 if run.outcome == "failed" else 0)
        if run.outcome in ("activated", "kept"):  # kept: a calibration of today would have been no better
            self._history = replace(self._history, calibrated=self._readings())
        elif run.outcome == "fine":
            self._confirmed()

    def _confirmed(self) -> None:
        """The calibration fits what the device is like now. Its age stays; a trigger that fires all the same waits."""
        now, before = self._readings(), self._history.calibrated
        if before is None:
            return
        self._history = replace(self._history, calibrated=replace(now, at=before.at))
        if self._doubts(now, replace(now, at=before.at)):
            self._attempted(self._history.rejected + 1)

    def _doubts(self, readings: Readings, before: Readings) -> bool:
        """Whether something but time says that the device has changed."""
        watched = {name: limit for name, limit in self._limits.items() if name != "age_h"}
        return any(evaluate(name, self._triggers[name], readings, before, watched[name]).fired for name in watched)

    def _attempted(self, rejected: int) -> None:
        now = self.clock.now()
        recent = [moment for moment in self._history.attempts if now.since(moment) < 3600]
        self._history = replace(self._history, attempts=(*recent, now), rejected=rejected)

    def _looked(self) -> None:
        now = self.clock.now()
        self._schedule = looked(self.settings, self._schedule, now, self._generator)
        self._at_look = self.engine.net.device.telemetry(), now
