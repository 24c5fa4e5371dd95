"""Stores and records that somebody has edited: refused or read by every command, and left as they are."""

import json
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from pimcal.errors import DataError, PimcalError
from pimcal.record import FORMAT, Record
from pimcal.store import Key, Store
from pimcal.store.faults import DamagedStoreError
from pimcal.store.schema import APPLICATION_ID, PARTS, VERSION
from pimcal.store.transfer import history_file

from .store_records import MODEL, made, ticking

KEY = Key("board-1", MODEL)
DOCUMENTED = {0, 1, 2, 65, 69, 74, 75, 78}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that has something in every table, and a record that was exported from it."""
    folder = tmp_path_factory.mktemp("edited")
    with Store.create(folder / "store", clock=ticking()) as store:
        for value in range(3):
            generation = store.add_candidate(made(value), "calibrated")
            store.activate(generation.id, "better")
        store.reject(store.add_candidate(made(9), "calibrated").id, "worse")
        store.journal.add_probe(KEY, statistic=0.5, threshold=1.0, tiles={"0:1": 0.1}, mvms=8)
        store.journal.add_telemetry("board-1", {"temperature_c": 40.0})
        store.journal.add_event("decision", "look", key=KEY, details={"decision": "look"})
        with store.database.transaction() as connection:
            row = (1.0, "recalibration", *KEY, None, "kept", "no better", 64, 10, 0, 0, 0.5)
            columns = "at, kind, device, model_hash, generation, outcome, reason, images, mvms, programmed_cells, "
            connection.execute(
                f"INSERT INTO runs ({columns} link_bytes, seconds) VALUES ({', '.join('?' * len(row))})", row
            )
    made(5).save(folder / "record.safetensors")
    return folder


@pytest.fixture
def edited(whole: Path, tmp_path: Path, pimcal_run, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it in the working directory; `pimcal_run` has another one before."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit(*statements: str, folder: Path = Path("store")) -> None:
    """Change a store as somebody with SQLite's own tool could, whatever the schema forbids."""
    with closing(sqlite3.connect(folder / "store.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)


def looking(store: str = "store") -> Iterator[tuple[str, ...]]:
    for words in (("records", "list"), ("history",), ("why",), ("records", "show", "active")):
        yield *words, "--store", store
        yield *words, "--store", store, "--json"
    yield "records", "list", "--store", store, "--all", "--model-hash", "ab"
    yield "history", "--store", store, "--device", "board-1"


def changing(store: str = "store") -> Iterator[tuple[str, ...]]:
    yield "records", "export", "active", "exported.safetensors", "--store", store
    yield "records", "pin", "active", "--store", store
    yield "records", "rollback", "--store", store
    yield "records", "gc", "--store", store, "--keep", "0", "--older-than", "1s"
    yield "records", "import", "record.safetensors", "--store", store
    yield "records", "migrate", "--store", store


def rows(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "store.db")) as connection:
        connection.text_factory = bytes
        return [repr(each) for each in _all_rows(connection)]


def _all_rows(connection: sqlite3.Connection) -> Iterator[object]:
    for kind, name, sql in connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall():
        yield kind, name, sql
        if kind == b"table":
            yield from connection.execute(f"SELECT * FROM {name.decode()}")


# --- stores that are no longer stores


@pytest.mark.parametrize(
    ("version", "tables"), [(1, 0), (2, 0), (3, 0), (-1, 0), (0, 0), (1, 1), (2, 2), (3, 1), (-1, 2)]
)
def test_a_database_with_our_mark_that_lacks_tables_is_told_as_damaged_and_left_alone(
    version: int, tables: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pimcal_run
) -> None:
    monkeypatch.chdir(tmp_path)
    made(5).save("record.safetensors")
    Path("store").mkdir()
    with closing(sqlite3.connect("store/store.db")) as connection:
        for statement in PARTS[0][: tables * 3]:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {version}")
        connection.commit()
    before = rows(Path("store"))
    for words in (*looking(), *changing()):
        done = pimcal_run(*words)
        assert (done.code, done.out) == (74, ""), words
        assert "store.db is damaged; put a copy of the whole folder in its place (" in done.err
    assert rows(Path("store")) == before
    assert {path.name for path in Path("store").iterdir()} == {"store.db"}


@pytest.mark.parametrize(
    ("statements", "code", "told"),
    [
        (("PRAGMA application_id = 7",), 74, "a database of another program, not a store"),
        ((f"PRAGMA user_version = {VERSION + 1}",), 74, f"schema {VERSION + 1}, written by a newer pimcal"),
        (("DROP TABLE probes",), 74, f"is damaged.*of schema {VERSION} it lacks: table probes"),
        (("ALTER TABLE runs DROP COLUMN seconds",), 74, r"is damaged.*it lacks: runs\.seconds"),
        (("ALTER TABLE events RENAME COLUMN details TO detail",), 74, r"is damaged.*it lacks: events\.details"),
    ],
)
def test_damaged_foreign_and_newer_stores_are_told_apart(
    statements: tuple[str, ...], code: int, told: str, edited: Path, pimcal_run
) -> None:
    import re

    edit(*statements)
    before = rows(Path("store"))
    for words in (*looking(), *changing()):
        done = pimcal_run(*words)
        assert (done.code, done.out) == (code, ""), words
        assert re.search(told, done.err, re.DOTALL), done.err
    assert rows(Path("store")) == before


# --- rows


@pytest.mark.parametrize(
    ("statement", "commands"),
    [
        ("UPDATE events SET details = 'no JSON'", {"history", "why"}),
        ("UPDATE events SET details = '[1]'", {"history", "why"}),
        ("UPDATE events SET details = '3'", {"history", "why"}),
        (f"UPDATE events SET details = '{'[' * 50_000}'", {"history", "why"}),
        ("UPDATE events SET details = x'00ff'", {"history", "why"}),
        ("UPDATE events SET reason = x'ff'", {"history", "why"}),
        ("UPDATE events SET reason = CAST(x'ff' AS TEXT)", {"history", "why"}),
        ("UPDATE events SET at = 'yesterday'", {"history", "why"}),
        ("UPDATE events SET at = 9e999", {"history", "why"}),
        ("UPDATE generations SET method = x'5b315d'", {"records"}),
        ("UPDATE generations SET model_hash = x'00'", {"records"}),
        ("UPDATE generations SET sha256 = '../../../etc/passwd'", {"records"}),
        ("UPDATE generations SET state = 'splendid'", {"records"}),
        ("UPDATE generations SET created_at = 'never'", {"records"}),
        ("UPDATE generations SET metric_before = 'good'", {"records"}),
        ("UPDATE generations SET pinned = 7", {"records"}),
        ("UPDATE generations SET id = x'01' WHERE seq = 1", {"records"}),
        ("DROP INDEX one_active; UPDATE generations SET state = 'active'", {"show"}),
    ],
)
def test_a_row_that_no_pimcal_wrote_is_told_as_damage(
    statement: str, commands: set[str], edited: Path, pimcal_run
) -> None:
    edit(*statement.split("; "))
    before = rows(Path("store"))
    for words in looking():
        done = pimcal_run(*words)
        if commands & set(words):
            assert (done.code, done.out) == (74, ""), words
            assert "store.db is damaged" in done.err
        assert done.code in DOCUMENTED
    assert rows(Path("store")) == before


def test_times_of_any_year_are_shown(edited: Path, pimcal_run) -> None:
    edit("UPDATE events SET at = 1e14 WHERE seq = 1", "UPDATE events SET at = -1e14 WHERE seq = 2")
    first, second = pimcal_run("history", "--store", "store", "--json").json["events"][:2]
    assert (first["at"][:4], second["at"][:4]) == ("9999", "0001")


def test_gc_removes_nothing_from_a_damaged_store(edited: Path, pimcal_run) -> None:
    edit("UPDATE generations SET sha256 = 'x' WHERE seq = 1")
    before = {path.name for path in Path("store/tensors").iterdir()}
    assert pimcal_run("records", "gc", "--store", "store", "--keep", "0").code == 74
    assert {path.name for path in Path("store/tensors").iterdir()} == before


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_store_without_its_tensors_is_told(kind: str, edited: Path, pimcal_run) -> None:
    shutil.rmtree("store/tensors")
    if kind == "file":
        Path("store/tensors").write_text("mine")
    for words in (("records", "show", "active"), ("records", "gc"), ("records", "rollback")):
        done = pimcal_run(*words, "--store", "store")
        assert done.code == 74, words
        assert "error: " in done.err


def test_a_damaged_store_stops_a_service_for_good() -> None:
    from pimcal.daemon.lasting import is_lasting

    assert is_lasting(DamagedStoreError("it lacks a table"))


JUNK = (
    "NULL", "0", "-1", "9e999", "1e300", "x''", "x'ff00'", "''", "'[]'", "'{}'", "'{\"a\": NaN}'", "'null'",
    "'\x1b[31m'", "9223372036854775807",
    "CAST(x'c3' AS TEXT)", "'" + "9" * 5000 + "'", "'" + "[" * 20_000 + "'", "'activated'",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_no_edit_of_rows_ends_in_an_error_inside(seed: int, edited: Path, pimcal_run) -> None:
    generator = random.Random(seed)
    with closing(sqlite3.connect("store/store.db")) as connection:
        columns = connection.execute(
            "SELECT m.name, p.name FROM sqlite_master m JOIN pragma_table_info(m.name) p WHERE m.type = 'table'"
        ).fetchall()
    for _ in range(generator.randint(1, 3)):
        table, column = generator.choice(columns)
        with suppress(sqlite3.Error):  # what SQLite itself refuses nobody can edit so
            edit(
                f"UPDATE {table} SET {column} = {generator.choice(JUNK)} "
                f"WHERE seq IN (SELECT seq FROM {table} ORDER BY seq LIMIT 1 OFFSET {generator.randint(0, 2)})"
            )
    for words in (*generator.sample([*looking()], 4), *generator.sample([*changing()], 3)):
        done = pimcal_run(*words)
        assert done.code in DOCUMENTED, (words, done.err)
        assert "internal" not in done.err
        assert "Traceback" not in done.err
        if done.code:
            assert done.out == "", words


@pytest.mark.parametrize("seed", range(12))
def test_no_damage_to_the_bytes_ends_in_an_error_inside(seed: int, edited: Path, pimcal_run) -> None:
    generator, path = random.Random(seed), Path("store/store.db")
    content = bytearray(path.read_bytes())
    for _ in range(generator.choice((1, 8, 200))):
        content[generator.randrange(100 if seed % 2 else 0, len(content))] = generator.randrange(256)
    path.write_bytes(content[: generator.choice((len(content), len(content) // 2))])
    for words in (*generator.sample([*looking()], 3), *generator.sample([*changing()], 2)):
        done = pimcal_run(*words)
        assert done.code in DOCUMENTED, (words, done.err)


# --- records


def about(**changes: object) -> dict[str, object]:
    from dataclasses import asdict

    record = made(5)
    made_with = {**asdict(record.made_with), **changes.pop("made_with", {})}  # type: ignore[dict-item]
    return {"format": FORMAT, "method": record.method, "made_with": made_with, **changes}


def write_record(path: Path, metadata: object, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    values = {"body.1:mean": torch.ones(4), "body.1:var": torch.ones(4)} if tensors is None else tensors
    path.write_bytes(save(values, {"pimcal": json.dumps(metadata)}))
    return path


EDITS: list[dict[str, object]] = [
    {"method": []},
    {"method": 3},
    {"method": None},
    {"format": ["pimcal-record/1"]},
    {"colour": "red"},
    {"made_with": []},
    *(
        {"made_with": {name: value}}
        for name, value in (
            ("model_hash", 3), ("model_hash", ["a"]), ("model_hash", None), ("profile_hash", {}), ("device", 7),
            ("images", "64"), ("images", -1), ("images", 1e3), ("images", True), ("mvms", 10**30), ("seconds", "x"),
            ("seconds", float("nan")), ("seconds", float("inf")), ("seed", -1), ("telemetry", []),
            ("telemetry", {"temperature_c": "hot"}), ("metric", 1), ("before", "0.5"), ("hardware", 3),
            ("colour", "red"),
        )
    ),
]  # fmt: skip

TENSORS = {
    "float8": {"a:mean": torch.ones(4).to(torch.float8_e4m3fn), "a:var": torch.ones(4).to(torch.float8_e5m2)},
    "whole numbers": {"a:mean": torch.ones(4, dtype=torch.int64), "a:var": torch.ones(4)},
    "truth values": {"a:gain": torch.ones(4, dtype=torch.bool), "a:offset": torch.ones(4)},
    "complex": {"a:gain": torch.ones(4, dtype=torch.complex64), "a:offset": torch.ones(4)},
    "NaN": {"a:mean": torch.full((4,), torch.nan), "a:var": torch.ones(4)},
    "infinity": {"a:gain": torch.full((4,), torch.inf), "a:offset": torch.ones(4)},
    "negative variance": {"a:mean": torch.ones(4), "a:var": -torch.ones(4)},
    "empty": {"a:mean": torch.ones(0), "a:var": torch.ones(0)},
    "two axes": {"a:mean": torch.ones(2, 2), "a:var": torch.ones(2, 2)},
    "a number": {"a:mean": torch.tensor(1.0), "a:var": torch.tensor(1.0)},
    "half": {"a:mean": torch.ones(4)},
    "no name": {"mean": torch.ones(4), "var": torch.ones(4)},
    "another key": {"a:mean": torch.ones(4), "a:variance": torch.ones(4)},
}


def refused(run: Callable[..., object], path: str) -> None:
    for words in (
        ("records", "show", path),
        ("records", "show", path, "--json"),
        ("records", "diff", path, "record.safetensors"),
        ("records", "import", path, "--store", "store", "--force"),
    ):
        done = run(*words)
        assert (done.code, done.out) == (65, ""), words  # type: ignore[attr-defined]
        assert f"{path}: not a calibration record" in done.err or "this pimcal reads" in done.err  # type: ignore[attr-defined]


@pytest.mark.parametrize("change", EDITS)
def test_edited_metadata_is_refused_by_every_command(change: dict[str, object], edited: Path, pimcal_run) -> None:
    before = rows(Path("store"))
    metadata = about(**change) if change != {"made_with": []} else {**about(), "made_with": []}
    write_record(Path("edited.safetensors"), metadata)
    refused(pimcal_run, "edited.safetensors")
    assert rows(Path("store")) == before


@pytest.mark.parametrize("name", [each for each in TENSORS if each != "no name"])
def test_tensors_that_are_no_corrections_are_refused_by_every_command(name: str, edited: Path, pimcal_run) -> None:
    write_record(Path("edited.safetensors"), about(), TENSORS[name])
    refused(pimcal_run, "edited.safetensors")


def test_half_precision_of_either_kind_is_read(edited: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        path = write_record(Path("half"), about(), {"a:mean": torch.ones(4, dtype=dtype), "a:var": torch.ones(4)})
        assert Record.load(path).id != made(5).id


def test_evaluate_refuses_what_was_edited(edited: Path, lab, pimcal_run) -> None:
    write_record(edited / "edited.safetensors", about(made_with={"model_hash": 3}))
    done = pimcal_run("evaluate", *lab.on(), "--record", "edited.safetensors")
    assert (done.code, done.out) == (65, "")
    assert pimcal_run("calibrate", *lab.on(), "--store", "own").code == 0
    edit("UPDATE generations SET method = x'00'", folder=edited / "own")
    done = pimcal_run("evaluate", *lab.on(), "--store", "own")
    assert (done.code, done.out) == (74, "")
    assert "store.db is damaged" in done.err


def test_a_history_that_was_edited_is_refused(edited: Path, pimcal_run) -> None:
    path = Path("record.safetensors")
    for content in (b"[]", b"{", b'{"format": 3}', b'{"format": "pimcal-history/1"}', b"[" * 100_000, b"\xff", b"null"):
        history_file(path).write_bytes(content)
        done = pimcal_run("records", "import", path, "--store", "store", "--force")
        assert (done.code, done.out) == (65, "")


@pytest.mark.parametrize("seed", range(60))
def test_no_edit_of_a_records_metadata_ends_in_another_error(seed: int, tmp_path: Path) -> None:
    generator = random.Random(seed)
    metadata = about()
    for _ in range(generator.randint(1, 3)):
        _edit_somewhere(metadata, generator)
    path = write_record(tmp_path / "edited", metadata)
    try:
        Record.load(path).id  # noqa: B018
    except DataError as error:
        assert "edited: " in str(error)


def _edit_somewhere(values: dict[str, object], generator: random.Random) -> None:
    junk = (None, 0, -1, 1e300, float("nan"), "", "x", [], {}, [[1]], True, {"a": {"b": []}}, "\ud800", 10**40)
    name = generator.choice([*values])
    inner = values[name]
    if isinstance(inner, dict) and inner and generator.random() < 0.7:
        _edit_somewhere(inner, generator)
    elif generator.random() < 0.2:
        del values[name]
        values[name[::-1]] = inner
    else:
        values[name] = generator.choice(junk)


# --- what a daemon keeps beside its store


@pytest.mark.parametrize("seed", range(20))
def test_what_a_daemon_has_kept_is_read_as_it_was_or_not_at_all(seed: int, tmp_path: Path) -> None:
    from pimcal.daemon.memory import Memory
    from pimcal.recalibration.learned import Learned
    from pimcal.recalibration.probe import Accepted, AcceptedTile, ProbeSettings
    from pimcal.recalibration.state import Conditions

    generator = random.Random(seed)
    answers = torch.randn(48, 2, 5, dtype=torch.float64) + 1
    tile = AcceptedTile.of(torch.rand(2, 4), answers)
    assert tile is not None
    known = Learned(Accepted({(0, 1): tile}, {(0, 2): "dead"}), Conditions(1.0, {"t": 2.0}), 0.9, 0.9, ProbeSettings())
    path = tmp_path / "accepted.pt"
    Memory("r", known).save(path)
    whole = Memory.load(path, "r")
    assert whole is not None
    assert whole.learned.sensitivity == ProbeSettings()
    state = torch.load(path, weights_only=True)
    learned = state["learned"]
    junk = generator.choice((None, 0, "x", [], {}, [1], torch.ones(3), torch.full((2, 4), torch.nan), float("nan"), -1))
    place = generator.choice(("accepted", "under", "level", "sensitivity", "tile", "spot", "setting"))
    parts = learned["accepted"]["tiles"][0]
    match place:
        case "tile":
            parts[1][generator.choice([*parts[1]])] = junk
        case "spot":
            parts[0] = junk
        case "setting":
            learned["sensitivity"][generator.choice([*learned["sensitivity"]])] = junk
        case _:
            learned[place] = junk
    torch.save(state, path)
    found = Memory.load(path, "r")
    assert found is None or junk is None or place == "level"


def test_a_daemon_on_a_damaged_store_ends_with_a_documented_code(edited: Path, lab) -> None:
    edit("DROP TABLE runs", folder=edited / "store")
    command = [sys.executable, "-m", "pimcal", "daemon", *lab.on("ideal"), "--held-out", "64", "--store", "store"]
    done = subprocess.run(command, cwd=edited, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (74, 78)
    assert "store.db is damaged" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_error_of_a_store_can_be_acted_on() -> None:
    assert issubclass(DamagedStoreError, PimcalError)
