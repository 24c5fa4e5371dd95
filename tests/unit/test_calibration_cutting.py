"""Calibration images are cut to the method's batches, however they come; never where that changes what they mean."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import pimcal
from pimcal.calibration.cutting import recut
from pimcal.calibration.methods import clean_for

NOISY = {"device.noise": "mul", "device.eta0": 0.3}  # drawn anew for each batch


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


class Net(nn.Module):
    """Takes one input, two, a list of images, or a dict; `scale` is the same for all images."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.head = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x, other=None, scale=None):
        x = torch.stack(x) if isinstance(x, list) else x
        x = x if other is None else x + other
        x = x if scale is None else x * scale
        return {"logits": self.head(self.norm(self.layer(x)).relu())}


def deployed(open_backend, model=None, **settings):
    return pimcal.deploy((model or Net()).eval(), open_backend("gaussian", {**NOISY, **settings}))


FORMS = {
    "tensors": lambda x: x,
    "labelled": lambda x: (x, torch.arange(len(x))),
    "as a DataLoader gives them": lambda x: [x, torch.arange(len(x))],
    "dicts": lambda x: {"x": x, "other": x * 2, "labels": torch.arange(len(x))},
    "several inputs": lambda x: ((x, x * 2), torch.arange(len(x))),
    "lists of images": lambda x: (list(x), None),
    "with a constant": lambda x: {"x": x, "scale": torch.full((6,), 0.5)},
}
CUTS = ([200], [50] * 4, [1] * 200, [7, 90, 3, 100], [16] * 12 + [8], [0, 150, 50])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["paired", "ema"])
def test_the_record_is_the_same_to_the_last_bit_however_the_images_came(open_backend, form, method):
    model, x = Net(), torch.randn(200, 6)
    sizes = 16 if method == "paired" else 64
    wanted = None
    for cut in CUTS:
        cut = [size for size in cut if size or form != "lists of images"]
        net = deployed(open_backend, model)
        record = pimcal.calibrate(net, [FORMS[form](part) for part in x.split(cut)], method)
        assert (record.made_with.images, record.made_with.batches) == (200, -(-200 // sizes))
        wanted = wanted or record.corrections
        for name, values in wanted.items():
            assert all(torch.equal(record.corrections[name][key], value) for key, value in values.items()), cut


def test_the_profile_says_how_many_are_in_a_batch(open_backend):
    net = deployed(open_backend, **{"calibration.batch_size": 25})
    assert pimcal.calibrate(net, [torch.randn(200, 6)]).made_with.batches == 8


def test_batches_of_the_right_size_are_handed_on_as_they_are(open_backend):
    net, calls = deployed(open_backend), []
    net.reference.register_forward_hook(lambda module, args, output: calls.append(1))
    batches = [(part, None) for part in torch.randn(40, 6).split(16)]
    assert all(ours is theirs for ours, theirs in zip(recut(net, batches, 16), batches, strict=True))
    assert not calls


def test_batches_of_different_kinds_are_joined_with_their_own_kind(open_backend):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(x)).mean((2, 3))

    net = deployed(open_backend, Pooled())
    small, large = torch.randn(20, 2, 5, 5), torch.randn(20, 2, 8, 8)
    batches = [small[:10], large[:10], small[10:], large[10:]]
    found = recut(net, batches, 16)
    assert [tuple(batch.shape) for batch in found] == [(16, 2, 5, 5), (4, 2, 5, 5), (16, 2, 8, 8), (4, 2, 8, 8)]
    assert torch.equal(torch.cat(found[:2]), small)
    assert torch.equal(torch.cat(found[2:]), large)


class BatchStatistics(nn.Module):
    """Its second norm always takes the batch's own statistics."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.own = (
            nn.Linear(6, 6),
            nn.BatchNorm1d(6),
            nn.BatchNorm1d(6, track_running_stats=False),
        )

    def forward(self, x):
        return self.own(self.norm(self.layer(x)))


class TimeFirst(nn.Module):
    """[L, N, C]: the first dimension is time, not images."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.lstm = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.LSTM(6, 4)

    def forward(self, x):
        return self.lstm(self.norm(self.layer(x).transpose(1, 2)).transpose(1, 2))[0]


class Graph(nn.Module):
    """One graph a batch: nodes, and edges between them."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, x, edges):
        y = self.norm(self.layer(x))
        return y + torch.zeros_like(y).index_add(0, edges[1], y[edges[0]])


class Loss(Net):
    def forward(self, x):
        return super().forward(x)["logits"].square().mean()


def graph(nodes):
    return {"x": torch.randn(nodes, 6), "edges": torch.stack([torch.arange(nodes), torch.arange(nodes).flip(0)])}


@pytest.mark.parametrize(
    ("model", "batches", "why"),
    [
        (BatchStatistics, lambda: [torch.randn(40, 6)], "depends on the other images"),
        (TimeFirst, lambda: [torch.randn(40, 3, 6)], "depends on the other images"),
        (Graph, lambda: [graph(30), graph(30)], "fails on 2 images at a time"),
        (Loss, lambda: [torch.randn(40, 6)], "gives no output for each image"),
    ],
)
def test_images_that_belong_together_stay_together_and_it_is_said(open_backend, caplog, model, batches, why):
    net, given = deployed(open_backend, model()), batches()
    with caplog.at_level(logging.WARNING, "pimcal"):
        record = pimcal.calibrate(net, given)
    assert record.made_with.batches == len(given)
    assert f"as they are, and not 16 images in each: {'the digital model ' if why[0] in 'fg' else ''}" in caplog.text
    assert why in caplog.text


def test_the_digital_models_statistics_are_those_of_the_same_batches(open_backend):
    net, x = deployed(open_backend), torch.randn(50, 6)
    clean = clean_for(net, [x], "paired")
    assert {batch for _, batch in clean.moments["norm"]} == {0, 1, 2, 3}
    found, wanted = (pimcal.calibrate(deployed(open_backend, net.reference), [x], clean=c) for c in (clean, None))
    assert all(torch.equal(found.corrections["norm"][key], wanted.corrections["norm"][key]) for key in ("mean", "var"))


def test_a_trial_leaves_nothing_on_the_digital_model(open_backend):
    class Remembering(Net):
        def forward(self, x):
            self.seen = x
            return super().forward(x)

    net = deployed(open_backend, Remembering())
    recut(net, [torch.randn(40, 6)], 16)
    assert not hasattr(net.reference, "seen")
