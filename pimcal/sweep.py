"""Many settings, methods and seeds in one run: how accuracy depends on them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from pimcal.calibration.run import calibrate
from pimcal.deployment import deploy
from pimcal.device import open_device
from pimcal.errors import UsageError
from pimcal.evaluation import evaluate, repeatable
from pimcal.metrics import Metric
from pimcal.profile import Profile
from pimcal.recipes import Recipe, with_references, with_seed

MEASURED = ("method", "seed", "value", "images", "mvms", "device_share")  # keys of a row that are no settings


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of a sweep: the metric's value, and the images and products its calibration used.

    `device_share`: the part of all multiplications by weights that the device made. `notes`: what the placement has to
    say, such as a `host` pattern that matches no layer.
    """

    setting: dict[str, Any]
    method: str
    seed: int
    value: float
    images: int
    mvms: int
    device_share: float | None = None
    notes: tuple[str, ...] = ()

    def as_row(self) -> dict[str, Any]:
        row = asdict(self)
        del row["notes"]
        return {**row.pop("setting"), **row}


def check_settings(keys: Iterable[str]) -> None:
    """Raise UsageError for a profile key that the seeds or the recipes of a sweep set."""
    for key in keys:
        if key == "device.seed":
            raise UsageError("--set device.seed: a sweep's seeds set it; use --seed and --seeds")
        if key.split(".")[0] == "references":
            raise UsageError(
                f"--set {key}: a sweep's methods set it; name references in --methods, as references+paired"
            )


def grid(settings: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """All combinations of the settings' values, the last setting changing fastest."""
    return [dict(zip(settings, values, strict=True)) for values in itertools.product(*settings.values())]


def sweep(
    model: nn.Module,
    profile: Profile,
    settings: Mapping[str, Sequence[Any]],
    recipes: Sequence[Recipe],
    seeds: Sequence[int],
    data: Iterable[Any],
    calibration: Callable[[Recipe], Sequence[Any]],
    metric: Metric,
    on_cell: Callable[[Cell], None] = lambda cell: None,
) -> list[Cell]:
    """Evaluate `model` for every setting, seed and recipe.

    `settings`: profile keys (as for overrides) and their values; seeds are put in `device.seed`. `calibration` gives
    the calibration batches for a recipe. Each cell has a device of its own, so that its order does not matter.

    Raises, before the first run, ProfileError for a setting that does not fit the profile, and UsageError for one that
    seeds or recipes set.
    """
    check_settings(settings)
    data = repeatable(data)
    jobs = [
        (setting, seed, recipe, _changed(profile, setting, seed, recipe))
        for setting, seed, recipe in itertools.product(grid(settings), seeds, recipes)
    ]  # all profiles first, so that a wrong value shows before any work
    cells = []
    for setting, seed, recipe, changed in jobs:
        cells.append(Cell(setting, recipe.name, seed, *_run(model, changed, recipe, data, calibration, metric)))
        on_cell(cells[-1])
    return cells


def _changed(profile: Profile, setting: Mapping[str, Any], seed: int, recipe: Recipe) -> Profile:
    return with_references(with_seed(profile.with_overrides(setting), seed), recipe.references)


def _run(
    model: nn.Module,
    profile: Profile,
    recipe: Recipe,
    data: Iterable[Any],
    calibration: Callable[[Recipe], Sequence[Any]],
    metric: Metric,
) -> tuple[float, int, int, float | None, tuple[str, ...]]:
    with open_device(profile) as device:
        net = deploy(model, device, next(iter(data)))
        images = mvms = 0
        if recipe.method is not None:
            record = calibrate(net, calibration(recipe), recipe.method)
            net.apply(record)
            images, mvms = record.made_with.images, record.made_with.mvms
        found = evaluate(net, data, metric)
        return found.value, images, mvms, found.device_share, net.placement.notes
