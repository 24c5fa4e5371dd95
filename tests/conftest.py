"""Fixtures of all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings

import pimcal

# No test asserts a time. CI draws the same examples each time, so that it tells of a change and not of luck; whoever
# runs the tests elsewhere looks for new ones.
settings.register_profile("pimcal", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("pimcal")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """More than there are cores, as tests wait a quarter of their time, for processes, links and clocks."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + max(1, cores // 2)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with CIFAR-10, CamVid and trained ResNets, which is no part of the project."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("PIMCAL_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"needs the shared data, and {folder} is absent; set PIMCAL_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def open_backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., pimcal.Device]]:
    """`open_backend("plain", {"tiles.rows": 8})` opens a device of any backend; it is closed after the tests."""
    folder = tmp_path_factory.mktemp("profiles")
    with ExitStack() as opened:

        def open_it(backend: str, overrides: dict[str, object] | None = None) -> pimcal.Device:
            path = folder / f"{backend}.yaml"
            path.write_text(f"schema: pimcal/1\nbackend: {backend}\n")
            return opened.enter_context(pimcal.open_device(str(path), overrides))

        yield open_it


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random networks and images are the same in every run of a test."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)  # tensors are tiny here, and tests may run side by side
