"""The thread that owns the device, as others see it: what may be asked of it, and what it says of itself."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from typing import TypeVar

from pimcal.daemon.access import Job
from pimcal.daemon.guests import Guests
from pimcal.daemon.keeper import Asked
from pimcal.daemon.owner import Owner
from pimcal.daemon.progress import Progress
from pimcal.daemon.status import Status
from pimcal.daemon.subject import Subject
from pimcal.daemon.wishes import Wishes
from pimcal.deployment import Deployment
from pimcal.errors import PimcalError
from pimcal.store import Store

__all__ = ["Job", "Worker"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

STORE_WAIT_S = 2.0  # for another process that writes to the store: meanwhile nobody is served


class Worker:
    """Start it once; everything but `start` may be called from any thread, and returns at once.

    `failure` is what ended it other than `stop`.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._wishes, self._progress = Wishes(job.clock), Progress()
        self._guests = Guests(self._wishes.wake)
        self._status = Status()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float | None = None) -> None:
        self._thread.join(timeout_s)

    # what it says of itself

    @property
    def status(self) -> Status:
        """A snapshot, which nobody changes any more."""
        return self._status

    @property
    def ended(self) -> bool:
        return self._status.state == "stopped"

    def silent_s(self) -> float:
        """For how many seconds nothing was heard of it; 0 while it waits for something to do."""
        return self._progress.silent_s()

    # what may be asked of it

    def submit(self, work: Callable[[Deployment], T]) -> Future[T]:
        """Have `work(net)` run on the device, with what is in force, before the worker's own next step.

        It also runs between the batches of a gate, whose candidate steps aside for so long; not within a calibration's
        measurements or a probe, which it would disturb. Raises as `Guests.submit`; the future also raises
        DeviceUnavailableError where the device is lost, released or stopped meanwhile.
        """
        return self._guests.submit(work)

    def stop(self) -> None:
        """End at the next safe point; a calibration under way is given up, and what was in force is in force."""
        self._wishes.stop()

    def pause(self) -> None:
        """Make no decisions until `resume` or `run_now`; what runs now comes to its end."""
        self._wishes.pause()

    def resume(self) -> None:
        """Undo `pause` and `release`."""
        self._wishes.resume()

    def run_now(self, asked: Asked) -> None:
        """Look, or calibrate, as soon as what runs now has ended."""
        self._wishes.run_now(asked)

    def release(self, seconds: float) -> None:
        """Close the device, so that others can use it, and take it back after so many seconds."""
        self._wishes.release(seconds)

    def reload(self, subject: Subject) -> None:
        """Work by another profile of the same hardware; where the device cannot be used by it, the former one holds."""
        self._wishes.use(subject)

    # the thread

    def _run(self) -> None:
        try:
            with ExitStack() as stack:
                now = self._job.clock.now
                store = Store.create(self._job.store, clock=lambda: now().wall_s, wait_s=STORE_WAIT_S)
                stack.enter_context(store)
                owner = Owner(self._job, store, stack, self._wishes, self._guests, self._progress, self._tell)
                try:
                    owner.run()
                finally:
                    self._status = owner.status()
        except PimcalError as error:
            self.failure = error
        except BaseException as error:
            logger.exception("the daemon's own error")
            self.failure = error
        finally:
            self._guests.close("the daemon has stopped")
            self._tell(replace(self._status, state="stopped"))

    def _tell(self, status: Status) -> None:
        self._status = status
        self._job.told()
