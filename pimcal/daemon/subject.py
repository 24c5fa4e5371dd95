"""What the daemon keeps right: a model under a profile, and the images that it is calibrated and judged with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from pimcal.metrics import Metric
from pimcal.profile import Profile

if TYPE_CHECKING:
    from pimcal.sources.batches import Batches


@dataclass(frozen=True, slots=True)
class Images:
    """Batches to calibrate on, and others to judge by."""

    calibration: Sequence[Any]
    held_out: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Subject:
    """`images(profile)` gives what that profile asks for; raises DataError where there are too few."""

    profile: Profile
    model: nn.Module
    metric: Metric
    images: Callable[[Profile], Images]


def images_for(profile: Profile, calibration: Batches, held_out: Batches) -> Images:
    """The images in the number that a profile asks for."""
    judged = profile.gate.images
    if judged is not None and judged < held_out.count():
        held_out = held_out.split(judged)[0]
    return Images(tuple(calibration), tuple(held_out))
