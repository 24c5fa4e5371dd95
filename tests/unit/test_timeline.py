"""A timeline's readings: each is what a device that only aged gives, whatever else was measured on it."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pimcal
from pimcal import registry
from pimcal.backend import Capabilities
from pimcal.errors import ConfigError, UsageError
from pimcal.evaluation import evaluate
from pimcal.ideal import Ideal, IdealSettings
from pimcal.metrics import resolve_metric
from pimcal.recipes import parse_recipe
from pimcal.timeline import check_times, parse_times, timeline

MSE = resolve_metric("mse")
TIMES_S = (0.0, 10.0, 1000.0)
DRIFT = {"device.drift": {"kind": "linear", "rate_per_s": 0.002}, "device.eta0": 0.2}


def recipes(*names: str):
    return [parse_recipe(name, gdc=True) for name in names]


ALL = recipes("gdc+paired", "none", "references+gdc", "paired", "gdc", "references")


@pytest.fixture
def model():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        model(torch.randn(64, 1, 6, 6) + 1)
    return model.eval()


@pytest.fixture
def data():
    return [torch.randn(20, 1, 6, 6) + 1 for _ in range(2)]


@pytest.fixture
def calibration():
    return [torch.randn(16, 1, 6, 6) + 1 for _ in range(2)]


@pytest.fixture
def run(model, data, calibration):
    def age(recipes=ALL, times_s=TIMES_S, seeds=(0,), profile="gaussian_mul", overrides=DRIFT, **more):
        loaded = pimcal.load_profile(profile, overrides)
        return timeline(model, loaded, times_s, recipes, seeds, data, lambda recipe: calibration, MSE, **more)

    return age


def values(readings):
    return {(reading.time_s, reading.seed, reading.method): reading.value for reading in readings}


# times


@pytest.mark.parametrize(
    ("text", "times_s"), [("1s,1h", [1, 3600]), ("0s, 1d ,2w", [0, 86_400, 1_209_600]), ("90m", [5400])]
)
def test_times_are_durations_with_commas_between(text, times_s):
    assert parse_times(text) == [timedelta(seconds=time_s) for time_s in times_s]


@pytest.mark.parametrize("text", ["", "1s,", "1", "1s;1h", "-1s", "soon"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(UsageError, match=r"--at .*: a duration is written with units, .* commas between several"):
        parse_times(text)


@pytest.mark.parametrize("text", ["1h,1s", "1s,1s", "0s,1d,24h"])
def test_time_does_not_run_backwards(text):
    with pytest.raises(UsageError, match=r"time cannot run backwards or stand still: .* give times that increase"):
        parse_times(text)


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=5))
def test_only_increasing_times_pass(times_s):
    increase = sorted(set(times_s)) == times_s
    try:
        check_times(times_s)
    except UsageError:
        assert not increase
    else:
        assert increase


@pytest.mark.parametrize("times_s", [[], [-1.0], [math.nan], [1.0, math.inf]])
def test_times_are_numbers_that_are_not_negative(run, times_s):
    told = []
    with pytest.raises(UsageError, match="times of 0 s or more"):
        run(times_s=times_s, on_reading=told.append)
    assert told == []


# readings


def test_readings_come_by_time_then_seed_then_method_and_are_told_at_once(run):
    told = []
    readings = run(seeds=(4, 2), on_reading=told.append)
    wanted = [(time_s, seed, recipe.name) for time_s in TIMES_S for seed in (4, 2) for recipe in ALL]
    assert [(reading.time_s, reading.seed, reading.method) for reading in readings] == wanted
    assert sorted(map(repr, told)) == sorted(map(repr, readings))


@pytest.mark.parametrize("sigma_temporal", [0.0, 0.2])
@pytest.mark.parametrize("time_s", TIMES_S)
def test_without_a_method_it_is_a_fresh_device_that_was_advanced_straight_there(
    run, model, data, time_s, sigma_temporal
):
    found = values(run(seeds=(3,), overrides={**DRIFT, "device.sigma_temporal": sigma_temporal}))
    overrides = {**DRIFT, "device.seed": 3, "device.sigma_temporal": sigma_temporal}
    with pimcal.open_device("gaussian_mul", overrides) as device:
        net = pimcal.deploy(model, device)
        device.advance(time_s)
        assert found[time_s, 3, "none"] == evaluate(net, data, MSE).value


@pytest.mark.parametrize("name", ["gdc", "gdc+paired", "references+gdc"])
def test_a_method_is_what_it_says_on_a_fresh_device(run, model, data, calibration, name):
    found = values(run(seeds=(3,)))
    recipe = parse_recipe(name, gdc=True)
    columns = {"references.offset": 1, "references.gain": 1} if recipe.references else {}
    with pimcal.open_device("gaussian_mul", {**DRIFT, "device.seed": 3, **columns}) as device:
        net = pimcal.deploy(model, device)
        device.watch_drift()
        device.advance(1000.0)
        device.compensate_drift()
        if recipe.method:
            net.apply(pimcal.calibrate(net, calibration, recipe.method))
        assert found[1000.0, 3, name] == evaluate(net, data, MSE).value


def test_a_reading_does_not_depend_on_the_other_methods_times_and_seeds(run):
    whole = values(run(seeds=(0, 1)))
    for recipe in reversed(ALL):
        (alone,) = run([recipe], times_s=(1000.0,), seeds=(1,))
        assert alone.value == whole[1000.0, 1, recipe.name]


def test_compensation_and_calibration_each_bring_the_network_back(run):
    found = values(run(overrides={**DRIFT, "device.sigma_temporal": 0.0}, times_s=(0.0, 1000.0)))
    fresh, aged = found[0.0, 0, "none"], found[1000.0, 0, "none"]
    assert aged > 2 * fresh
    assert found[1000.0, 0, "gdc"] < 1.1 * fresh
    assert found[1000.0, 0, "gdc+paired"] < fresh


def test_images_and_products_are_those_of_the_method_at_that_time(run):
    cost = {(reading.time_s, reading.method): (reading.images, reading.mvms) for reading in run()}
    calibrating, rows = 32 * (16 + 1), 9 + 64
    for time_s in TIMES_S:
        assert cost[time_s, "none"] == cost[time_s, "references"] == (0, 0)
        assert cost[time_s, "gdc"] == cost[time_s, "references+gdc"] == (0, rows)
        assert cost[time_s, "paired"] == (32, calibrating)
        assert cost[time_s, "gdc+paired"] == (32, calibrating + rows)


def test_rows_have_time_method_seed_value_and_cost(run):
    (reading,) = run(recipes("none"), times_s=(10.0,), overrides={**DRIFT, "host": ["tail"]})
    assert list(reading.as_row()) == ["time_s", "method", "seed", "value", "images", "mvms", "device_share"]
    assert reading.notes == ("host pattern 'tail' matches no layer of this model",)


def test_the_model_is_not_changed(run, model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# devices


def test_a_device_without_a_clock_is_refused_before_anything_is_programmed(run, monkeypatch):
    monkeypatch.setattr(Ideal, "program", lambda *_: pytest.fail("programmed"))
    with pytest.raises(ConfigError, match="backend 'ideal' of profile ideal has no simulated clock, so no time can"):
        run(profile="ideal", overrides={})


def test_a_method_that_the_network_cannot_have_is_refused_before_anything_is_measured(data, calibration):
    measured = []
    plain = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    profile = pimcal.load_profile("gaussian_mul", DRIFT)
    with pytest.raises(UsageError, match="affine"):
        timeline(plain, profile, TIMES_S, ALL, [0], data, lambda recipe: calibration, MSE, measured.append)
    assert not measured


def test_a_network_that_is_programmed_anew_in_every_pass_is_refused(run):
    with pytest.raises(ConfigError, match=r"takes 2 turns on the device, .* nothing ages; give the device more tiles"):
        run(recipes("none"), overrides={**DRIFT, "tiles.count": 1, "tiles.rows": 64, "tiles.cols": 4})


class Fading(Ideal):
    """All products shrink with time, as t^-0.1; it has no state to save."""

    compensates = False

    def __init__(self, settings: Any, tiles: Any) -> None:
        super().__init__(settings, tiles)
        self.time_s = 0.0

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(identity="fading", simulated_clock=True, drift_compensation=self.compensates)

    def advance(self, seconds: float) -> None:
        assert seconds > 0
        self.time_s += seconds

    def matmul(self, tile: int, inputs: Tensor) -> Tensor:
        return super().matmul(tile, inputs) * max(1.0, self.time_s) ** -0.1

    def state_dict(self) -> dict[str, Any]:
        return {}


class Compensated(Fading):
    """As a profile that asks for compensation has it."""

    compensates = True


class Saved(Compensated):
    """The same, with a state."""

    def state_dict(self) -> dict[str, Any]:
        return {"tiles": dict(self._columns), "time_s": self.time_s}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.time_s = state["time_s"]


class Offer:
    @pimcal.hookimpl
    def pimcal_register_backends(self, register: Any) -> None:
        for backend in (Fading, Compensated, Saved):
            register(name=backend.__name__.lower(), backend=backend, settings=IdealSettings)


@pytest.fixture
def own_backends():
    registry.default.cache_clear()
    registry.register_plugin(Offer())
    yield
    registry.default.cache_clear()


@pytest.fixture
def profile_of(tmp_path, own_backends):
    def write(backend):
        path = tmp_path / f"{backend}.yaml"
        path.write_text(f"schema: pimcal/1\nbackend: {backend}\n")
        return str(path)

    return write


def test_methods_are_undone_on_a_device_that_cannot_save_its_state(run, profile_of):
    order = ("none", "gdc", "paired", "gdc+paired")
    found = values(run(recipes(*order), profile=profile_of("fading"), overrides={}))
    again = values(run(recipes(*reversed(order)), profile=profile_of("fading"), overrides={}))
    assert found == pytest.approx(again)
    assert found[1000.0, 0, "gdc"] == pytest.approx(0.0, abs=1e-9)
    assert found[1000.0, 0, "none"] > 1e-3


@pytest.mark.parametrize("backend", ["compensated", "saved"])
def test_where_the_profile_compensates_every_method_has_it_and_it_says_so(run, profile_of, backend):
    readings = run(recipes("gdc", "none", "references"), profile=profile_of(backend), overrides={})
    assert list(values(readings).values()) == pytest.approx([0.0] * 9, abs=1e-9)
    assert {reading.notes for reading in readings} == {
        (f"profile {backend} compensates drift by itself, and so do all methods here, 'none' included",)
    }
