"""A small network and devices that age, for the tests of recalibration."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import pimcal
from pimcal.deployment import Deployment
from pimcal.device import Device, open_device
from pimcal.errors import UsageError
from pimcal.ideal import Ideal


def network() -> nn.Module:
    """Three device layers with statistics that fit their inputs; logits of 5 classes."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(2, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Flatten(), nn.Linear(144, 5),
    )  # fmt: skip
    with torch.no_grad():
        for _ in range(200):
            model(images(64, seed=5))
    return model.eval()


def images(count: int, seed: int) -> Tensor:
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def batches(count: int, seed: int, size: int = 16) -> list[Tensor]:
    return list(images(count, seed).split(size))


@contextmanager
def on_gaussian(noise: str = "mul", **settings: Any) -> Iterator[Deployment]:
    """The network on a Gaussian device whose eta0 grows by its initial value each second, unless told otherwise."""
    settings = {"drift": {"kind": "linear", "rate_per_s": 1.0}, **settings}
    with open_device(f"gaussian_{noise}", {f"device.{key}": value for key, value in settings.items()}) as device:
        yield pimcal.deploy(network(), device)


class Faulty(Ideal):
    """Exact products, save for tiles with a factor of their own, and those that fail or answer NaN."""

    def __init__(self) -> None:
        profile = pimcal.load_profile("ideal")
        super().__init__(profile.settings, profile.tiles)
        self.factors: dict[int, float] = {}
        self.failing: dict[int, Exception] = {}

    @property
    def capabilities(self) -> pimcal.Capabilities:
        return pimcal.Capabilities(identity="faulty")

    def matmul(self, tile: int, inputs: Tensor) -> Tensor:
        if tile in self.failing:
            raise self.failing[tile]
        return super().matmul(tile, inputs) * self.factors.get(tile, 1.0)


def on_faulty() -> tuple[Deployment, Faulty]:
    backend = Faulty()
    device = Device(backend, pimcal.load_profile("ideal"), itertools.count().__next__)
    return pimcal.deploy(network(), device), backend


REFUSED = UsageError("tile 1 refuses to multiply")
