"""The gate: what gets through, and what is in force after either verdict."""

from __future__ import annotations

from statistics import fmean

import pytest
import torch
from torch import nn

import pimcal
from pimcal.calibration.gate import gate
from pimcal.corrections import corrections_in_force
from pimcal.errors import DataError
from pimcal.evaluation import evaluate
from pimcal.metrics import Metric, resolve_metric

NOISE = {"device.noise": "mul", "device.eta0": 0.4}
QUIET = {**NOISE, "device.sigma_temporal": 0.0}
AGREEMENT, MSE = resolve_metric("agreement"), resolve_metric("mse")


def cnn():
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip
    for norm in (model[1], model[4]):
        norm.momentum = None
    with torch.no_grad():
        model(images(256))
    return model.eval()


def images(count=64):
    return torch.randn(count, 1, 6, 6) + 1.0


def in_force(net):
    return {name: {key: v.clone() for key, v in values.items()} for name, values in corrections_in_force(net).items()}


def assert_in_force(net, wanted):
    found = corrections_in_force(net)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert all(torch.equal(found[name][key], value) for key, value in values.items())


def bad_record(net, good):
    """A record that puts every BatchNorm far off."""
    corrections = {
        name: {key: value + 50 * torch.randn_like(value) if key == "mean" else value for key, value in values.items()}
        for name, values in good.corrections.items()
    }
    return pimcal.Record(method="paired", corrections=corrections, made_with=good.made_with)


def test_a_better_candidate_is_put_in_force_and_carries_both_values(open_backend):
    net, held_out = pimcal.deploy(cnn(), open_backend("gaussian", QUIET)), [images(), images()]
    record = pimcal.calibrate(net, [images()], "affine")
    before = evaluate(net, held_out, AGREEMENT).value

    verdict = gate(net, record, held_out, AGREEMENT)

    assert verdict.activated
    assert net.active == record.id == verdict.record.id
    assert (verdict.before, verdict.after) == (before, evaluate(net, held_out, AGREEMENT).value)
    made = verdict.record.made_with
    assert (made.metric, made.before, made.after) == ("agreement", verdict.before, verdict.after)
    assert "better by" in verdict.reason


def test_a_worse_candidate_is_taken_back_to_what_was_in_force(open_backend):
    net, held_out = pimcal.deploy(cnn(), open_backend("gaussian", QUIET)), [images()]
    good = pimcal.calibrate(net, [images()], "affine")
    net.apply(good)
    before = in_force(net)

    verdict = gate(net, bad_record(net, good), held_out, AGREEMENT)

    assert not verdict.activated
    assert verdict.after < verdict.before
    assert "a drop of" in verdict.reason
    assert net.active == good.id
    assert_in_force(net, before)


def test_an_error_of_either_sign_counts_in_the_metrics_own_direction(open_backend):
    """The mean squared error falls where a calibration helps."""
    net, held_out = pimcal.deploy(cnn(), open_backend("gaussian", QUIET)), [images()]
    good = pimcal.calibrate(net, [images()], "affine")
    bad = gate(net, bad_record(net, good), held_out, MSE)
    assert not bad.activated
    assert bad.after > bad.before
    found = gate(net, good, held_out, MSE)
    assert found.activated
    assert found.after < found.before


@pytest.mark.parametrize(("allowed", "activated"), [(0.0, False), (0.19, False), (0.21, True), (1.0, True)])
def test_a_drop_up_to_what_is_allowed_gets_through(open_backend, allowed, activated):
    net = pimcal.deploy(cnn(), open_backend("ideal"))
    record = pimcal.calibrate(net, [images()], "paired")
    values = iter([0.9, 0.7])
    metric = Metric("told", lambda outputs, targets, count: (next(values), 1.0), needs_labels=False)
    verdict = gate(net, record, [images()], metric, max_drop=allowed)
    assert (verdict.activated, verdict.before, verdict.after) == (activated, 0.9, 0.7)
    assert f"allowed drop {allowed:g}" in verdict.reason
    assert net.active == (record.id if activated else None)


