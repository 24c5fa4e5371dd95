"""Generations: which is active, what came before, what may follow what; and a history that only grows."""

from __future__ import annotations

import itertools
import math
import re
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import pytest
import torch

import pimcal
from pimcal.device import Cost
from pimcal.errors import DataError, StorageError, UsageError
from pimcal.files import write_atomically
from pimcal.record import differences
from pimcal.store import Key, Store, key_of
from pimcal.store.schema import VERSION

from .store_records import MODEL, check_whole, made, ticking

KEY = Key("board-1", MODEL)


@pytest.fixture
def store(tmp_path):
    with Store.create(tmp_path / "store", clock=ticking()) as opened:
        yield opened


def add(store, value=1.0, **where):
    return store.add_candidate(made(value, **where), "calibrated")


def activated(store, value=1.0, **where):
    return store.activate(add(store, value, **where).id, "better")


def states(store):
    return [generation.state for generation in store.generations()]


def kinds(store, **wanted):
    return [event.kind for event in store.journal.history(**wanted)]


def test_a_new_store_is_empty_and_opens_again(tmp_path):
    Store.create(tmp_path / "deep" / "store").close()
    with Store.create(tmp_path / "deep" / "store") as store:
        assert (store.generations(), store.known_keys(), store.active_record(KEY)) == ([], [], None)
        assert kinds(store) == ["created"]


def test_a_candidate_keeps_its_record_and_what_it_was_made_with(store):
    record = made(3.0)
    found = store.generation(add(store, 3.0).id)
    assert (found.state, found.parent, found.key, found.record_id) == ("candidate", None, KEY, record.id)
    assert (found.metric, found.metric_before, found.metric_after) == ("accuracy", 0.5, 0.75)
    loaded = store.record(found.id)
    assert (loaded.id, loaded.made_with) == (record.id, record.made_with)
    assert differences(loaded, record) == {"fields": {}, "tensors": {"body.1:mean": 0.0, "body.1:var": 0.0}}
    assert store.active_record(KEY) is None


def test_activation_retires_the_former_of_the_same_device_and_model_only(store):
    first, elsewhere, other_model = (
        activated(store, 1.0), activated(store, 2.0, device="board-2"), activated(store, 3.0, model_hash="cd" * 32),
    )  # fmt: skip
    second = activated(store, 4.0)
    assert [store.generation(each.id).state for each in (first, elsewhere, other_model, second)] == [
        "retired", "active", "active", "active",
    ]  # fmt: skip
    assert second.parent == first.id
    assert store.active_record(KEY).corrections["body.1"]["mean"].tolist() == [4.0] * 4
    assert store.generation(first.id).reason == f"replaced by {second.id}"


def test_the_database_itself_refuses_two_active_ones(store):
    activated(store), add(store, 2.0)
    with closing(sqlite3.connect(store.folder / "store.db")) as connection:
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            connection.execute("UPDATE generations SET state = 'active'")
        with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
            connection.execute("UPDATE generations SET state = 'good'")


def test_the_active_one_is_activated_again_without_a_trace(store):
    first = activated(store)
    before = kinds(store)
    assert store.activate(first.id, "again") == store.generation(first.id)
    assert kinds(store) == before


def test_rollback_goes_back_step_by_step_until_nothing_came_before(store):
    first, second, third = (activated(store, value) for value in (1.0, 2.0, 3.0))
    assert store.previous(KEY).id == second.id
    assert store.rollback(KEY, "worse").id == second.id
    assert store.rollback(KEY, "worse still").id == first.id
    with pytest.raises(DataError, match="there is nothing to go back to for device board-1 with model abababababab"):
        store.rollback(KEY, "and back")
    assert store.active(KEY).id == first.id
    assert store.generation(third.id).state == "retired"


def test_rollback_undoes_the_last_activation_also_one_of_an_older_generation(store):
    first, second = activated(store, 1.0), activated(store, 2.0)
    store.activate(first.id, "the operator wants it")
    assert store.rollback(KEY, "a mistake").id == second.id
    assert store.rollback(KEY, "and further").id == first.id
    activated(store, 3.0)
    assert store.rollback(KEY, "worse").id == first.id


def test_only_a_candidate_is_rejected(store):
    rejected = store.reject(add(store).id, "a drop of 0.2")
    assert (rejected.state, rejected.reason) == ("rejected", "a drop of 0.2")
    active = activated(store, 2.0)
    for generation in (rejected, active):
        with pytest.raises(UsageError, match=f"{generation.id} is {generation.state}, and only a candidate"):
            store.reject(generation.id, "no")
    assert store.activate(rejected.id, "all the same").state == "active"


