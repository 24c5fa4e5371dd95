"""Records out of a store, into another, and out of the way."""

from __future__ import annotations

import json

import pytest

from pimcal.errors import DataError, StorageError, UsageError
from pimcal.record import Record
from pimcal.store import Key, Store
from pimcal.store.collect import collect_garbage
from pimcal.store.transfer import export_generation, history_file, import_record, read_incoming

from .store_records import MODEL, check_whole, made, ticking

KEY = Key("board-1", MODEL)


@pytest.fixture
def store(tmp_path):
    with Store.create(tmp_path / "store", clock=ticking()) as opened:
        yield opened


def activated(store, value=1.0):
    return store.activate(store.add_candidate(made(value), "calibrated").id, "better")


@pytest.fixture
def exported(tmp_path, store):
    path = tmp_path / "out" / "record.safetensors"
    export_generation(store, activated(store).id, path)
    return path


def test_an_exported_record_is_a_record_file_with_its_history_beside_it(store, exported, tmp_path):
    generation = store.active(KEY)
    assert exported.read_bytes() == made(1.0).save(tmp_path / "saved").read_bytes()
    told = json.loads(history_file(exported).read_text())
    assert told["generation"] == generation.as_dict()
    assert told["generation"]["created_at"] == "2026-01-01T00:00:01+00:00"
    assert [event["kind"] for event in told["events"]] == ["candidate", "activated"]


def test_an_imported_record_is_a_candidate_that_knows_where_it_came_from(store, exported, tmp_path):
    with Store.create(tmp_path / "other") as other:
        found = import_record(other, read_incoming(exported), "from the lab")
        assert (found.state, found.key, found.sha256) == ("candidate", KEY, store.active(KEY).sha256)
        assert other.active(KEY) is None
        (event,) = other.journal.history(generation=found.id)
        assert (event.kind, event.reason) == ("imported", "from the lab")
        assert event.details == {"file": "record.safetensors", "origin": store.active(KEY).id}
        with pytest.raises(DataError, match=f"already, as generation {found.id}"):
            import_record(other, read_incoming(exported), "again")
        history_file(exported).unlink()
        assert other.record(found.id).id == Record.load(exported).id


def test_a_file_that_differs_from_its_history_is_refused(store, exported):
    made(2.0).save(exported)
    with pytest.raises(DataError, match=r"is not what .*history.json tells of \(they differ in sha256, record_id\)"):
        import_record(store, read_incoming(exported), "changed")
    for text in ("{", "{}", "[]", '{"format": "pimcal-history/9"}'):
        history_file(exported).write_text(text)
        with pytest.raises(DataError, match=r"record.safetensors.history.json: (no history|format)"):
            import_record(store, read_incoming(exported), "broken")
    assert len(store.generations()) == 1


def test_what_is_no_record_is_refused(store, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    for path in (tmp_path / "file", tmp_path / "absent"):
        with pytest.raises(DataError, match=path.name):
            import_record(store, read_incoming(path), "")


def test_a_record_for_another_device_or_model_needs_force(store, tmp_path):
    activated(store)
    for number, where in enumerate(({"device": "board-2"}, {"model_hash": "cd" * 32})):
        path = made(2.0, **where).save(tmp_path / "record")
        with pytest.raises(
            DataError, match=r"was made for device .* and store .* is for device board-1 with model abab"
        ):
            import_record(store, read_incoming(path), "")
        assert import_record(store, read_incoming(path), "", force=True).state == "candidate"
        assert len(store.known_keys()) == number + 2


def test_gc_keeps_the_newest_the_pinned_and_what_rollback_needs_and_all_history(store):
    generations = [activated(store, value) for value in range(6)]
    rejected = [store.reject(store.add_candidate(made(value), "").id, "worse") for value in range(10, 13)]
    candidate = store.add_candidate(made(20), "undecided")
    store.pin(generations[0].id, "known to be good")
    events = store.journal.history()

    found = collect_garbage(store, 2, "room")

    gone = [*generations[1:3], *rejected[:1]]
    assert set(found.generations) == {each.id for each in gone}
    assert found.files == 3
    kept = [generations[0], *generations[3:], *rejected[1:], candidate]
    assert [each.id for each in store.generations()] == [each.id for each in kept]
    assert len(store.generations(collected=True)) == 10
    assert store.journal.history()[: len(events)] == events
    assert [event.kind for event in store.journal.history()[len(events) :]] == ["collected"] * 3
    for use in (store.record, lambda each: store.activate(each, "")):
        with pytest.raises(StorageError, match="was removed by gc; its history is all there is"):
            use(gone[0].id)
    with pytest.raises(UsageError, match="was removed by gc, so there is nothing to keep"):
        store.pin(gone[0].id, "")
    check_whole(store.folder)


def test_gc_never_removes_what_rollback_would_go_back_to(store):
    first, second, third = (activated(store, value) for value in range(3))
    store.rollback(KEY, "worse")
    collect_garbage(store, 0, "room")
    assert store.generation(third.id).collected_at is not None
    assert store.rollback(KEY, "worse still").id == first.id
    assert store.generation(second.id).state == "retired"


def test_gc_removes_files_that_nothing_names_and_keeps_those_that_two_generations_share(store):
    first, again = activated(store), activated(store)
    assert first.sha256 == again.sha256
    (store.folder / "tensors" / ".half.safetensors").write_bytes(b"half")
    (store.folder / "tensors" / f"{'0' * 64}.safetensors").write_bytes(b"nobody's")
    (store.folder / ".new-killed").mkdir()
    found = collect_garbage(store, 10, "room")
    assert (found.generations, found.files, found.bytes) == ((), 2, len(b"half") + len(b"nobody's"))
    assert sorted(path.name for path in store.folder.glob("[!s]*")) == ["reserve", "tensors"]
    assert store.active_record(KEY).id == made().id


def test_what_gc_removed_is_gone_even_where_another_generation_has_the_same_file(store):
    first = store.reject(store.add_candidate(made(1.0), "calibrated").id, "worse")
    again = store.add_candidate(made(1.0), "calibrated")
    assert collect_garbage(store, 0, "room").generations == (first.id,)
    for use in (store.record, lambda each: store.activate(each, "back")):
        with pytest.raises(StorageError, match="was removed by gc; its history is all there is"):
            use(first.id)
    assert store.activate(again.id, "better").state == "active"
