"""The thread that owns the device: opens it, keeps it right, lets others use it, finds it again when it is lost."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pimcal import registry
from pimcal.daemon.clock import Clock
from pimcal.daemon.guests import Guests
from pimcal.daemon.keeper import Asked, Keeper
from pimcal.daemon.lock import held, lock_file
from pimcal.daemon.status import Counters, State, Status
from pimcal.daemon.subject import Subject
from pimcal.daemon.watched import Abandoned, Watched
from pimcal.deployment import Deployment, deploy
from pimcal.device import Device, open_device
from pimcal.errors import ConfigError, DeviceBusyError, DeviceUnavailableError, PimcalError, StorageError
from pimcal.events import RecalibrationAlert
from pimcal.recalibration.decide import WATCH_S
from pimcal.store import Key, Store

logger = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_S, LONGEST_RETRY_S = 1.0, 60.0  # before a lost device is looked for again: doubles each time
STORE_WAIT_S = 2.0  # for another process that writes to the store: meanwhile nobody is served
REMIND_S = 3600.0  # and how often that is logged


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is for. `anew`: see `Keeper`; `told()`: called, in its thread, when its status has changed."""

    subject: Subject
    store: Path
    clock: Clock
    anew: bool = False
    told: Callable[[], None] = lambda: None


@dataclass(slots=True)
class _Wishes:
    """What others want of the worker; the lock of its condition is held to read or change them."""

    stop: bool = False
    paused: bool = False
    released_until_s: float | None = None  # monotonic seconds of the daemon's clock
    run_now: Asked | None = None
    subject: Subject | None = None


