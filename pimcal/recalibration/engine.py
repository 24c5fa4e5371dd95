"""The engine: look at the device, and where it drifted, undo that by the smallest remedy that the gate lets pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pimcal.calibration.gate import Verdict, gate
from pimcal.deployment import Deployment
from pimcal.errors import DeviceBusyError, DeviceUnavailableError, PimcalError, StorageError
from pimcal.events import DeviceProbed, Event, RecalibrationAlert, RecalibrationFinished
from pimcal.metrics import Metric
from pimcal.recalibration.golden import Answer, Spot, ask
from pimcal.recalibration.held import forget_old_records, kept_on_error
from pimcal.recalibration.journal import Journal as Journal
from pimcal.recalibration.journal import MemoryJournal as MemoryJournal
from pimcal.recalibration.outcome import Attempt as Attempt
from pimcal.recalibration.outcome import AttemptOutcome, Outcome
from pimcal.recalibration.outcome import Run as Run
from pimcal.recalibration.outcome import Spent as Spent
from pimcal.recalibration.probe import (
    ACCEPTED_DRAWS,
    Accepted,
    Probe,
    ProbeSettings,
    accept,
    compare,
    inputs_of,
    probe,
)
from pimcal.recalibration.remedy import REMEDIES, Remedy, Situation
from pimcal.recalibration.state import Conditions, State, check_state, misfits
from pimcal.recalibration.statistics import KINDS
from pimcal.record import Record
from pimcal.registry import emit

Clock = Callable[[], float]

_NEVER_TRIED_FURTHER = (DeviceUnavailableError, DeviceBusyError, StorageError)


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """`good_enough`: drop of the metric, against the last whole calibration, at which no larger remedy is tried.

    After a run that failed, the next waits `retry_s`, twice as long after each further one, at most `longest_retry_s`.
    `accepts`: after a calibration the tiles' answers are accepted, for later looks; without these, products that serve
    no one.
    """

    probe: ProbeSettings = field(default_factory=ProbeSettings)
    good_enough: float = 0.005
    retry_s: float = 600.0
    longest_retry_s: float = 86_400.0
    accepts: bool = True


class Engine:
    """Keeps one deployed network right. `run` is one look and what follows from it; call it whenever that is due.

    `active` is the record in force, `accepted` what the tiles answered under it, `level` its metric: None at first, and
    attributes to save and to give back after a restart. With neither of the first two the first run calibrates.
    """

    def __init__(
        self,
        net: Deployment,
        calibration: Sequence[Any],
        held_out: Sequence[Any],
        metric: Metric,
        journal: Journal,
        *,
        clock: Clock = time.time,
        settings: EngineSettings | None = None,
        remedies: Sequence[Remedy] = REMEDIES,
        active: Record | None = None,
        accepted: Accepted | None = None,
        accepted_under: Conditions | None = None,
        level: float | None = None,
    ) -> None:
        """`calibration`, `held_out`: batches; the latter judge. `remedies`: the smallest first, the last is a whole
        calibration. `clock` gives seconds; on simulators it may be their own.
        """
        self.net, self.calibration, self.held_out, self.metric = net, calibration, held_out, metric
        self.journal, self.clock = journal, clock
        self.settings = settings or EngineSettings()
        self.sensitivity = self.settings.probe  # less where a change was found to cost nothing
        self.remedies = tuple(remedies)
        self.active, self.accepted, self.accepted_under = active, accepted, accepted_under
        self.level = active.made_with.after if level is None and active else level
        self.failures = 0
        self._failed_at_s = 0.0
        self._dead: frozenset[Spot] = frozenset()  # somebody was told of them, and they were remedied if possible
        if active is not None and net.active != active.id and not misfits(net, active):
            net.apply(active)

    # one run

    def run(self, *, force: bool = False) -> Run:
        """Check state, check data, and where that finds drift, remedy it. `force`: not to wait after failures.

        Raises DeviceUnavailableError, DeviceBusyError where the device is gone, StorageError where the journal cannot
        be written. What was in force is in force after any exception, Ctrl-C among them.
        """
        spent = Spent()
        state = self.check_state()
        wait_s = 0.0 if force else self._wait_s()
        if wait_s > 0:
            return self._end("waiting", f"{self.failures} runs failed; the next try is in {wait_s:.0f} s", state, spent)
        if state.misfits:
            return self._remedy(state, "; ".join(state.misfits), spent, (), None)
        if self.accepted is None and self.active is None:
            return self._remedy(state, "there is no calibration yet", spent, (), None)
        look = self.look()
        if look is None:
            self._accept(spent, None)
            return self._end("fine", "took the tiles' answers as they are with the record in force", state, spent)
        first = self._told(look, spent)
        self._dead &= _dead(first)
        if not (first.drifted or _dead(first) - self._dead):
            return self._end("fine", first.reason, state, spent, (first,))
        second, answers = self._confirm(spent)
        died = _dead(second) - self._dead
        self._tell_of_dead(second, died)
        if not (second.drifted or died):
            return self._end("fine", f"a longer look did not confirm: {first.reason}", state, spent, (first, second))
        return self._remedy(state, second.reason, spent, (first, second), answers)

    def recalibrate(self, reason: str) -> Run:
        """A whole calibration, whatever a look would say; the gate decides as always. Raises as `run`."""
        return self._remedy(self.check_state(), reason, Spent(), (), None)

    def look(self) -> Probe | None:
        """Ask the golden vectors, and do nothing about it; None where no answers are accepted yet."""
        return None if self.accepted is None else probe(self.net, self.accepted, self.sensitivity)

    def check_state(self) -> State:
        """What can be told without device time."""
        return check_state(self.net, self.active, self.accepted_under, Conditions.now(self.net, self.clock()))

    def _wait_s(self) -> float:
        if not self.failures:
            return 0.0
        pause_s = min(self.settings.retry_s * 2.0 ** (self.failures - 1), self.settings.longest_retry_s)
        return self._failed_at_s + pause_s - self.clock()

    # looking

    def _confirm(self, spent: Spent) -> tuple[Probe, Mapping[Spot, Answer]]:
        """A look as long as that which tells the accepted answers: it can take their place."""
        assert self.accepted is not None
        before = self.net.device.cost.mvms
        answers = ask(self.net, inputs_of(self.net, self.accepted), ACCEPTED_DRAWS)
        look = compare(self.accepted, answers, self.sensitivity, self.net.device.cost.mvms - before)
        return self._told(look, spent), answers

    def _told(self, look: Probe, spent: Spent) -> Probe:
        spent.probe_mvms += look.mvms
        self.journal.add_probe(look)
        identity = self.net.device.capabilities.identity
        self._emit(DeviceProbed(identity, look.error, look.drifted, look.reason, look.mvms))
        return look

    def _tell_of_dead(self, look: Probe, died: frozenset[Spot]) -> None:
        self._dead |= died
        if died:
            tiles = ", ".join(f"tile {spot[1]} ({look.tiles[spot].reason})" for spot in sorted(died))
            self._alert("dead tiles", f"{tiles}; the other tiles go on")

    def _accept(self, spent: Spent, answers: Mapping[Spot, Answer] | None) -> None:
        """From now on the present answers, or those that were just given, are the right ones."""
        if answers is None or self.accepted is None:
            before = self.net.device.cost.mvms
            self.accepted = accept(self.net)
            spent.probe_mvms += self.net.device.cost.mvms - before
        else:
            self.accepted = self.accepted.renewed(answers)
        self.accepted_under = Conditions.now(self.net, self.clock())

    # remedies

    def _remedy(
        self,
        state: State,
        reason: str,
        spent: Spent,
        probes: tuple[Probe, ...],
        answers: Mapping[Spot, Answer] | None,
    ) -> Run:
        look = probes[-1] if probes else None
        remedies = self.remedies if look else self.remedies[-1:]
        situation = Situation(self.net, self.calibration, state.at_s, self.accepted, look, answers)
        attempts: list[Attempt] = []
        for remedy in remedies:
            attempts.append(self._attempt(remedy, situation, reason, spent))
            if attempts[-1].outcome == "activated" and self._good_enough(attempts[-1].after):
                break
        outcome = self._outcome(state, attempts, looked=look is not None)
        if outcome == "failed":
            self._fail(reason, attempts)
        else:
            self.failures = 0
        if look is not None and attempts[0].before is not None and self._good_enough(attempts[0].before):
            self._tolerate(look, outcome)
        if self.settings.accepts and (outcome == "activated" or (outcome == "kept" and look is None)):
            self._accept(spent, answers)
        told = "; ".join(f"{attempt.remedy} {attempt.outcome}: {attempt.reason}" for attempt in attempts)
        return self._end(outcome, f"{reason}; {told}", state, spent, probes, tuple(attempts))

    def _outcome(self, state: State, attempts: Sequence[Attempt], *, looked: bool) -> Outcome:
        if any(attempt.outcome == "activated" for attempt in attempts):
            return "activated"
        measured = [attempt.before for attempt in attempts if attempt.before is not None]
        if not measured:
            return "failed"
        if state.misfits or not looked:  # what is in force proved to be no worse than a calibration of today
            self.active = None if state.misfits else self.active
            self.level = measured[-1]
        return "kept" if self._good_enough(measured[-1]) else "failed"

    def _tolerate(self, look: Probe, outcome: Outcome) -> None:
        """What was found costs no accuracy, so that its like is not worth a remedy again, nor a look at the gate.

        Nothing is accepted where nothing was remedied: changes go on adding up from the last calibration. What a remedy
        undid may come back as it likes, save for noise and shape, which devices redraw.
        """
        kinds = ("noise", "shape") if outcome == "activated" else KINDS
        self.sensitivity = self.sensitivity.tolerating(look, kinds, self.settings.probe)

    def _attempt(self, remedy: Remedy, situation: Situation, reason: str, spent: Spent) -> Attempt:
        """Propose, judge, and put in force or not; what fails leaves everything as it was."""
        try:
            with kept_on_error(self.net):
                return self._tried(remedy, situation, reason, spent)
        except _NEVER_TRIED_FURTHER:
            raise
        except PimcalError as error:
            return Attempt(remedy.name, "failed", str(error))

    def _tried(self, remedy: Remedy, situation: Situation, reason: str, spent: Spent) -> Attempt:
        cost = self.net.device.cost
        before = cost.copy()
        try:
            record = remedy.propose(situation)
        finally:
            taken = cost.since(before)
            spent.remedy_mvms += taken.mvms
            spent.programmed_cells += taken.programmed_cells
        if record is None:
            return Attempt(remedy.name, "nothing to do", "what it corrects has not changed")
        generation = self.journal.add_candidate(record, reason)
        verdict = self._judge(record, generation, spent)
        if verdict.activated:
            self.journal.activate(generation, verdict)
            self._activated(verdict, remedy)
        else:
            self.journal.reject(generation, verdict.reason)
        outcome: AttemptOutcome = "activated" if verdict.activated else "rejected"
        return Attempt(remedy.name, outcome, verdict.reason, record.id, verdict.before, verdict.after)

    def _judge(self, record: Record, generation: str, spent: Spent) -> Verdict:
        cost = self.net.device.cost
        before = cost.copy()
        try:
            return gate(self.net, record, self.held_out, self.metric)
        except PimcalError as error:
            self.journal.reject(generation, str(error))
            raise
        finally:
            taken = cost.since(before)
            spent.gate_mvms += taken.mvms
            spent.programmed_cells += taken.programmed_cells

    def _activated(self, verdict: Verdict, remedy: Remedy) -> None:
        self.active = verdict.record
        if remedy is self.remedies[-1] or self.level is None:
            self.level = verdict.after
        forget_old_records(self.net)

    def _good_enough(self, value: float | None) -> bool:
        if self.level is None or value is None:
            return value is not None
        drop = self.level - value if self.metric.higher_is_better else value - self.level
        return drop <= self.settings.good_enough

    # telling

    def _fail(self, reason: str, attempts: Sequence[Attempt]) -> None:
        self.failures += 1
        self._failed_at_s = self.clock()
        told = "; ".join(f"{attempt.remedy} {attempt.outcome}" for attempt in attempts)
        self._alert("no remedy", f"{reason}, and nothing helped ({told}); what was in force is kept")

    def _end(
        self,
        outcome: Outcome,
        reason: str,
        state: State,
        spent: Spent,
        probes: tuple[Probe, ...] = (),
        attempts: tuple[Attempt, ...] = (),
    ) -> Run:
        run = Run(outcome, reason, state, self.clock(), probes, attempts, spent)
        self.journal.add_run(run)
        self._emit(RecalibrationFinished(self.net.device.capabilities.identity, outcome, reason, spent.mvms))
        return run

    def _alert(self, kind: str, message: str) -> None:
        self._emit(RecalibrationAlert(self.net.device.capabilities.identity, kind, message))

    def _emit(self, event: Event) -> None:
        self.journal.add_event(event)
        emit(event)


def _dead(look: Probe) -> frozenset[Spot]:
    return frozenset(look.of_state("dead"))
