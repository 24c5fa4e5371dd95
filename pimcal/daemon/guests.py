"""Work of others on the device: it runs in the thread that owns it, between the daemon's own steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Lock
from typing import Any, TypeVar

import torch

from pimcal.corrections import Corrections, corrections_in_force, set_corrections
from pimcal.daemon.watched import Abandoned
from pimcal.deployment import Deployment
from pimcal.device import Cost
from pimcal.errors import DeviceBusyError, DeviceUnavailableError

T = TypeVar("T")
Work = Callable[[Deployment], Any]

MOST = 64  # that wait at a time


class Guests:
    """A queue. `submit` is for any thread, the rest for the one that owns the device.

    `served`: how many have run; `cost`: what they have cost the device.
    """

    def __init__(self, woken: Callable[[], None]) -> None:
        """`woken()` is called when something was submitted."""
        self._waiting: deque[tuple[Work, Future[Any]]] = deque()
        self._lock = Lock()
        self._woken = woken
        self._closed: str | None = "the device is not open yet"
        self.served = 0
        self.cost = Cost()

    def submit(self, work: Callable[[Deployment], T]) -> Future[T]:
        """Have `work(net)` run with what is in force; the future gets what it returns or raises.

        Raises DeviceUnavailableError where the device is not open, DeviceBusyError where too many wait already.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._closed is not None:
                raise DeviceUnavailableError(f"nothing can run on the device now: {self._closed}")
            if len(self._waiting) >= MOST:
                raise DeviceBusyError(f"{MOST} requests wait for the device already; try again later")
            self._waiting.append((work, future))
        self._woken()
        return future

    def open(self) -> None:
        with self._lock:
            self._closed = None

    def close(self, reason: str) -> None:
        """From now on nothing is taken; what waits fails with the reason."""
        with self._lock:
            self._closed, waiting = reason, list(self._waiting)
            self._waiting.clear()
        for _, future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(DeviceUnavailableError(f"nothing can run on the device now: {reason}"))

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    def serve(self, net: Deployment) -> None:
        """Run what waits now: what comes meanwhile waits for the next turn, so that guests cannot keep the device.

        Raises what says that the device is gone, after telling who asked.
        """
        for _ in range(len(self._waiting)):
            first = self._take()
            if first is None:
                return
            work, future = first
            if future.set_running_or_notify_cancel():
                self._run(work, future, net)

    def _take(self) -> tuple[Work, Future[Any]] | None:
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def _run(self, work: Work, future: Future[Any], net: Deployment) -> None:
        before = net.device.cost.copy()
        try:
            with torch.no_grad():
                result = work(net)
        except (DeviceUnavailableError, Abandoned) as error:
            told = "it is being stopped or released" if isinstance(error, Abandoned) else str(error)
            future.set_exception(DeviceUnavailableError(told))
            raise
        except Exception as error:  # the work is somebody else's: anything can come out of it
            future.set_exception(error)
        else:
            self.served += 1
            future.set_result(result)
        finally:
            self.cost = self.cost.plus(net.device.cost.since(before))

    def serve_aside(self, net: Deployment, in_force: Corrections) -> None:
        """As `serve`, while a candidate may be tried: what is in force takes its place for so long."""
        if not self._waiting:
            return
        tried = corrections_in_force(net)
        try:
            set_corrections(net, in_force)
            self.serve(net)
        finally:
            set_corrections(net, tried)


class Interruptible(Sequence[Any]):
    """Batches before each of which `pause()` is called: where a long evaluation lets others have the device."""

    def __init__(self, batches: Sequence[Any], pause: Callable[[], None]) -> None:
        self._batches, self._pause = batches, pause

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: Any) -> Any:
        batch = self._batches[index]  # the end comes before the pause
        self._pause()
        return batch
