"""Processes that change a store and are killed at random moments: `python store_kills.py FOLDER ROUNDS SEED`.

Prints one JSON object; fails where a store is not whole after a kill, or lacks what was acknowledged.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pimcal.errors import DataError, StorageError, UsageError
from pimcal.store import Key, Store
from pimcal.store.collect import collect_garbage

sys.path.insert(0, str(Path(__file__).parent))
from store_records import MODEL, check_whole, made, old_store

LONGEST_S = 0.15
KEY = Key("board-1", MODEL)
PROBED, MVMS = "probed", 8


def kill_rounds(folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Kill a process `rounds` times: in a store that goes on, in new ones, and in old ones that are being migrated."""
    torch.set_num_threads(1)
    draw = random.Random(seed)
    found: Counter[str] = Counter()
    for number in range(rounds):
        kind = draw.choice(("goes on", "goes on", "new", "old"))
        store = folder / ("goes on" if kind == "goes on" else f"{number}")
        if kind == "old":
            old_store(store)
        after_s = draw.random() ** 2 * LONGEST_S
        acknowledged = told_until_killed(after_s, partial(_work, store, random.Random(number)))
        found += Counter({kind: 1, "acknowledged": len(acknowledged)})
        _check(store, acknowledged, found)
    return {"rounds": rounds, "seed": seed, **found}


def told_until_killed(after_s: float, work: Callable[[int], None]) -> list[str]:
    """The lines that `work(descriptor)` wrote, in a process of its own, until that was killed."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            work(writing)
        except BaseException:  # whatever it is, it must not come back into the parent's code
            traceback.print_exc()
        os._exit(1)
    os.close(writing)
    time.sleep(after_s)
    os.kill(process, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(process, 0)[1]), "the process ended by itself"
    with os.fdopen(reading) as told:
        return told.read().splitlines()


def _work(folder: Path, draw: random.Random, told: int) -> None:
    with Store.create(folder) as store:
        while True:
            try:
                os.write(told, f"{_change(store, draw)}\n".encode())
            except (UsageError, DataError):
                pass
            except StorageError as error:
                if "was removed by gc" not in str(error):
                    raise


def _change(store: Store, draw: random.Random) -> str:
    """One random change, and what must be true from then on: a state that lasts, or that a generation exists."""
    kind = draw.choice(("add", "add", "activate", "activate", "reject", "rollback", "pin", "probe", "gc"))
    some = [generation.id for generation in store.generations()]
    if kind == "probe":
        store.journal.add_probe(KEY, statistic=0.1, threshold=1.0, tiles={}, mvms=MVMS)
        return PROBED
    if kind == "add" or not some:
        return store.add_candidate(made(draw.random(), channels=20_000), "added").id
    if kind == "gc":
        return " ".join(collect_garbage(store, keep=2, reason="room", older_than_s=0.0).generations)
    if kind == "rollback":
        return store.rollback(KEY, "worse").id
    change = {"activate": store.activate, "reject": store.reject, "pin": store.pin}[kind]
    return change(draw.choice(some), "asked").id


def _check(folder: Path, acknowledged: list[str], found: Counter[str]) -> None:
    if not (folder / "store.db").exists():  # killed before it was there at all
        assert not acknowledged
        found["not there yet"] += 1
        return
    with closing(sqlite3.connect(folder / "store.db")) as connection:
        found["not migrated yet"] += connection.execute("PRAGMA user_version").fetchone()[0] == 1
    found["left over"] += sum(1 for _ in (folder / "tensors").glob(".*"))
    with Store.open(folder) as store:
        rows = check_whole(folder)
        told = Counter(id_ for line in acknowledged for id_ in line.split())
        probes, mvms = store.journal.probe_totals(KEY)
        assert probes >= told.pop(PROBED, 0)
        assert mvms == probes * MVMS
        assert told.keys() <= {row["id"] for row in rows}
        found["probes"] += probes
        collect_garbage(store, keep=5, reason="room")
        assert not list((folder / "tensors").glob(".*"))
        assert not list(folder.glob(".*"))
        for generation in store.generations():
            store.record(generation.id)
        found["active"] += store.active_record(KEY) is not None


if __name__ == "__main__":
    print(json.dumps(kill_rounds(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))  # noqa: T201
