"""Several processes at one store: readers beside a writer, two writers, and writers that are killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pimcal.errors import StorageError
from pimcal.store import Key, Store
from pimcal.store.collect import collect_garbage
from pimcal.store.faults import StoreBusyError

from .store_records import MODEL, check_whole, made

HERE = Path(__file__).parent
KEY = Key("board-1", MODEL)


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    script = textwrap.dedent(program)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


READER = """
    import sys
    from pimcal.store import Key, Store
    from store_records import MODEL
    store, seen = Store.open(sys.argv[1], read_only=True), set()
    while len(seen) < 10:
        mean, var = store.active_record(Key("board-1", MODEL)).corrections["body.1"].values()
        assert len(set(mean.tolist())) == 1
        assert len(store.generations(states=["active"])) == 1
        seen.add(float(mean[0]))
"""


def test_readers_always_find_one_whole_active_record_while_a_writer_changes_and_collects(tmp_path: Path) -> None:
    with Store.create(tmp_path) as store:
        store.activate(store.add_candidate(made(0.0), "calibrated").id, "first")
        readers = [start(READER, tmp_path) for _ in range(2)]
        number = 0
        while any(reader.poll() is None for reader in readers):  # each ends when it has seen ten records
            number += 1
            store.activate(store.add_candidate(made(number, channels=2000), "calibrated").id, "better")
            collect_garbage(store, 0, "room")
        for reader in readers:
            assert reader.communicate()[1] == ""
            assert reader.returncode == 0
    check_whole(tmp_path)


HOLDER = """
    import sys
    from pimcal.store import Store
    with Store.open(sys.argv[1]) as store, store.database.transaction():
        print("holding", flush=True)
        sys.stdin.readline()
"""


def test_a_second_writer_waits_and_then_says_that_another_one_writes(tmp_path: Path) -> None:
    Store.create(tmp_path).close()
    holder = start(HOLDER, tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holding\n"
    with pytest.raises(StoreBusyError, match="is being written by another process; try again") as error:
        Store.open(tmp_path, wait_s=0.1)
    assert error.value.exit_code == 75
    assert isinstance(error.value, StorageError)
    assert Store.open(tmp_path, read_only=True, wait_s=0.0).generations() == []
    holder.communicate("\n", timeout=60)
    with Store.open(tmp_path, wait_s=0.1) as store:
        assert store.add_candidate(made(), "calibrated").state == "candidate"


WRITER = """
    import sys
    from pimcal.store import Store
    from store_records import made
    print("ready", flush=True)
    sys.stdin.readline()
    with Store.create(sys.argv[1], wait_s=60) as store:
        for number in range(10):
            store.activate(store.add_candidate(made(number), sys.argv[2]).id, "better")
"""


def test_writers_that_start_together_make_one_store_and_lose_nothing(tmp_path: Path) -> None:
    writers = [start(WRITER, tmp_path / "store", name) for name in "abc"]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        _, err = writer.communicate(timeout=120)
        assert writer.returncode == 0, err
    rows = check_whole(tmp_path / "store")
    assert len(rows) == 30
    assert not list((tmp_path / "store").glob(".*"))


@pytest.mark.skipif(sys.platform != "linux", reason="forks and kills")
def test_a_process_that_is_killed_at_any_moment_leaves_a_whole_store(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "store_kills.py"), str(tmp_path), "60", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rounds"] == 60
    assert min(found["goes on"], found["new"], found["old"], found["active"], found["acknowledged"]) > 0
