"""A network's quality over batches, and what finding out cost."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import pimcal
from pimcal.errors import DataError, DeviceUnavailableError
from pimcal.evaluation import evaluate
from pimcal.metrics import Metric, resolve_metric

NOISE = {"device.noise": "mul", "device.eta0": 0.5, "device.sigma_spatial": 0.5}
ACCURACY, AGREEMENT, MSE = map(resolve_metric, ("accuracy", "agreement", "mse"))


def classifier():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


def labelled(*sizes):
    return [(torch.randn(n, 6), torch.randint(0, 4, (n,))) for n in sizes]


def test_accuracy_counts_each_image_once_whatever_the_batches(open_backend):
    model, batches = classifier(), labelled(7, 1, 20)
    net = pimcal.deploy(model, open_backend("ideal"))
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
    found = evaluate(net, batches, ACCURACY)
    assert (found.metric, found.images, found.value) == ("accuracy", 28, right / 28)


def test_products_are_counted_for_this_run_only(open_backend):
    device = open_backend("ideal")
    net = pimcal.deploy(classifier(), device)
    for sizes in ((5,), (8, 3)):
        assert evaluate(net, labelled(*sizes), ACCURACY).mvms == 2 * sum(sizes)  # two layers


def test_a_plain_model_costs_no_product_and_agrees_with_itself():
    found = evaluate(classifier(), labelled(5, 4), AGREEMENT)
    assert (found.value, found.images, found.mvms) == (1.0, 9, 0)


def test_without_labels_the_digital_model_is_the_reference(open_backend):
    model, batches = classifier(), [x for x, _ in labelled(50, 14)]
    quiet = {**NOISE, "device.sigma_temporal": 0.0}
    net = pimcal.deploy(model, open_backend("gaussian", quiet))
    with torch.no_grad():
        outputs = [(net(x), model(x)) for x in batches]
    same = sum(int((ours.argmax(1) == theirs.argmax(1)).sum()) for ours, theirs in outputs)
    assert evaluate(net, batches, AGREEMENT).value == same / 64 < 1
    square = sum(float((ours - theirs).square().sum()) for ours, theirs in outputs)
    assert evaluate(net, batches, MSE).value == pytest.approx(square / (64 * 4), rel=1e-5)


def test_another_reference_can_be_given():
    model, other = classifier(), classifier()
    batches = [x for x, _ in labelled(40)]
    value = evaluate(model, batches, AGREEMENT, reference=other).value
    with torch.no_grad():
        same = model(batches[0]).argmax(1) == other(batches[0]).argmax(1)
    assert value == int(same.sum()) / 40 < 1


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, left, right):
        return {"out": self.fc(left - right)}


def test_batches_may_be_dicts_of_the_models_inputs(open_backend):
    left, right, labels = torch.randn(9, 3), torch.randn(9, 3), torch.randint(0, 4, (9,))
    model = TwoInputs().eval()
    net = pimcal.deploy(model, open_backend("ideal"))
    found = evaluate(net, [{"left": left, "right": right, "labels": labels}], ACCURACY)
    with torch.no_grad():
        hits = int((model(left, right)["out"].argmax(1) == labels).sum())
    assert (found.value, found.images, found.mvms) == (hits / 9, 9, 9)


def test_progress_counts_images_and_the_clock_is_the_one_that_is_passed(open_backend):
    done = []
    ticks = itertools.count(start=10, step=5)
    net = pimcal.deploy(classifier(), open_backend("ideal"))
    found = evaluate(net, labelled(4, 4, 2), ACCURACY, progress=done.append, clock=lambda: float(next(ticks)))
    assert done == [4, 8, 10]
    assert found.seconds == 5.0


def test_labels_that_are_missing_are_asked_for_and_another_metric_is_named(open_backend):
    net = pimcal.deploy(classifier(), open_backend("ideal"))
    with pytest.raises(DataError, match=r"'accuracy' needs labels and the data has none; use metric 'agreement'"):
        evaluate(net, [torch.randn(4, 6)], ACCURACY)


def test_no_image_at_all_is_an_error(open_backend):
    net = pimcal.deploy(classifier(), open_backend("ideal"))
    with pytest.raises(DataError, match="there is no image to evaluate on"):
        evaluate(net, [], ACCURACY)


def test_a_closed_device_says_so():
    with pimcal.open_device("ideal") as device:
        net = pimcal.deploy(classifier(), device)
    with pytest.raises(DeviceUnavailableError, match=r"is closed; open it again with pimcal\.open_device") as caught:
        evaluate(net, labelled(4), ACCURACY)
    assert caught.value.exit_code == 69


def test_no_gradient_is_kept(open_backend):
    kept = []
    metric = Metric("grads", lambda outputs, targets, images: (kept.append(outputs.requires_grad) or 0.0, 1.0))
    evaluate(classifier(), labelled(3), metric)
    evaluate(pimcal.deploy(classifier(), open_backend("ideal")), labelled(3), metric)
    assert kept == [False, False]
