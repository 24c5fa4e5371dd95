"""Normalisations of one's own, branches without images, and batches too small to tell a spread."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import pimcal
from pimcal.calibration.divergence import divergences
from pimcal.calibration.dynamic import DynamicCalibration
from pimcal.calibration.meter import channel_dim
from pimcal.errors import DataError

GAIN = {"device.noise": "mul", "device.eta0": 0.5, "device.sigma_spatial": 0.0, "device.sigma_temporal": 0.0}
METHODS = ("paired", "affine", "pooled", "ema")


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def filled(norm, channels):
    norm.running_mean.copy_(torch.linspace(-1, 1, channels).reshape(norm.running_mean.shape))
    norm.running_var.copy_(torch.linspace(0.5, 2, channels).reshape(norm.running_var.shape))
    return norm.eval()


class Own(nn.Module):
    """Normalises one dimension, whatever the shape of its statistics; `after` is done to the result."""

    def __init__(self, channels, dim, *, stats=None, kind="buffer", after=None, before=None, eps=1e-5):
        super().__init__()
        for name in ("running_mean", "running_var"):
            value = torch.ones(stats or (channels,))
            if kind == "buffer":
                self.register_buffer(name, value)
            else:
                setattr(self, name, nn.Parameter(value, requires_grad=False) if kind == "parameter" else value)
        self.channels, self.dim, self.after, self.before, self.eps = channels, dim, after, before, eps
        filled(self, channels)

    def forward(self, x):
        along = [self.channels if d == self.dim % x.dim() else 1 for d in range(x.dim())]
        mean, var = self.running_mean.reshape(along), self.running_var.reshape(along)
        x = x if self.before is None else self.before(x)
        y = (x - mean) / (var + self.eps).sqrt()
        return y if self.after is None else self.after(y)


class LastAxis(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x.transpose(1, -1)).transpose(1, -1)


class Activated(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize(
    ("norm", "shape", "dim"),
    [
        (nn.BatchNorm1d(12), (5, 12), 1),
        (nn.BatchNorm2d(12), (5, 12, 12, 12), 1),
        (Activated(12), (5, 12, 12, 12), 1),
        (FrozenBatchNorm2d(12), (5, 12, 12, 3), 1),
        (nn.InstanceNorm1d(12, track_running_stats=True), (5, 12, 12), 1),
        (LastAxis(12), (5, 7, 12), 2),
        (LastAxis(12), (12, 12, 12), 2),
        (Own(12, -1), (5, 7, 12), 2),
        (Own(12, -1), (12, 12, 12, 12), 3),
        (Own(12, 1, stats=(1, 12, 1, 1)), (5, 12, 12, 12), 1),
        (Own(12, 2, kind="parameter"), (5, 7, 12), 2),
        (Own(12, 2, kind="attribute", after=torch.relu), (12, 12, 12), 2),
        (Own(12, -1, before=torch.abs), (5, 7, 12), None),
        (Own(12, -1, before=lambda x: x.flip(-1)), (5, 7, 12), None),
    ],
)
def test_the_dimension_of_the_channels_is_found_or_nothing_is(norm, shape, dim):
    norm = norm if isinstance(norm, Own) else filled(norm, 12)
    before = norm.running_mean.clone(), norm.running_var.clone(), norm.running_mean
    assert channel_dim(norm, torch.randn(shape) * 2 + 1) == dim
    assert torch.equal(norm.running_mean, before[0])
    assert torch.equal(norm.running_var, before[1])
    assert norm.running_mean is before[2]


class Tokens(nn.Module):
    """[N, 7, 6] -> [N, 7, 12], normalised along the last dimension."""

    def __init__(self, norm):
        super().__init__()
        self.layer, self.norm, self.head = nn.Linear(6, 12), norm, nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.norm(self.layer(x)).relu())


def last_moments(values):
    flat = values.double().flatten(0, -2)
    return flat.mean(0), flat.var(0, correction=0), flat.var(0)


@pytest.mark.parametrize("stats", [(12,), (1, 1, 12)])
@pytest.mark.parametrize("method", METHODS)
def test_a_norm_over_the_last_dimension_gets_the_statistics_of_that_dimension(open_backend, method, stats):
    net = pimcal.deploy(Tokens(Own(12, -1, stats=stats)), open_backend("gaussian", GAIN))
    x = torch.randn(16, 7, 6) + 1
    with net.session():
        noisy, clean = last_moments(net.module.layer(x)), last_moments(net.reference.layer(x))
    old, eps = net.reference.norm, 1e-5
    if method in ("pooled", "ema"):
        mean, var = noisy[0], noisy[2]
    else:
        mean = old.running_mean.flatten() + noisy[0] - clean[0]
        var = old.running_var.flatten() * (noisy[1] + eps) / (clean[1] + eps)

    record = pimcal.calibrate(net, [x], method)

    found = record.corrections["norm"]
    torch.testing.assert_close(found["mean"], mean.float().reshape(stats), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["var"], var.float().reshape(stats), rtol=1e-4, atol=1e-4)
    net.apply(record)
    assert torch.equal(net.module.norm.running_mean, found["mean"])
    net.revert()
    assert torch.equal(net.module.norm.running_mean, old.running_mean)


def test_dynamic_calibration_knows_the_dimension_too(open_backend):
    net = pimcal.deploy(Tokens(Own(12, -1)), open_backend("gaussian", GAIN))
    x = torch.randn(16, 7, 6)
    wanted = pimcal.calibrate(net, [x], "paired").corrections["norm"]
    with DynamicCalibration(net, "paired", share=1.0) as dynamic:
        net(x)
    torch.testing.assert_close(dynamic.corrections["norm"], wanted)


def test_a_norm_of_another_kind_is_left_alone_and_named_and_affine_corrects_its_layer(open_backend, caplog):
    net = pimcal.deploy(Tokens(Own(12, -1, before=torch.abs)), open_backend("gaussian", GAIN))
    x = torch.randn(64, 7, 6)
    with caplog.at_level(logging.WARNING, "pimcal"):
        record = pimcal.calibrate(net, [x], "affine")
    assert set(record.corrections) == {"layer", "head"}
    assert "leaves norm as it is: it normalises no dimension of its input [16, 7, 12] by its 12" in caplog.text
    torch.testing.assert_close(record.corrections["layer"]["gain"], torch.full((12,), 1 / 1.5), rtol=1e-3, atol=1e-3)
    for method in ("paired", "pooled", "ema"):
        with pytest.raises(DataError, match=r"could measure nothing \(norm: .*method 'affine'"):
            pimcal.calibrate(net, [x], method)


def test_images_that_are_no_numbers_are_found_at_a_norm_of_ones_own(open_backend):
    net = pimcal.deploy(Tokens(Own(12, -1)), open_backend("ideal"))
    with pytest.raises(DataError, match="measured NaN or infinity at norm"):
        pimcal.calibrate(net, [torch.full((16, 7, 6), torch.nan)], "pooled")


# batches too small


class Experts(nn.Module):
    """Bright images go to one expert, dark ones to the other."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.bright, self.dark = (nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)) for _ in range(2))

    def forward(self, x):
        y, bright = self.stem(x), x.mean(1) > 0
        out = torch.empty_like(y)
        out[bright], out[~bright] = self.bright(y[bright]), self.dark(y[~bright])
        return out