def test_the_record_that_is_loaded_is_the_one_that_was_checked(store):
    """While somebody puts another record's file in its place and back again."""
    generation, other = activated(store, 1.0), made(2.0).to_bytes()
    path = store.folder / "tensors" / f"{generation.sha256}.safetensors"
    contents, ended = itertools.cycle((other, path.read_bytes())), threading.Event()

    def swap():
        while not ended.is_set():
            write_atomically(path, next(contents))

    found = []
    with ThreadPoolExecutor(1) as pool:
        swapping = pool.submit(swap)
        while len(found) < 300:
            with suppress(StorageError):
                found.append(store.record(generation.id).id)
        ended.set()
        swapping.result()
    assert set(found) == {made(1.0).id}


def test_leftovers_of_a_killed_process_are_rejected_and_nobody_elses(store):
    left, pinned, elsewhere = add(store, 1.0), add(store, 2.0), add(store, 3.0, device="board-2")
    store.pin(pinned.id, "the operator's")
    imported = store.add_candidate(made(4.0), "from the lab", kind="imported")
    active, refused = activated(store, 5.0), store.reject(add(store, 6.0).id, "worse")
    (found,) = store.reject_leftovers(KEY, "the daemon was killed")
    assert (found.id, found.state, found.reason) == (left.id, "rejected", "the daemon was killed")
    assert [store.generation(each.id).state for each in (pinned, elsewhere, imported, active, refused)] == [
        "candidate", "candidate", "candidate", "active", "rejected",
    ]  # fmt: skip
    assert kinds(store, generation=left.id) == ["candidate", "rejected"]
    before = store.journal.history()
    assert store.reject_leftovers(KEY, "again") == []
    assert store.journal.history() == before
    assert store.activate(left.id, "all the same").state == "active"


def test_a_beginning_of_an_id_is_enough_while_it_means_one(store):
    found = [add(store, value) for value in range(40)]
    several = next(g.id[0] for g in found if sum(other.id[0] == g.id[0] for other in found) > 1)
    assert store.generation(found[0].id[:8].upper()).id == found[0].id
    with pytest.raises(UsageError) as error:
        store.generation(several)
    assert set(re.findall(r"\b[0-9a-f]{12}\b", str(error.value))) == {g.id for g in found if g.id[0] == several}
    for absent in ("", "x", "'; --", found[0].id + "0"):
        with pytest.raises(UsageError, match="no generation's id starts with"):
            store.activate(absent, "")


def test_history_tells_what_happened_when_and_why(store):
    first = activated(store)
    store.pin(first.id, "known to be good")
    store.pin(first.id, "again")
    store.unpin(first.id, "no longer")
    store.journal.add_event("skipped", "quiet hours", key=KEY, details={"until": "06:00"})
    events = store.journal.history()
    told = [(event.kind, event.reason) for event in events]
    assert told == [
        ("created", f"schema {VERSION}"), ("candidate", "calibrated"), ("activated", "better"),
        ("pinned", "known to be good"), ("unpinned", "no longer"), ("skipped", "quiet hours"),
    ]  # fmt: skip
    assert [event.at for event in events] == sorted(event.at for event in events)
    assert events[0].at == ticking()()
    assert events[-1].details == {"until": "06:00"}
    assert kinds(store, generation=first.id) == ["candidate", "activated", "pinned", "unpinned"]
    assert kinds(store, key=KEY, limit=2) == ["unpinned", "skipped"]
    assert kinds(store, key=Key("board-2", MODEL)) == []
    assert kinds(store, kinds=("pinned", "activated", "absent")) == ["activated", "pinned"]
    assert kinds(store, kinds=("pinned", "activated", "unpinned"), limit=2) == ["pinned", "unpinned"]
    assert kinds(store, key=KEY, kinds=("created", "skipped")) == ["skipped"]


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM events",
        "UPDATE events SET reason = 'better'",
        "INSERT OR REPLACE INTO events (seq, at, kind, reason, details) VALUES (1, 0, '', '', '{}')",
    ],
)
def test_history_cannot_be_changed_even_by_sql(store, statement):
    activated(store)
    before = store.journal.history()
    connection = sqlite3.connect(store.folder / "store.db")
    with closing(connection), pytest.raises(sqlite3.IntegrityError, match="history is append-only"):
        connection.execute(statement)
    assert store.journal.history() == before


