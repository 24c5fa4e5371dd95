"""The cost that is told before a run is the cost that is paid."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pimcal
from pimcal.calibration.estimate import estimate, vectors_per_input
from pimcal.device import Device
from pimcal.ideal import Ideal, IdealSettings


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=2), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 3),
    ).eval()  # fmt: skip


def images(count):
    return torch.randn(count, 2, 8, 8)


def test_vectors_of_one_input_are_the_positions_of_each_layer(open_backend):
    net = pimcal.deploy(cnn(), open_backend("ideal"))
    assert vectors_per_input(net, images(5)) == {"0": 16, "3": 4, "6": 1}


@given(
    rows=st.integers(1, 40),
    cols=st.integers(4, 12),
    references=st.integers(0, 2),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
)
def test_evaluating_costs_the_products_that_were_told(open_backend, rows, cols, references, sizes):
    options = {"tiles.rows": rows, "tiles.cols": cols, "references.offset": references}
    device = open_backend("ideal", options)
    net, batches = pimcal.deploy(cnn(), device), [images(n) for n in sizes]
    told = estimate(net, batches[0], sum(sizes))
    start = device.cost.mvms
    for batch in batches:
        with torch.no_grad():
            net(batch)
    assert (told.images, told.mvms) == (sum(sizes), device.cost.mvms - start)


@pytest.mark.parametrize("method", ["paired", "affine", "pooled", "ema"])
@pytest.mark.parametrize("tiles", [{}, {"tiles.count": 3, "tiles.rows": 18, "tiles.cols": 6}])
def test_calibrating_costs_the_products_that_were_told(open_backend, method, tiles):
    net = pimcal.deploy(cnn(), open_backend("gaussian", {"device.noise": "add", "device.eta0": 0.1, **tiles}))
    assert (net.placement.loads > 1) == bool(tiles)  # with few tiles the layers take turns
    batches = [images(16), images(16), images(7)]
    told = estimate(net, batches[0], 39, method)
    assert pimcal.calibrate(net, batches, method).made_with.mvms == told.mvms


def test_a_layer_that_is_called_twice_is_counted_twice(open_backend):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(input=self.fc(x))

    device = open_backend("ideal")
    net = pimcal.deploy(Twice(), device)
    start = device.cost.mvms
    net(torch.randn(3, 4))
    assert estimate(net, torch.randn(2, 4), 3).mvms == device.cost.mvms - start == 6


def test_estimating_costs_the_device_nothing_and_leaves_no_hook(open_backend):
    device = open_backend("ideal")
    net = pimcal.deploy(cnn(), device)
    before = device.cost.copy()
    estimate(net, images(4), 1000, "paired")
    assert device.cost == before
    assert not any(module._forward_hooks for module in net.reference.modules())


class Chip(Ideal):
    """A device of known speed; its errors are not in its weights."""

    mvm_s = 1e-3

    @property
    def capabilities(self):
        return dataclasses.replace(super().capabilities, effective_weights=False, mvm_s=self.mvm_s)


class UnknownChip(Chip):
    mvm_s = None


def clock(seconds):
    ticks = itertools.count()
    return lambda: seconds * next(ticks)


def deployed(open_backend, chip):
    """On a device whose clock says that each batch takes 1 s."""
    profile = open_backend("ideal").profile
    return pimcal.deploy(cnn(), Device(chip(IdealSettings(), profile.tiles), profile, clock(1.0)))


def test_seconds_come_from_the_speed_that_a_device_states(open_backend):
    net = deployed(open_backend, Chip)
    found = estimate(net, images(8), 100)
    assert found.seconds == pytest.approx(found.mvms * 1e-3)


@pytest.mark.parametrize(("method", "digital"), [("ema", 0), ("pooled", 0), ("paired", 1), ("affine", 1)])
def test_methods_that_compare_with_the_digital_model_also_pay_for_that(open_backend, method, digital):
    found = estimate(deployed(open_backend, Chip), images(8), 100, method, clock(2.0))
    assert found.seconds == pytest.approx(found.mvms * 1e-3 + digital * 2.0 / 8 * 100)  # 2 s for 8 images


def test_seconds_of_an_unknown_device_come_from_its_runs_so_far(open_backend):
    net = deployed(open_backend, UnknownChip)
    assert estimate(net, images(8), 100).seconds is None
    net(images(5))
    one = estimate(net, images(8), 5)
    assert (one.mvms, one.seconds) == (net.device.cost.mvms, pytest.approx(1.0))
    assert estimate(net, images(8), 100).seconds == pytest.approx(20.0)


def test_seconds_on_a_simulator_are_those_of_the_digital_model(open_backend):
    net = pimcal.deploy(cnn(), open_backend("ideal"))
    assert estimate(net, images(20), 100, clock=clock(4.0)).seconds == pytest.approx(4.0 / 8 * 100)
    assert estimate(net, images(2), 100, clock=clock(4.0)).seconds == pytest.approx(4.0 / 2 * 100)
