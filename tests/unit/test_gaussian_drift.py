"""eta0 as a function of simulated time, and the settings that describe it."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pimcal.errors import UsageError
from pimcal_gaussian.backend import Gaussian
from pimcal_gaussian.drift import RandomWalk, whole_steps
from pimcal_gaussian.settings import GaussianSettings

WALK = {"kind": "random_walk", "step_s": 0.1, "std": 0.05}


def drifting(drift: dict[str, Any] | None, **values: Any) -> Gaussian:
    parameters = {"noise": "mul", "eta0": 0.1, "drift": drift, **values}
    return Gaussian(GaussianSettings(**parameters), SimpleNamespace(count=None, rows=None, cols=None))


def ratio_after(device: Gaussian, seconds: float) -> float:
    device.advance(seconds)
    return device.telemetry()["eta0_ratio"]


@pytest.mark.parametrize(
    ("drift", "expected"),
    [
        (None, 1.0),
        ({"kind": "constant"}, 1.0),
        ({"kind": "linear", "rate_per_s": 0.002}, 1.5),
        ({"kind": "linear", "rate_per_s": -0.01}, 0.0),
        ({"kind": "logarithmic", "amplitude": 0.3, "time_constant_s": 50.0}, 1 + 0.3 * math.log(6)),
        (
            {"kind": "temperature", "amplitude_c": 10.0, "period_s": 3000.0, "eta0_per_c": 0.02},
            1 + 0.02 * 10 * math.sin(math.pi / 6),
        ),
    ],
)
def test_eta0_follows_the_formula(drift, expected):
    assert ratio_after(drifting(drift), 250.0) == pytest.approx(expected)


def test_temperature_drift_reports_the_temperature():
    drift = {
        "kind": "temperature",
        "mean_temperature_c": 30.0,
        "amplitude_c": 8.0,
        "period_s": 86400.0,
        "eta0_per_c": 0.01,
    }
    device = drifting(drift)
    device.advance(21600.0)
    assert device.telemetry() == pytest.approx({"simulated_time_s": 21600.0, "eta0_ratio": 1.08, "temperature_c": 38.0})


def test_a_device_without_drift_reports_its_time_and_no_temperature():
    device = drifting(None)
    device.advance(2.0)
    assert device.telemetry() == {"simulated_time_s": 2.0, "eta0_ratio": 1.0}


@pytest.mark.parametrize("granularity", ["element", "tile"])
def test_the_weights_errors_scale_with_eta0_within_a_batch(granularity):
    device = drifting({"kind": "linear", "rate_per_s": 1.0}, granularity=granularity)
    weights = torch.full((6, 5), 2.0)
    device.program(0, weights)
    before = device.effective_weights(0) - weights
    device.advance(1.0)
    torch.testing.assert_close(device.effective_weights(0) - weights, 2 * before, rtol=1e-4, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(steps=st.lists(st.integers(0, 30), min_size=1, max_size=40), seed=st.integers(0, 5))
def test_a_random_walk_does_not_depend_on_how_time_was_split(steps, seed):
    split, whole = drifting(WALK, seed=seed), drifting(WALK, seed=seed)
    for count in steps:
        for _ in range(count):
            split.advance(0.1)
    assert split.telemetry()["eta0_ratio"] == ratio_after(whole, sum(steps) / 10)


def test_a_random_walk_is_recomputed_from_any_point():
    forward, jump = RandomWalk(key=7), RandomWalk(key=7)
    sizes = [0, 1, 2, RandomWalk.block - 1, RandomWalk.block, RandomWalk.block + 1, 3 * RandomWalk.block]
    visited = {steps: forward.position(steps) for steps in sizes}
    assert visited == {steps: jump.position(steps) for steps in reversed(sizes)}
    assert visited[0] == 0.0
    assert RandomWalk(key=8).position(1) != visited[1]


def test_a_random_walks_steps_are_standard_normal():
    walk = RandomWalk(key=3)
    n = RandomWalk.block + 2000
    positions = torch.tensor([walk.position(step) for step in range(RandomWalk.block - 2000, n)])
    increments = positions.double().diff()
    assert abs(float(increments.mean())) < 4.9 / math.sqrt(len(increments))
    assert abs(float(increments.std()) - 1) < 4.9 / math.sqrt(2 * len(increments))


def test_random_walks_of_two_seeds_differ():
    assert ratio_after(drifting(WALK, seed=1), 5.0) != ratio_after(drifting(WALK, seed=2), 5.0)


@given(step=st.sampled_from([0.1, 0.25, 1.0, 3.0, 60.0]), count=st.integers(0, 1_000_000))
def test_rounding_loses_no_step(step, count):
    assert whole_steps(step * count, step) == count
    assert whole_steps(step * (count + 0.5), step) == count


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_time_that_cannot_pass_is_refused(seconds):
    device = drifting(WALK)
    with pytest.raises(UsageError, match="cannot advance"):
        device.advance(seconds)
    assert device.telemetry()["simulated_time_s"] == 0.0


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"eta0": -0.1}, "eta0"),
        ({"eta0": math.nan}, "eta0"),
        ({"eta0": "0.1"}, "eta0"),
        ({"noise": "pink"}, "noise"),
        ({"eta1": 0.1}, "eta1"),
        ({"seed": -1}, "seed"),
        ({"noise": "awgn", "granularity": "tile"}, "granularity"),
        ({"redraw": "program"}, "redraw"),
        ({"drift": {"kind": "wave"}}, "drift"),
        ({"drift": {"kind": "linear"}}, "rate_per_s"),
        ({"drift": {"kind": "linear", "rate_per_s": 1.0, "step_s": 1.0}}, "step_s"),
        ({"drift": {**WALK, "step_s": 0.0}}, "step_s"),
    ],
)
def test_wrong_settings_are_refused_by_name(values, where):
    with pytest.raises(ValidationError, match=where):
        GaussianSettings(**{"noise": "mul", "eta0": 0.1, **values})
