"""From decoded images to what a network was trained on.

A preprocess function takes a batch of images `[N, C, H, W]`, uint8 in 0..255 or floating point in 0..1, and
returns floating point `[N, C', H', W']`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pimcal.errors import DataError, UsageError
from pimcal.sources.objects import UserObject, resolve
from pimcal.suggest import did_you_mean

Preprocess = Callable[[Tensor], Tensor]

# Means and standard deviations of ImageNet's colour channels (red, green, blue; images in 0..1).
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def none(images: Tensor) -> Tensor:
    """uint8 becomes float32 in 0..1 and floating point float32; other types, such as indices, stay."""
    if images.dtype == torch.uint8:
        return images.to(torch.float32) / 255
    return images.to(torch.float32) if images.is_floating_point() else images


def cifar10(images: Tensor) -> Tensor:
    """Scale to 0..1 and standardise by ImageNet's channel statistics.

    The widely shared CIFAR-10 ResNets of Y. Idelbayev were trained with those, not with CIFAR-10's own.
    """
    return _standardised(_unit_range(images))


def imagenet(images: Tensor) -> Tensor:
    """Resize the shorter side to 256, crop the central 224x224, standardise by ImageNet's channel statistics.

    The usual evaluation transform of ImageNet classifiers; bilinear with antialiasing.
    """
    images = _unit_range(images)
    height, width = images.shape[-2:]
    short = min(height, width)
    size = [256 * height // short, 256 * width // short]
    resized = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    top, left = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
    return _standardised(resized[..., top : top + 224, left : left + 224])


_BUILT_IN: dict[str, Preprocess] = {"none": none, "cifar10": cifar10, "imagenet": imagenet}


def load_preprocess(spec: str) -> Preprocess:
    """The function that `spec` names: `none`, `cifar10`, `imagenet`, `pkg.mod:name` or `file.py:name`.

    Raises:
        UsageError: no such function. The returned function raises `UsageError` for what the user's code
            raises, and `DataError` for images that it cannot take.
    """
    if spec in _BUILT_IN:
        return _BUILT_IN[spec]
    if ":" not in spec:
        raise UsageError(
            f"there is no preprocess {spec!r}{did_you_mean(spec, _BUILT_IN)} (known: {', '.join(_BUILT_IN)}; "
            "name your own as pkg.mod:name or file.py:name)"
        )
    source = resolve(spec)
    if not callable(source.value):
        raise UsageError(f"--preprocess {spec} is a {type(source.value).__name__}, not a function")
    return _checked(source)


def _checked(source: UserObject) -> Preprocess:
    def run(images: Tensor) -> Tensor:
        result = source.call(images)
        if not isinstance(result, Tensor):
            raise UsageError(f"{source.spec} returned a {type(result).__name__}; a tensor [N, ...] is needed")
        if result.ndim == 0 or len(result) != len(images):
            raise UsageError(f"{source.spec} made {list(result.shape)} of {len(images)} images; keep their number")
        return result

    return run


def _unit_range(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 3:
        raise DataError(f"the preprocess expects colour images [N, 3, H, W]; these are {list(images.shape)}")
    scaled = none(images)
    if not scaled.is_floating_point() or scaled.min() < 0 or scaled.max() > 1:
        raise DataError(
            f"the preprocess expects uint8 images, or floating-point ones in 0..1; these are {images.dtype} "
            f"in {images.min()}..{images.max()}. Where they are standardised already, use --preprocess none"
        )
    return scaled


def _standardised(images: Tensor) -> Tensor:
    mean, std = images.new_tensor(_MEAN), images.new_tensor(_STD)
    return (images - mean[:, None, None]) / std[:, None, None]
