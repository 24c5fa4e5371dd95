"""How much slower a deployed ResNet-20 is than the plain one: one JSON object with ratios of medians.

Plain and deployed forward passes alternate in one process, so that a busy machine slows both. Weights are random:
the time does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from cifar_resnet import resnet20

import pimcal

LIMITS = {"ideal": {1: 1.25, 32: 1.05, 256: 1.05}, "gaussian_mul": {1: 1.6, 32: 1.10, 256: 1.10}}
ROUNDS = {1: 400, 32: 60, 256: 15}


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(profile: str, batch: int, rounds: int) -> dict[str, float]:
    """Median times in milliseconds, the ratio of the medians, and the spread of the pairwise ratios."""
    torch.manual_seed(0)
    model = resnet20().eval()
    x = torch.randn(batch, 3, 32, 32)
    with pimcal.open_device(profile) as device, torch.inference_mode():
        net = pimcal.deploy(model, device)
        for _ in range(3):
            model(x), net(x)
        pairs = [(seconds(lambda: model(x)), seconds(lambda: net(x))) for _ in range(rounds)]
    plain, deployed = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratios = statistics.quantiles([b / a for a, b in pairs], n=4)
    return {
        "plain_ms": round(1e3 * plain, 3),
        "deployed_ms": round(1e3 * deployed, 3),
        "ratio": round(deployed / plain, 3),
        "pair_ratio_quartiles": [round(r, 3) for r in ratios],
        "limit": LIMITS[profile][batch],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual rounds")
    scale = parser.parse_args().scale
    results = {
        profile: {str(b): compare(profile, b, max(3, int(n * scale))) for b, n in ROUNDS.items()} for profile in LIMITS
    }
    within = all(r["ratio"] <= r["limit"] for rows in results.values() for r in rows.values())
    print(json.dumps({"threads": torch.get_num_threads(), "results": results, "within_limits": within}, indent=2))


if __name__ == "__main__":
    main()