class Worker:
    """Start it once; everything but `start` may be called from any thread, and returns at once.

    `failure` is what ended it other than `stop`.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._clock = job, job.clock
        self._subject = job.subject
        self._changed = threading.Condition()
        self._wishes = _Wishes()
        self._abandon = False
        self._waits, self._beat_s = False, time.monotonic()
        self._guests = Guests(self._wake)
        self._status, self._counters = Status(), Counters()
        self._key: Key | None = None
        self._missed: _Missed | None = None
        self._open: _Open | None = None
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    # what others may ask

    def start(self) -> None:
        self._thread.start()

    @property
    def status(self) -> Status:
        """A snapshot, which nobody changes any more."""
        return self._status

    @property
    def ended(self) -> bool:
        return self._status.state == "stopped"

    def join(self, timeout_s: float | None = None) -> None:
        self._thread.join(timeout_s)

    def silent_s(self) -> float:
        """For how many seconds nothing was heard of it; 0 while it waits for something to do."""
        return 0.0 if self._waits else time.monotonic() - self._beat_s

    def submit(self, work: Callable[[Deployment], T]) -> Future[T]:
        """Have `work(net)` run on the device, with what is in force, before the worker's own next step.

        It also runs between the batches of a gate, whose candidate steps aside for so long; not within a calibration's
        measurements or a probe, which it would disturb. Raises as `Guests.submit`; the future also raises
        DeviceUnavailableError where the device is lost, released or stopped meanwhile.
        """
        return self._guests.submit(work)

    def stop(self) -> None:
        """End at the next safe point; a calibration under way is given up, and what was in force is in force."""
        self._wish(abandon=True, stop=True)

    def pause(self) -> None:
        """Make no decisions until `resume` or `run_now`; what runs now comes to its end."""
        self._wish(paused=True)

    def resume(self) -> None:
        """Undo `pause` and `release`."""
        self._wish(paused=False, released_until_s=None)

    def run_now(self, asked: Asked) -> None:
        """Look, or calibrate, as soon as what runs now has ended."""
        self._wish(paused=False, released_until_s=None, run_now=asked)

    def release(self, seconds: float) -> None:
        """Close the device, so that others can use it, and take it back after so many seconds."""
        self._wish(abandon=True, released_until_s=self._clock.now().monotonic_s + seconds)

    def reload(self, subject: Subject) -> None:
        """Work by another profile of the same hardware."""
        self._wish(subject=subject)

    def _wish(self, *, abandon: bool = False, **values: Any) -> None:
        with self._changed:
            for name, value in values.items():
                setattr(self._wishes, name, value)
            self._abandon = abandon or (self._abandon and self._interrupted())
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # the thread

    def _run(self) -> None:
        try:
            with ExitStack() as stack:
                store = Store.create(self._job.store, clock=lambda: self._clock.now().wall_s, wait_s=STORE_WAIT_S)
                stack.enter_context(store)
                while not self._wishes.stop:
                    self._once(store, stack)
        except PimcalError as error:
            self.failure = error
        except BaseException as error:
            logger.exception("the daemon's own error")
            self.failure = error
        finally:
            self._guests.close("the daemon has stopped")
            self._tell("stopped")

    def _once(self, store: Store, locks: ExitStack) -> None:
        """From opening the device until it is closed: stopped, released, reopened, or lost."""
        with self._changed:
            self._abandon = self._wishes.stop
        self._adopted()
        if self._released_s() > 0:
            self._tell("released")
            self._wait(self._released_s())
            return
        try:
            with self._opened(store, locks) as keeper:
                self._keep(keeper)
        except Abandoned:
            logger.info("what ran on the device was given up; what was in force stays in force")
        except (DeviceUnavailableError, DeviceBusyError, ConfigError, StorageError) as error:
            if self._key is None:
                raise  # it never worked: whoever started it is told
            self._lost(error, store)

    @contextmanager
    def _opened(self, store: Store, locks: ExitStack) -> Iterator[Keeper]:
        with open_device(self._subject.profile) as device:
            device.backend = Watched(device.backend, self._beat)
            self._take_lock(device.capabilities.identity, store, locks)
            self._check_speed(device)
            net = deploy(self._subject.model, device)
            keeper = Keeper(
                net, self._subject, store, self._guests, self._clock.now, registry.default().triggers(),
                anew=self._job.anew and self._key is None, changed=lambda: self._tell(self._status.state),
            )  # fmt: skip
            self._key = keeper.key
            self._found(store)
            self._guests.open()
            self._open = _Open(keeper, self._counters)
            try:
                yield keeper
            finally:
                self._guests.close("the device is closed; `pimcal daemon status` tells why")
                self._counters, self._open = self._open.counters(self._guests.served), None

    def _take_lock(self, identity: str, store: Store, locks: ExitStack) -> None:
        """For good, at the first time; later the device must be the same one."""
        if self._key is None:
            what = f"device {identity} with store {store.folder}"
            locks.enter_context(held(lock_file(store.folder, identity), what))
        elif identity != self._key.device:
            raise DeviceUnavailableError(f"another device answers there: {identity} instead of {self._key.device}")

    def _check_speed(self, device: Device) -> None:
        if not device.capabilities.simulated_clock and self._clock.lasts_s(1.0) != 1.0:
            raise ConfigError(f"{device.capabilities.identity} has no simulated clock, so --speed is not for it")

    def _keep(self, keeper: Keeper) -> None:
        due_s = self._clock.now().monotonic_s
        while not self._interrupted():
            self._beat()
            self._guests.serve(keeper.net)
            if (adopted := self._adopted()) is not None:
                if adopted.profile.settings != keeper.subject.profile.settings:
                    return  # it is reached in another way: open it anew
                keeper.use(adopted)
                due_s = self._clock.now().monotonic_s
            asked = self._taken()
            if asked is not None:
                self._tell("working")
                keeper.run_now(asked)
                due_s = self._clock.now().monotonic_s
            elif not self._wishes.paused and self._clock.now().monotonic_s >= due_s:
                self._tell("working")
                due_s = self._clock.now().monotonic_s + keeper.step()
            elif self._wishes.paused:
                keeper.follow_store()
                self._tell("paused")
                self._wait(WATCH_S)
                due_s = self._clock.now().monotonic_s
            else:
                self._tell("waiting", due_s)
                self._wait(due_s - self._clock.now().monotonic_s)

    def _adopted(self) -> Subject | None:
        """A configuration that came since it was looked at last."""
        with self._changed:
            newer, self._wishes.subject = self._wishes.subject, None
        self._subject = newer or self._subject
        return newer

    def _taken(self) -> Asked | None:
        with self._changed:
            asked, self._wishes.run_now = self._wishes.run_now, None
        return asked

    def _beat(self) -> None:
        """Called before each use of the device: there is progress, and this is a place to give up."""
        self._beat_s = time.monotonic()
        if self._abandon:
            raise Abandoned

    def _interrupted(self) -> bool:
        return self._wishes.stop or self._released_s() > 0

    def _released_s(self) -> float:
        until_s = self._wishes.released_until_s
        return 0.0 if until_s is None else until_s - self._clock.now().monotonic_s

    def _wait(self, seconds: float) -> None:
        """Wait so many of the clock's seconds, or until somebody wants something."""
        with self._changed:
            if seconds > 0 and not self._wanted():
                self._waits = True
                self._changed.wait(self._clock.lasts_s(seconds))
                self._waits = False
        self._beat_s = time.monotonic()

    def _wanted(self) -> bool:
        """What came since it was looked at last; the condition's lock is held."""
        wishes = self._wishes
        at_rest = self._status.state in ("paused", "released")
        return (
            wishes.stop or wishes.run_now is not None or wishes.subject is not None or self._guests.waiting
            or (self._released_s() > 0 and self._status.state != "released")
            or (at_rest and not wishes.paused and self._released_s() <= 0)
            or (wishes.paused and self._status.state == "waiting")
        )  # fmt: skip

    # a device that is lost

    def _lost(self, error: PimcalError, store: Store) -> None:
        """Tell, rarely, and wait before the next try."""
        now_s = self._clock.now().monotonic_s
        if self._missed is None:
            self._missed = _Missed(now_s, str(error))
            self._counters = replace(self._counters, lost=self._counters.lost + 1)
            self._alert("device lost", str(error), store)
        elif now_s - self._missed.told_s >= REMIND_S:
            logger.warning("still lost, after %d tries: %s", self._missed.tries, error)
            self._missed.told_s = now_s
        self._missed.reason = str(error)
        self._tell("lost")
        self._wait(min(RETRY_S * 2.0 ** min(self._missed.tries, 10), LONGEST_RETRY_S))
        self._taken()  # run-now was to try at once
        self._missed.tries += 1

    def _found(self, store: Store) -> None:
        if self._missed is not None:
            told = f"it is back, after {self._clock.now().monotonic_s - self._missed.since_s:.0f} s"
            self._missed = None
            self._alert("device back", told, store)

    def _alert(self, kind: str, message: str, store: Store) -> None:
        assert self._key is not None
        logger.warning("%s: %s", kind, message)
        registry.emit(RecalibrationAlert(self._key.device, kind, message))
        try:
            store.journal.add_event("alert", f"{kind}: {message}", key=self._key, details={"kind": kind})
        except StorageError as error:
            logger.warning("this is not in the store's history: %s", error)

    # telling

    def _tell(self, state: State, due_s: float | None = None) -> None:
        now, wishes = self._clock.now(), self._wishes
        status = Status(state, paused=wishes.paused, counters=replace(self._counters, served=self._guests.served))
        if self._key is not None:
            status.device, status.model_hash = self._key
        if self._released_s() > 0:
            status.released_until_s = now.wall_s + self._released_s()
        if self._missed is not None:
            status.problems = {"device": self._missed.reason}
        if self._open is not None:
            self._open.describe(status, self._guests.served)
        if due_s is not None:
            status.next_decision_s = now.wall_s + due_s - now.monotonic_s
        self._status = status
        self._job.told()


@dataclass(slots=True)
class _Missed:
    """A device that is gone, since when and why."""

    since_s: float
    reason: str
    tries: int = 0
    told_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.told_s = self.since_s


@dataclass(frozen=True, slots=True)
class _Open:
    """An open device; `before` are the counters when it was opened."""

    keeper: Keeper
    before: Counters

    def counters(self, served: int) -> Counters:
        notes, before = self.keeper.notes, self.before
        return replace(
            before, served=served, looks=before.looks + notes.looks, failures=before.failures + notes.failures,
            activations=before.activations + notes.activations, mvms=before.mvms + self.keeper.net.device.cost.mvms,
        )  # fmt: skip

    def describe(self, status: Status, served: int) -> None:
        keeper = self.keeper
        if keeper.active is not None:
            status.generation = keeper.active.generation.id
        status.record, status.calibrated = keeper.net.active, keeper.upkeep.history.calibrated is not None
        status.last_look, status.decision = keeper.notes.last_look, keeper.decision.lines()
        status.problems |= keeper.notes.problems
        status.counters = self.counters(served)
        status.telemetry = dict(keeper.upkeep.telemetry)
