"""The demo's measurements: one network, some noise levels, some methods, one simulated device for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import nn

from pimcal.calibration import calibrate
from pimcal.calibration.divergence import Divergence, divergences
from pimcal.deployment import deploy
from pimcal.device import open_device
from pimcal.evaluation import evaluate
from pimcal.metrics import resolve_metric
from pimcal.profile import load_profile
from pimcal.recipes import Recipe, parse_recipe
from pimcal.sweep import Cell, sweep
from pimcal_demo.digits import Examples, load_digits
from pimcal_demo.network import load_network

METHODS = ("none", "references", "ema", "paired", "references+paired")
LEVELS: Mapping[str, tuple[float, ...]] = {"mul": (0.05, 0.1, 0.2, 0.5), "add": (0.003, 0.01, 0.02, 0.03)}
CELLS = len(METHODS) * sum(map(len, LEVELS.values()))

SHOWN_NOISE, SHOWN_ETA0 = "mul", 0.2  # where divergence is measured

_PAIRED_IMAGES = 64
_TEST_BATCH = 100  # images that share one draw of the temporal noise
_EMA_BATCH = 64
_PAIRED_BATCH = 16  # four draws are averaged


@dataclass(frozen=True, slots=True)
class Findings:
    """What the demo measured. `cells`: by noise (`mul`, `add`); `before`, `after`: paired calibration, by layer."""

    seed: int
    clean: float
    test_images: int
    cells: Mapping[str, list[Cell]]
    before: Mapping[str, Divergence]
    after: Mapping[str, Divergence]


def run(seed: int, progress: Callable[[int], None] = lambda done: None) -> Findings:
    """Measure everything; `progress` is called with the number of finished cells, of `CELLS`.

    Raises MissingExtraError without scikit-learn.
    """
    train, test = load_digits()
    network, metric, done = load_network(), resolve_metric("accuracy"), count(1)
    data = _batches(test, _TEST_BATCH)
    cells = {
        noise: sweep(
            network,
            load_profile(f"gaussian_{noise}"),
            {"device.eta0": levels},
            [parse_recipe(method) for method in METHODS],
            [seed],
            data,
            lambda recipe: _calibration_batches(train, recipe),
            metric,
            lambda cell: progress(next(done)),
        )
        for noise, levels in LEVELS.items()
    }
    before, after = _divergence(network, seed, train, data)
    return Findings(seed, evaluate(network, data, metric).value, len(test[1]), cells, before, after)


def _calibration_batches(train: Examples, recipe: Recipe) -> list[Any]:
    if recipe.method == "ema":
        return _batches(train, _EMA_BATCH)
    return _batches((train[0][:_PAIRED_IMAGES], train[1][:_PAIRED_IMAGES]), _PAIRED_BATCH)


def _batches(examples: Examples, batch_images: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    images, labels = examples
    return list(zip(images.split(batch_images), labels.split(batch_images), strict=True))


def _divergence(
    network: nn.Module, seed: int, train: Examples, data: list[Any]
) -> tuple[dict[str, Divergence], dict[str, Divergence]]:
    overrides = {"device.eta0": SHOWN_ETA0, "device.seed": seed}
    with open_device(f"gaussian_{SHOWN_NOISE}", overrides) as device:
        net = deploy(network, device)
        before = divergences(net, data)
        net.apply(calibrate(net, _calibration_batches(train, parse_recipe("paired")), "paired"))
        return before, divergences(net, data)
