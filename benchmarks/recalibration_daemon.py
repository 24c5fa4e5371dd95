"""A daemon as a process, as the tests run it, with a small network; and what must hold of its store at any moment."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from pimcal.sources.objects import resolve
from pimcal.store import Generation, Store
from pimcal.store.events import Event

# How the tests run processes, and check stores with SQLite and hashlib alone.
sys.path.append(str(Path(__file__).parents[1] / "tests" / "unit"))

from board_peers import Cable as Cable
from board_peers import Hosts, nursery
from board_peers import Peers as Peers
from daemons import Daemon
from store_kills import told_until_killed as told_until_killed
from store_records import check_whole
from store_records import made as made

TESTS = Path(__file__).parents[1] / "tests" / "unit"
LINES = 50  # of the log of a daemon that did what it must not
NETWORK = """
from torch import nn


def conv(inputs, outputs):
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def net():
    return nn.Sequential(*conv(1, 8), *conv(8, 8), *conv(8, 8), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4))
"""
IMAGES = 400


@dataclass(frozen=True)
class Lab:
    """A network, its weights and labelled images, as the command line takes them."""

    network: str
    weights: str
    data: str


def laboratory(folder: Path) -> Lab:
    """Random images, labelled by the network itself after its BatchNorms have seen them."""
    found = Lab(str(folder / "network.py"), str(folder / "weights.safetensors"), f"npz:{folder / 'images.npz'}")
    Path(found.network).write_text(NETWORK)
    torch.manual_seed(0)
    model, images = resolve(f"{found.network}:net").make(), torch.randn(IMAGES, 1, 6, 6)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain average
    with torch.no_grad():
        model(images)
        model.eval()
        model[-1].bias -= model(images).mean(0)  # no class is rare
        labels = model(images).argmax(1)
    save_file(model.state_dict(), found.weights)
    np.savez(folder / "images.npz", images=images.numpy(), labels=labels.numpy())
    return found


@contextmanager
def daemon_process() -> Iterator[Daemon]:
    """A daemon to be started, in a folder of its own (`store`'s parent); ended with the block. After an exception the
    end of its log is on stderr."""
    with tempfile.TemporaryDirectory() as folder, nursery() as process:
        hosts = Hosts(process, Path(folder))
        daemon = Daemon(hosts, laboratory(Path(folder)))
        try:
            yield daemon
        except BaseException:
            print(*Path(folder, "err").read_text().splitlines()[-LINES:], sep="\n", file=sys.stderr)
            raise
        finally:
            if hosts.process_id is not None and not daemon.has_ended():
                daemon.kill(signal.SIGKILL)
                daemon.wait()


@dataclass(frozen=True)
class Contents:
    """What a store holds: all events, the ids of all generations there ever were, and of the one that is active."""

    events: tuple[Event, ...] = ()
    generations: frozenset[str] = frozenset()
    active: str | None = None

    def follows(self, earlier: Contents) -> bool:
        """Whether nothing of what was there earlier is gone, or different."""
        return self.events[: len(earlier.events)] == earlier.events and earlier.generations <= self.generations


def read_whole(folder: Path) -> Contents:
    """Read a store of one device and model, and find it whole.

    AssertionError where it is not: a generation's tensors do not load or have another hash, not exactly one generation
    is active (none before the first activation), the active one is not the one that was activated last.
    """
    if not (folder / "store.db").exists():
        return Contents()
    with Store.open(folder, read_only=True) as store:
        generations, events = at_one_time(store)
        for generation in generations:
            if generation.collected_at is None:
                store.record(generation.id)
    active = [one.id for one in generations if one.state == "active"]
    assert active == [event.generation for event in events if event.kind == "activated"][-1:], (active, events)
    return Contents(events, frozenset(one.id for one in generations), active[0] if active else None)


def at_one_time(store: Store) -> tuple[list[Generation], tuple[Event, ...]]:
    """Generations and events that belong together, whoever is writing."""
    before = None
    while True:
        events, generations = tuple(store.journal.history(limit=None)), store.generations(collected=True)
        if events == before:
            return generations, events
        before = events


def check_files(folder: Path) -> None:
    """The same, of the files of a store that nobody has open; takes a killed writer's log in."""
    if (folder / "store.db").exists():
        check_whole(folder)
