"""What models write on themselves belongs to one batch, and is gone when a measurement ends."""

from __future__ import annotations

import copy
import threading
from collections import deque
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import pimcal
from pimcal.calibration.divergence import divergences
from pimcal.calibration.dynamic import DynamicCalibration
from pimcal.calibration.estimate import estimate
from pimcal.calibration.gate import gate
from pimcal.evaluation import evaluate
from pimcal.metrics import resolve_metric
from pimcal.model_state import ModelState

MSE, AGREEMENT = resolve_metric("mse"), resolve_metric("agreement")
SIZED = {"calibration.batch_size": 8}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


class Plain:
    """An object of a class that is no module."""


class Keeper(nn.Module):
    """Two layers with norms; `keep` puts the input somewhere before the first, `kept` gets it behind the last."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.second, self.last = nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, x):
        self.keep(x)
        return self.last(self.second(self.norm(self.first(x)).relu())) + self.kept()


class Attribute(Keeper):
    def keep(self, x):
        self.skip = x

    def kept(self):
        return self.skip


class List(Keeper):
    def __init__(self):
        super().__init__()
        self.features = [[]]

    def keep(self, x):
        self.features[0].append(x)

    def kept(self):
        return self.features[0].pop()


class Dict(Keeper):
    def __init__(self):
        super().__init__()
        self.features = {"deep": (deque(), SimpleNamespace(x=None))}

    def keep(self, x):
        self.features["deep"][0].append(x)
        self.features["deep"][1].x = x

    def kept(self):
        return self.features["deep"][0].popleft() + self.features["deep"][1].x


class Counter(Keeper):
    def __init__(self):
        super().__init__()
        self.calls, self.register = 0, {}

    def keep(self, x):
        self.calls += 1
        self.register[self.calls] = x

    def kept(self):
        return self.register[self.calls]


class Buffer(Keeper):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("cache", None, persistent=False)

    def keep(self, x):
        self.mean.copy_(x.mean(0))
        self.cache = x

    def kept(self):
        return self.mean + self.cache


class Helper(Keeper):
    """A hook of an object that the model holds writes, the model reads."""

    def __init__(self):
        super().__init__()
        self.helper = Plain()
        self.helper.owner = self

    def keep(self, x):
        self.lock = threading.Lock()
        self.helper.x = x

    def kept(self):
        return self.helper.owner.helper.x


class BoundHook(Keeper):
    def __init__(self):
        super().__init__()
        self.first.register_forward_pre_hook(self.watch)

    def watch(self, module, args):
        self.seen = args[0]

    def keep(self, x):
        pass

    def kept(self):
        return self.seen


class HookOnTheWay(Keeper):
    """A hook that one forward registers and removes."""

    def keep(self, x):
        self.found = []
        self.handle = self.norm.register_forward_hook(lambda module, args, output: self.found.append(output))

    def kept(self):
        self.handle.remove()
        assert len(self.found) == 1
        return self.found[0]


class OfTheClass(Keeper):
    features: list[torch.Tensor] = []  # noqa: RUF012

    def keep(self, x):
        self.features.append(x)

    def kept(self):
        return self.features.pop()


class SubModule(Keeper):
    """One part of the model writes, another reads."""

    def keep(self, x):
        self.last.skip = x

    def kept(self):
        return self.last.skip


class Parameters(Keeper):
    """A parameter is made in the forward pass."""

    def keep(self, x):
        self.made = nn.Parameter(x.mean(0))

    def kept(self):
        return self.made


KEEPERS = (Attribute, List, Dict, Counter, Buffer, Helper, BoundHook, HookOnTheWay, OfTheClass, SubModule, Parameters)


def batches(count=4):
    return [torch.randn(8, 6) + i for i in range(count)]


def written(model):
    """What a forward pass can have written, to be compared."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    names = {name: sorted(map(str, vars(module))) for name, module in model.named_modules()}
    return state, names, str([copy.copy(vars(model).get(key)) for key in ("features", "calls", "register")])


def assert_same(before, after):
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())


@pytest.mark.parametrize("model", KEEPERS)
@pytest.mark.parametrize("method", ["paired", "affine", "pooled", "ema"])
def test_each_batch_has_what_it_wrote_itself_and_nothing_is_left_afterwards(open_backend, model, method):
    original = model().eval()
    net = pimcal.deploy(original, open_backend("ideal", SIZED))
    before = written(net.module), written(net.reference), written(original)
    outputs = []
    handle = net.module.register_forward_hook(lambda module, args, output: outputs.append((args[0], output)))

    record = pimcal.calibrate(net, batches(), method)

    handle.remove()
    assert_same(before[0], written(net.module))
    assert_same(before[1], written(net.reference))
    assert_same(before[2], written(original))
    assert len(outputs) == 4
    if method in ("paired", "affine"):
        assert all(torch.allclose(y, copy.deepcopy(original)(x)) for x, y in outputs)
        net.apply(record)
        x = torch.randn(5, 6)
        assert torch.equal(net(x), copy.deepcopy(original)(x))


