"""A daemon that serves HTTP, within this process: a real worker, its service, a real server, on a clock that stands."""

from __future__ import annotations

import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import pimcal
from pimcal.daemon.client import ask
from pimcal.daemon.notify import Notifier
from pimcal.daemon.overview import Overview
from pimcal.daemon.service import Bell, Service
from pimcal.daemon.subject import Images, Subject
from pimcal.daemon.worker import Job, Worker
from pimcal.metrics import resolve_metric
from pimcal.recalibration.clock import Moment
from pimcal.serving.app import Daemon
from pimcal.serving.binding import Binding, listen
from pimcal.serving.inference import Example, Inference
from pimcal.serving.server import Server, serving
from pimcal.store import Store

from .recalibration_devices import batches, network

TOKEN = "a-token-for-the-tests"
PATIENCE_S = 60.0
STEADY = {  # what it adds to the weights depends on the time alone
    "device.noise": "mul", "device.eta0": 0.3, "device.sigma_temporal": 0.0, "device.seed": 7,
    "device.drift": {"kind": "linear", "rate_per_s": 1.0},
    "recalibration": {"every": "1000w"}, "calibration.images": 64,
}  # fmt: skip


class StandingClock:
    """Time passes when `seconds` is set."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> Moment:
        return Moment(1_767_225_600.0 + self.seconds, 100.0 + self.seconds)

    def lasts_s(self, seconds: float) -> float:
        return seconds


class Judge:
    """Agreement with the digital model; while it `falls`, each batch is worse than the one before, and so is any
    candidate."""

    def __init__(self) -> None:
        self.falls, self._batches = False, 0
        self._agreement = resolve_metric("agreement")
        self.metric = replace(self._agreement, score=self._score)

    def _score(self, *batch: Any) -> Any:
        self._batches += 1
        return (-self._batches, 1.0) if self.falls else self._agreement.score(*batch)


@dataclass
class Served:
    """`call` is a client; `overview`, its `worker`, and `clock` are the daemon's."""

    judge: Judge
    overview: Overview
    clock: StandingClock
    server: Server
    port: int
    store: Path
    socket: Path

    @property
    def worker(self) -> Worker:
        return self.overview.worker

    def call(self, method: str, path: str, body: Any = None, token: str | None = None, **headers: str) -> Any:
        """One request; an array is sent as .npy. Gives `code`, `headers`, `body`, and `json` or `array` of the body."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        with contextlib.closing(connection):
            connection.request(method, path, npy(body) if isinstance(body, np.ndarray) else body, headers)
            return read(connection.getresponse())

    def until(self, reached: Callable[[], bool]) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while not reached():
            assert not self.worker.ended, self.worker.failure
            assert time.monotonic() < end_s, self.worker.status
            time.sleep(0.005)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def read(response: Any) -> SimpleNamespace:
    found = SimpleNamespace(code=response.status, headers=response.headers, body=response.read())
    if response.headers.get_content_type() == "application/json":
        found.json = json.loads(found.body)
    elif response.headers.get_content_type() == "application/octet-stream":
        found.array = np.load(io.BytesIO(found.body), allow_pickle=False)
    return found


def subject(judge: Judge, held_out: int) -> Subject:
    profile = pimcal.load_profile("gaussian_mul", overrides=STEADY)
    images = Images(batches(64, seed=1), batches(held_out, seed=2, size=8))
    return Subject(profile, network(), judge.metric, lambda profile: images)


@contextmanager
def served(folder: Path, *, token: str | None = TOKEN, held_out: int = 64) -> Iterator[Served]:
    """Serves until the end of the block; the first calibration may still be under way."""
    judge, clock, bell, socket = Judge(), StandingClock(), Bell(), folder / "store" / "daemon.sock"
    kept = subject(judge, held_out)
    (folder / "store").mkdir()

    def now() -> float:
        return clock.now().wall_s

    worker = Worker(Job(kept, folder / "store", clock, told=bell.ring))
    overview = Overview(worker, folder / "store", now)
    example = Example.of(kept.images(kept.profile).held_out[0])
    daemon = Daemon(
        overview, Inference(worker.submit, example), partial(ask, socket),
        partial(Store.open, folder / "store", read_only=True), now,
    )  # fmt: skip
    binding = Binding("127.0.0.1", 0, token)
    listener = listen(binding)
    port = listener.getsockname()[1]
    with serving(daemon, binding, listener) as server:
        service = Service(overview, bell, socket, Notifier({}), lambda old: old, kept)
        thread = threading.Thread(target=service.run)
        thread.start()
        try:
            yield Served(judge, overview, clock, server, port, folder / "store", socket)
        finally:
            worker.stop()
            thread.join(PATIENCE_S)
            for end in (bell.waiting, bell._ringing):
                end.close()
    assert not thread.is_alive()
    assert worker.failure is None
