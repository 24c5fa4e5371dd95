"""What a run will cost, told before it is started."""

import dataclasses

import pytest
import torch
from torch import nn

import pimcal
from pimcal.calibration.estimate import estimate, vectors_per_input
from pimcal.device import Device
from pimcal.ideal import Ideal, IdealSettings


def network():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))


@torch.no_grad()
@pytest.mark.parametrize("backend", ["ideal", "plain"])
def test_products_are_exactly_what_the_run_then_costs(open_backend, backend):
    net = pimcal.deploy(network(), open_backend(backend, {"tiles.rows": 8}))
    x = torch.randn(6, 2, 5, 5)

    told = estimate(net, x, 6, "paired")
    record = pimcal.calibrate(net, [x], "paired")
    before = net.device.cost.mvms
    net(x)

    assert told.mvms == record.made_with.mvms == net.device.cost.mvms - before


@torch.no_grad()
def test_nothing_runs_on_the_device_for_an_estimate(open_backend):
    net = pimcal.deploy(network(), open_backend("plain"))

    estimate(net, torch.randn(2, 2, 5, 5), 100, "affine")

    assert net.device.cost.mvms == 0


@torch.no_grad()
def test_seconds_come_from_the_devices_own_speed_where_it_states_one(open_backend):
    class Timed(Ideal):
        @property
        def capabilities(self):
            return dataclasses.replace(super().capabilities, mvm_s=1e-3)

    profile = open_backend("ideal").profile
    net = pimcal.deploy(network(), Device(Timed(IdealSettings(), profile.tiles), profile))

    told = estimate(net, torch.randn(2, 2, 5, 5), 100)

    assert told.mvms == 100 * (9 + 1)
    assert told.seconds == pytest.approx(1.0)


@torch.no_grad()
def test_the_speed_of_a_device_that_never_ran_is_not_known(open_backend):
    net, x = pimcal.deploy(network(), open_backend("plain")), torch.randn(2, 2, 5, 5)

    assert estimate(net, x, 10).seconds is None
    net(x)
    cost = net.device.cost
    assert estimate(net, x, 10).seconds == pytest.approx(100 * cost.seconds / cost.mvms)


@torch.no_grad()
def test_layers_inside_torchs_fast_path_are_counted(open_backend):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    net = pimcal.deploy(model, open_backend("ideal", {"host": ["layers.*.linear*"]}))

    found = vectors_per_input(net, torch.randn(3, 5, 8))

    assert found == {f"layers.0.self_attn.{part}": 5 for part in ("q_proj", "k_proj", "v_proj", "out_proj")}


@torch.no_grad()
def test_shared_layers_and_keywords_are_counted(open_backend):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(input=self.layer(x))

    net = pimcal.deploy(Model(), open_backend("ideal"))

    assert vectors_per_input(net, torch.randn(3, 4)) == {"layer": 2}
