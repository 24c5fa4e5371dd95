"""An open device: where its tensors are, and what it refuses once closed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import pimcal
from pimcal.device import Device
from pimcal.errors import DeviceUnavailableError
from pimcal.ideal import Ideal


class Moving(Ideal):
    """Notes where `to` sends it and where its weights come from."""

    def __init__(self, settings: Any, tiles: Any) -> None:
        super().__init__(settings, tiles)
        self.sent = [torch.device("cpu")]
        self.programmed: list[torch.device] = []

    def to(self, torch_device: torch.device) -> None:
        self.sent.append(torch_device)

    def program(self, tile: int, weights: torch.Tensor) -> None:
        self.programmed.append(weights.device)
        super().program(tile, torch.zeros(weights.shape))


class Fixed(Ideal):
    """A device that stays where it is: it has no `to` of its own."""

    to = pimcal.Backend.to

    def matmul(self, tile: int, inputs: torch.Tensor) -> torch.Tensor:
        assert inputs.device.type == "cpu"
        return super().matmul(tile, inputs)


def device_of_kind(kind: type[Ideal]) -> Device:
    profile = pimcal.load_profile("ideal")
    return Device(kind(profile.settings, profile.tiles), profile)


def test_weights_are_programmed_where_the_network_is() -> None:
    device = device_of_kind(Moving)
    device.to(torch.device("meta"))  # a torch device that every machine has
    device.program(0, torch.ones(3, 2))
    assert device.backend.programmed == [torch.device("meta")]  # type: ignore[attr-defined]


def test_restored_state_follows_the_network() -> None:
    device = device_of_kind(Moving)
    device.to(torch.device("meta"))
    device.load_state_dict({"tiles": {}})
    assert device.backend.sent[1:] == [torch.device("meta")] * 2  # type: ignore[attr-defined]


def test_a_device_that_does_not_move_gets_everything_on_the_cpu() -> None:
    device = device_of_kind(Fixed)
    device.to(torch.device("meta"))
    device.program(0, torch.ones(3, 2))
    assert device.backend.effective_weights(0).device.type == "cpu"
    assert device.effective_weights(0).device.type == "meta"
    device.to(torch.device("cpu"))
    assert device.matmul(0, torch.ones(4, 3)).tolist() == [[3.0, 3.0]] * 4


def test_layers_of_a_closed_device_refuse_to_multiply_however_they_are_called() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    with pimcal.open_device("ideal") as device:
        net = pimcal.deploy(model, device)
    with pytest.raises(DeviceUnavailableError, match="closed"):
        net.module(torch.ones(1, 3))
    with pytest.raises(DeviceUnavailableError, match="closed"):
        device.new_batch()
