"""The options that commands share, and what becomes of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pimcal.errors import DataError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pimcal.calling import Calling
    from pimcal.metrics import Metric
    from pimcal.profile import Profile
    from pimcal.sources.batches import Batches

MAX_SEED = 2**63 - 1
MOST = 10**9  # of images and lines: more is a slip, and more than 2**63 no database counts


def finite(value: float | None) -> float | None:
    """For options: ranges let NaN pass. Raises UsageError."""
    if value is not None and not math.isfinite(value):
        raise UsageError(f"a number is needed, not {value}")
    return value


ProfileOption = Annotated[
    str, typer.Option("--profile", metavar="NAME|FILE", help="Hardware profile: a shipped name or a YAML file.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--override", "-O", metavar="KEY=VALUE", help="Replace a value of the profile.")
]
ModelOption = Annotated[
    str, typer.Option("--model", metavar="SPEC", help="file.py:name, pkg.mod:name or torchvision:NAME.")
]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FILE", help="safetensors, a torch file of tensors, or the index of several."),
]
Data = Annotated[
    str, typer.Option("--data", metavar="SPEC", help="Held-out images: npz:FILE, imagefolder:DIR, file.py:name.")
]
OptionalData = Annotated[
    str | None,
    typer.Option("--data", metavar="SPEC", help="Held-out images: npz:FILE, imagefolder:DIR, file.py:name."),
]
CalibrationData = Annotated[
    str | None,
    typer.Option(
        "--calibration-data", metavar="SPEC", help="As --data, or `synthetic`; left out: the first of --data."
    ),
]
HeldOut = Annotated[
    int | None,
    typer.Option("--held-out", min=1, max=MOST, help="How many images of --data to judge by; left out: all."),
]
Preprocess = Annotated[
    str, typer.Option("--preprocess", metavar="SPEC", help="imagenet, cifar10, none, file.py:name or pkg.mod:name.")
]
Classes = Annotated[
    Path | None,
    typer.Option(
        "--classes",
        metavar="FILE",
        help="Class numbers of imagefolder:'s folders: a name a line, or JSON {name: number}.",
    ),
]
CallingOption = Annotated[
    str | None,
    typer.Option(
        "--calling",
        metavar="HOW",
        help="How a batch is given to the model: positional, keywords, or file.py:name, a function of (model, batch).",
    ),
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric", metavar="SPEC", help="accuracy (default with labels), agreement (default without), mse, cosine, ..."
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, max=MOST, help="Images in an inference batch.")]
Seed = Annotated[
    int | None,
    typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of the simulated device and of torch."),
]
TorchDevice = Annotated[str, typer.Option("--torch-device", metavar="DEVICE", help="cpu, cuda, cuda:1, ...")]
Force = Annotated[
    bool, typer.Option("--force", help="Apply a record that was made for another device or profile all the same.")
]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object.")]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model with the profile it is to run under."""

    profile: Profile
    model: nn.Module


def load_subject(
    profile: str, overrides: list[str] | None, model: str, weights: Path | None, seed: int | None, torch_device: str
) -> Subject:
    """The profile with its overrides, and the model with its weights on a torch device."""
    from pimcal.cli.output import note
    from pimcal.sources.models import load_model

    loaded = read_profile(profile, overrides, seed)
    device = _torch_device(torch_device)
    _seed_torch(seed or 0)
    subject = Subject(loaded, load_model(model, weights, note))
    subject.model.to(device)  # what it returns is the user's code's affair
    return subject


def read_profile(profile: str, overrides: list[str] | None, seed: int | None = None) -> Profile:
    """A profile with `-O` overrides, and with `--seed` in its device where that has one."""
    from pimcal.profile import load_profile, parse_override

    parsed: Mapping[str, Any] = dict(parse_override(text) for text in overrides or [])
    loaded = load_profile(profile, parsed)
    if seed is None:
        return loaded
    from pimcal.recipes import with_seed

    return with_seed(loaded, seed)


