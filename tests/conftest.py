"""Fixtures of all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("pimcal", deadline=None)  # no test asserts a time
settings.load_profile("pimcal")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with CIFAR-10, CamVid and trained ResNets, which is no part of the project."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("PIMCAL_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"needs the shared data, and {folder} is absent; set PIMCAL_DATA to its folder")
    return folder
