"""`kill -9` at random moments; after each kill the store opens, exactly one generation is active, all tensors load.

`store`: processes that calibrate, activate, migrate and tidy, see tests/unit/store_kills.py.
`daemon`: whole daemons, at any moment of their start and of calibrations that follow each other. Each starts again with
the generation that was active in the store, and becomes ready.
`disk`: processes that activate generations on a disk of 2 MiB that is full again and again. After each kill the store
is read while the disk is mounted read-only, where it cannot be opened for writing, and its files are checked after.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from recalibration_daemon import (
    TESTS,
    Contents,
    Daemon,
    check_files,
    daemon_process,
    made,
    read_whole,
    told_until_killed,
)

from pimcal.errors import DeviceUnavailableError, StorageError
from pimcal.store import Store
from pimcal.store.collect import collect_garbage

NEW, STARTING = 0.25, 0.3  # shares of the rounds with a new store, and of those that end while the daemon starts
START_S = 1.0  # about what it takes to calibrate for the first time
BUSY_S = 3.0  # with calibrations that follow each other
DISK_S = 0.3
DISK = "size=2m,mode=0755"
CHANNELS = 20_000  # of a record that takes 160 kB


def measure_kills(rounds: int, daemon_rounds: int, disk_rounds: int, seed: int) -> dict[str, Any]:
    return {
        "store": kill_writers(rounds, seed),
        "daemon": kill_daemons(daemon_rounds, random.Random(seed)),
        "disk": kill_on_disk(disk_rounds, random.Random(seed)),
    }


def kill_writers(rounds: int, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(TESTS / "store_kills.py"), folder, str(rounds), str(seed)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return dict(json.loads(subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True).stdout))


# --- daemons


def kill_daemons(rounds: int, draw: random.Random) -> dict[str, Any]:
    found: Counter[str] = Counter()
    starts_s = [0.0]
    with daemon_process() as daemon:
        daemon.write({"every": "1h", "when": [{"probe_error": 0.02}]}, gate={"max_drop": 1.0})
        before = Contents()
        for number in range(rounds):
            if draw.random() < NEW:
                daemon.store, before = daemon.store.with_name(f"store-{number}"), Contents()
                daemon.socket = daemon.store / "daemon.sock"
            daemon.start()
            if draw.random() < STARTING:
                watched(daemon, draw.random() * START_S)
            else:
                starts_s.append(time_to_ready(daemon, before))
                kept_busy(daemon, draw.random() * BUSY_S)
            before = killed(daemon, before, found)
        daemon.start()
        starts_s.append(time_to_ready(daemon, before))
        assert daemon.stopped().code == 0
        after_end(daemon, before)
    return {"rounds": rounds, "ready_again": len(starts_s) - 1, "longest_start_s": round(max(starts_s), 1), **found}


def killed(daemon: Daemon, before: Contents, found: Counter[str]) -> Contents:
    """What is in the store after a kill, before which it was `before`; and that nothing is lost of what was told."""
    state, told = daemon.status.get("state", "not there yet"), daemon.status.get("generation")
    daemon.kill(signal.SIGKILL)
    done = daemon.wait()
    assert done.code == -signal.SIGKILL, done.err
    left_over = sum(1 for _ in (daemon.store / "tensors").glob(".*"))
    now = after_end(daemon, before)
    assert told is None or told in now.generations, f"generation {told} was told, and is not there"
    activations = sum(event.kind == "activated" for event in now.events[len(before.events) :])
    found += Counter({f"killed while {state}": 1, "activations": activations, "left_over": left_over})
    found += Counter({"active": now.active is not None, "damaged_answers": "cannot be read" in done.err})
    return now


def after_end(daemon: Daemon, before: Contents) -> Contents:
    now = read_whole(daemon.store)
    check_files(daemon.store)
    assert now.follows(before), "the past has changed"
    return now


def time_to_ready(daemon: Daemon, before: Contents) -> float:
    """Seconds until a daemon that was just started is ready, with what is active in the store."""
    start_s = time.monotonic()
    first = daemon.until(lambda status: status["generation"])["generation"]
    assert before.active in (None, first), f"{before.active} was active, and {first} is in force"
    daemon.until(lambda status: status["ready"])
    return time.monotonic() - start_s


def watched(daemon: Daemon, seconds: float) -> None:
    """Look at it for so long; it may not answer yet."""
    daemon.status, end_s = {}, time.monotonic() + seconds
    while time.monotonic() < end_s:
        with suppress(DeviceUnavailableError):
            daemon.status = daemon.ask(do="status")
        time.sleep(0.005)


def kept_busy(daemon: Daemon, seconds: float) -> None:
    """Have it calibrate for so long, once after the other."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        daemon.status = daemon.ask(do="status")
        if daemon.status["state"] == "waiting":
            daemon.ask(do="run-now", calibrate=True)
        time.sleep(0.005)


# --- a full disk


def kill_on_disk(rounds: int, draw: random.Random) -> dict[str, Any]:
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", folder], check=False).returncode == 0
        if not mounted:
            return {"skipped": "needs the right to mount a file system"}
        try:
            store, before = Path(folder, "store"), Contents()
            Store.create(store).close()
            for number in range(rounds):
                work = partial(fill, store, random.Random(number))
                found += Counter(told_until_killed(draw.random() * DISK_S, work))
                before = checked_on(Path(folder), store, before)
        finally:
            subprocess.run(["umount", folder], check=True)
    return {"rounds": rounds, **found, "events": len(before.events)}


def fill(folder: Path, draw: random.Random, told: int) -> None:
    with Store.open(folder) as store:
        while True:
            try:
                what = changed(store, draw)
            except StorageError:
                what = "full"
            os.write(told, f"{what}\n".encode())


def changed(store: Store, draw: random.Random) -> str:
    if draw.random() < 0.1:
        collect_garbage(store, keep=2, reason="room")
        return "tidied"
    store.activate(store.add_candidate(made(draw.random(), channels=CHANNELS), "calibrated").id, "better")
    return "activated"


def checked_on(disk: Path, store: Path, before: Contents) -> Contents:
    """Read a store on a disk that is mounted read-only, then have its files checked, on one that is not."""
    remount(disk, "ro")
    try:
        now = read_whole(store)
        with suppress(StorageError):
            Store.open(store).close()
            raise AssertionError("a store on a read-only disk was opened for writing")
    finally:
        remount(disk, "rw")
    check_files(store)
    assert now.follows(before), "the past has changed"
    return now


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)
