"""The thread that owns the device, used from within Python as an interface for requests would."""

import gc
import itertools
import json
import logging
import math
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pimcal
from pimcal.daemon import access
from pimcal.daemon.clock import SystemClock
from pimcal.daemon.subject import Subject, images_for
from pimcal.daemon.watched import Watched
from pimcal.daemon.worker import Job, Worker
from pimcal.errors import DataError, DeviceUnavailableError
from pimcal.metrics import resolve_metric
from pimcal.recalibration.clock import Moment
from pimcal.sources.data import load_batches
from pimcal.sources.models import load_model
from pimcal.sources.preprocess import load_preprocess
from pimcal.store import Store

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def subject_on(lab, tmp_path_factory):
    """`subject_on(backend, device settings)`: the lab's network."""
    data = load_batches(lab.data, load_preprocess("none"), None, 64).in_memory()
    model = load_model(f"{lab.network}:net", lab.folder / "weights.safetensors")
    folder, numbers = tmp_path_factory.mktemp("profiles"), itertools.count()

    def make(backend, device, **sections):
        path = folder / f"{next(numbers)}.yaml"
        path.write_text(json.dumps({"schema": "pimcal/1", "backend": backend, "device": device, **sections}))
        return Subject(
            pimcal.load_profile(str(path)),
            model,
            resolve_metric("accuracy"),
            lambda profile: images_for(profile, *data.split(64)),
        )

    return make


@pytest.fixture(scope="module")
def subject(subject_on):
    return subject_on("gaussian", {"noise": "mul", "eta0": 0.2, "seed": 3})


class Started:
    """A worker, and a way to wait for what it says."""

    def __init__(self, subject, folder, clock=None):
        self._changed = threading.Event()
        self.worker = Worker(Job(subject, folder, clock or SystemClock(), told=self._changed.set))

    def until(self, reached):
        end_s = time.monotonic() + PATIENCE_S
        while not reached(status := self.worker.status):
            assert time.monotonic() < end_s, status
            assert not self.worker.ended, self.worker.failure
            self._changed.wait(0.05)
            self._changed.clear()
        return status


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


def test_a_device_can_be_released_for_longer_than_a_lock_can_be_waited_for(started):
    started.until(lambda status: status.ready)
    started.worker.release(2 * threading.TIMEOUT_MAX)
    started.until(lambda status: status.state == "released")
    started.worker.pause()  # it is looked at, and it stays released
    assert started.until(lambda status: status.paused).state == "released"
    started.worker.resume()
    started.until(lambda status: status.ready)


# --- a store that is wrong when the device is opened again


def reopened(started):
    """After others have had the device."""
    started.worker.release(3600)
    released = started.until(lambda status: status.state == "released")
    started.worker.resume()
    return released, started.until(lambda status: status.ready)


def activate_another_profiles(folder):
    """By hand: what was calibrated under other settings of the hardware."""
    with Store.open(folder) as store:
        (active,) = store.generations(states=["active"])
        record = store.record(active.id)
        made_with = replace(record.made_with, profile_hash="of another profile", hardware=None)
        return store.activate(
            store.add_candidate(replace(record, made_with=made_with), "of another profile").id, "by hand"
        ).id


def alerts(folder):
    with Store.open(folder, read_only=True) as store:
        return [event.details["kind"] for event in store.journal.history() if event.kind == "alert"]


def test_what_was_in_force_is_so_again_where_the_stores_active_one_does_not_fit(started, tmp_path):
    first = started.until(lambda status: status.ready and status.state == "waiting")
    wrong = activate_another_profiles(tmp_path / "store")
    _, again = reopened(started)
    assert (again.generation, again.record) == (first.generation, first.record)
    assert set(again.problems) == {"generation"}
    assert wrong in again.problems["generation"]
    assert "what was in force stays in force" in again.problems["generation"]
    assert again.counters.lost == 0

    with Store.open(tmp_path / "store") as store:
        store.activate(first.generation, "back by hand")
    started.worker.run_now("look")
    assert started.until(lambda status: not status.problems).generation == first.generation


def test_what_was_in_force_is_so_again_where_the_store_cannot_be_read(started, tmp_path):
    first = started.until(lambda status: status.ready and status.state == "waiting")
    database = tmp_path / "store" / "store.db"
    with Store.open(tmp_path / "store") as store:
        store.journal.add_event("note", "so that nobody has the newest pages in memory")
        store.database.shorten_log()
    database.write_bytes(b"no database " * 10_000)
    _, again = reopened(started)
    assert (again.generation, again.record, again.counters.lost) == (first.generation, first.record, 0)
    assert {"generation", "store"} <= set(again.problems)
    assert "no database" in again.problems["store"]
    assert started.worker.submit(lambda net: net.active).result(PATIENCE_S) == first.record


