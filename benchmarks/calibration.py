"""How well calibration restores ResNet-20 and ResNet-56 on CIFAR-10, and how long it takes: one JSON object.

Accuracies in percent on the 2,000 shared test images, mean and spread over device seeds. `ema` uses all 4,000
calibration images in batches of 128 (as these networks were trained; --ema-batch changes it), `paired` the first 64 in
batches of 16, `synthetic` 64 made-up images. The time of
a calibration is given as a multiple of two plain forward passes over the same images, measured side by side.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from cifar_resnet import images, trained
from torch import Tensor, nn

import pimcal
from pimcal.evaluation import evaluate
from pimcal.metrics import resolve_metric
from pimcal.recipes import parse_recipe, with_references
from pimcal.synthetic import synthetic_images

NOISE = {"MUL 0.1": ("mul", 0.1), "MUL 0.2": ("mul", 0.2), "ADD 0.003": ("add", 0.003)}
REFERENCES = {"MUL 0.2": ("mul", 0.2), "MUL 0.5": ("mul", 0.5), "ADD 0.01": ("add", 0.01), "ADD 0.03": ("add", 0.03)}
METHODS = ("none", "ema", "paired")

Batches = Sequence[Tensor]


class Bench:
    """One network with its images."""

    def __init__(self, depth: int, ema_batch: int = 128) -> None:
        self.ema_batch = ema_batch
        self.model: nn.Module = trained(depth)
        x, y = images("test")
        self.test = list(zip(x.split(250), y.split(250), strict=True))
        self.calibration, _ = images("calibration")
        self.metric = resolve_metric("accuracy")
        self.clean = round(100 * evaluate(self.model, self.test, self.metric).value, 2)

    def batches(self, method: str, seed: int) -> Batches:
        if method == "ema":
            return self.calibration.split(self.ema_batch)
        if method == "synthetic":
            return synthetic_images(64, (3, 32, 32), torch.Generator().manual_seed(seed)).split(16)
        return self.calibration[:64].split(16)

    def accuracy(self, noise: str, eta0: float, method: str, seed: int) -> float:
        """Accuracy in percent with a method on a device of its own; "references" alone calibrates nothing."""
        profile = pimcal.load_profile(f"gaussian_{noise}", {"device.eta0": eta0, "device.seed": seed})
        recipe = parse_recipe("paired" if method == "synthetic" else method)
        with pimcal.open_device(with_references(profile, recipe.references)) as device:
            net = pimcal.deploy(self.model, device)
            if recipe.method is not None:
                net.apply(pimcal.calibrate(net, self.batches(method, seed), recipe.method))
            return 100 * evaluate(net, self.test, self.metric).value

    def row(self, noise: str, eta0: float, methods: Sequence[str], seeds: int) -> dict[str, dict[str, float]]:
        return {method: spread([self.accuracy(noise, eta0, method, s) for s in range(seeds)]) for method in methods}

    def time_ratio(self, rounds: int = 9) -> dict[str, float]:
        """Time of a 64-image paired calibration over that of two plain passes over the same images."""
        x = self.calibration[:64]
        with pimcal.open_device("gaussian_mul") as device, torch.no_grad():
            net = pimcal.deploy(self.model, device)

            def plain() -> None:
                self.model(x), self.model(x)

            def paired() -> None:
                pimcal.calibrate(net, self.batches("paired", 0), "paired")

            plain(), paired()
            pairs = [(seconds(plain), seconds(paired)) for _ in range(rounds)]
        two_passes, calibration = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratios = [b / a for a, b in pairs]
        return {
            "two_plain_passes_s": round(two_passes, 4),
            "calibration_s": round(calibration, 4),
            "ratio": round(calibration / two_passes, 2),
            "ratio_min": round(min(ratios), 2),
            "ratio_max": round(max(ratios), 2),
            "limit": 3.0,
        }


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def spread(values: list[float]) -> dict[str, float]:
    return {"mean": round(statistics.fmean(values), 2), "min": round(min(values), 2), "max": round(max(values), 2)}


def run(depth: int, seeds: int, ema_batch: int) -> dict[str, object]:
    bench = Bench(depth, ema_batch)
    noise = {name: bench.row(*law, METHODS, seeds) for name, law in NOISE.items()}
    for name in ("MUL 0.2", "ADD 0.003"):
        noise[name] |= bench.row(*NOISE[name], ("synthetic",), seeds)
    result: dict[str, object] = {
        "clean": bench.clean,
        "no noise, paired": round(bench.accuracy("mul", 0.0, "paired", 0), 2),
        "noise": noise,
        "time": bench.time_ratio(),
    }
    if depth == 20:
        result["references"] = {name: bench.row(*law, ("references",), seeds) for name, law in REFERENCES.items()}
    return result | {"misses": misses(bench.clean, result)}


def misses(clean: float, result: dict[str, object]) -> list[str]:
    """What falls short of the project's own targets."""
    noise: dict[str, dict[str, dict[str, float]]] = result["noise"]  # type: ignore[assignment]
    references: dict[str, dict[str, dict[str, float]]] = result.get("references", {})  # type: ignore[assignment]
    checks = {"no noise: within 0.1": abs(clean - result["no noise, paired"]) <= 0.1}  # type: ignore[operator]
    for name, row in noise.items():
        paired = row["paired"]["mean"]
        checks[f"{name}: paired within 0.5 of clean"] = paired >= clean - 0.5
        checks[f"{name}: paired 1.0 above ema"] = paired >= row["ema"]["mean"] + 1.0
        if "synthetic" in row:
            checks[f"{name}: synthetic within 1.5 of clean"] = row["synthetic"]["mean"] >= clean - 1.5
    for name, row in references.items():
        checks[f"{name}: references within 2.0 of clean"] = row["references"]["mean"] >= clean - 2.0
    checks["time within 3x"] = result["time"]["ratio"] <= 3.0  # type: ignore[index]
    return [name for name, reached in checks.items() if not reached]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 56], choices=(20, 56))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ema-batch", type=int, default=128, help="images in one of Algorithm 1's mini-batches")
    arguments = parser.parse_args()
    results = {f"resnet{depth}": run(depth, arguments.seeds, arguments.ema_batch) for depth in arguments.depths}
    print(
        json.dumps(
            {"seeds": arguments.seeds, "ema_batch": arguments.ema_batch, "threads": torch.get_num_threads(), **results},
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
