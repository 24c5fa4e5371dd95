"""The aihwkit backend against aihwkit itself: one JSON object.

`agreement`: largest relative difference from torch with ideal settings; and for PCM noise, tests of whether means and
standard deviations of layer outputs over many programmings differ from those of aihwkit's own converted layer
(Welch's t and the F test for every output, Bonferroni-corrected at the stated level).
`speed`: ResNet-20, forward passes of aihwkit's converted model, of ours with each kind of tile, and of plain torch,
taken in turns; ratios of medians.
`quality`: accuracy in percent of ResNet-20 on 1,000 of the shared CIFAR-10 test images over time since programming.
`reads`: the same a day after programming, calibrated with one read of the device and with the mean of several.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

sys.path.append(sys.path.pop(0))  # behind the installed aihwkit, whose name this program has

import torch
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.simulator.configs import InferenceRPUConfig
from cifar_resnet import images, resnet20, trained
from scipy import stats
from torch import Tensor, nn

import pimcal
from pimcal.evaluation import evaluate
from pimcal.metrics import resolve_metric
from pimcal.recipes import parse_recipe
from pimcal.timeline import timeline

LEVEL = 0.01  # of all comparisons together
COMPARISONS = 12  # layers x ages x kinds of tile
DAY_S, YEAR_S = 86_400.0, 365 * 86_400.0
# aihwkit's own defaults, as its converted model has them: weights go to the array as they are.
DEFAULTS = {"device.mapping.weight_scaling": "none"}
MAPPINGS = {"aihwkit's default (weights unscaled)": DEFAULTS, "aihwkit_pcm as shipped (scaled by column)": {}}
COMPARED = ("none", "gdc", "paired", "gdc+paired", "gdc+affine")
AGES_S = {"1 day": DAY_S, "1 year": YEAR_S}


# --- agreement


def layers() -> dict[str, tuple[nn.Module, Tensor]]:
    """Layers and inputs for them; seeded."""
    torch.manual_seed(0)
    return {
        "Linear": (nn.Linear(48, 12), torch.randn(4, 48)),
        "Conv2d": (nn.Conv2d(6, 8, 3, padding=1), torch.randn(1, 6, 5, 5)),
        "grouped Conv2d": (nn.Conv2d(8, 8, 3, groups=4, padding=1), torch.randn(1, 8, 5, 5)),
    }


def ideal_difference(layer: nn.Module, x: Tensor) -> float:
    with pimcal.open_device("aihwkit_ideal") as device, torch.no_grad():
        exact = layer(x)
        return float((pimcal.deploy(layer, device)(x) - exact).norm() / exact.norm())


def theirs(layer: nn.Module, x: Tensor, age_s: float) -> Tensor:
    """One programming of aihwkit's own converted layer; a grouped convolution, which it refuses, group by group."""
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        parts = zip(split_groups(layer), x.chunk(layer.groups, dim=1), strict=True)
        return torch.cat([theirs(part, inputs, age_s) for part, inputs in parts], dim=1)
    rpu = InferenceRPUConfig()
    rpu.drift_compensation = None
    analog = convert_to_analog(nn.Sequential(copy.deepcopy(layer)), rpu).eval()
    analog.program_analog_weights()
    analog.drift_analog_weights(age_s)
    with torch.no_grad():
        return analog(x)


def split_groups(layer: nn.Conv2d) -> list[nn.Conv2d]:
    size = layer.weight.shape[1]
    parts = []
    for weight, bias in zip(layer.weight.chunk(layer.groups), layer.bias.chunk(layer.groups), strict=True):
        part = nn.Conv2d(size, len(weight), layer.kernel_size, layer.stride, layer.padding)
        part.load_state_dict({"weight": weight, "bias": bias})
        parts.append(part)
    return parts


