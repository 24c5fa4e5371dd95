"""Peak memory over 50,000 images against what the model alone takes: one JSON object.

An image folder is evaluated, and calibrated on with the rest held out, and a DataLoader with two workers is evaluated;
each in a process of its own, because a process's peak cannot be reset. The images are CIFAR-10's, from the shared data
($PIMCAL_DATA); scaled up to 64 x 64, all of them would take 2.3 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LIMIT_MB = 1024
PARTS = ("model alone", "evaluate a folder", "calibrate on a folder", "evaluate a DataLoader")

OWN = """
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 5, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 10))


def larger(images):
    return nn.functional.interpolate(images.float() / 255, size=64)


def loader():
    change = v2.Compose([v2.ToImage(), v2.Resize(64), v2.ToDtype(torch.float32, scale=True)])
    return DataLoader(ImageFolder("train", change), batch_size=64, num_workers=2)
"""


def command(part: str, images: int) -> list[str]:
    """The command whose peak is measured."""
    run = [sys.executable, "-m", "pimcal"]
    options = ["--profile", "ideal", "--model", "own.py:network", "--json"]
    folder = ["--data", "imagefolder:train", "--preprocess", "own.py:larger"]
    if part == "model alone":
        return [*run, "evaluate", *options, *folder, "--images", "64"]
    if part == "evaluate a folder":
        return [*run, "evaluate", *options, *folder, "--images", str(images)]
    if part == "calibrate on a folder":
        return [
            *run,
            "calibrate",
            *options,
            *folder,
            "--held-out",
            str(images - 64),
            "--images",
            "64",
            "--max-drop",
            "1",
        ]
    return [*run, "evaluate", *options, "--data", "own.py:loader"]


def measure(part: str, images: int, folder: Path) -> float:
    """MB of the largest process of a part."""
    code = (
        "import json, resource, subprocess, sys;"
        "subprocess.run(json.loads(sys.argv[1]), check=True, stdout=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    words = json.dumps(command(part, images))
    done = subprocess.run([sys.executable, "-c", code, words], cwd=folder, check=True, capture_output=True, text=True)
    return float(done.stdout) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    arguments = parser.parse_args()
    data = Path(os.environ.get("PIMCAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with zipfile.ZipFile(data / "cifar10" / "train.zip") as archive:
            archive.extractall(folder)
        (folder / "own.py").write_text(OWN)
        peaks = {part: measure(part, arguments.images, folder) for part in PARTS}
    more = {part: round(peak - peaks["model alone"], 1) for part, peak in peaks.items() if part != "model alone"}
    result = {
        "images": arguments.images,
        "peak_mb": {part: round(peak, 1) for part, peak in peaks.items()},
        "more_than_the_model_mb": more,
        "limit_mb": LIMIT_MB,
        "within_limits": all(value < LIMIT_MB for value in more.values()),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
