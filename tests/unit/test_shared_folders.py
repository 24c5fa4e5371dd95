"""Files in folders that others may write to: what they put there is neither followed nor overwritten."""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from pimcal.daemon import control
from pimcal.daemon.client import DaemonBusyError, ask
from pimcal.daemon.control import MOST_CLIENTS, Control
from pimcal.daemon.lock import held, lock_file
from pimcal.errors import DeviceBusyError, DeviceUnavailableError, StorageError
from pimcal.files import take_room, write_atomically
from pimcal.store import Store
from pimcal.store.reserve import SIZE, keep_reserve, reserve_file
from pimcal_serial.lock import BoardLock

from .store_records import made

PRECIOUS = "precious"


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    path = tmp_path / "precious"
    path.write_text(PRECIOUS)
    return path


def put(kind: str, path: Path, target: Path) -> None:
    """What somebody else may put in a file's place."""
    match kind:
        case "link":
            path.symlink_to(target)
        case "link to nothing":
            path.symlink_to(target.with_name("nothing"))
        case "second name":
            path.hardlink_to(target)
        case "pipe":
            os.mkfifo(path)
        case _:
            path.mkdir()


KINDS = ["link", "link to nothing", "second name", "pipe", "folder"]


# --- locks


@pytest.mark.parametrize("kind", KINDS)
def test_a_daemons_lock_is_no_way_to_another_file(kind: str, tmp_path: Path, precious: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    for path in (lock_file(folder, "board-1"), folder / "daemon.sock.lock"):
        put(kind, path, precious)
        with pytest.raises(StorageError, match="cannot take the lock"), held(path, "it"):
            pytest.fail("it was held")
    with pytest.raises(StorageError), selectors.DefaultSelector() as selector:
        Control(folder / "daemon.sock", selector, dict)
    assert precious.read_text() == PRECIOUS
    assert not precious.with_name("nothing").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_boards_lock_is_no_way_to_another_file(kind: str, tmp_path: Path, precious: Path) -> None:
    folder = tmp_path / "locks"
    folder.mkdir()
    put(kind, folder / "dev_ttyX.lock", precious)
    with pytest.raises(DeviceUnavailableError, match="cannot take the lock"):
        BoardLock("/dev/ttyX", folder)
    assert precious.read_text() == PRECIOUS


def test_a_folder_of_locks_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "locks").symlink_to(tmp_path / "theirs")
    with pytest.raises(DeviceUnavailableError, match="set XDG_RUNTIME_DIR to a folder of yours"):
        BoardLock("/dev/ttyX", tmp_path / "locks")
    assert list((tmp_path / "theirs").iterdir()) == []


def test_who_does_not_get_a_lock_leaves_what_its_holder_says(tmp_path: Path) -> None:
    path = tmp_path / "it.lock"
    with held(path, "it"):
        said = path.read_bytes()
        for _ in range(3):
            with pytest.raises(DeviceBusyError, match=f"process {os.getpid()} "), held(path, "it"):
                pytest.fail("it was held twice")
        assert path.read_bytes() == said
    with held(path, "it"):
        pass


# --- files of a store


@pytest.mark.parametrize("kind", ["link", "link to nothing", "second name"])
def test_the_reserve_is_a_file_of_its_own(kind: str, tmp_path: Path, precious: Path) -> None:
    put(kind, reserve_file(tmp_path), precious)
    keep_reserve(tmp_path)
    assert reserve_file(tmp_path).stat().st_size == SIZE
    assert not reserve_file(tmp_path).is_symlink()
    assert precious.read_text() == PRECIOUS
    assert not precious.with_name("nothing").exists()


def test_room_that_is_taken_stays_and_part_of_it_is_not_left(tmp_path: Path) -> None:
    path = tmp_path / "room"
    take_room(path, 1000)
    before = path.read_bytes()
    take_room(path, 1000)
    assert path.read_bytes() == before
    program = (
        "import resource, signal, sys; from pathlib import Path; from pimcal.files import take_room\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
        "try: take_room(Path(sys.argv[1]), 2000)\n"
        "except OSError: print('full')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert done.stdout == "full\n"
    assert not path.exists()


@pytest.mark.parametrize("kind", ["link", "link to nothing", "second name"])
def test_a_records_file_in_a_store_replaces_a_link(kind: str, tmp_path: Path, precious: Path) -> None:
    with Store.create(tmp_path / "elsewhere") as store:
        name = f"{store.add_candidate(made(), 'calibrated').sha256}.safetensors"
    with Store.create(tmp_path / "store") as store:
        put(kind, tmp_path / "store" / "tensors" / name, precious)
        generation = store.add_candidate(made(), "calibrated")
        assert store.record(generation.id).id == made().id
    assert precious.read_text() == PRECIOUS
    assert not precious.with_name("nothing").exists()


@pytest.mark.parametrize("name", ["store.db", "store.db-wal", "store.db-shm", "store.db-journal", "tensors"])
def test_a_store_with_links_within_is_not_written(name: str, tmp_path: Path) -> None:
    folder, place = tmp_path / "store", tmp_path / "theirs"
    Store.create(folder).close()
    if (folder / name).exists():
        (folder / name).rename(place)
    else:
        place.write_text(PRECIOUS)
    (folder / name).symlink_to(place)
    before = place.is_file() and place.read_bytes()
    with pytest.raises(StorageError, match=f"{name} is a symbolic link, and nothing is written through it"):
        Store.open(folder)
    assert (place.is_file() and place.read_bytes()) == before


def test_a_store_may_itself_be_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "there")
    with Store.create(tmp_path / "store") as store:
        store.add_candidate(made(), "calibrated")


