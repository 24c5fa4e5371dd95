"""Models that change what they are given: a caller's tensors stay as they were, and the next reader gets them so."""

from __future__ import annotations

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
from pimcal.metrics import Metric, resolve_metric

MSE, AGREEMENT, ACCURACY = map(resolve_metric, ("mse", "agreement", "accuracy"))


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


class InPlace(nn.Module):
    """Normalises its images in place, however they come."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(6, 4), nn.BatchNorm1d(4)

    def forward(self, x=None, images=None, nested=None):
        if nested is not None:
            x = nested["deep"][0].x if isinstance(nested["deep"][0], SimpleNamespace) else nested["deep"][0]
        if images is not None:
            for image in images:
                image.sub_(0.5).div_(0.25)
            x = torch.stack(images)
        else:
            x.sub_(0.5).div_(0.25)
        return self.norm(self.layer(x))


def tensor(n=8):
    return torch.rand(n, 6)


FORMS = {
    "tensor": tensor,
    "labelled": lambda: (tensor(), torch.zeros(8, dtype=torch.long)),
    "dict": lambda: {"x": tensor(), "labels": torch.zeros(8, dtype=torch.long)},
    "images": lambda: {"images": list(tensor())},
    "nested": lambda: {"nested": {"deep": [tensor()]}},
}


def copied(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return type(value)(copied(item) for item in value)


def assert_equal(found, wanted):
    if isinstance(found, torch.Tensor):
        assert torch.equal(found, wanted)
    else:
        pairs = zip(found.items(), wanted.items(), strict=True) if isinstance(found, dict) else ()
        for (_, ours), (_, theirs) in pairs:
            assert_equal(ours, theirs)
        for ours, theirs in () if isinstance(found, dict) else zip(found, wanted, strict=True):
            assert_equal(ours, theirs)


@pytest.mark.parametrize("form", FORMS)
def test_network_and_digital_model_see_the_same_images_and_nobody_sees_them_changed(open_backend, form):
    net = pimcal.deploy(InPlace().eval(), open_backend("ideal", {"calibration.batch_size": 8}))
    batches = [FORMS[form]() for _ in range(3)]
    before = copied(batches)

    assert evaluate(net, batches, MSE).value == pytest.approx(0, abs=1e-12)
    assert evaluate(net, batches, AGREEMENT).value == 1
    for method in ("paired", "affine", "pooled", "ema"):
        record = pimcal.calibrate(net, batches, method)
        if method in ("paired", "affine"):
            assert torch.equal(record.corrections["norm"]["mean"], net.reference.norm.running_mean)
    verdict = gate(net, pimcal.calibrate(net, batches), batches, MSE, repeats=2)
    assert (verdict.before, verdict.after) == pytest.approx((0, 0), abs=1e-12)
    assert divergences(net, batches)["norm"].kl == pytest.approx(0, abs=1e-9)
    estimate(net, batches[0], 8)

    assert_equal(batches, before)


def test_an_object_that_holds_the_images_is_copied_too(open_backend):
    net = pimcal.deploy(InPlace().eval(), open_backend("ideal"))
    x = tensor()
    before = x.clone()
    assert evaluate(net, [{"x": x, "nested": {"deep": [SimpleNamespace(x=x)]}}], MSE).value < 1e-12
    assert torch.equal(x, before)


def test_a_metric_may_change_the_labels_it_is_given(open_backend):
    net, labels = pimcal.deploy(InPlace().eval(), open_backend("ideal")), torch.full((8,), 255)

    def ignoring(outputs, targets, count):
        targets[targets == 255] = -1
        return float((targets == -1).sum()), count

    assert evaluate(net, [(tensor(), labels)] * 2, Metric("ignoring", ignoring)).value == 1
    assert bool((labels == 255).all())


def test_dynamic_calibration_gives_both_the_images_as_they_were(open_backend):
    net, x = pimcal.deploy(InPlace().eval(), open_backend("ideal")), tensor()
    with DynamicCalibration(net, "paired", share=1.0) as dynamic:
        net(x.clone())
    torch.testing.assert_close(dynamic.corrections["norm"]["mean"], net.reference.norm.running_mean)


def test_a_direct_call_does_what_the_model_itself_does(open_backend):
    model = InPlace().eval()
    net, x = pimcal.deploy(model, open_backend("ideal")), tensor()
    ours, theirs = x.clone(), x.clone()
    torch.testing.assert_close(net(ours), model(theirs))
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, x)


def test_checking_an_input_leaves_model_and_input_as_they_were():
    from pimcal.cli.options import check_input

    class Lazy(InPlace):
        def forward(self, x):
            self.seen = x
            return super().forward(x)

    model, x = Lazy().eval(), tensor()
    before = x.clone()
    check_input(model, x)
    assert torch.equal(x, before)
    assert not hasattr(model, "seen")