def ours(layer: nn.Module, x: Tensor, age_s: float, tile: str, seed: int) -> Tensor:
    # A grouped convolution gets tiles of its groups' size, as aihwkit's converted groups have.
    grouped = isinstance(layer, nn.Conv2d) and layer.groups > 1
    cols = {"tiles.cols": layer.out_channels // layer.groups} if grouped else {}
    overrides = {**DEFAULTS, **cols, "device.tile": tile, "device.seed": seed}
    with pimcal.open_device("aihwkit_pcm", overrides) as device, torch.no_grad():
        net = pimcal.deploy(layer, device)
        device.advance(age_s)
        return net(x)


def compare(a: Tensor, b: Tensor) -> dict[str, Any]:
    """Two samples [programmings, outputs]: the smallest p-values over all outputs, and whether any is too small."""
    outputs = a.shape[1]
    means = stats.ttest_ind(a.numpy(), b.numpy(), equal_var=False).pvalue
    ratio = (a.double().var(0) / b.double().var(0)).numpy()
    one_sided = stats.f.cdf(ratio, len(a) - 1, len(b) - 1)
    spreads = 2 * abs(0.5 - abs(one_sided - 0.5))
    smallest, limit = min(means.min(), spreads.min()), LEVEL / (2 * outputs * COMPARISONS)
    return {
        "outputs": outputs,
        "smallest_p_of_means": float(means.min()),
        "smallest_p_of_standard_deviations": float(spreads.min()),
        "limit": limit,
        "agrees": bool(smallest >= limit),
    }


def agreement(programmings: int) -> dict[str, Any]:
    result: dict[str, Any] = {"level": LEVEL, "programmings": programmings}
    result["ideal_largest_relative_difference"] = max(ideal_difference(*pair) for pair in layers().values())
    for name, (layer, x) in layers().items():
        for age, age_s in (("1 s", 1.0), ("1 day", DAY_S)):
            own = torch.stack([theirs(layer, x, age_s).flatten() for _ in range(programmings)])
            for tile in ("vectorised", "cpp"):
                ran = torch.stack([ours(layer, x, age_s, tile, seed).flatten() for seed in range(programmings)])
                result[f"{name}, {age}, {tile}"] = compare(ran, own)
    return result


# --- speed


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def speed(rounds: int, batch: int = 32) -> dict[str, Any]:
    torch.manual_seed(0)
    model = resnet20().eval()
    x = torch.randn(batch, 3, 32, 32)
    converted = convert_to_analog(model, InferenceRPUConfig()).eval()
    calls: dict[str, Callable[[], object]] = {"plain": lambda: model(x), "aihwkit": lambda: converted(x)}
    devices = []
    for tile in ("cpp", "vectorised", "torch"):
        devices.append(pimcal.open_device("aihwkit_pcm", {**DEFAULTS, "device.tile": tile}))
        net = pimcal.deploy(model, devices[-1])
        calls[f"ours, {tile}"] = lambda net=net: net(x)
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for turn in range(rounds + 1):
            for name, call in calls.items():
                taken = seconds(call)
                if turn:  # the first warms up
                    times[name].append(taken)
    for device in devices:
        device.close()
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "threads": torch.get_num_threads(),
        "batch": batch,
        "median_ms": {name: round(1e3 * value, 1) for name, value in medians.items()},
        "over_aihwkit": {name: round(value / medians["aihwkit"], 3) for name, value in medians.items()},
        "over_aihwkit_quartiles": {
            name: [
                round(q, 3)
                for q in statistics.quantiles([a / b for a, b in zip(values, times["aihwkit"], strict=True)], n=4)
            ]
            for name, values in times.items()
        },
        "over_plain": {name: round(value / medians["plain"], 1) for name, value in medians.items()},
    }


# --- quality


def quality(programmings: int, count: int = 1000) -> dict[str, Any]:
    model = trained(20)
    x, y = images("test")
    data = list(zip(x[:count].split(250), y[:count].split(250), strict=True))
    calibration, _ = images("calibration")
    metric = resolve_metric("accuracy")
    result: dict[str, Any] = {"clean": round(100 * evaluate(model, data, metric).value, 1), "images": count}
    for mapping, overrides in MAPPINGS.items():
        names = [*COMPARED, *("references" if name == "none" else f"references+{name}" for name in COMPARED)]
        readings = timeline(
            model,
            pimcal.load_profile("aihwkit_pcm", overrides),
            list(AGES_S.values()),
            [parse_recipe(name, gdc=True) for name in names],
            range(programmings),
            data,
            lambda recipe: calibration[:64].split(16),
            metric,
        )
        rows: dict[str, dict[str, str]] = {}
        for name in names:
            for age, age_s in AGES_S.items():
                values = [100 * r.value for r in readings if r.method == name and r.time_s == age_s]
                told = f"{statistics.fmean(values):.1f} ({min(values):.1f} to {max(values):.1f})"
                rows.setdefault(age, {})[name] = told
        result[mapping] = rows
    return result


def reads(programmings: int, count: int = 1000) -> dict[str, Any]:
    """Calibrations whose images go through the device once and several times, so that their means have less noise."""
    model = trained(20)
    x, y = images("test")
    data = list(zip(x[:count].split(250), y[:count].split(250), strict=True))
    calibration, _ = images("calibration")
    recipes = [parse_recipe(name, gdc=True) for name in ("gdc+paired", "gdc+affine")]
    profile, metric = pimcal.load_profile("aihwkit_pcm"), resolve_metric("accuracy")
    result: dict[str, Any] = {}
    for times in (1, 4):
        batches = calibration[:64].split(16) * times
        found = timeline(
            model, profile, [DAY_S], recipes, range(programmings), data, lambda recipe, batches=batches: batches, metric
        )
        for recipe in recipes:
            values = [100 * reading.value for reading in found if reading.method == recipe.name]
            told = f"{statistics.fmean(values):.1f} ({min(values):.1f} to {max(values):.1f})"
            result.setdefault(recipe.name, {})[f"{times} reads"] = told
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="agreement,speed,quality", help="what to run, comma-separated")
    parser.add_argument("--programmings", type=int, default=200, help="of the agreement; the quality takes 3")
    parser.add_argument("--rounds", type=int, default=15, help="of the speed")
    options = parser.parse_args()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "agreement": lambda: agreement(options.programmings),
        "speed": lambda: speed(options.rounds),
        "quality": lambda: quality(3),
        "reads": lambda: reads(3),
    }
    print(json.dumps({name: parts[name]() for name in options.parts.split(",")}, indent=2))


if __name__ == "__main__":
    main()
