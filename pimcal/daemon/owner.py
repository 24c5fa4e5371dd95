"""What the thread that owns the device does: keeps it right, lets others use it, finds it again when it is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack

from pimcal.daemon.access import UNUSABLE, Access, Job
from pimcal.daemon.guests import Guests
from pimcal.daemon.keeper import Asked, Keeper
from pimcal.daemon.lost import DEVICE_LOST, Lost, alert
from pimcal.daemon.progress import Progress
from pimcal.daemon.status import Counters, State, Status
from pimcal.daemon.watched import Abandoned
from pimcal.daemon.wishes import Wishes
from pimcal.errors import PimcalError
from pimcal.recalibration.decide import WATCH_S
from pimcal.store import Store

logger = logging.getLogger(__name__)


class Owner:
    """Works until its wishes say stop; `status()` is for its own thread."""

    def __init__(
        self,
        job: Job,
        store: Store,
        locks: ExitStack,
        wishes: Wishes,
        guests: Guests,
        progress: Progress,
        tell: Callable[[Status], None],
    ) -> None:
        """`locks`: see `Access`; `tell(status)`: called when the status has changed."""
        self._store, self._clock, self._wishes, self._guests = store, job.clock, wishes, guests
        self._progress, self._tell_status = progress, tell
        self._access = Access(job, store, locks, guests, self._beat, lambda: self._tell(self._state))
        self._lost: Lost | None = None
        self._times_lost = 0
        self._state: State = "starting"
        self._interrupted: Asked | None = None  # a run that was asked for

    def run(self) -> None:
        """Raises one of `UNUSABLE` where the device could not be used the first time."""
        while not self._wishes.stopped:
            self._look_for_subject()
            if (left_s := self._wishes.release_left_s) is not None:
                self._tell("released")
                self._wait(left_s)
                self._wishes.end_release()
            else:
                self._once()

    def _once(self) -> None:
        """From opening the device until it is closed: stopped, released, reopened, or lost."""
        try:
            with self._access.opened() as keeper:
                self._keep(keeper)
        except Abandoned:
            logger.info("what ran on the device was given up; what was in force stays in force")
        except UNUSABLE as error:
            if self._access.key is None:
                raise  # it never worked: whoever started it is told
            self._miss(error)

    def _keep(self, keeper: Keeper) -> None:
        due_s = self._now_s
        while not self._wishes.away:
            self._beat()
            self._guests.serve(keeper.net)
            if (adopted := self._look_for_subject()) is not None:
                if not adopted:
                    return  # it is reached in another way: open it anew
                due_s = self._now_s
            if (asked := self._take_asked()) is not None:
                self._tell("working")
                keeper.run_now(asked)
                self._interrupted = None
                self._found()
                due_s = self._now_s
            elif self._wishes.paused:
                keeper.follow_store()
                self._found()
                self._tell("paused")
                self._wait(WATCH_S)
                due_s = self._now_s
            elif self._now_s >= due_s:
                self._tell("working")
                due_s = self._now_s + keeper.step()
                self._found()
            else:
                self._tell("waiting", due_s)
                self._wait(due_s - self._now_s)

    def _take_asked(self) -> Asked | None:
        """What is to be run now. Where the device gets lost meanwhile, once more when it is back."""
        asked, again = self._wishes.take_asked(), self._interrupted
        self._interrupted = asked
        return asked or again

    def _look_for_subject(self) -> bool | None:
        """Whether a configuration that came meanwhile holds now; None where none came."""
        subject = self._wishes.take_subject()
        return None if subject is None else self._access.use(subject)

    def _beat(self) -> None:
        """Called before each use of the device: there is progress, and this is a place to give up."""
        self._progress.beat()
        if self._wishes.away:
            raise Abandoned

    def _wait(self, seconds: float) -> None:
        with self._progress.waiting():
            self._wishes.wait(seconds)

    @property
    def _now_s(self) -> float:
        return self._clock.now().monotonic_s

    # a device that is lost

    def _miss(self, error: PimcalError) -> None:
        """Tell, rarely, and wait before the next try."""
        if self._lost is None:
            self._lost = Lost(error, self._now_s)
            self._times_lost += self._lost.kind == DEVICE_LOST
            self._alert(self._lost.kind, self._lost.reason)
        else:
            self._lost.again(error, self._now_s)
        self._tell("lost")
        self._wait(self._lost.retry_s)
        if (asked := self._wishes.take_asked()) is not None:  # somebody has done something about it
            self._interrupted, self._lost.tries = asked, 0

    def _found(self) -> None:
        if self._lost is not None:
            told = f"it is back, after {self._now_s - self._lost.since_s:.0f} s"
            self._lost = None
            self._alert("device back", told)

    def _alert(self, kind: str, message: str) -> None:
        assert self._access.key is not None
        alert(self._store, self._access.key, kind, message)

    # telling

    def _tell(self, state: State, due_s: float | None = None) -> None:
        self._state = state
        self._tell_status(self.status(due_s))

    def status(self, due_s: float | None = None) -> Status:
        """`due_s`: when the next decision is due, in monotonic seconds."""
        now, access, left_s = self._clock.now(), self._access, self._wishes.release_left_s
        status = Status(self._state, paused=self._wishes.paused, counters=self._counters())
        if access.key is not None:
            status.device, status.model_hash = access.key
        if left_s is not None:
            status.released_until_s = now.wall_s + left_s
        if due_s is not None:
            status.next_decision_s = now.wall_s + due_s - now.monotonic_s
        if access.notes is not None:
            status.last_look, status.problems = access.notes.last_look, dict(access.notes.problems)
        if self._lost is not None:
            status.problems[self._lost.kind] = self._lost.reason
            status.lost_since_s = now.wall_s + self._lost.since_s - now.monotonic_s
        if access.active is not None:
            status.generation, status.record = access.active.generation.id, access.active.record.id
        if access.keeper is not None:
            _describe(access.keeper, status)
        return status

    def _counters(self) -> Counters:
        found = Counters(served=self._guests.served, lost=self._times_lost, mvms=self._access.mvms)
        if (notes := self._access.notes) is not None:
            found.looks, found.activations, found.failures = notes.looks, notes.activations, notes.failures
        return found


def _describe(keeper: Keeper, status: Status) -> None:
    """What is known of a device that is open."""
    status.record, status.calibrated = keeper.net.active, keeper.upkeep.history.calibrated is not None
    status.metric_name, status.metric_value = keeper.subject.metric.name, keeper.engine.worth.value
    status.decision, status.telemetry = keeper.decision.lines(), dict(keeper.upkeep.telemetry)
