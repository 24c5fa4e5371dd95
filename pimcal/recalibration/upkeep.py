"""What is due on one device, doing it, and what follows from it: the same for a daemon and for a simulation.

No thread, no waiting, no store in here; whoever calls says when, and moves a simulated clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random

from pimcal.profile.sections import Recalibration
from pimcal.recalibration.clock import Moment
from pimcal.recalibration.decide import Decision, History, decide
from pimcal.recalibration.engine import Engine
from pimcal.recalibration.outcome import Run
from pimcal.recalibration.probe import Probe
from pimcal.recalibration.schedule import Schedule, begin, follow, looked
from pimcal.recalibration.triggers import Readings, Trigger, evaluate, link_errors_per_h, reprogrammed

ATTEMPTS = ("activated", "kept", "failed")  # outcomes of runs that tried to recalibrate
_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One decision, and all that it was made from."""

    settings: Recalibration
    schedule: Schedule
    history: History
    readings: Readings
    decision: Decision


class Upkeep:
    """One engine's schedule, triggers and past. Raises what the engine raises; then nothing has been noted."""

    def __init__(
        self,
        engine: Engine,
        settings: Recalibration,
        now: Callable[[], Moment],
        triggers: Mapping[str, Trigger],
        generator: Random,
        *,
        history: History | None = None,
        last_look: Moment | None = None,
    ) -> None:
        """`triggers`: those that a profile may name. `generator` draws the jitter. `history`, `last_look`: of an
        earlier process."""
        self.engine, self.now = engine, now
        self.history = history or History()
        self._triggers, self._generator = triggers, generator
        self._probe_error: float | None = None
        self._at_look = self._telemetry(), now()
        self._last_look = last_look
        self._begin(settings)

    def use(self, settings: Recalibration) -> None:
        """Work by other settings from now on; times between looks go on from the last one."""
        self._begin(settings)

    def _begin(self, settings: Recalibration) -> None:
        self.settings = settings
        self._limits = {name: limit for one in settings.when for name, limit in one.items()}
        self._schedule = begin(settings, self.now(), self._generator, self._last_look)

    # what is known

    @property
    def telemetry(self) -> Mapping[str, float]:
        """As of the last look."""
        return self._at_look[0]

    def readings(self) -> Readings:
        """What the device says of itself now."""
        before, at = self._at_look
        seen = self._seen()
        errors = link_errors_per_h(seen.telemetry, before, seen.at.since(at))
        return replace(seen, probe_error=self._probe_error, link_errors_per_h=errors)

    def decide(self) -> Turn:
        """What to do now, and why."""
        readings = self.readings()
        self._schedule = follow(self.settings, self._schedule, readings.at, self._generator)
        decision = decide(self.settings, self._schedule, self.history, readings, self._triggers)
        return Turn(self.settings, self._schedule, self.history, readings, decision)

    def pause_s(self, decision: Decision) -> float:
        """How long nothing can come up where time passes by jumps, so that nobody has to watch triggers."""
        if decision.kind == "wait" or any(not self._triggers[name].needs_probe for name in self._limits):
            return decision.next_look_s
        now = self.now()
        return max(1.0, min(self._schedule.next_in_s(now), self._age_left_s(now)))

    def _age_left_s(self, now: Moment) -> float:
        calibrated, most = self.history.calibrated, self.settings.max_age
        return math.inf if calibrated is None or most is None else most.total_seconds() - now.since(calibrated.at)

    # doing it

    def probe(self) -> Probe | None:
        """Ask the golden vectors, and nothing else: what to do about it is another decision.

        None: `look` has to follow at once, as no answers were accepted yet, or tiles have died.
        """
        look = self.engine.look()
        if look is None or self.engine.is_news(look):
            return None
        self._probe_error = look.error
        return look

    def look(self) -> Run:
        """Look, and undo what has drifted, without a wait."""
        return self._ended(self.engine.run())

    def adopt(self) -> Run:
        """Somebody has chosen what is in force."""
        return self._ended(self.engine.adopt())

    def recalibrate(self, reason: str) -> Run:
        return self._ended(self.engine.recalibrate(reason))

    def calibrate(self, turn: Turn) -> Run:
        """The smallest remedy where a look can tell; a whole calibration where it is due by age or by schedule."""
        whole = turn.history.calibrated is not None and not self._doubts(turn.readings, turn.decision)
        return self.recalibrate("; ".join(turn.decision.reasons)) if whole else self.look()

    def looked(self) -> None:
        """Everything that was due has been served."""
        now = self.now()
        self._schedule = looked(self.settings, self._schedule, now, self._generator)
        self._at_look, self._last_look = (self._telemetry(), now), now

    def failed(self) -> None:
        """A run has ended without an outcome."""
        self._attempted(self.history.rejected + 1)

    def _doubts(self, readings: Readings, decision: Decision | None = None) -> bool:
        """Whether something but time says that the device has changed."""
        before = self.history.calibrated
        if before is None or (decision is not None and decision.overdue):
            return False
        watched = {name: limit for name, limit in self._limits.items() if name != "age_h"}
        fired = [evaluate(name, self._triggers[name], readings, before, watched[name]).fired for name in watched]
        return any(fired) or reprogrammed(readings, before).fired

    # what follows

    def _ended(self, run: Run) -> Run:
        self._probe_error = None if run.outcome == "activated" else 0.0
        if run.outcome in ATTEMPTS:
            self._attempted(self.history.rejected + 1 if run.outcome == "failed" else 0)
        if run.outcome in ("activated", "kept"):  # kept: a calibration of today would have been no better
            self.history = replace(self.history, calibrated=self._seen())
        elif run.outcome == "fine":
            self._confirmed()
        return run

    def _confirmed(self) -> None:
        """The calibration was found to fit what the device is like now. Its age stays."""
        before = self.history.calibrated
        if before is None:
            return
        self.history = replace(self.history, calibrated=replace(self._seen(), at=before.at))
        if self._doubts(self.readings()):  # a trigger that fires all the same must not have it looked at all the time
            self._attempted(self.history.rejected + 1)

    def _attempted(self, rejected: int) -> None:
        now = self.now()
        recent = [moment for moment in self.history.attempts if now.since(moment) < _HOUR_S]
        self.history = replace(self.history, attempts=(*recent, now), rejected=rejected)

    def _seen(self) -> Readings:
        telemetry = self._telemetry()
        return Readings(at=self.now(), telemetry=telemetry, programming=programming(telemetry))

    def _telemetry(self) -> Mapping[str, float]:
        return self.engine.net.device.telemetry()


def programming(telemetry: Mapping[str, float]) -> str:
    """Restarts of a board, whose driver programs it anew; that the device was opened is no reason to calibrate."""
    return f"{telemetry.get('board_restarts', 0):g} restarts"
