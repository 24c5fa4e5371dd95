"""Keeps a deployed network right by its profile's schedule: one decision after the other, and what each asks for.

No thread and no waiting in here: `step` does what is due and says when to call it again, by a clock that is passed in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from random import Random
from typing import Literal

from pimcal.corrections import Corrections
from pimcal.daemon.guests import Guests, Interruptible
from pimcal.daemon.in_force import Active, find_active
from pimcal.daemon.journal import StoreJournal
from pimcal.daemon.memory import Memory, memory_file
from pimcal.daemon.notes import TOLD, Notes
from pimcal.daemon.past import Past, remembered, unremembered
from pimcal.daemon.status import Look
from pimcal.daemon.subject import Subject
from pimcal.deployment import Deployment
from pimcal.device import Cost
from pimcal.errors import ConfigError, StorageError
from pimcal.events import DeviceProbed
from pimcal.recalibration.clock import Moment
from pimcal.recalibration.decide import WATCH_S, Decision
from pimcal.recalibration.engine import Engine, EngineSettings, Run
from pimcal.recalibration.limits import holds, quiet
from pimcal.recalibration.triggers import Trigger
from pimcal.recalibration.upkeep import Upkeep, programming
from pimcal.record import Record
from pimcal.registry import emit
from pimcal.store import Generation, Store, key_of

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
        notes: Notes | None = None,
        fallback: Active | None = None,
    ) -> None:
        """`anew`: a record in the store that does not fit this model or profile is to be replaced, not an error.
        `changed()`: called when `notes` have changed.

        `notes`, `fallback`: those of an earlier keeper of this device, and what it had in force, which stays in force
        where the store's cannot be. Raises ConfigError, StorageError where that is so and there were no notes.
        """
        self.net, self.store, self.guests, self.now = net, store, guests, now
        self.key = key_of(net)
        self.notes = notes or Notes(self.key.device, changed)
        self._again = notes is not None
        self.decision = Decision("nothing", (), 0.0)
        self._anew, self._settings, self._generator, self._triggers = anew, settings, generator or Random(), triggers
        self._journal = StoreJournal(store, self.key, self._own_cost)
        self._advanced_to_s = now().monotonic_s
        self._memory = memory_file(store.folder, self.key)
        self._adopt(subject)
        found = self._find_active(fallback)
        self._take_up(found)
        self._followed = found.generation.id if found else self._active_id() if anew else None
        self._chosen = self.active is not None and self.engine.accepted is None and self._was_chosen()
        self._safely(lambda: store.reject_leftovers(self.key, "whoever made it was killed before it was judged"))
        self._doubtful = self.active is not None  # the device was opened: nobody saw what happened to it before

    # what it works with

    def use(self, subject: Subject) -> None:
        """Work by this profile from now on, which describes the same hardware."""
        self._adopt(subject)
        self.upkeep.use(subject.profile.recalibration)
        self.engine.use(self._images.calibration, self._judges())

    def _adopt(self, subject: Subject) -> None:
        self.subject = subject
        self.net.device.profile = subject.profile
        self._images = subject.images(subject.profile)

    def _judges(self) -> Interruptible:
        return Interruptible(self._images.held_out, self._let_in)

    def _let_in(self) -> None:
        """Serve others in the middle of a run of the engine."""
        self.guests.serve_aside(self.net, self._in_force())

    def _own_cost(self) -> Cost:
        """What the device has cost without them."""
        return self.net.device.cost.since(self.guests.cost)

    def _in_force(self) -> Corrections:
        return self.engine.active.corrections if self.engine.active else {}

    def _find_active(self, fallback: Active | None) -> Active | None:
        try:
            return find_active(self.store, self.net, anew=self._anew)
        except (StorageError, ConfigError) as error:
            if not self._again:
                raise
            self._problem("generation", f"{error}; what was in force stays in force")
            return fallback

    def _take_up(self, active: Active | None) -> None:
        """Begin anew with what the store says is in force."""
        past = self._past((active.generation, active.record) if active else None)
        self.active = active
        record = active.record if active else None
        if self.net.active and (record is None or self.net.active != record.id):
            self.net.set_extra_state({"device": {}, "active": []})
        self.engine = self._engine_for(record)
        self._kept = self.engine.learned  # what a restart finds
        self.upkeep = Upkeep(
            self.engine, self.subject.profile.recalibration, self.now, self._triggers, self._generator,
            history=past.history, last_look=past.last_look,
        )  # fmt: skip

    def _was_chosen(self) -> bool:
        """Whether somebody put another generation in force than the newest run did, while no daemon ran."""
        try:
            newest = self.store.journal.history(self.key, kinds=("activated", "rolled_back"), limit=1)
            made = [run.generation for run in self.store.journal.runs(self.key, limit=None) if run.generation]
        except StorageError:
            return False
        return bool(newest) and newest[0].generation not in made[-1:]

    def _past(self, active: tuple[Generation, Record] | None) -> Past:
        programmed, now = programming(self.net.device.telemetry()), self.now()
        try:
            return remembered(self.store, self.key, active, programmed, now)
        except StorageError as error:
            if not self._again:
                raise
            self._problem("store", str(error))
            return unremembered(active, programmed, now)

    def _engine_for(self, record: Record | None) -> Engine:
        memory = Memory.load(self._memory, record.id) if record else None
        return Engine(
            self.net, self._images.calibration, self._judges(), self.subject.metric, self._journal,
            clock=lambda: self.now().wall_s, settings=self._settings, active=record,
            learned=memory.learned if memory else None, cost=self._own_cost, pause=self._let_in,
        )  # fmt: skip

    # what is due

    def step(self) -> float:
        """Decide, and do it; after how many seconds of the clock to call it again."""
        self.follow_store()
        self._live()
        if quiet(self.upkeep.settings, self.now()) is None:
            self._take_choice()
        if self._doubtful and not self._is_held():
            self._asked("look", "run: the device was opened and programmed; a look tells whether the calibration fits")
            self._doubtful = False
            return 0.0
        turn = self.upkeep.decide()
        self.decision = turn.decision
        self._tell_overdue()
        self._safely(lambda: self._journal.decided(self.decision))
        if self.decision.kind == "probe":
            self._look()
        elif self.decision.kind == "calibrate":
            self._run(lambda: self.upkeep.calibrate(turn))
        return min(self.decision.next_look_s, WATCH_S)  # the store may say something else by then

    def _take_choice(self) -> None:
        if self._chosen:
            self._run(self.upkeep.adopt)
            self._chosen = False

    def _is_held(self) -> bool:
        history = self.upkeep.history
        return bool(holds(self.upkeep.settings, self.now(), history.attempts, history.rejected))

    def run_now(self, asked: Asked) -> None:
        """Look at the device and undo what has drifted, or calibrate, whatever the schedule says."""
        self.follow_store()
        self._live()
        self._take_choice()
        self._asked(asked, f"{asked}: asked for by run-now")

    def follow_store(self) -> None:
        """Somebody may have activated another generation: put it in force here."""
        try:
            found = self._active_id()
            if found != self._followed:
                self._take_up(find_active(self.store, self.net, anew=False))
                logger.info("the store has generation %s active now; it is in force", found)
                self._chosen, self._followed = self.active is not None, found
            self.notes.solved("generation")
        except (StorageError, ConfigError) as error:
            self._problem("generation", f"{error}; what was in force stays in force")

    def _active_id(self) -> str | None:
        """By the store, whether it fits or not."""
        found = self.store.active(self.key)
        return found.id if found else None

    def _live(self) -> None:
        """A simulated device lives through the time that has passed."""
        now_s = self.now().monotonic_s
        if self.net.device.capabilities.simulated_clock:
            self.net.device.advance(max(0.0, now_s - self._advanced_to_s))
        self._advanced_to_s = now_s

    # doing it

    def _look(self) -> None:
        look = self.upkeep.probe()
        if look is None:
            self._run(self.upkeep.look)
            return
        self._note("drifted" if look.drifted else "fine", look.reason)
        emit(DeviceProbed(self.key.device, look.error, look.drifted, look.reason, look.mvms))
        self._safely(lambda: self._journal.add_probe(look))
        self._looked()

    def _asked(self, asked: Asked, why: str) -> None:
        self._safely(lambda: self._journal.asked(why))
        self._run(lambda: self.upkeep.recalibrate(why) if asked == "calibrate" else self.upkeep.look())

    def _run(self, run: Callable[[], Run]) -> None:
        """A run of the engine; where the store cannot be written, what was in force still is."""
        self._journal.begin()
        try:
            self._ended(run())
        except StorageError as error:
            self.upkeep.failed()
            self._problem("store", f"{error}; what was in force stays in force")
        self._looked()

    def _ended(self, run: Run) -> None:
        self.notes.solved("store")
        if run.outcome == "activated":
            self._safely(self._remember_active)
        self._note(run.outcome, run.reason)
        self._set_problem("no remedy", run.reason if run.outcome == "failed" else None)
        dead = sorted({tile for _, tile in self.engine.dead_tiles})
        self._set_problem("dead tiles", ", ".join(map(str, dead)) or None)
        self._set_problem("accuracy", self.engine.worth.shortfall)
        self._keep_answers()

    def _remember_active(self) -> None:
        self._followed = self._active_id()
        self.active = find_active(self.store, self.net, anew=True)

    def _looked(self) -> None:
        self.upkeep.looked()
        self._safely(lambda: self._journal.readings(self.upkeep.telemetry))

    def _keep_answers(self) -> None:
        engine = self.engine
        learned = engine.learned
        if learned.accepted is None or engine.active is None or learned == self._kept:
            return
        memory = Memory(engine.active.id, learned)
        if self._safely(lambda: memory.save(self._memory)):
            self._kept = learned

    # telling

    def _note(self, outcome: str, reason: str) -> None:
        self.notes.looked(Look(self.now().wall_s, outcome, reason))

    def _safely(self, write: Callable[[], object]) -> bool:
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