SIZE_8 = {"calibration.batch_size": 8}


@pytest.mark.parametrize("method", METHODS)
def test_an_expert_without_images_in_one_batch_counts_nothing_there(open_backend, method):
    net = pimcal.deploy(Experts().eval(), open_backend("gaussian", {**GAIN, **SIZE_8}))
    bright, dark = torch.rand(8, 6) + 0.1, -torch.rand(8, 6) - 0.1

    record = pimcal.calibrate(net, [bright, dark], method)

    wanted = {"dark.1": pimcal.calibrate(net, [dark], method), "bright.1": pimcal.calibrate(net, [bright], method)}
    for name, alone in wanted.items():
        for key, value in record.corrections[name].items():
            torch.testing.assert_close(value, alone.corrections[name][key])
    assert set(wanted["dark.1"].corrections) & {"bright.1", "bright.0"} == set()
    assert all(torch.isfinite(value).all() for values in record.corrections.values() for value in values.values())
    assert divergences(net, [bright, dark])["dark.1"].kl > 0


@pytest.mark.parametrize("method", METHODS)
def test_an_expert_that_sees_one_image_is_left_alone_and_named(open_backend, method, caplog):
    net = pimcal.deploy(Experts().eval(), open_backend("gaussian", GAIN))
    x = torch.cat([torch.rand(7, 6) + 0.1, -torch.rand(1, 6) - 0.1])
    with caplog.at_level(logging.WARNING, "pimcal"):
        record = pimcal.calibrate(net, [x], method)
    assert "dark.1" not in record.corrections
    assert {"bright.1"} <= set(record.corrections)
    assert re.search(r"leaves (stem, )?dark.1 as it is: fewer than 2 values a channel", caplog.text)


def test_ema_of_batches_of_one_measures_no_spread_and_says_so(open_backend):
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)).eval()
    net = pimcal.deploy(model, open_backend("ideal", {"calibration.batch_size": 1}))
    x = torch.randn(8, 6)
    with pytest.raises(DataError, match=r"could measure nothing \(1: fewer than 2 values .*larger batches"):
        pimcal.calibrate(net, list(x.split(1)), "ema")
    assert set(pimcal.calibrate(net, list(x.split(1)), "paired").corrections) == {"1"}


def test_ema_skips_a_last_batch_of_one_where_it_shows_no_spread(open_backend):
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.BatchNorm1d(6)).eval()
    net = pimcal.deploy(model, open_backend("ideal", SIZE_8))
    x = torch.randn(17, 6)
    found, wanted = (pimcal.calibrate(net, [part], "ema").corrections for part in (x, x[:16]))
    for name in ("1", "3"):
        assert all(torch.equal(found[name][key], wanted[name][key]) for key in ("mean", "var"))


@pytest.mark.parametrize("method", ["ema", "paired"])
def test_dynamic_calibration_learns_nothing_from_a_single_vector(open_backend, method):
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)).eval()
    net = pimcal.deploy(model, open_backend("gaussian", GAIN))
    with DynamicCalibration(net, method, share=1.0, momentum=0.5) as dynamic:
        for n in (1, 0):
            net(torch.randn(n, 6))
    assert dynamic.updates == 0
    assert torch.equal(dynamic.corrections["1"]["var"], model[1].running_var)
