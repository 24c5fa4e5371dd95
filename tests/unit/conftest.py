"""Fixtures of the command line's tests: a small network on disk, and `pimcal` run in this process."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NETWORK = """
import torch
from torch import nn


def conv(inputs, outputs):
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def net():
    return nn.Sequential(*conv(1, 8), *conv(8, 8), *conv(8, 8), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4))


def without_norm():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 4))


def without_product():
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36))


def minus_accuracy(outputs, labels):
    return -float((outputs.argmax(1) == labels).float().mean())
"""


@dataclass(frozen=True)
class Lab:
    """A network that is right on all its images, as files; `folder` has nothing else in it."""

    folder: Path

    @property
    def network(self) -> str:
        return str(self.folder / "network.py")

    @property
    def weights(self) -> str:
        return str(self.folder / "weights.safetensors")

    @property
    def data(self) -> str:
        return f"npz:{self.folder / 'images.npz'}"

    def on(self, profile: str = "gaussian_mul", *, data: bool = True) -> list[str]:
        """The options that every run needs."""
        options = ["--profile", profile, "--model", f"{self.network}:net", "--weights", self.weights]
        return [*options, "--data", self.data] if data else options


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """All of stdout, which must be one JSON object."""
        assert self.code == 0, self.err
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


Run = Callable[..., Finished]


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """400 random images, labelled by the network itself after its BatchNorms have seen them."""
    import numpy as np
    import torch
    from safetensors.torch import save_file

    from pimcal.sources.objects import resolve

    made = Lab(tmp_path_factory.mktemp("lab"))
    Path(made.network).write_text(NETWORK)
    torch.manual_seed(0)
    model, images = resolve(f"{made.network}:net").make(), torch.randn(400, 1, 6, 6)
    for name, module in model.named_modules():
        if hasattr(module, "momentum"):
            model.get_submodule(name).momentum = None  # a plain average
    with torch.no_grad():
        model(images)
        model.eval()
        model[-1].bias -= model(images).mean(0)  # no class is rare
        labels = model(images).argmax(1)
    assert labels.bincount(minlength=4).min() > 50
    save_file(model.state_dict(), made.weights)
    np.savez(made.folder / "images.npz", images=images.numpy(), labels=labels.numpy())
    return made


@pytest.fixture
def pimcal_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`pimcal_run("evaluate", ...)` runs the command in an empty folder; every command must end by leaving."""
    from pimcal.cli.app import main

    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*arguments: str) -> Finished:
        monkeypatch.setattr(sys, "argv", ["pimcal", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        code = left.value.code
        assert isinstance(code, int | None)
        return Finished(code or 0, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Boards as processes of their own, see `board_peers`."""
    from .board_peers import Peers

    return Peers(tmp_path_factory.mktemp("peers"))


@pytest.fixture(scope="session")
def nursery() -> Iterator[Any]:
    """A process that has imported everything; its children start at once."""
    from .board_peers import nursery

    with nursery() as process:
        yield process


@pytest.fixture
def hosts(nursery: Any, tmp_path: Path) -> Any:
    """`pimcal` as a real process, see `board_peers`."""
    from .board_peers import Hosts

    return Hosts(nursery, tmp_path)


@pytest.fixture
def daemon(hosts: Any, lab: Lab) -> Iterator[Any]:
    """`pimcal daemon`, once it was started; it does not outlive the test."""
    from .daemons import Daemon

    made = Daemon(hosts, lab)
    yield made
    if hosts.process_id is not None and not made.has_ended():
        made.kill(signal.SIGKILL)
        made.wait()
