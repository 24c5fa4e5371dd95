"""Layers of a deployed network inside torch.vmap and torch.func: right numbers, or a refusal that says so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pimcal
from pimcal.calibration.divergence import divergences
from pimcal.calibration.estimate import estimate
from pimcal.errors import UsageError
from pimcal.evaluation import evaluate
from pimcal.metrics import resolve_metric

EXACT = {"device.noise": "mul", "device.eta0": 1e-6}
DEVICES = [("ideal", {}), ("gaussian", EXACT), ("gaussian", {**EXACT, "io.input_bits": 8}), ("board_virtual", {})]
SMOOTH, ROUNDED = DEVICES[:2], DEVICES[2:]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def deployed(open_backend):
    def deploy(model, device):
        name, overrides = device
        if name != "board_virtual":
            return pimcal.deploy(model, open_backend(name, overrides))
        quiet = {"device.simulator": {"tiles": 8, "rows": 64, "cols": 64}}
        return pimcal.deploy(model, open_backend("serial", {"device.port": "sim:", **quiet}))

    return deploy


class Inside(nn.Module):
    """Its layers run inside vmap: batched and unbatched, nested and over other dimensions than the first."""

    def __init__(self):
        super().__init__()
        self.linear, self.conv, self.norm = nn.Linear(6, 6), nn.Conv1d(6, 4, 3), nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        y = torch.vmap(self.linear, in_dims=1, out_dims=1)(x)
        y = torch.vmap(self.conv)(y.transpose(1, 2))
        y = self.norm(y).relu().transpose(1, 2)
        return torch.vmap(torch.vmap(self.head))(y)


def plain(model, x):
    y = model.conv(model.linear(x).transpose(1, 2))
    return model.head(model.norm(y).relu().transpose(1, 2))


def close(found, wanted, device):
    share = 0.03 if device in ROUNDED else 1e-4
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=share * float(wanted.abs().max()))


@pytest.mark.parametrize("device", DEVICES)
def test_layers_inside_vmap_give_what_they_give_outside_at_the_same_cost(deployed, device):
    model, x = Inside().eval(), torch.randn(5, 7, 6)
    net = deployed(model, device)
    before = net.device.cost.mvms
    found = net(x)
    blocks = {name: len(layer.matrix.placed.blocks) for name, layer in net.layers.items()}
    close(found, plain(model, x), device)
    assert net.device.cost.mvms - before == 35 * blocks["linear"] + 25 * blocks["conv"] + 25 * blocks["head"]
    assert estimate(net, x, 5).mvms == net.device.cost.mvms - before
    assert evaluate(net, [x], resolve_metric("agreement")).value > 0.7


@pytest.mark.parametrize("device", DEVICES)
def test_a_whole_network_inside_vmap(deployed, device):
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), torch.randn(5, 3, 6)
    net = deployed(model, device)
    before = net.device.cost.mvms
    close(torch.vmap(net)(x), model(x), device)
    assert net.device.cost.mvms - before == 30
    close(torch.vmap(net)(x[:, 0]), model(x[:, 0]), device)


@pytest.mark.parametrize("device", SMOOTH)
def test_derivatives_are_those_of_the_products_where_nothing_is_rounded(deployed, device):
    model, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).eval(), torch.randn(3, 6)
    net = deployed(model, device)
    for of in (
        lambda f: torch.func.grad(lambda x: f(x).sum())(x),
        lambda f: torch.func.jacrev(f)(x),
        lambda f: torch.func.jvp(f, (x,), (x + 1,))[1],
        lambda f: torch.func.vjp(f, x)[1](torch.ones(3, 4))[0],
        lambda f: torch.vmap(torch.func.grad(lambda x: f(x).sum()))(x),
    ):
        close(of(net), of(model), device)


@pytest.mark.parametrize("device", ROUNDED)
def test_a_device_that_rounds_refuses_to_be_differentiated(deployed, device):
    net, x = deployed(nn.Sequential(nn.Linear(6, 4)).eval(), device), torch.randn(3, 6)
    for of in (
        lambda: torch.func.grad(lambda x: net(x).sum())(x),
        lambda: torch.func.jvp(net, (x,), (x,)),
        lambda: torch.vmap(torch.func.grad(lambda x: net(x).sum()))(x),
    ):
        with pytest.raises(UsageError, match=r"layer 0 is called inside torch\.func\.grad, vjp or jvp"):
            of()


@pytest.mark.parametrize("device", DEVICES)
def test_what_runs_inside_vmap_is_not_measured_and_what_runs_outside_is(deployed, device):
    net, batches = deployed(Inside().eval(), device), [torch.randn(16, 7, 6) for _ in range(2)]
    with pytest.raises(UsageError, match=r"linear is called inside torch\.vmap or another transform"):
        pimcal.calibrate(net, batches, "affine")
    with pytest.raises(UsageError, match=r"inside torch\.vmap"):
        divergences(net, batches)
    for method in ("paired", "pooled", "ema"):
        assert set(pimcal.calibrate(net, batches, method).corrections) == {"norm"}


def test_a_network_that_takes_turns_says_so_too(open_backend):
    net = pimcal.deploy(Inside().eval(), open_backend("ideal", {"tiles.count": 1, "tiles.rows": 20, "tiles.cols": 8}))
    assert net.placement.loads > 1
    with pytest.raises(UsageError, match=r"linear is called inside torch\.vmap"):
        pimcal.calibrate(net, [torch.randn(16, 7, 6) for _ in range(2)], "paired")
