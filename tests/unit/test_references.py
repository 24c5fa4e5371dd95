"""Reference columns: what they measure, and what they undo."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import pimcal
from pimcal.device import Device
from pimcal.ideal import Ideal, IdealSettings
from pimcal.references import ReferenceColumns, correct, pooled_gain

GAIN, SHIFT = 1.37, 0.05


class Distorted(Ideal):
    """Every weight of a tile reads `GAIN * w + SHIFT`: what a warm array or a leaking one does."""

    def effective_weights(self, tile):
        return super().effective_weights(tile) * GAIN + SHIFT


class DistortedOutputs(Ideal):
    """The same array, seen through its products only, with an offset at the column's amplifier."""

    def __init__(self, *args):
        super().__init__(*args)
        self._capabilities = pimcal.Capabilities(
            identity="distorted",
            tiles=self._capabilities.tiles,
            rows=self._capabilities.rows,
            cols=self._capabilities.cols,
        )

    def matmul(self, tile, inputs):
        return super().matmul(tile, inputs) * GAIN + SHIFT


def deployed(open_backend, backend, model, references):
    profile = open_backend("ideal", {"tiles.rows": 16, "tiles.cols": 8, **references}).profile
    return pimcal.deploy(model, Device(backend(IdealSettings(), profile.tiles), profile))


@torch.no_grad()
@pytest.mark.parametrize("backend", [Distorted, DistortedOutputs])
def test_a_gain_and_an_offset_of_the_array_are_undone_without_images(open_backend, backend):
    model = nn.Sequential(nn.Conv2d(2, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 5))
    x = torch.randn(8, 2, 5, 5)

    plain = deployed(open_backend, backend, model, {})
    corrected = deployed(open_backend, backend, model, {"references.offset": 1, "references.gain": 1})

    assert (plain(x) - model(x)).abs().max() > 0.1
    torch.testing.assert_close(corrected(x), model(x), rtol=1e-3, atol=1e-4)


class Narrow(DistortedOutputs):
    """Its converter reads the sum of five full-scale rows at most, and clips the rest."""

    def __init__(self, *args):
        super().__init__(*args)
        self._capabilities = replace(self._capabilities, readable_rows=5)


class NarrowWeights(Distorted):
    def __init__(self, *args):
        super().__init__(*args)
        self._capabilities = replace(self._capabilities, readable_rows=5)


@torch.no_grad()
@pytest.mark.parametrize("backend", [Narrow, NarrowWeights])
def test_gain_columns_hold_the_constant_in_as_many_rows_as_the_converters_can_read(open_backend, backend):
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 5))
    x = torch.rand(8, 4, 5, 5)

    net = deployed(open_backend, backend, model, {"references.offset": 1, "references.gain": 1})
    torch.testing.assert_close(net(x), model(x), rtol=1e-3, atol=1e-4)

    for (_, tile), layout in net.array.layouts.items():
        one_hot = torch.eye(layout.rows)
        constants = net.device.backend.matmul(tile, one_hot)[:, layout.cols + 1] - SHIFT
        expected = torch.zeros(layout.rows)
        expected[:: -(-layout.rows // 5)] = layout.constant * GAIN
        torch.testing.assert_close(constants, expected)
        assert 1 <= expected.count_nonzero() <= 5


class Amplified(Ideal):
    def effective_weights(self, tile):
        return super().effective_weights(tile) * GAIN


class Shifted(Ideal):
    def effective_weights(self, tile):
        return super().effective_weights(tile) + SHIFT


@torch.no_grad()
@pytest.mark.parametrize(("backend", "references"), [(Shifted, "references.offset"), (Amplified, "references.gain")])
def test_one_kind_of_column_is_enough_for_its_own_kind_of_error(open_backend, backend, references):
    model, x = nn.Linear(12, 5), torch.randn(64, 12)

    net = deployed(open_backend, backend, model, {references: 2})

    torch.testing.assert_close(net(x), model(x), rtol=1e-3, atol=1e-4)


def test_the_gain_is_a_least_squares_fit_through_the_origin_over_each_tile():
    known = torch.randn(3, 4, 1, 5)
    measured = torch.tensor([1.2, 1.4, 0.7, 0.7])[:, None, None] * known + 0.1 * torch.randn(3, 4, 1, 5)
    pool = torch.tensor([0, 0, 1, 1])

    found = pooled_gain(measured, known, pool)

    a, b = known.double(), measured.double()
    by_hand = [
        sum((a[:, g] * b[:, g]).sum() for g in gs) / sum((a[:, g] ** 2).sum() for g in gs) for gs in ((0, 1), (2, 3))
    ]
    torch.testing.assert_close(found, torch.tensor(by_hand, dtype=torch.float32)[pool])


def test_without_evidence_the_gain_is_one():
    zeros = torch.zeros(2, 2, 1, 3)

    assert pooled_gain(zeros, zeros, torch.tensor([0, 1])).tolist() == [1.0, 1.0]


def test_a_gain_that_makes_no_sense_is_one():
    known = torch.ones(2, 2, 1, 3)

    assert pooled_gain(-known, known, torch.tensor([0, 0])).tolist() == [1.0, 1.0]
    assert pooled_gain(known * torch.nan, known, torch.tensor([0, 0])).tolist() == [1.0, 1.0]


def test_zero_columns_are_averaged_and_subtracted_before_the_gain_is_fitted():
    values, known = torch.randn(4, 1, 3, 6), torch.randn(4, 1, 1, 6)
    offset = torch.randn(4, 1, 1, 6)
    ripple = torch.randn(4, 1, 1, 6)
    raw = torch.cat([1.5 * values + offset, offset + ripple, offset - ripple, 1.5 * known + offset], dim=2)

    corrected = correct(raw, known, torch.tensor([0]), ReferenceColumns(offset=2, gain=1))

    torch.testing.assert_close(corrected, values, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_references_follow_noise_that_is_redrawn_every_batch(open_backend):
    model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)), torch.randn(32, 64)
    noise = {"device.noise": "mul", "device.eta0": 0.3, "device.sigma_spatial": 0.0, "device.granularity": "tile"}

    net = pimcal.deploy(model, open_backend("gaussian", {**noise, "references.gain": 1}))

    for _ in range(3):
        torch.testing.assert_close(net(x), model(x), rtol=1e-3, atol=1e-3)
