"""The engine: look at the device, and where it drifted, undo that by the smallest remedy that the gate lets pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pimcal.calibration.gate import Verdict
from pimcal.calibration.interlude import Pause
from pimcal.deployment import Deployment
from pimcal.device import Cost
from pimcal.events import DeviceProbed, Event, RecalibrationAlert, RecalibrationFinished
from pimcal.metrics import Metric
from pimcal.recalibration.golden import Answer, Spot, ask
from pimcal.recalibration.journal import Journal as Journal
from pimcal.recalibration.journal import MemoryJournal as MemoryJournal
from pimcal.recalibration.judge import Judge
from pimcal.recalibration.learned import Learned
from pimcal.recalibration.outcome import Attempt as Attempt
from pimcal.recalibration.outcome import Outcome
from pimcal.recalibration.outcome import Run as Run
from pimcal.recalibration.outcome import Spent as Spent
from pimcal.recalibration.probe import (
    ACCEPTED_DRAWS,
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
from pimcal.recalibration.worth import Worth
from pimcal.record import Record
from pimcal.registry import emit

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """`good_enough`: drop of the metric, against the last whole calibration, at which no larger remedy is tried.

    `alarming`: drop against the best that was seen, at which somebody is told. `accepts`: after a calibration the
    tiles' answers are accepted, for later looks; without these, products that serve no one.
    """

    probe: ProbeSettings = field(default_factory=ProbeSettings)
    good_enough: float = 0.005
    alarming: float = 0.05
    accepts: bool = True


class Engine:
    """Keeps one deployed network right. `run` is one look and what follows from it; call it whenever that is due.

    `active` is the record in force. With neither a record nor accepted answers the first run calibrates.
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
        learned: Learned | None = None,
        cost: Callable[[], Cost] | None = None,
        pause: Pause = lambda: None,
    ) -> None:
        """`calibration`, `held_out`: batches; the latter judge. `remedies`: the smallest first, the last is a whole
        calibration. `clock` gives seconds; on simulators it may be their own. `learned`: of an earlier process.

        `cost()`: what the device has cost, where not all of that is this engine's. `pause()` is called in the middle of
        calibrations, where others may use the network.
        """
        self.net, self.calibration, self.metric = net, calibration, metric
        self.journal, self.clock = journal, clock
        self.settings = settings or EngineSettings()
        self.remedies = tuple(remedies)
        self.active = active
        known = learned or Learned()
        self.accepted, self.accepted_under = known.accepted, known.under
        self.sensitivity = known.sensitivity or self.settings.probe  # less where a change was found to cost nothing
        self.worth = self._worth(known, active)
        self._judge = Judge(net, held_out, metric, journal, self.worth, cost or (lambda: net.device.cost))
        self._pause = pause
        self._dead: frozenset[Spot] = frozenset()  # somebody was told of them, and they were remedied if possible
        self._told_of_shortfall = False
        if active is not None and net.active != active.id and not misfits(net, active):
            net.apply(active)

    def _worth(self, known: Learned, active: Record | None) -> Worth:
        after = active.made_with.after if active else None
        level = after if known.level is None else known.level
        best = level if known.best is None else known.best
        return Worth(
            self.metric.higher_is_better, self.settings.good_enough, self.settings.alarming, level, best, after
        )

    @property
    def learned(self) -> Learned:
        """To be given to the next process, with `active`."""
        return Learned(self.accepted, self.accepted_under, self.worth.level, self.worth.best, self.sensitivity)

    @property
    def held_out(self) -> Sequence[Any]:
        return self._judge.held_out

    def use(self, calibration: Sequence[Any], held_out: Sequence[Any]) -> None:
        """Work with other images from now on."""
        self.calibration, self._judge.held_out = calibration, held_out

    @property
    def dead_tiles(self) -> frozenset[Spot]:
        """Those that did not answer when they were asked last."""
        return self._dead

    def _unanswered(self, look: Probe) -> frozenset[Spot]:
        unusable = self.accepted.unusable if self.accepted else {}
        return frozenset((*look.of_state("dead"), *unusable))

    # one run

    def run(self) -> Run:
        """Check state, check data, and where that finds drift, remedy it.

        Raises DeviceUnavailableError, DeviceBusyError where the device is gone, StorageError where the journal cannot
        be written. What was in force is in force after any exception, Ctrl-C among them.
        """
        spent, state = Spent(), self.check_state()
        if state.misfits:
            return self._remedy(state, "; ".join(state.misfits), spent)
        if self.accepted is None and self.active is None:
            return self._remedy(state, "there is no calibration yet", spent)
        look = self.look()
        if look is None:
            return self._by_worth("nobody knows how the tiles answered", state, spent)
        first = self._told(look, spent)
        revived = self._dead - self._unanswered(first)
        self._dead -= revived
        if revived and not (first.drifted or self.is_news(first)):
            return self._by_worth(f"{len(revived)} tiles answer again", state, spent, (first,))
        if not (first.drifted or self.is_news(first)):
            return self._end("fine", first.reason, state, spent, (first,))
        second, answers = self._confirm(spent)
        died = self._unanswered(second) - self._dead
        self._notice_dead({spot: second.tiles[spot].reason for spot in died})
        if not (second.drifted or died):
            return self._end("fine", f"a longer look did not confirm: {first.reason}", state, spent, (first, second))
        return self._remedy(state, second.reason, spent, (first, second), answers)

    def recalibrate(self, reason: str) -> Run:
        """A whole calibration, whatever a look would say; the gate decides as always. Raises as `run`."""
        return self._remedy(self.check_state(), reason, Spent())

    def adopt(self) -> Run:
        """Somebody chose what is in force: take the tiles' answers as they are, and tell what that is worth."""
        spent, state = Spent(), self.check_state()
        self.worth.value = self._judge.value(spent)
        self._accept(spent, None)
        told = self._judge.told(self.worth.value)
        return self._end("fine", f"took what was chosen, and the tiles' answers, as they are: {told}", state, spent)

    def look(self) -> Probe | None:
        """Ask the golden vectors, and do nothing about it; None where no answers are accepted yet."""
        return None if self.accepted is None else probe(self.net, self.accepted, self.sensitivity)

    def is_news(self, look: Probe) -> bool:
        """Whether it found tiles that died, or that answer again: a run has to follow."""
        return self._unanswered(look) != self._dead

    def check_state(self) -> State:
        """What can be told without device time."""
        return check_state(self.net, self.active, self.accepted_under, Conditions.now(self.net, self.clock()))

    def _by_worth(self, why: str, state: State, spent: Spent, probes: tuple[Probe, ...] = ()) -> Run:
        """A look at the tiles cannot tell whether the record in force is right: measure what it is worth now."""
        value = self._judge.value(spent)
        told = f"{why}: {self._judge.told(value)}"
        if self.worth.level is not None:
            told += f", it was {self.worth.level:.4f}"
        if not self.worth.is_good(value):
            return self._remedy(state, told, spent, before=value)
        self.worth.value = value
        if self.worth.level is None and value is not None:
            self.worth.calibrated(value)
        if self.accepted is None:
            self._accept(spent, None)
            told += "; their answers of now are the right ones"
        return self._end("fine", told, state, spent, probes)

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

    def _notice_dead(self, found: Mapping[Spot, str]) -> None:
        """Tell of tiles that do not answer, and why, once."""
        died = sorted(found.keys() - self._dead)
        self._dead |= frozenset(died)
        if died:
            tiles = ", ".join(f"tile {spot[1]} ({found[spot]})" for spot in died)
            self._alert("dead tiles", f"{tiles}; the other tiles go on")

    def _accept(self, spent: Spent, answers: Mapping[Spot, Answer] | None) -> None:
        """From now on the present answers, or those that were just given, are the right ones."""
        if answers is None or self.accepted is None:
            before = self.net.device.cost.mvms
            self.accepted = accept(self.net)
            spent.probe_mvms += self.net.device.cost.mvms - before
            self._notice_dead(self.accepted.unusable)
        else:
            self.accepted = self.accepted.renewed(answers)
        self.accepted_under = Conditions.now(self.net, self.clock())

    # remedies

    def _remedy(
        self,
        state: State,
        reason: str,
        spent: Spent,
        probes: tuple[Probe, ...] = (),
        answers: Mapping[Spot, Answer] | None = None,
        before: float | None = None,
    ) -> Run:
        """`before`: the metric of what is in force, where it has just been measured."""
        look = probes[-1] if probes else None
        remedies = self.remedies if look else self.remedies[-1:]
        situation = Situation(self.net, self.calibration, state.at_s, self.accepted, look, answers, pause=self._pause)
        attempts: list[Attempt] = []
        value, cost_nothing = before, False
        for remedy in remedies:
            if attempts and self.worth.is_good(value):
                break  # no larger remedy is worth its time
            attempt, verdict = self._judge.attempt(remedy, situation, reason, spent, value)
            if verdict is not None and verdict.activated:
                self._activated(verdict, remedy)
            if attempt.before is not None:
                value = attempt.before
            elif value is None:
                value = self._judge.value(spent)
            cost_nothing |= not attempts and self.worth.is_good(value)
            value = attempt.after if attempt.outcome == "activated" else value
            attempts.append(attempt)
        outcome = self._outcome(state, attempts, value, looked=look is not None)
        if outcome == "failed":
            self._tell_of_failure(reason, attempts)
        if look is not None and cost_nothing:
            self._tolerate(look, outcome)
        if self.settings.accepts and (outcome == "activated" or (outcome == "kept" and look is None)):
            self._accept(spent, answers)
        told = "; ".join(f"{attempt.remedy} {attempt.outcome}: {attempt.reason}" for attempt in attempts)
        return self._end(outcome, f"{reason}; {told}", state, spent, probes, tuple(attempts))

    def _outcome(self, state: State, attempts: Sequence[Attempt], value: float | None, *, looked: bool) -> Outcome:
        """`value`: of what is in force now."""
        if any(attempt.outcome == "activated" for attempt in attempts):
            return "activated"
        judged = any(attempt.outcome == "rejected" for attempt in attempts)
        if value is not None and judged and (state.misfits or not looked):
            # what is in force proved to be no worse than a calibration of today
            self.active = None if state.misfits else self.active
            self.worth.calibrated(value)
        else:
            self.worth.value = value
        # Where nothing was judged after no look, nobody knows what a calibration of today would be worth.
        return "kept" if (judged or looked) and self.worth.is_good(value) else "failed"

    def _tolerate(self, look: Probe, outcome: Outcome) -> None:
        """What was found costs no accuracy, so that its like is not worth a remedy again, nor a look at the gate.

        Nothing is accepted where nothing was remedied: changes go on adding up from the last calibration. What a remedy
        undid may come back as it likes, save for noise and shape, which devices redraw.
        """
        kinds = ("noise", "shape") if outcome == "activated" else KINDS
        self.sensitivity = self.sensitivity.tolerating(look, kinds, self.settings.probe)

    def _activated(self, verdict: Verdict, remedy: Remedy) -> None:
        self.active = verdict.record
        if remedy is self.remedies[-1] or self.worth.level is None:
            self.worth.calibrated(verdict.after)
        else:
            self.worth.value = verdict.after

    # telling

    def _tell_of_failure(self, reason: str, attempts: Sequence[Attempt]) -> None:
        told = "; ".join(f"{attempt.remedy} {attempt.outcome}" for attempt in attempts)
        self._alert("no remedy", f"{reason}, and nothing helped ({told}); what was in force is kept")

    def _tell_of_shortfall(self) -> None:
        """Once, until it has recovered."""
        shortfall = self.worth.shortfall
        if shortfall is not None and not self._told_of_shortfall:
            self._alert("accuracy", f"{self.metric.name} is {shortfall}")
        self._told_of_shortfall = shortfall is not None

    def _end(
        self,
        outcome: Outcome,
        reason: str,
        state: State,
        spent: Spent,
        probes: tuple[Probe, ...] = (),
        attempts: tuple[Attempt, ...] = (),
    ) -> Run:
        self._tell_of_shortfall()
        run = Run(outcome, reason, state, self.clock(), probes, attempts, spent)
        self.journal.add_run(run)
        self._emit(RecalibrationFinished(self.net.device.capabilities.identity, outcome, reason, spent.mvms))
        return run

    def _alert(self, kind: str, message: str) -> None:
        self._emit(RecalibrationAlert(self.net.device.capabilities.identity, kind, message))

    def _emit(self, event: Event) -> None:
        self.journal.add_event(event)
        emit(event)