class Memory(nn.Module):
    """Each batch is moved by the mean of all before it; a legitimate state from batch to batch."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.means = nn.Linear(6, 6), nn.BatchNorm1d(6), []

    def forward(self, x):
        self.means.append(x.mean(0))
        return self.norm(self.layer(x + sum(self.means)))


def test_ema_carries_a_memory_from_batch_to_batch(open_backend):
    net = pimcal.deploy(Memory().eval(), open_backend("ideal", SIZED))
    inputs = []
    net.module.layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    x = batches()

    pimcal.calibrate(net, x, "ema")

    means = [batch.mean(0) for batch in x]
    assert len(inputs) == 4
    for i, found in enumerate(inputs):
        torch.testing.assert_close(found, x[i] + sum(means[: i + 1]))
    assert net.module.means == []


@pytest.mark.parametrize("method", ["paired", "affine"])
def test_batches_in_lockstep_and_the_digital_model_start_where_the_network_is(open_backend, method):
    net = pimcal.deploy(Memory().eval(), open_backend("ideal", SIZED))
    for x in batches():
        net(x)
    kept = list(net.module.means)

    record = pimcal.calibrate(net, batches(), method)

    assert len(net.module.means) == 4
    assert all(a is b for a, b in zip(net.module.means, kept, strict=True))
    assert net.reference.means == []
    for name in ("mean", "var"):
        assert torch.equal(record.corrections["norm"][name], getattr(net.reference.norm, f"running_{name}"))


def test_evaluations_are_alike_and_both_sides_start_from_the_same_state(open_backend):
    original = Memory().eval()
    net = pimcal.deploy(original, open_backend("ideal", SIZED))
    net(torch.randn(8, 6) + 3)
    held_out = batches()
    for _ in range(2):
        assert evaluate(net, held_out, MSE).value == pytest.approx(0, abs=1e-10)
    assert len(net.module.means) == 1
    assert evaluate(original, held_out, AGREEMENT).value == 1
    assert original.means == net.reference.means == []


def test_neither_gate_nor_estimate_nor_divergences_leave_anything(open_backend):
    net = pimcal.deploy(Memory().eval(), open_backend("gaussian", {**SIZED, "device.noise": "mul", "device.eta0": 0.3}))
    net(torch.randn(8, 6) + 3)
    x = batches()
    record = pimcal.calibrate(net, x)
    gate(net, record, x, MSE, repeats=2)
    divergences(net, x)
    estimate(net, x[0], 32)
    assert (len(net.module.means), len(net.reference.means)) == (1, 0)


def test_dynamic_calibration_runs_the_digital_model_where_the_network_is(open_backend):
    net = pimcal.deploy(Memory().eval(), open_backend("ideal"))
    x = batches(3)
    for batch in x[:2]:
        net(batch)
    with DynamicCalibration(net, "paired", share=1.0) as dynamic:
        net(x[2])
    torch.testing.assert_close(dynamic.corrections["norm"]["mean"], net.reference.norm.running_mean)
    torch.testing.assert_close(dynamic.corrections["norm"]["var"], net.reference.norm.running_var)
    assert net.reference.means == []


def test_others_find_the_network_as_they_left_it_in_the_middle_of_a_calibration(open_backend):
    net = pimcal.deploy(Memory().eval(), open_backend("ideal", SIZED))
    guest, served = torch.randn(2, 6), []

    def pause():
        net(guest)
        served.append(len(net.module.means))

    for method in ("paired", "ema"):
        pimcal.calibrate(net, batches(), method, pause=pause)

    assert served == list(range(1, len(served) + 1))
    assert len(net.module.means) == len(served)


def test_tensors_of_any_kind_are_copied():
    model = nn.Linear(2, 2)
    with torch.inference_mode():
        model.made_there = torch.zeros(2)
    with torch.enable_grad():
        model.in_a_graph = [model(torch.zeros(1, 2))]
    model.sparse = torch.eye(2).to_sparse()
    model.twice = (model.sparse, {"again": model.sparse})
    state = ModelState(model)
    before = dict(vars(model))
    with state.apart():
        model.made_there.add_(1)
        model.in_a_graph[0].add_(1)
        model.sparse.mul_(3)
        assert model.twice[0] is model.sparse is model.twice[1]["again"]
        assert model.weight is before["_parameters"]["weight"]
        model.weight = nn.Parameter(torch.ones(2, 2))
    assert all(vars(model)[key] is value for key, value in before.items())
    assert not model.made_there.any()
    assert torch.equal(model.sparse.to_dense(), torch.eye(2))
    assert torch.equal(model.in_a_graph[0], model(torch.zeros(1, 2)))
