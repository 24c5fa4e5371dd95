"""What a daemon tells of itself beside its worker's status: problems of its own, and who hears of them."""

from __future__ import annotations

import logging

import pytest

pytest.importorskip("starlette", reason="the daemon of these tests serves, too")
pytest.importorskip("uvicorn", reason="the daemon of these tests serves, too")

import pimcal
from pimcal import registry
from pimcal.daemon.overview import Overview
from pimcal.events import RecalibrationAlert
from pimcal.store import Store

from .served import served


class Listener:
    def __init__(self):
        self.heard = []

    @pimcal.hookimpl
    def pimcal_on_event(self, event):
        if isinstance(event, RecalibrationAlert):
            self.heard.append(event)


@pytest.fixture
def heard():
    """All alerts; the listener is forgotten after the test."""
    registry.default.cache_clear()
    listener = Listener()
    registry.register_plugin(listener)
    yield listener.heard
    registry.default.cache_clear()


@pytest.fixture
def daemon(tmp_path, heard):
    with served(tmp_path, token=None) as made:
        made.until(lambda: made.worker.status.ready)
        yield made


def alerts(daemon):
    with Store.open(daemon.store, read_only=True) as store:
        return [(event.device, event.reason, event.details) for event in store.journal.history(kinds=["alert"])]


def test_a_problem_is_shown_while_it_lasts_and_alerted_to_once(daemon, heard):
    for _ in range(3):
        daemon.overview.problem("configuration", "line 3 is wrong")
    assert daemon.overview.status.problems == {"configuration": "line 3 is wrong"}
    assert "line 3 is wrong" in daemon.overview.status.line()
    assert daemon.call("GET", "/api/status").json["problems"] == {"configuration": "line 3 is wrong"}
    expected = RecalibrationAlert("gaussian-mul-7", "configuration", "line 3 is wrong")
    assert heard == [expected]
    assert alerts(daemon) == [("gaussian-mul-7", "configuration: line 3 is wrong", {"kind": "configuration"})]

    daemon.overview.solved("configuration")
    assert daemon.overview.status.problems == {}
    daemon.overview.problem("configuration", "line 3 is wrong")
    assert heard == [expected, expected]


def test_it_waits_until_it_is_known_which_device_it_is_about(daemon, heard, tmp_path):
    from pimcal.daemon.worker import Job, Worker

    from .served import Judge, StandingClock, subject

    clock = StandingClock()
    worker = Worker(Job(subject(Judge(), 8), tmp_path / "other", clock))
    overview = Overview(worker, tmp_path / "other", lambda: clock.now().wall_s)
    overview.problem("configuration", "line 3 is wrong")
    overview.problem("something else", "that is over soon")
    overview.solved("something else")
    assert heard == []
    worker.start()
    daemon.until(lambda: worker.status.device is not None)
    overview.tell()
    overview.tell()
    worker.stop()
    worker.join(60)
    assert heard == [RecalibrationAlert("gaussian-mul-7", "configuration", "line 3 is wrong")]


def test_a_store_that_cannot_be_written_keeps_nobody_from_hearing(daemon, heard, caplog, monkeypatch):
    monkeypatch.setattr("pimcal.daemon.overview.STORE_WAIT_S", 0.1)
    with Store.open(daemon.store) as store, store.database.transaction(), caplog.at_level(logging.WARNING):
        daemon.overview.problem("configuration", "line 3 is wrong")
    assert len(heard) == 1
    assert "this is not in the store's history" in caplog.text
    assert alerts(daemon) == []
