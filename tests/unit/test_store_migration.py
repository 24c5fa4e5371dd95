"""Stores of older and newer pimcals, and what is no store at all."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

import pimcal
from pimcal.errors import StorageError
from pimcal.store import Key, Store
from pimcal.store.faults import DamagedStoreError
from pimcal.store.schema import APPLICATION_ID, PARTS, VERSION

from .store_records import MODEL, V1, check_whole, made, old_store, ticking

KEY = Key("board-1", MODEL)


def schema_of(connection):
    rows = connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name")
    return [(kind, name, " ".join((sql or "").split())) for kind, name, sql in rows]


def version_of(folder):
    with closing(sqlite3.connect(folder / "store.db")) as connection:
        return connection.execute("PRAGMA user_version").fetchone()[0]


def set_version(folder, version):
    with closing(sqlite3.connect(folder / "store.db")) as connection:
        connection.execute(f"PRAGMA user_version = {version}")


def test_the_first_version_is_what_it_was_when_it_was_published():
    with closing(sqlite3.connect(":memory:")) as then, closing(sqlite3.connect(":memory:")) as now:
        then.executescript(V1.read_text())
        for statement in PARTS[0]:
            now.execute(statement)
        assert schema_of(then) == schema_of(now)


def test_an_old_store_is_brought_up_to_date_and_keeps_everything(tmp_path):
    first, second = old_store(tmp_path / "store")
    with Store.open(tmp_path / "store", clock=ticking()) as store:
        assert [(each.id, each.state, each.pinned) for each in store.generations()] == [
            (first, "retired", False), (second, "active", False),
        ]  # fmt: skip
        assert store.active_record(KEY).id == made(1).id
        assert [event.kind for event in store.journal.history()] == ["created", "activated", "activated", "migrated"]
        assert store.journal.history()[-1].details == {"from": 1, "to": VERSION, "pimcal": pimcal.__version__}
        assert store.pin(first, "good").pinned
        store.journal.add_telemetry("board-1", {"temperature_c": 40.0})
        assert store.rollback(KEY, "worse").id == first
    check_whole(tmp_path / "store")


def test_the_second_version_is_brought_up_to_date_with_what_it_holds(tmp_path):
    old_store(tmp_path)
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        for statement in PARTS[1]:
            connection.execute(statement)
        connection.execute("UPDATE generations SET pinned = 1 WHERE state = 'retired'")
        connection.execute("INSERT INTO telemetry VALUES (1, 120.0, 'board-1', 'temperature_c', 40.0)")
        connection.execute(f"INSERT INTO probes VALUES (1, 120.0, 'board-1', '{MODEL}', 0.5, 1.0, 8, '{{}}')")
        connection.execute("PRAGMA user_version = 2")
        connection.commit()
    with Store.open(tmp_path, clock=ticking()) as store:
        assert store.journal.history()[-1].details["from"] == 2
        assert [each.pinned for each in store.generations()] == [True, False]
        assert [one.value for one in store.journal.telemetry("board-1", "temperature_c")] == [40.0]
        assert store.journal.probe_totals(KEY) == (1, 8)
    Store.create(tmp_path / "new").close()
    found = []
    for folder in (tmp_path, tmp_path / "new"):
        with closing(sqlite3.connect(folder / "store.db")) as connection:
            found.append(schema_of(connection))
    assert found[0] == found[1]


def test_an_up_to_date_old_store_has_the_schema_of_a_new_one(tmp_path):
    old_store(tmp_path / "old")
    found = []
    for name in ("old", "new"):
        Store.create(tmp_path / name).close()
        with closing(sqlite3.connect(tmp_path / name / "store.db")) as connection:
            found.append(schema_of(connection))
    assert found[0] == found[1]


def test_a_reader_leaves_an_old_store_alone_and_says_what_to_do(tmp_path):
    old_store(tmp_path)
    told = f"schema 1, written by an older pimcal; this one, {pimcal.__version__}, reads schema {VERSION}: .*migrate"
    with pytest.raises(StorageError, match=told):
        Store.open(tmp_path, read_only=True)
    assert version_of(tmp_path) == 1


def test_a_migration_that_fails_half_way_changes_nothing(tmp_path):
    old_store(tmp_path)
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        connection.execute("CREATE TABLE telemetry (in_the_way)")
        before = schema_of(connection)
    with pytest.raises(DamagedStoreError, match=r"store\.db is damaged.*table telemetry already exists"):
        Store.open(tmp_path)
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        assert schema_of(connection) == before
    assert version_of(tmp_path) == 1


@pytest.mark.parametrize("read_only", [True, False])
def test_a_store_from_the_future_is_left_alone_and_both_versions_are_told(tmp_path, read_only):
    Store.create(tmp_path).close()
    set_version(tmp_path, VERSION + 1)
    told = f"schema {VERSION + 1}, written by a newer pimcal; this one, .*, knows schema {VERSION}: update pimcal"
    with pytest.raises(StorageError, match=told):
        Store.open(tmp_path, read_only=read_only)
    with pytest.raises(StorageError, match=told):
        Store.create(tmp_path)
    assert version_of(tmp_path) == VERSION + 1


def test_a_store_that_a_newer_pimcal_takes_over_meanwhile_is_written_no_more(tmp_path):
    with Store.create(tmp_path) as store:
        set_version(tmp_path, VERSION + 1)
        with pytest.raises(StorageError, match="written by a newer pimcal"):
            store.add_candidate(made(), "calibrated")
        set_version(tmp_path, VERSION)
        assert store.generations() == []
        assert list((tmp_path / "tensors").iterdir()) == []


@pytest.mark.parametrize("read_only", [True, False])
def test_what_is_no_store_is_refused_by_name_and_untouched(tmp_path, read_only):
    cases = {
        "absent": "there is no store in .*absent; `pimcal calibrate --store",
        "empty": "there is no store in .*empty",
        "file": "file is a file, and a store is a folder",
        "folder": "there is no store in .*folder",
        "text": r"store.db is no database; name another folder \(SQLite",
        "foreign": "a database of another program, not a store",
        "new": "a database of another program, not a store",
    }
    for name in ("empty", "folder/store.db", "text", "foreign", "new"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "text" / "store.db").write_text("mine" * 1000)
    (tmp_path / "new" / "store.db").touch()
    with closing(sqlite3.connect(tmp_path / "foreign" / "store.db")) as connection:
        connection.execute("CREATE TABLE mine (x)")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name, told in cases.items():
        with pytest.raises(StorageError, match=told):
            Store.open(tmp_path / name, read_only=read_only)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("name", ["file", "text", "folder"])
def test_no_store_is_made_over_something_else(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "store.db").write_text("mine" * 1000)
    (tmp_path / "folder" / "store.db").mkdir(parents=True)
    files = {path: path.is_file() and path.read_text() for path in tmp_path.rglob("*")}
    with pytest.raises(StorageError):
        Store.create(tmp_path / name)
    assert {path: path.is_file() and path.read_text() for path in tmp_path.rglob("*")} == files


def test_a_damaged_database_is_told(tmp_path):
    with Store.create(tmp_path) as store:
        for value in range(20):
            store.add_candidate(made(value), "calibrated")
    content = (tmp_path / "store.db").read_bytes()
    (tmp_path / "store.db").write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(StorageError, match=r"store\.db is damaged; put a copy"):
        Store.open(tmp_path, read_only=True).generations()


def test_a_folder_with_an_odd_name_is_a_store_like_any_other(tmp_path):
    folder = tmp_path / "50% of #1? ü"
    with Store.create(folder) as store:
        store.add_candidate(made(), "calibrated")
    assert len(Store.open(folder, read_only=True).generations()) == 1
    assert int.from_bytes(b"pimc") == APPLICATION_ID