def test_equal_values_get_through(open_backend):
    net = pimcal.deploy(cnn(), open_backend("ideal"))
    verdict = gate(net, pimcal.calibrate(net, [images()], "paired"), [images()], AGREEMENT)
    assert (verdict.before, verdict.after, verdict.activated) == (1.0, 1.0, True)


NO_NUMBER = float("nan")


@pytest.mark.parametrize(
    ("before", "after", "activated"), [(0.5, NO_NUMBER, False), (NO_NUMBER, NO_NUMBER, False), (NO_NUMBER, 0.5, True)]
)
@pytest.mark.parametrize("higher_is_better", [True, False])
def test_a_value_that_is_no_number_is_worse_than_any(open_backend, before, after, activated, higher_is_better):
    net = pimcal.deploy(cnn(), open_backend("ideal"))
    record, told = pimcal.calibrate(net, [images()], "paired"), iter((before, after))
    metric = Metric("told", lambda outputs, targets, count: (next(told), 1.0), higher_is_better, needs_labels=False)
    assert gate(net, record, [images()], metric, max_drop=1.0).activated is activated
    assert (net.active is not None) is activated


@pytest.mark.parametrize("where", ["argument", "profile"])
def test_each_side_is_measured_again_with_new_noise_and_averaged(open_backend, where):
    options = {**NOISE, "gate.repeats": 3} if where == "profile" else NOISE
    device = open_backend("gaussian", options)
    net, held_out = pimcal.deploy(cnn(), device), [images(), images(32)]
    record = pimcal.calibrate(net, [images()], "paired")
    start, told = device.cost.mvms, []

    def score(outputs, reference, count):
        told.append(float((outputs.argmax(1) == reference.argmax(1)).float().mean()))
        return told[-1] * count, count

    repeats = 3 if where == "argument" else None
    verdict = gate(net, record, held_out, Metric("told", score, needs_labels=False), repeats=repeats)

    runs = [(a * 64 + b * 32) / 96 for a, b in zip(told[::2], told[1::2], strict=True)]
    assert len(runs) == 6
    assert len(set(runs)) > 2  # noise was redrawn
    assert (verdict.before, verdict.after) == (pytest.approx(fmean(runs[:3])), pytest.approx(fmean(runs[3:])))
    assert verdict.images == 96
    assert verdict.mvms == device.cost.mvms - start == 6 * 96 * (16 + 4 + 1)


def test_what_is_in_force_is_not_measured_again_where_its_value_is_known(open_backend):
    device = open_backend("gaussian", NOISE)
    net, held_out = pimcal.deploy(cnn(), device), [images()]
    record = pimcal.calibrate(net, [images()], "paired")
    start = device.cost.mvms
    verdict = gate(net, record, held_out, AGREEMENT, before=0.25)
    assert verdict.before == verdict.record.made_with.before == 0.25
    assert verdict.images == 64
    net(images())
    assert (device.cost.mvms - start) == 2 * verdict.mvms


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("side", [1, 2])
def test_a_failure_on_the_way_leaves_what_was_in_force(open_backend, error, side):
    net = pimcal.deploy(cnn(), open_backend("gaussian", QUIET))
    good = pimcal.calibrate(net, [images()], "affine")
    net.apply(good)
    before, calls = in_force(net), []

    def score(outputs, targets, count):
        calls.append(1)
        if len(calls) == side:
            raise error("in the middle")
        return 1.0, 1.0

    with pytest.raises(error, match="in the middle"):
        gate(net, bad_record(net, good), [images()], Metric("failing", score, needs_labels=False))
    assert net.active == good.id
    assert_in_force(net, before)


def test_a_record_of_another_model_is_refused_and_nothing_changes(open_backend):
    net, other = (pimcal.deploy(cnn(), open_backend("gaussian", QUIET)) for _ in range(2))
    record = pimcal.calibrate(other, [images()], "paired")
    before = in_force(net)
    with pytest.raises(DataError, match="was made for a model with hash"):
        gate(net, record, [images()], AGREEMENT)
    assert net.active is None
    assert_in_force(net, before)
