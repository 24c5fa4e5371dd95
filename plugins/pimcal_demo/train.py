"""Train the demo's network: `python -m pimcal_demo.train --out FILE` writes its weights as safetensors.

Prints one JSON object. On one machine, the same seed gives the same file. The file's metadata say how it
was trained and what accuracy it reached on the test set.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from pimcal.errors import DataError, PimcalError
from pimcal_demo.digits import Examples, load_digits
from pimcal_demo.network import DigitsNetwork

_BATCH_IMAGES = 64
_PEAK_LEARNING_RATE = 0.1
_WEIGHT_DECAY = 1e-4
_MAX_ROTATION_RAD = math.radians(12)
_MAX_SHIFT = 0.2  # of half an image: 0.8 pixels


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, write the weights, print what came out; returns the exit code."""
    options = _options(arguments)
    try:
        result = _run(options.out, options.epochs, options.seed)
    except PimcalError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


def _run(out: Path, epochs: int, seed: int) -> dict[str, float]:
    torch.set_num_threads(1)  # the order of sums, and so the file, depends on the number of threads
    started_s = time.monotonic()
    train_set, test_set = load_digits()
    network = train(train_set, epochs, torch.Generator().manual_seed(seed))
    result = {
        "accuracy": accuracy(network, test_set),
        "images": len(test_set[1]),
        "epochs": epochs,
        "seed": seed,
    }
    # One key: safetensors does not keep the order of several, and the same seed shall give the same file.
    _write_atomically(out, save(network.state_dict(), metadata={"training": json.dumps(result)}))
    return result | {"seconds": round(time.monotonic() - started_s, 1)}


def train(examples: Examples, epochs: int, generator: torch.Generator) -> DigitsNetwork:
    """A network trained on `examples`, in evaluation mode; `generator` decides everything random."""
    network = DigitsNetwork()
    _initialise(network, generator)
    steps = epochs * -(-len(examples[1]) // _BATCH_IMAGES)
    optimizer = torch.optim.SGD(_parameter_groups(network), lr=_PEAK_LEARNING_RATE, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK_LEARNING_RATE, total_steps=steps)
    network.train()
    for _ in range(epochs):
        for images, labels in _batches(examples, generator):
            loss = F.cross_entropy(network(_augment(images, generator)), labels)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, examples: Examples) -> float:
    """The share of `examples` that the network, in its present mode, labels correctly."""
    images, labels = examples
    return float((network(images).argmax(dim=1) == labels).double().mean())


def _initialise(network: nn.Module, generator: torch.Generator) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01, generator=generator)
            nn.init.zeros_(module.bias)


def _parameter_groups(network: nn.Module) -> list[dict[str, object]]:
    """Decay for weights only: BatchNorm's scales and all offsets are vectors."""
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in network.parameters() if parameter.ndim == 1]
    return [{"params": weights, "weight_decay": _WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]


def _batches(examples: Examples, generator: torch.Generator) -> Iterator[Examples]:
    images, labels = examples
    for chosen in torch.split(torch.randperm(len(labels), generator=generator), _BATCH_IMAGES):
        yield images[chosen], labels[chosen]


def _augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (`[n, 1, height, width]`) turned and shifted a little, at random; paper fills the border."""
    uniform = torch.rand(3, len(images), generator=generator) * 2 - 1
    angle, shift = uniform[0] * _MAX_ROTATION_RAD, uniform[1:] * _MAX_SHIFT
    top = torch.stack([angle.cos(), -angle.sin(), shift[0]], dim=1)
    bottom = torch.stack([angle.sin(), angle.cos(), shift[1]], dim=1)
    grid = F.affine_grid(torch.stack([top, bottom], dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _write_atomically(path: Path, content: bytes) -> None:
    """The whole file or, raising `DataError`, what was there before: written beside, synced, renamed."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; free some space or choose another --out") from error
    finally:
        partial.unlink(missing_ok=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pimcal_demo.train", description="Train the demo's network.")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the safetensors file to write")
    parser.add_argument("--epochs", type=int, default=60, help="passes over the training set (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: 0)")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error(f"--epochs is {options.epochs}; it takes at least 1")
    if not options.out.absolute().parent.is_dir():
        parser.error(f"--out {options.out}: there is no folder {options.out.parent}; create it first")
    return options


if __name__ == "__main__":
    sys.exit(main())
