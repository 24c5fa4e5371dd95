"""A sweep's cells: their order, their independence, and what each is made of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pimcal
from pimcal.errors import ConfigError, UsageError
from pimcal.evaluation import evaluate
from pimcal.metrics import resolve_metric
from pimcal.recipes import parse_recipe
from pimcal.sweep import grid, sweep

MSE = resolve_metric("mse")
RECIPES = [parse_recipe(name) for name in ("none", "references", "paired", "references+affine")]


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
def run(model, data):
    calibration = [torch.randn(16, 1, 6, 6) + 1 for _ in range(2)]

    def sweep_it(settings, recipes=RECIPES, seeds=(0,), profile="gaussian_mul", **more):
        loaded = pimcal.load_profile(profile)
        return sweep(model, loaded, settings, recipes, seeds, data, lambda recipe: calibration, MSE, **more)

    return sweep_it


@given(st.dictionaries(st.text(max_size=3), st.lists(st.integers(), min_size=1, max_size=3, unique=True), max_size=3))
def test_grid_has_every_combination_once_the_last_setting_fastest(settings):
    found = grid(settings)
    wanted = [{}]
    for key, values in settings.items():
        wanted = [{**row, key: value} for row in wanted for value in values]
    assert found == wanted


def test_cells_come_by_setting_then_seed_then_method_and_are_told_at_once(run):
    told = []
    cells = run({"device.eta0": [0.1, 0.3]}, seeds=(4, 5), on_cell=told.append)
    wanted = [(eta0, seed, recipe.name) for eta0 in (0.1, 0.3) for seed in (4, 5) for recipe in RECIPES]
    assert [(cell.setting["device.eta0"], cell.seed, cell.method) for cell in cells] == wanted
    assert told == cells


def test_a_cell_does_not_depend_on_those_before_it(run):
    whole = run({"device.eta0": [0.1, 0.3]}, seeds=(0, 1))
    alone = [
        cell for seed in (1, 0) for recipe in RECIPES for cell in run({"device.eta0": [0.3]}, [recipe], seeds=(seed,))
    ]
    assert {(c.method, c.seed): c for c in alone} == {
        (c.method, c.seed): c for c in whole if c.setting == {"device.eta0": 0.3}
    }
    assert len({cell.value for cell in whole}) == len(whole)


def test_a_cell_without_calibration_is_an_evaluation(run, model, data):
    (cell,) = run({"device.eta0": [0.3]}, [parse_recipe("none")], seeds=(3,))
    with pimcal.open_device("gaussian_mul", {"device.eta0": 0.3, "device.seed": 3}) as device:
        assert cell.value == evaluate(pimcal.deploy(model, device), data, MSE).value
    assert (cell.images, cell.mvms) == (0, 0)


def test_calibrated_cells_count_images_and_products_and_are_better(run):
    cells = {cell.method: cell for cell in run({"device.eta0": [0.5]})}
    for name in ("paired", "references+affine"):
        assert (cells[name].images, cells[name].mvms) == (32, 32 * (16 + 1))
        assert cells[name].value < cells["none"].value
    assert cells["references"].value < cells["none"].value
    assert (cells["references"].images, cells["references"].mvms) == (0, 0)


def test_rows_have_the_settings_first(run):
    (cell,) = run({"device.noise": ["add"], "device.eta0": [0.1]}, [parse_recipe("none")])
    row = cell.as_row()
    assert list(row) == ["device.noise", "device.eta0", "method", "seed", "value", "images", "mvms", "device_share"]
    assert (row["device.noise"], row["device.eta0"], row["method"]) == ("add", 0.1, "none")


def test_the_model_is_not_changed(run, model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run({"device.eta0": [0.3]})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_wrong_value_is_refused_before_the_first_run(run):
    told = []
    with pytest.raises(ConfigError, match=r"-O device\.eta0=-1: must be greater than or equal to 0"):
        run({"device.eta0": [0.1, -1]}, on_cell=told.append)
    assert told == []


def test_without_settings_there_is_one_cell_a_seed_and_method(run):
    assert [(cell.setting, cell.seed) for cell in run({}, RECIPES[:1], seeds=(0, 1))] == [({}, 0), ({}, 1)]


@pytest.mark.parametrize("setting", [{"device.seed": [5]}, {"references.offset": [2]}, {"references": [{"gain": 1}]}])
def test_what_seeds_and_recipes_set_is_refused_as_a_setting(run, setting):
    told = []
    with pytest.raises(UsageError, match=f"--set {next(iter(setting))}: "):
        run({"device.eta0": [0.1], **setting}, on_cell=told.append)
    assert told == []


def test_cells_carry_what_the_placement_has_to_say(run):
    matched, unmatched = run({"host": [["0"], ["tail"]]}, RECIPES[:1])
    assert (matched.notes, unmatched.notes) == ((), ("host pattern 'tail' matches no layer of this model",))
    assert "notes" not in unmatched.as_row()
