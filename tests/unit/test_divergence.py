"""KL and JS divergence against an independent recomputation, and which layers they look behind."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pimcal
from pimcal.calibration.divergence import BINS, divergence, divergences
from pimcal.errors import UsageError

counts = st.lists(st.integers(0, 1000), min_size=2, max_size=40)


def by_numpy(clean, noisy):
    p, q = (np.asarray(c, dtype=np.float64) + 0.5 for c in (clean, noisy))
    p, q = p / p.sum(), q / q.sum()
    m = (p + q) / 2

    def kl(a, b):
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    return kl(p, q), (kl(p, m) + kl(q, m)) / 2


@given(st.data())
def test_kl_and_js_equal_their_definitions(data):
    clean = data.draw(counts)
    noisy = data.draw(st.lists(st.integers(0, 1000), min_size=len(clean), max_size=len(clean)))
    found = divergence(torch.tensor(clean), torch.tensor(noisy))
    assert (found.kl, found.js) == pytest.approx(by_numpy(clean, noisy), abs=1e-12)


@given(counts)
def test_identical_histograms_have_no_divergence(values):
    found = divergence(torch.tensor(values), torch.tensor(values))
    assert (found.kl, found.js) == (0.0, 0.0)


@given(st.data())
def test_js_is_symmetric_and_at_most_ln_2(data):
    clean = torch.tensor(data.draw(counts))
    noisy = torch.tensor(data.draw(st.lists(st.integers(0, 1000), min_size=len(clean), max_size=len(clean))))
    forth, back = divergence(clean, noisy).js, divergence(noisy, clean).js
    assert forth == pytest.approx(back, abs=1e-12)
    assert -1e-12 <= forth <= math.log(2)


def test_histograms_that_do_not_overlap_come_close_to_ln_2():
    clean, noisy = torch.tensor([10**9, 0]), torch.tensor([0, 10**9])
    found = divergence(clean, noisy)
    assert found.js == pytest.approx(math.log(2), abs=1e-6)
    assert found.kl > 10


class Net(nn.Module):
    """A convolution with BatchNorm behind it, and a linear layer with none."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 16, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))


@torch.no_grad()
def test_activations_are_counted_behind_the_norm_or_at_a_layer_without_one(open_backend):
    """With noise that stays the same, the outputs can be had again and counted by numpy."""
    quiet = {"device.noise": "mul", "device.eta0": 0.4, "device.sigma_temporal": 0.0}
    model, batches = Net().eval(), [torch.randn(8, 1, 6, 6) for _ in range(3)]
    net = pimcal.deploy(model, open_backend("gaussian", quiet))

    found = divergences(net, batches)

    assert list(found) == ["norm", "fc"]
    for name in found:
        clean, noisy = (outputs_at(part, run, name, batches) for part, run in ((model, model), (net.module, net)))
        low, high = clean[0].min(), clean[0].max()  # the first batch sets the range

        def count(values, low=low, high=high):
            edges = np.linspace(low, high, BINS + 1)
            return np.histogram(np.clip(np.concatenate(values), low, high), edges)[0]

        assert (found[name].kl, found[name].js) == pytest.approx(by_numpy(count(clean), count(noisy)), rel=1e-2)
        assert found[name].js > 0.01


def outputs_at(module, run, name, batches):
    seen = []
    handle = module.get_submodule(name).register_forward_hook(lambda _m, _a, y: seen.append(y.numpy().ravel().copy()))
    for batch in batches:
        run(batch)
    handle.remove()
    return seen


@torch.no_grad()
def test_an_ideal_device_bends_nothing(open_backend):
    net = pimcal.deploy(Net().eval(), open_backend("ideal"))
    assert all(layer.js < 1e-6 for layer in divergences(net, [torch.randn(8, 1, 6, 6)]).values())


@torch.no_grad()
def test_corrections_in_force_are_looked_through(open_backend):
    model, images = Net(), [torch.randn(16, 1, 6, 6) for _ in range(4)]
    model(torch.cat(images))
    net = pimcal.deploy(model.eval(), open_backend("gaussian", {"device.noise": "mul", "device.eta0": 0.5}))
    before = divergences(net, images)
    net.apply(pimcal.calibrate(net, images, "affine"))
    after = divergences(net, images)
    assert all(after[name].js < before[name].js / 2 for name in before)


def test_nothing_is_left_hooked_after_a_failure(open_backend):
    net = pimcal.deploy(Net().eval(), open_backend("ideal"))
    with pytest.raises(UsageError, match="expected input"):
        divergences(net, [torch.randn(2, 1, 6, 6), torch.randn(2, 3, 6, 6)])
    for model in (net.module, net.reference):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
