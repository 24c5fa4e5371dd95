"""`pimcal why` and `pimcal history` for a store with several devices."""

import pytest

from pimcal.daemon.journal import StoreJournal
from pimcal.device import Cost
from pimcal.recalibration.decide import Decision
from pimcal.store import Key, Store


@pytest.fixture
def told(tmp_path):
    """A store with ten lines about two boards, in turn, and one about neither of them."""
    folder, seconds = tmp_path / "told", iter(range(1_767_225_600, 1_767_300_000))
    with Store.create(folder, clock=lambda: next(seconds)) as store:
        for number in range(10):
            store.journal.add_event("decision", f"decision {number}", key=Key(f"board-{number % 2}", "0" * 64))
    return folder


def reasons(events):
    return [event["reason"] for event in events]


def test_both_tell_the_newest_last(told, pimcal_run):
    newest = [f"decision {number}" for number in (7, 8, 9)]
    assert reasons(pimcal_run("why", "--store", told, "--limit", "3", "--json").json["decisions"]) == newest
    assert reasons(pimcal_run("history", "--store", told, "--limit", "3", "--json").json["events"]) == newest


@pytest.mark.parametrize(("command", "lines"), [("why", "decisions"), ("history", "events")])
def test_one_device_can_be_chosen(told, pimcal_run, command, lines):
    found = pimcal_run(command, "--store", told, "--device", "board-1", "--limit", "2", "--json").json[lines]
    assert reasons(found) == ["decision 7", "decision 9"]
    assert len(pimcal_run(command, "--store", told, "--device", "board-0", "--json").json[lines]) == 5
    wrong = pimcal_run(command, "--store", told, "--device", "board-2")
    assert wrong.code == 2
    assert "it has that of: board-0, board-1" in wrong.err


def test_why_names_the_device_where_there_are_several(told, tmp_path, pimcal_run):
    head, *rows = pimcal_run("why", "--store", told).out.splitlines()
    assert head.split() == ["time", "what", "device", "reason"]
    assert {row.split()[2] for row in rows} == {"board-0", "board-1"}
    with Store.create(tmp_path / "one") as store:
        store.journal.add_event("decision", "because", key=Key("board-0", "0" * 64))
    assert pimcal_run("why", "--store", tmp_path / "one").out.splitlines()[0].split() == ["time", "what", "reason"]


def test_a_decision_names_its_kind_once_and_then_its_reasons(tmp_path, pimcal_run):
    with Store.create(tmp_path / "told") as store:
        journal = StoreJournal(store, Key("board-0", "0" * 64), Cost)
        journal.decided(Decision("nothing", ("it is cold", "the next look is due at 13:00 UTC"), 60.0))
    (row,) = pimcal_run("why", "--store", tmp_path / "told").out.splitlines()[1:]
    assert row.endswith("decision  nothing: it is cold; the next look is due at 13:00 UTC")
