"""Calibration images made from nothing, for when no real one may leave the lab."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pimcal.errors import UsageError


def synthetic_images(
    images: int, shape: Sequence[int], generator: torch.Generator, *, slope: float = 1.5, grey: float = 0.95
) -> Tensor:
    """Random images [images, channels, height, width] with a spectrum like that of natural ones.

    Amplitudes fall as 1 / frequency^slope and phases are random (natural scenes: about 1, Field 1987; small photographs
    are smoother, and 1.5 measured best on ResNet-20). A share `grey` of the amplitude is common to all channels. Each
    image gets a brightness and a contrast of its own.
    Values are those of inputs that were normalised to mean 0 and variance 1; no further preprocessing applies.

    Raises UsageError where `shape` is not (channels, height, width).
    """
    if len(shape) != 3 or min(shape) < 1:
        raise UsageError(f"synthetic images need a shape of channels, height, width, for example 3,32,32; got {shape}")
    channels, height, width = shape
    rows = torch.fft.fftfreq(height)[:, None] * height
    cols = torch.fft.rfftfreq(width)[None] * width
    amplitude = (rows.square() + cols.square()).clamp(min=1.0).pow(-slope / 2)
    common = _field(images, 1, height, width, amplitude, generator)
    own = _field(images, channels, height, width, amplitude, generator)
    mixed = grey * common + (1 - grey**2) ** 0.5 * own
    contrast = 0.5 + torch.rand(images, 1, 1, 1, generator=generator)
    brightness = 0.5 * torch.randn(images, 1, 1, 1, generator=generator)
    return mixed * contrast + brightness


def _field(
    images: int, channels: int, height: int, width: int, amplitude: Tensor, generator: torch.Generator
) -> Tensor:
    """White noise shaped by `amplitude` over frequencies, each channel of each image to mean 0 and variance 1."""
    white = torch.randn(images, channels, height, width, generator=generator)
    values = torch.fft.irfft2(torch.fft.rfft2(white) * amplitude, s=(height, width))
    if height * width == 1:
        return white
    std, mean = torch.std_mean(values, dim=(2, 3), keepdim=True)
    return (values - mean) / std