def test_the_order_of_events_counts_and_not_the_clock(tmp_path):
    with Store.create(tmp_path / "store", clock=ticking(step=-3600.0)) as store:
        first, _ = activated(store, 1.0), activated(store, 2.0)
        assert store.rollback(KEY, "worse").id == first.id
        assert kinds(store)[-1] == "rolled_back"


def test_runs_probes_and_telemetry_come_back_as_they_were_told(store):
    first = activated(store)
    cost = Cost(mvms=1000, programmed_cells=20, link_bytes=300, seconds=1.5)
    store.journal.add_run(
        KEY, outcome="active", reason="better", cost=cost, images=64, generation=first.id, kind="refresh"
    )
    store.journal.add_probe(KEY, statistic=0.4, threshold=0.2, tiles={0: 0.1, 1: math.nan}, mvms=8)
    store.journal.add_probe(KEY, statistic=math.nan, threshold=0.2, tiles={})
    for temperature in (40.5, math.nan):
        store.journal.add_telemetry("board-1", {"temperature_c": temperature, "supply_v": 1.0})

    (run,), (probe, blind) = store.journal.runs(KEY), store.journal.probes()
    assert (run.kind, run.outcome, run.generation, run.images) == ("refresh", "active", first.id, 64)
    assert Cost(run.mvms, run.programmed_cells, run.link_bytes, run.seconds) == cost
    assert (probe.statistic, probe.threshold, probe.mvms, probe.tiles["0"]) == (0.4, 0.2, 8, 0.1)
    assert math.isnan(probe.tiles["1"])
    assert math.isnan(blind.statistic)
    readings = store.journal.telemetry("board-1", "temperature_c")
    assert readings[0].value == 40.5
    assert math.isnan(readings[1].value)
    assert len(store.journal.telemetry("board-1", limit=3)) == 3
    assert store.journal.runs(Key("board-2", MODEL)) == store.journal.telemetry("board-2") == []


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_a_damaged_file_is_found_and_never_becomes_active(store, damage):
    first, second = activated(store, 1.0), activated(store, 2.0)
    path = store.folder / "tensors" / f"{first.sha256}.safetensors"
    content = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(content[:-1] + b"!" * (damage == "changed"))
    told = f"{path}, the tensors of generation {first.id} .retired., cannot be used.*rollback --store.*calibrate again"
    for use in (store.record, lambda each: store.activate(each, "back"), lambda each: store.rollback(KEY, "back")):
        with pytest.raises(StorageError, match=told):
            use(first.id)
    assert store.active(KEY).id == second.id

    third = add(store, 1.0)  # the same record again: its file is whole again
    assert third.sha256 == first.sha256
    assert path.read_bytes() == content
    assert store.rollback(KEY, "back").id == first.id


def test_a_damaged_active_record_is_an_error_and_rollback_helps(store):
    first, second = activated(store, 1.0), activated(store, 2.0)
    (store.folder / "tensors" / f"{second.sha256}.safetensors").write_bytes(b"")
    with pytest.raises(StorageError, match=f"generation {second.id} .active., cannot be used"):
        store.active_record(KEY)
    store.rollback(KEY, "damaged")
    assert store.active_record(KEY).id == made(1.0).id
    assert store.active(KEY).id == first.id


def test_a_reader_changes_nothing_and_a_closed_store_neither(store):
    first = add(store)
    reader = Store.open(store.folder, read_only=True)
    assert reader.generation(first.id) == first
    with pytest.raises(StorageError, match="is not open for writing"):
        reader.activate(first.id, "better")
    store.close()
    store.close()
    with pytest.raises(StorageError, match="is not open for writing"):
        store.journal.add_event("late", "")
    assert [row["state"] for row in check_whole(store.folder)] == ["candidate"]


@torch.no_grad()
def test_an_inference_process_loads_the_active_record_in_one_call(tmp_path, store):
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
    x = torch.randn(64, 4)
    with pimcal.open_device("gaussian_mul", {"device.eta0": 0.3, "device.sigma_temporal": 0.0}) as device:
        net = pimcal.deploy(model, device)
        with pytest.raises(DataError, match=r"no record is active for device gaussian-mul-.*pimcal calibrate --store"):
            pimcal.load_active(store.folder, net)
        record = pimcal.calibrate(net, x.split(16), "affine")
        store.activate(store.add_candidate(record, "calibrated").id, "first")
        assert net.apply(pimcal.load_active(store.folder, net)).active == record.id
        assert store.active(key_of(net)).record_id == record.id
