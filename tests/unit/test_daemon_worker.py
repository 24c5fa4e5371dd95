"""The thread that owns the device, used from within Python as an interface for requests would."""

import json
import threading
import time

import pytest
import torch

import pimcal
from pimcal.daemon.clock import SystemClock
from pimcal.daemon.subject import Subject, images_for
from pimcal.daemon.worker import Job, Worker
from pimcal.errors import DataError, DeviceUnavailableError
from pimcal.metrics import resolve_metric
from pimcal.sources.data import load_batches
from pimcal.sources.models import load_model
from pimcal.sources.preprocess import load_preprocess
from pimcal.store import Store

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def subject(lab, tmp_path_factory):
    data = load_batches(lab.data, load_preprocess("none"), None, 64).in_memory()
    path = tmp_path_factory.mktemp("profiles") / "profile.yaml"
    device = {"noise": "mul", "eta0": 0.2, "seed": 3}
    path.write_text(json.dumps({"schema": "pimcal/1", "backend": "gaussian", "device": device}))
    model = load_model(f"{lab.network}:net", lab.folder / "weights.safetensors")
    return Subject(
        pimcal.load_profile(str(path)),
        model,
        resolve_metric("accuracy"),
        lambda profile: images_for(profile, *data.split(64)),
    )


class Started:
    """A worker, and a way to wait for what it says."""

    def __init__(self, subject, folder):
        self._changed = threading.Event()
        self.worker = Worker(Job(subject, folder, SystemClock(), told=self._changed.set))

    def until(self, reached):
        end_s = time.monotonic() + PATIENCE_S
        while not reached(self.worker.status):
            assert time.monotonic() < end_s, self.worker.status
            self._changed.wait(0.05)
            self._changed.clear()
        return self.worker.status


@pytest.fixture
def started(subject, tmp_path):
    made = Started(subject, tmp_path / "store")
    made.worker.start()
    yield made
    made.worker.stop()
    made.worker.join(PATIENCE_S)


def test_requests_run_on_the_owning_thread_with_what_is_in_force(started):
    started.until(lambda status: status.ready)
    x = torch.randn(5, 1, 6, 6)
    outputs, thread, record = started.worker.submit(
        lambda net: (net(x), threading.current_thread().name, net.active)
    ).result(PATIENCE_S)
    assert outputs.shape == (5, 4)
    assert not outputs.requires_grad
    assert thread == "device"
    assert record == started.worker.status.record
    assert started.worker.submit(lambda net: None).result(PATIENCE_S) is None
    started.worker.run_now("look")
    assert started.until(lambda status: status.counters.looks > 1).counters.served == 2


def test_requests_during_a_calibration_are_all_answered(started):
    started.until(lambda status: status.ready)
    x = torch.randn(2, 1, 6, 6)
    started.worker.run_now("calibrate")
    futures = [started.worker.submit(lambda net: net(x)) for _ in range(20)]
    assert all(future.result(PATIENCE_S).shape == (2, 4) for future in futures)


def test_a_mistake_in_a_request_is_its_own(started):
    started.until(lambda status: status.ready)
    with pytest.raises(RuntimeError):
        started.worker.submit(lambda net: net(torch.randn(3, 7))).result(PATIENCE_S)
    assert started.worker.submit(lambda net: "fine").result(PATIENCE_S) == "fine"
    assert started.worker.failure is None


def test_while_it_is_released_or_stopped_requests_are_refused(started):
    started.until(lambda status: status.ready)
    started.worker.release(3600)
    started.until(lambda status: status.state == "released")
    with pytest.raises(DeviceUnavailableError):
        started.worker.submit(lambda net: None)
    started.worker.resume()
    started.until(lambda status: status.ready)
    started.worker.stop()
    started.worker.join(PATIENCE_S)
    assert started.worker.ended
    with pytest.raises(DeviceUnavailableError, match="has stopped"):
        started.worker.submit(lambda net: None)


def test_wishes_that_contradict_each_other_leave_it_at_work(started):
    started.until(lambda status: status.ready)
    for _ in range(20):
        started.worker.release(3600)
        started.worker.pause()
        started.worker.resume()
        started.worker.run_now("look")
    looks = started.worker.status.counters.looks
    started.worker.run_now("look")
    started.until(lambda status: status.ready and status.counters.looks > looks and status.state == "waiting")
    assert started.worker.submit(lambda net: "fine").result(PATIENCE_S) == "fine"


def test_what_keeps_it_from_starting_is_told_to_who_started_it(subject, tmp_path):
    def images(profile):
        raise DataError("there are no images")

    broken = Subject(subject.profile, subject.model, subject.metric, images)
    started = Started(broken, tmp_path / "store")
    started.worker.start()
    started.worker.join(PATIENCE_S)
    assert started.worker.ended
    assert str(started.worker.failure) == "there are no images"


def test_after_its_end_the_store_is_free(started, tmp_path):
    generation = started.until(lambda status: status.ready).generation
    started.worker.stop()
    started.worker.join(PATIENCE_S)
    with Store.open(tmp_path / "store") as store:
        assert [one.id for one in store.generations(states=["active"])] == [generation]