def test_a_device_that_opens_and_fails_in_use_is_told_of_once(started, tmp_path, monkeypatch):
    started.until(lambda status: status.ready and status.state == "waiting")

    def fails(*_, **__):
        raise DeviceUnavailableError("gone in use")

    with monkeypatch.context() as broken:
        for name in ("matmul", "effective_weights"):
            broken.setattr(Watched, name, fails)
        opened = count_openings(broken)
        started.worker.run_now("look")
        lost = started.until(lambda status: len(opened) >= 3)
        assert not lost.ready
        assert lost.lost_since_s is not None
    back = started.until(lambda status: status.ready)
    assert (back.counters.lost, back.problems) == (1, {})
    assert alerts(tmp_path / "store") == ["device lost", "device back"]


def count_openings(monkeypatch):
    """A list that grows whenever a worker opens a device."""
    opened, own = [], access.open_device

    def counted(*arguments):
        opened.append(1)
        return own(*arguments)

    monkeypatch.setattr(access, "open_device", counted)
    return opened


def test_what_is_wrong_stays_known_while_others_have_the_device(started, tmp_path):
    started.until(lambda status: status.ready and status.state == "waiting")
    activate_another_profiles(tmp_path / "store")
    started.worker.run_now("look")
    wrong = started.until(lambda status: "generation" in status.problems and status.state == "waiting")
    released, again = reopened(started)
    for status in (released, again):
        assert status.problems == wrong.problems
        assert status.last_look is not None
        assert status.counters.looks >= wrong.counters.looks
        assert status.counters.mvms >= wrong.counters.mvms
    assert alerts(tmp_path / "store") == ["generation"]  # told once


# --- a device that is gone for hours


class Hours:
    """The system's clock; while `hurries`, each wait is over at once, and so much later.

    `waits`: how long those were, in seconds. `at_hour`: what is to be done in the wait that reaches an hour.
    """

    def __init__(self):
        self._ahead_s, self._clock = 0.0, SystemClock()
        self.hurries, self.waits, self.at_hour = False, [], {}

    def now(self):
        now = self._clock.now()
        return Moment(now.wall_s + self._ahead_s, now.monotonic_s + self._ahead_s)

    def lasts_s(self, seconds):
        if not self.hurries:
            return seconds
        self._ahead_s += seconds
        self.waits.append(seconds)
        for hour in [hour for hour in self.at_hour if self._ahead_s >= hour * 3600]:
            self.at_hour.pop(hour)()
        return 1e-6


def held_now():
    """Objects, files and threads of this process."""
    gc.collect()
    return len(gc.get_objects()), len([*Path("/proc/self/fd").iterdir()]), threading.active_count()


def test_a_port_that_is_gone_for_hours_costs_little_and_is_found(subject_on, peers, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    caplog.set_level(logging.WARNING)
    clock, seen = Hours(), []

    def plug_in():
        seen.append(held_now())
        clock.hurries = False
        cable.unplug(0)
        while not Path(cable.address).exists():
            time.sleep(0.01)

    with peers.cabled("pimsim-pty") as cable:
        device = {"port": cable.address, "margin_s": 0.1, "connect_s": 1.0, "reconnect_s": 0.2}
        started = Started(subject_on("serial", device, gate={"max_drop": 1.0}), tmp_path / "store", clock)
        started.worker.start()
        try:
            first = started.until(lambda status: status.ready and status.state == "waiting")
            cable.unplug(math.inf)
            clock.at_hour = {1: lambda: seen.append(held_now()), 6: plug_in}
            clock.hurries = True
            started.worker.run_now("look")
            back = started.until(lambda status: status.counters.lost == 1 and status.ready)
            assert started.worker.submit(lambda net: net.active).result(PATIENCE_S) == first.record
        finally:
            started.worker.stop()
            started.worker.join(PATIENCE_S)
    assert (back.generation, back.problems) == (first.generation, {})
    assert clock.waits[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert set(clock.waits[6:]) == {60}
    assert sum(clock.waits) >= 6 * 3600

    told = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("device lost: ") for line in told) == 1
    assert sum(line.startswith("still lost, after ") for line in told) == 5
    assert alerts(tmp_path / "store") == ["device lost", "device back"]

    (objects, files, threads), (later_objects, later_files, later_threads) = seen
    assert later_objects - objects < len(clock.waits) / 2  # not one for each try
    assert (later_files, later_threads) == (files, threads)
