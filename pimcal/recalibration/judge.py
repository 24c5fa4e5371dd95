"""Judges what is in force, and remedies, on held-out images; puts in force what passes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pimcal.calibration.gate import Verdict, gate, measure
from pimcal.deployment import Deployment
from pimcal.device import Cost
from pimcal.errors import DeviceBusyError, DeviceUnavailableError, PimcalError, StorageError
from pimcal.metrics import Metric
from pimcal.recalibration.held import forget_old_records, kept_on_error
from pimcal.recalibration.journal import Journal
from pimcal.recalibration.outcome import Attempt, AttemptOutcome, Spent
from pimcal.recalibration.remedy import Remedy, Situation
from pimcal.recalibration.worth import Worth
from pimcal.record import Record

logger = logging.getLogger(__name__)

_NEVER_TRIED_FURTHER = (DeviceUnavailableError, DeviceBusyError, StorageError)


class Judge:
    """All methods raise DeviceUnavailableError, DeviceBusyError where the device is gone, and StorageError where the
    journal cannot be written; what was in force is in force then.
    """

    def __init__(
        self,
        net: Deployment,
        held_out: Sequence[Any],
        metric: Metric,
        journal: Journal,
        worth: Worth,
        cost: Callable[[], Cost],
    ) -> None:
        """`worth` is only read; `cost()`: what the device has cost."""
        self.held_out = held_out
        self._net, self._metric, self._journal, self._worth, self._cost = net, metric, journal, worth, cost

    def value(self, spent: Spent) -> float | None:
        """The metric of what is in force; None where it cannot be measured."""
        try:
            return self._measured(spent)
        except _NEVER_TRIED_FURTHER:
            raise
        except PimcalError as error:
            logger.warning("what is in force cannot be measured: %s", error)
            return None

    def told(self, value: float | None) -> str:
        return f"{self._metric.name} cannot be measured" if value is None else f"{self._metric.name} {value:.4f}"

    def attempt(
        self, remedy: Remedy, situation: Situation, reason: str, spent: Spent, before: float | None
    ) -> tuple[Attempt, Verdict | None]:
        """Have it propose, judge that, and put it in force or not; what fails leaves everything as it was.

        `before`: the metric of what is in force, where it has just been measured.
        """
        try:
            with kept_on_error(self._net):
                return self._tried(remedy, situation, reason, spent, before)
        except _NEVER_TRIED_FURTHER:
            raise
        except PimcalError as error:
            return Attempt(remedy.name, "failed", str(error)), None

    def _tried(
        self, remedy: Remedy, situation: Situation, reason: str, spent: Spent, before: float | None
    ) -> tuple[Attempt, Verdict | None]:
        with self._counted(spent, "remedy_mvms"):
            record = remedy.propose(situation)
        if record is None:
            return Attempt(remedy.name, "nothing to do", "what it corrects has not changed"), None
        generation = self._journal.add_candidate(record, reason)
        verdict = self._verdict(record, generation, spent, self._measured(spent) if before is None else before)
        if verdict.activated:
            self._journal.activate(generation, verdict)
            forget_old_records(self._net)
        else:
            self._journal.reject(generation, verdict.reason)
        outcome: AttemptOutcome = "activated" if verdict.activated else "rejected"
        return Attempt(remedy.name, outcome, verdict.reason, record.id, verdict.before, verdict.after), verdict

    def _verdict(self, record: Record, generation: str, spent: Spent, before: float) -> Verdict:
        """Where accuracy has collapsed, what is not better is no remedy: the device may come back as it was."""
        most = -self._worth.good_enough if self._worth.is_alarming(before) else None
        try:
            with self._counted(spent, "gate_mvms"):
                return gate(self._net, record, self.held_out, self._metric, max_drop=most, before=before)
        except PimcalError as error:
            self._journal.reject(generation, str(error))
            raise

    def _measured(self, spent: Spent) -> float:
        with self._counted(spent, "gate_mvms"):
            return measure(self._net, self.held_out, self._metric).value

    @contextmanager
    def _counted(self, spent: Spent, purpose: str) -> Iterator[None]:
        before = self._cost().copy()
        try:
            yield
        finally:
            taken = self._cost().since(before)
            setattr(spent, purpose, getattr(spent, purpose) + taken.mvms)
            spent.programmed_cells += taken.programmed_cells
