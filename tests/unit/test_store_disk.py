"""A store on a disk that is full, or that may not be written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pimcal.errors import StorageError
from pimcal.store import Key, Store
from pimcal.store.collect import collect_garbage
from pimcal.store.reserve import SIZE, reserve_file

from .store_records import MODEL, check_whole, made, ticking

KEY = Key("board-1", MODEL)
NOBODY = 65534
ROOT = sys.platform == "linux" and os.geteuid() == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = ROOT and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0755", "tmpfs", str(place)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(store: Store) -> int:
    """Activate generations until the disk is full; how many it took."""
    for number in range(1000):
        try:
            store.activate(store.add_candidate(made(number, channels=2000), "calibrated").id, "better")
        except StorageError as error:
            assert "No space left on device" in str(error) or "the disk is full" in str(error)
            return number
    raise AssertionError("the disk is never full")


def take_the_rest(disk: Path) -> None:
    with (disk / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
        while True:
            ballast.write(b"x" * 512)


def test_a_full_disk_changes_nothing_and_gc_makes_room_again(small_disk: Path) -> None:
    with Store.create(small_disk / "store", clock=ticking()) as store:
        count = fill(store)
        assert count > 3
        rows = check_whole(store.folder)
        active = store.active(KEY)
        assert active is not None
        names = {row["sha256"] for row in rows}
        assert {path.stem for path in (store.folder / "tensors").iterdir()} == names
        assert active.id == rows[count - 1]["id"]

        take_the_rest(small_disk)
        with pytest.raises(StorageError):
            store.add_candidate(made(-1.0, channels=2000), "calibrated")
        check_whole(store.folder)
        assert Store.open(store.folder, read_only=True).active(KEY) == active

        assert len(collect_garbage(store, 1, "room").generations) == count - 2
        assert reserve_file(store.folder).stat().st_size == SIZE
        assert store.activate(store.add_candidate(made(-1.0, channels=2000), "calibrated").id, "better")
    check_whole(small_disk / "store")


def test_a_disk_that_is_full_from_the_start_gets_no_store(small_disk: Path) -> None:
    take_the_rest(small_disk)
    with pytest.raises(StorageError):
        Store.create(small_disk / "store")
    assert not list(small_disk.rglob("*.db*"))
    assert not list(small_disk.rglob(".*"))


def python(program: str, *arguments: object) -> str:
    """What a program of its own printed."""
    script = textwrap.dedent(program)
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LIMITED = """
    import resource, sys
    sys.path.insert(0, sys.argv[2])
    from store_records import made
    from pimcal.errors import StorageError
    from pimcal.store import Store
    with Store.create(sys.argv[1]) as store:
        store.activate(store.add_candidate(made(1.0), "small").id, "fits")
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
        for number in range(1000):
            try:
                store.add_candidate(made(number, channels=int(sys.argv[4])), "more")
            except StorageError as error:
                print(error.exit_code, error)
                break
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        store.add_candidate(made(-1.0), "as before")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
@pytest.mark.parametrize(("limit", "channels"), [(60_000, 20_000), (150_000, 4)])
def test_no_room_for_tensors_or_for_the_database_leaves_the_store_as_it_was(
    tmp_path: Path, limit: int, channels: int
) -> None:
    """A limit on the size of files stands in for a full disk: of the record's file first, of the log second."""
    told = python(LIMITED, tmp_path, Path(__file__).parent, limit, channels)
    assert told.startswith("74 ")
    assert "nothing was changed there" in told
    rows = check_whole(tmp_path)
    assert [row["reason"] for row in rows if row["state"] == "active"] == ["fits"]
    assert rows[-1]["reason"] == "as before"
    assert {path.stem for path in (tmp_path / "tensors").iterdir()} == {row["sha256"] for row in rows}


AS_ANOTHER = """
    import os, sys
    import torch, pimcal.record, pimcal.store.active
    os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
    from pimcal.errors import StorageError
    from pimcal.store import Key, Store
    reader = Store.open(sys.argv[1], read_only=True)
    key = reader.known_keys()[0]
    print(reader.active(key).id, reader.active_record(key).id, len(reader.journal.history()))
    for attempt in (Store.open, Store.create):
        try:
            attempt(sys.argv[1])
        except StorageError as error:
            print(error.exit_code, error)
"""


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A folder that others reach, unlike pytest's."""
    import tempfile

    if not ROOT:
        pytest.skip("needs the right to become another user")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder / "store"
    shutil.rmtree(folder)


@pytest.mark.parametrize("writer", ["none", "open", "killed"])
def test_a_user_who_may_only_read_reads_and_is_told_when_writing(shared: Path, writer: str) -> None:
    store = Store.create(shared)
    found = store.activate(store.add_candidate(made(), "calibrated").id, "better")
    if writer == "killed":
        with_log = {path: path.read_bytes() for path in shared.glob("store.db*")}
        assert len(with_log) == 3
    if writer != "open":
        store.close()
    if writer == "killed":  # what a killed writer leaves: a log that nobody has taken in
        for path, content in with_log.items():
            path.write_bytes(content)
    files = sorted(path.name for path in shared.iterdir())

    read, *refused = python(AS_ANOTHER, shared, NOBODY).splitlines()

    assert read == f"{found.id} {made().id} 3"
    assert len(refused) == 2
    assert all(line.startswith(f"74 cannot write to {shared}") for line in refused)
    assert sorted(path.name for path in shared.iterdir()) == files
    store.close()
    check_whole(shared)


def test_a_file_system_that_is_mounted_read_only_is_read_all_the_same(small_disk: Path) -> None:
    with Store.create(small_disk / "store") as store:
        store.activate(store.add_candidate(made(), "calibrated").id, "better")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    reader = Store.open(small_disk / "store", read_only=True)
    record = reader.active_record(KEY)
    assert record is not None
    assert record.id == made().id
    with pytest.raises(StorageError, match="Read-only file system"):
        Store.open(small_disk / "store")


def test_a_log_without_what_belongs_to_it_is_an_error_and_no_old_state(shared: Path) -> None:
    store = Store.create(shared)
    store.add_candidate(made(), "calibrated")
    log = (shared / "store.db-wal").read_bytes()
    store.close()
    (shared / "store.db-wal").write_bytes(log)
    program = (
        "import os, sys, pimcal.store.active; os.setuid(65534); pimcal.store.Store.open(sys.argv[1], read_only=True)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(shared)], capture_output=True, text=True, check=False)
    assert "StorageError: store" in done.stderr
    assert "it cannot be opened; give this user permission for the folder" in done.stderr


def test_a_reserve_that_a_killed_process_left_half_done_is_made_whole(tmp_path: Path) -> None:
    with Store.create(tmp_path) as store:
        reserve_file(store.folder).write_bytes(b"half")
    Store.open(tmp_path).close()
    assert reserve_file(tmp_path).stat().st_size == SIZE
