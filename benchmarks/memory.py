"""Peak memory of a deployed torchvision ResNet-50 (batch 8, 224 x 224) against the plain one: one JSON object.

Each side runs in a process of its own, because a process's peak cannot be reset; the peak is the largest resident
size that the operating system saw, Python and torch included.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys

LIMIT = 1.3
SIDES = ("plain", "ideal", "gaussian_mul")


def peak_mb(side: str) -> float:
    import torch
    from torchvision.models import resnet50

    import pimcal

    torch.manual_seed(0)
    model = resnet50(weights=None).eval()
    x = torch.randn(8, 3, 224, 224)
    with torch.inference_mode():
        if side == "plain":
            for _ in range(2):
                model(x)
        else:
            with pimcal.open_device(side) as device:
                net = pimcal.deploy(model, device)
                for _ in range(2):
                    net(x)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="processes for each side")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(peak_mb(arguments.side))
        return
    peaks: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(arguments.runs):
        for side in SIDES:
            command = [sys.executable, __file__, "--side", side]
            peaks[side].append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    medians = {side: statistics.median(values) for side, values in peaks.items()}
    ratios = {side: round(medians[side] / medians["plain"], 3) for side in SIDES[1:]}
    result = {
        "peak_mb": {side: round(value, 1) for side, value in medians.items()},
        "spread_mb": {side: round(max(values) - min(values), 1) for side, values in peaks.items()},
        "ratio": ratios,
        "limit": LIMIT,
        "within_limits": all(ratio <= LIMIT for ratio in ratios.values()),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