@dataclass(frozen=True, slots=True)
class Reading:
    """How images are read from a spec, and how the model is called with them."""

    preprocess: str
    batch_size: int
    classes: Path | None
    calling: str | None

    def load(self, spec: str, images: int | None) -> Batches:
        """The images that a spec names."""
        from pimcal.calling import called
        from pimcal.cli.output import note
        from pimcal.sources.data import load_batches
        from pimcal.sources.preprocess import load_preprocess

        preprocess, calling = load_preprocess(self.preprocess), _calling(self.calling)
        found = load_batches(spec, preprocess, images, self.batch_size, classes=self.classes, tell=note)
        return found if calling is None else found.mapped(lambda batch: called(batch, calling))

    def load_calibration(self, spec: str, images: int | None) -> Batches:
        """The images to calibrate on, whose classes do not matter."""
        folder = spec.startswith("imagefolder:")
        return (self if folder else replace(self, classes=None)).load(spec, images)

    def load_held_out(self, spec: str, held_out: int | None, apart: int) -> Batches:
        """The images to judge by, behind `apart` others that are to calibrate on; endless data needs `held_out`."""
        return self.load(spec, None if held_out is None else held_out + apart)


def _calling(spec: str | None) -> Calling | None:
    """What `--calling` names: a word, or a function of the user's."""
    from pimcal.calling import WORDS
    from pimcal.sources.objects import resolve

    if spec is None or spec in WORDS:
        return spec  # type: ignore[return-value]  # one of the words
    if ":" not in spec:
        raise UsageError(f"--calling {spec!r}: write {', '.join(WORDS)}, file.py:name or pkg.mod:name")
    source = resolve(spec)
    if not callable(source.value):
        raise UsageError(f"--calling {spec} is a {type(source.value).__name__}, not a function of (model, batch)")
    return source.call


def choose_metric(spec: str | None, has_labels: bool) -> Metric:
    """The named metric; without a name accuracy, or agreement with the digital model where there are no labels.

    Raises UsageError where there is no such metric, DataError where it needs labels that are not there.
    """
    from pimcal.metrics import resolve_metric

    metric = resolve_metric(spec or ("accuracy" if has_labels else "agreement"))
    if metric.needs_labels and not has_labels:
        raise DataError(f"metric '{metric.name}' needs labels and the data has none; use metric 'agreement'")
    return metric


def check_method(name: str | None) -> None:
    """Raise UsageError for a calibration method that does not exist."""
    from pimcal.calibration.methods import METHODS
    from pimcal.suggest import did_you_mean

    if name is not None and name not in METHODS:
        known = ", ".join(METHODS)
        raise UsageError(f"unknown calibration method '{name}'{did_you_mean(name, METHODS)} (known: {known})")


def check_calibration_images(model: nn.Module, batches: Batches) -> None:
    """Raise DataError for too few images to calibrate on, and for images that the model does not take."""
    from pimcal.calibration.run import count_images

    if batches.count() < 2:
        count_images(list(batches))
    try:
        check_input(model, batches.first)
    except DataError as error:
        raise DataError(f"the images to calibrate on: {error}") from error


def check_input(model: nn.Module, batch: Any) -> None:
    """Raise DataError where the model does not take such images, before any device is touched."""
    from pimcal.model_state import ModelState
    from pimcal.sources.models import check_input

    with ModelState(model).apart():
        check_input(model, _one_of(batch))


def _one_of(batch: Any) -> Any:
    """One image of a batch, where it can be cut."""
    from pimcal.batches import first_images

    try:
        return first_images(batch, 1)
    except DataError:
        return batch


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """Raises UsageError for anything but positive numbers with commas between them."""
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() and len(part.strip()) < 10 and int(part) > 0 for part in parts):
        raise UsageError(f"--input-shape {text!r} is no shape; write for example 3,32,32")
    return tuple(map(int, parts))


def _torch_device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a device without memory, such as meta, refuses this
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--torch-device {name}: {reason}; leave it out to use the CPU") from error
    return device


def _seed_torch(seed: int) -> None:
    import torch

    torch.manual_seed(seed)
