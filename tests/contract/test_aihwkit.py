"""The contract, for aihwkit's device models: each kind of noise, of scaling, and of what computes the products."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("aihwkit", reason="needs aihwkit: pip install 'pimcal[aihwkit]'")

from pimcal.backend import Backend
from pimcal.testing import BackendContract
from pimcal_aihwkit.backend import Aihwkit
from pimcal_aihwkit.settings import AihwkitSettings

BOUNDED = SimpleNamespace(count=3, rows=24, cols=16)
SINGLE = SimpleNamespace(count=3, rows=1, cols=1)
PERFECT = {"perfect": True}
QUIET = {"output_noise": 0.0}  # converters, but no draw: aihwkit's C++ tile takes the noise of products from the clock
BY_COLUMN = {"weight_scaling": "column"}


def device_part(**parts: Any) -> AihwkitSettings:
    """What a profile's `device:` part says."""
    return AihwkitSettings.model_validate_json(json.dumps(parts))


class AihwkitContract(BackendContract):
    """A subclass says how far its products may be off; where noise is drawn for each product, they do not repeat."""

    settings = device_part()
    tiles = BOUNDED

    def open_backend(self) -> Backend:
        return Aihwkit(self.settings, self.tiles)


class TestPcm(AihwkitContract):
    relative_error = 0.22
    repeat_error = 0.13


class TestIdeal(AihwkitContract):
    settings = device_part(noise={"kind": "none"}, forward=PERFECT)


class TestIdealWithColumnScaling(AihwkitContract):
    settings = device_part(noise={"kind": "none"}, forward=PERFECT, mapping=BY_COLUMN)


class TestIdealWithOneCell(TestIdeal):
    tiles = SINGLE


class TestPcmWithPerfectProducts(AihwkitContract):
    relative_error = 0.15
    settings = device_part(forward=PERFECT, mapping=BY_COLUMN)


class TestPcmWithOneCell(TestPcmWithPerfectProducts):
    tiles = SINGLE


class TestReram(AihwkitContract):
    relative_error = 0.28
    settings = device_part(noise={"kind": "reram"}, forward=PERFECT)


class TestReramWithOneCell(TestReram):
    tiles = SINGLE


class TestReramCmo(AihwkitContract):
    relative_error = 0.01
    settings = device_part(noise={"kind": "reram_cmo"}, forward=PERFECT)


class TestHermes(AihwkitContract):
    relative_error = 0.2
    settings = device_part(noise={"kind": "hermes"}, forward=PERFECT)


class TestHermesWithOneDeviceForAWeight(AihwkitContract):
    relative_error = 0.3
    settings = device_part(noise={"kind": "hermes", "devices": 1}, forward=PERFECT)


class TestCustom(AihwkitContract):
    relative_error = 0.06
    settings = device_part(noise={"kind": "custom"}, forward=PERFECT)


class TestConvertersAlone(AihwkitContract):
    relative_error = 0.02
    settings = device_part(noise={"kind": "none"}, forward=QUIET)


class TestTorchTile(AihwkitContract):
    relative_error = 0.22
    repeat_error = 0.13
    settings = device_part(tile="torch")


class TestCppTile(AihwkitContract):
    relative_error = 0.18
    settings = device_part(tile="cpp", forward=QUIET)


class TestStandardPreset(AihwkitContract):
    relative_error = 0.32
    repeat_error = 0.27
    settings = device_part(preset="StandardHWATrainingPreset")