def test_what_a_daemon_keeps_replaces_a_link(tmp_path: Path, precious: Path) -> None:
    path = tmp_path / "accepted.pt"
    path.symlink_to(precious)
    write_atomically(path, b"answers", follow=False)
    assert (precious.read_text(), path.read_bytes(), path.is_symlink()) == (PRECIOUS, b"answers", False)


# --- a control socket that others hold


@contextmanager
def answering(path: Path, answer: Callable[[dict[str, object]], dict[str, object]]) -> Iterator[Control]:
    """A daemon's end, served by a thread of its own."""
    with selectors.DefaultSelector() as selector, closing(Control(path, selector, answer)) as end:
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                for key, _ in selector.select(0.01):
                    key.data()
                end.drop_slow()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield end
        finally:
            stop.set()
            thread.join()


def silent(path: Path, stack: ExitStack, count: int, says: bytes = b"") -> list[socket.socket]:
    found = []
    for _ in range(count):
        client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        client.connect(str(path))
        client.settimeout(60)
        client.sendall(says)
        found.append(client)
    return found


def until(reached: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < end_s
        time.sleep(0.005)


@pytest.mark.parametrize("count", [MOST_CLIENTS, 3 * MOST_CLIENTS])
def test_silent_clients_do_not_keep_the_owner_from_an_answer(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "SILENCE_S", 3600.0)
    path = tmp_path / "daemon.sock"
    with answering(path, lambda request: {"done": "it"}) as end, ExitStack() as stack:
        silent(path, stack, count)
        until(lambda: len(end._clients) == MOST_CLIENTS)
        for _ in range(5):
            assert ask(path, {"do": "it"}) == {"done": "it"}


def test_a_silent_client_goes_sooner_than_one_that_has_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "SILENCE_S", 0.0)
    monkeypatch.setattr(control, "PATIENCE_S", 3600.0)
    path = tmp_path / "daemon.sock"
    with answering(path, lambda request: {"done": "it"}), ExitStack() as stack:
        (quiet,) = silent(path, stack, 1)
        assert quiet.recv(10) == b""


def test_where_all_have_begun_the_owner_is_told_that_it_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pimcal_run
) -> None:
    monkeypatch.setattr(control, "PATIENCE_S", 3600.0)
    monkeypatch.setattr(control, "SILENCE_S", 3600.0)
    path = tmp_path / "daemon.sock"
    with answering(path, lambda request: {"done": "it"}) as end, ExitStack() as stack:
        slow = silent(path, stack, MOST_CLIENTS, b'{"do"')
        until(lambda: sum(bool(client.received) for client in end._clients.values()) == MOST_CLIENTS)
        for _ in range(2 * MOST_CLIENTS):
            with pytest.raises(DaemonBusyError, match="is busy with other clients") as caught:
                ask(path, {"do": "it"})
            assert caught.value.exit_code == 75
        done = pimcal_run("daemon", "status", "--socket", path)
        assert (done.code, "is busy with other clients" in done.err) == (75, True)
        slow[0].sendall(b': "it"}\n')
        assert slow[0].makefile("rb").readline() == b'{"done": "it"}\n'
        assert ask(path, {"do": "it"}) == {"done": "it"}


def test_a_daemon_that_accepts_nobody_is_busy_not_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pimcal.daemon import client

    monkeypatch.setattr(client, "PATIENCE_S", 0.2)
    path = tmp_path / "daemon.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, ExitStack() as stack:
        listener.bind(str(path))
        listener.listen(0)
        with suppress(OSError):
            for _ in range(4):
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                waiting.setblocking(False)
                waiting.connect(str(path))
        with pytest.raises(DaemonBusyError, match="is busy with other clients, or with something long"):
            ask(path, {"do": "status"})
