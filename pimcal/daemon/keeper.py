"""Keeps a deployed network right by its profile's schedule: one decision after the other, and what each asks for.

No thread and no waiting in here: `step` does what is due and says when to call it again, by a clock that is passed in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Literal

from pimcal.corrections import Corrections
from pimcal.daemon.guests import Guests, Interruptible
from pimcal.daemon.in_force import Active, find_active
from pimcal.daemon.journal import StoreJournal
from pimcal.daemon.memory import Memory, memory_file
from pimcal.daemon.notes import TOLD, Notes
from pimcal.daemon.past import ATTEMPTS, remembered
from pimcal.daemon.status import Look
from pimcal.daemon.subject import Subject
from pimcal.deployment import Deployment
from pimcal.errors import ConfigError, StorageError
from pimcal.events import DeviceProbed
from pimcal.recalibration.clock import Moment
from pimcal.recalibration.decide import WATCH_S, Decision, decide
from pimcal.recalibration.engine import Engine, EngineSettings, Run
from pimcal.recalibration.limits import holds
from pimcal.recalibration.probe import probe
from pimcal.recalibration.schedule import begin, follow, looked
from pimcal.recalibration.triggers import Readings, Trigger, evaluate, link_errors_per_h, reprogrammed
from pimcal.registry import emit
from pimcal.store import Store, key_of

logger = logging.getLogger(__name__)

Asked = Literal["look", "calibrate"]


class Keeper:
    """One network on one open device. Used by the thread that owns the device and has opened the store.

    All methods that use the device raise DeviceUnavailableError, DeviceBusyError where it is gone. A store that cannot
    be written stops no one: it is told, what is in force stays in force, and the next try comes after a while.
    """

    def __init__(
        self,
        net: Deployment,
        subject: Subject,
        store: Store,
        guests: Guests,
        now: Callable[[], Moment],
        triggers: Mapping[str, Trigger],
        *,
        anew: bool = False,
        changed: Callable[[], None] = lambda: None,
        settings: EngineSettings | None = None,
        generator: Random | None = None,
    ) -> None:
        """`anew`: a record in the store that does not fit this model or profile is to be replaced, not an error.
        `changed()`: called when `notes` have changed.

        Raises ConfigError where it is one, StorageError where the store cannot be read.
        """
        self.net, self.store, self.guests, self.now, self.triggers = net, store, guests, now, triggers
        self.key = key_of(net)
        self.notes = Notes(self.key.device, changed)
        self.decision = Decision("nothing", (), 0.0)
        self._anew, self._settings, self._generator = anew, settings, generator or Random()
        self._journal = StoreJournal(store, self.key, lambda: net.device.cost.since(guests.cost))
        self._advanced_to_s = now().monotonic_s
        self._memory = memory_file(store.folder, self.key)
        self.use(subject)
        self._take_up(find_active(store, net, anew=anew))
        self._doubtful = self.active is not None  # the device was opened: nobody saw what happened to it before

    # what it works with

    def use(self, subject: Subject) -> None:
        """Work by this profile from now on, which describes the same hardware."""
        self.subject = subject
        self.net.device.profile = subject.profile
        self.settings = subject.profile.recalibration
        self._images = subject.images(subject.profile)
        self._schedule = begin(self.settings, self.now(), self._generator)
        if hasattr(self, "engine"):
            self.engine.calibration, self.engine.held_out = self._images.calibration, self._judges()

    def _judges(self) -> Interruptible:
        return Interruptible(self._images.held_out, lambda: self.guests.serve_aside(self.net, self._in_force()))

    def _in_force(self) -> Corrections:
        return self.engine.active.corrections if self.engine.active else {}

    def _take_up(self, active: Active | None) -> None:
        """Begin anew with what the store says is in force."""
        self.active = active
        now = self.now()
        record = active.record if active else None
        memory = Memory.load(self._memory, record.id) if record else None
        if self.net.active and (record is None or self.net.active != record.id):
            self.net.set_extra_state({"device": {}, "active": []})
        self.engine = Engine(
            self.net, self._images.calibration, self._judges(), self.subject.metric, self._journal,
            clock=lambda: self.now().wall_s, settings=self._settings, active=record,
            accepted=memory.accepted if memory else None, accepted_under=memory.under if memory else None,
            level=memory.level if memory else None,
        )  # fmt: skip
        self._kept = self.engine.accepted
        pair = (active.generation, active.record) if active else None
        telemetry = self.net.device.telemetry()
        past = remembered(self.store, self.key, pair, self._programming(telemetry), now)
        self.history = past.history
        self._schedule = begin(self.settings, now, self._generator, past.last_look)
        self._probe_error: float | None = None
        self._at_look = telemetry, now

    def _programming(self, telemetry: Mapping[str, float]) -> str:
        """Restarts of a board, whose driver programs it anew; that the device was opened is no reason to calibrate."""
        return f"{telemetry.get('board_restarts', 0):g} restarts"

    # what is due

    def step(self) -> float:
        """Decide, and do it; after how many seconds of the clock to call it again."""
        self.follow_store()
        readings = self._readings()
        if self._doubtful:
            self._doubtful = False
            if not holds(self.settings, readings.at, self.history.attempts, self.history.rejected):
                self._asked(
                    "look", "run: the device was opened and programmed; a look tells whether the calibration fits"
                )
                return 0.0
        self._schedule = follow(self.settings, self._schedule, readings.at, self._generator)
        self.decision = decide(self.settings, self._schedule, self.history, readings, self.triggers)
        self._tell_overdue()
        self._safely(lambda: self._journal.decided(self.decision))
        if self.decision.kind == "probe":
            self._look()
        elif self.decision.kind == "calibrate":
            self._calibrate(readings)
        return min(self.decision.next_look_s, WATCH_S)  # the store may say something else by then

    @property
    def telemetry(self) -> Mapping[str, float]:
        """As of the last look."""
        return self._at_look[0]

    def run_now(self, asked: Asked) -> None:
        """Look at the device and undo what has drifted, or calibrate, whatever the schedule says."""
        self.follow_store()
        self._readings()
        self._asked(asked, f"{asked}: asked for by run-now")

    def follow_store(self) -> None:
        """Somebody may have activated another generation: put it in force here."""
        try:
            found = self.store.active(self.key)
            present = self.active.generation.id if self.active else None
            if (found and found.id) != present:
                logger.info("the store has generation %s active now; it is put in force", found and found.id)
                self._take_up(find_active(self.store, self.net, anew=self._anew))
            self.notes.solved("generation")
        except (StorageError, ConfigError) as error:
            self._problem("generation", f"{error}; what was in force stays in force")

    def _readings(self) -> Readings:
        """What the device says of itself now; a simulated one lives through the time that has passed."""
        now = self.now()
        if self.net.device.capabilities.simulated_clock:
            self.net.device.advance(max(0.0, now.monotonic_s - self._advanced_to_s))
        self._advanced_to_s = now.monotonic_s
        telemetry = self.net.device.telemetry()
        before, at = self._at_look
        errors = link_errors_per_h(telemetry, before, now.since(at))
        return Readings(
            at=now, telemetry=telemetry, programming=self._programming(telemetry), probe_error=self._probe_error,
            link_errors_per_h=errors,
        )  # fmt: skip

    # doing it

    def _look(self) -> None:
        """Ask the golden vectors; what to do about it is another decision."""
        if self.engine.accepted is None:
            self._run(lambda: self.engine.run(force=True))
        else:
            self._safely(self._probe)
        self._looked()

    def _probe(self) -> None:
        accepted = self.engine.accepted
        assert accepted is not None
        look = probe(self.net, accepted, self.engine.sensitivity)
        self._probe_error = look.error if look.drifted else 0.0  # what may be chance is no drift
        self._note("drifted" if look.drifted else "fine", look.reason)
        emit(DeviceProbed(self.key.device, look.error, look.drifted, look.reason, look.mvms))
        self._journal.add_probe(look)

    def _calibrate(self, readings: Readings) -> None:
        """The smallest remedy where a look can tell; a whole calibration where it is due by age or by schedule."""
        reason = "; ".join(self.decision.reasons)
        whole = self.history.calibrated is not None and not self._doubts(readings)
        self._run(lambda: self.engine.recalibrate(reason) if whole else self.engine.run(force=True))
        self._looked()

    def _doubts(self, readings: Readings) -> bool:
        """Whether something but time says that the device has changed."""
        before = self.history.calibrated
        if before is None or self.decision.overdue:
            return False
        limits = {name: limit for one in self.settings.when for name, limit in one.items() if name != "age_h"}
        fired = [evaluate(name, self.triggers[name], readings, before, limit).fired for name, limit in limits.items()]
        return any(fired) or reprogrammed(readings, before).fired

    def _asked(self, asked: Asked, why: str) -> None:
        self._safely(lambda: self._journal.asked(why))
        self._run(lambda: self.engine.recalibrate(why) if asked == "calibrate" else self.engine.run(force=True))
        self._looked()

    def _run(self, run: Callable[[], Run]) -> None:
        """A run of the engine; where the store cannot be written, what was in force still is."""
        self._journal.begin()
        try:
            ran = run()
        except StorageError as error:
            self._failed(f"{error}; what was in force stays in force")
            return
        self.notes.solved("store")
        self._note(ran.outcome, ran.reason)
        self._ended(ran)

    def _ended(self, ran: Run) -> None:
        self._probe_error = None if ran.outcome == "activated" else 0.0
        if ran.outcome in ATTEMPTS:
            rejected = self.history.rejected + 1 if ran.outcome == "failed" else 0
            self._attempted(rejected)
        if ran.outcome == "activated":
            self.history = replace(self.history, calibrated=self._seen())
            self._safely(self._remember_active)
        elif ran.outcome == "kept":  # a new calibration would have been no better
            self.history = replace(self.history, calibrated=self._seen())
        elif ran.outcome == "fine":
            self._confirmed()
        self._set_problem("no remedy", ran.reason if ran.outcome == "failed" else None)
        dead = sorted(tile for (_, tile), state in ran.tiles.items() if state == "dead")
        self._set_problem("dead tiles", ", ".join(map(str, dead)) or None)
        self._keep_answers()

    def _remember_active(self) -> None:
        self.active = find_active(self.store, self.net, anew=True)

    def _seen(self) -> Readings:
        now, telemetry = self.now(), self.net.device.telemetry()
        return Readings(at=now, telemetry=telemetry, programming=self._programming(telemetry))

    def _confirmed(self) -> None:
        """The calibration was found to fit what the device is like now. Its age stays."""
        before = self.history.calibrated
        if before is None:
            return
        self.history = replace(self.history, calibrated=replace(self._seen(), at=before.at))
        if self._doubts(self._readings()):  # a trigger that fires all the same must not have it looked at all the time
            self._attempted(self.history.rejected + 1)

    def _attempted(self, rejected: int) -> None:
        hour_ago = [moment for moment in self.history.attempts if self.now().since(moment) < 3600]
        self.history = replace(self.history, attempts=(*hour_ago, self.now()), rejected=rejected)

    def _failed(self, why: str) -> None:
        self._problem("store", why)
        self._attempted(self.history.rejected + 1)

    def _looked(self) -> None:
        """Everything that was due has been served."""
        now = self.now()
        self._schedule = looked(self.settings, self._schedule, now, self._generator)
        telemetry = self.net.device.telemetry()
        self._at_look = telemetry, now
        self._safely(lambda: self._journal.readings(telemetry))

    def _keep_answers(self) -> None:
        accepted, active = self.engine.accepted, self.engine.active
        if accepted is None or active is None or accepted is self._kept:
            return
        memory = Memory(active.id, accepted, self.engine.accepted_under, self.engine.level)
        if self._safely(lambda: memory.save(self._memory)):
            self._kept = accepted

    # telling

    def _note(self, outcome: str, reason: str) -> None:
        self.notes.looked(Look(self.now().wall_s, outcome, reason))

    def _safely(self, write: Callable[[], None]) -> bool:
        """Write something that can be done without; whether it could be written."""
        try:
            write()
        except StorageError as error:
            self._problem("history", str(error))
            return False
        self.notes.solved("history")
        return True

    def _tell_overdue(self) -> None:
        held_back = self.decision.overdue and self.decision.kind == "wait"
        self._set_problem("overdue", "; ".join(self.decision.reasons) if held_back else None)

    def _set_problem(self, kind: str, message: str | None) -> None:
        if message is None:
            self.notes.solved(kind)
        else:
            self._problem(kind, message)

    def _problem(self, kind: str, message: str) -> None:
        if self.notes.problem(kind, message) and kind not in ("store", "history", *TOLD):
            self._safely(lambda: self._journal.alert(kind, message))
