"""Images from a folder, with the class folders in it as labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pimcal.errors import DataError, MissingExtraError
from pimcal.sources.preprocess import Preprocess

_ENDINGS = frozenset((".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))


class ImageFolder(NamedTuple):
    """The images of a folder in their order of use; `labels` is empty where there are no class folders."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]


def find_images(folder: Path) -> ImageFolder:
    """List the images of `folder`: of its subfolders, one class each, or else its own.

    A class's number is its folder's place in the alphabet. One image of every class is taken in turn, so that
    the first few images are not all of one class.

    Raises:
        DataError: there is no such folder, no image in it, or images both beside and inside class folders.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    loose = _image_files(folder.iterdir())
    subfolders = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    classes = [_image_files(subfolder.rglob("*")) for subfolder in subfolders]
    if loose and any(classes):
        raise DataError(f"{folder} has images beside its class folders ({loose[0].name}); move them into one")
    if not loose and not any(classes):
        raise DataError(f"{folder} has no images ({', '.join(sorted(_ENDINGS))}), also not in its subfolders")
    if loose:
        return ImageFolder(tuple(loose), ())
    turns = zip_longest(*([(file, label) for file in files] for label, files in enumerate(classes)))
    pairs = [pair for pair in chain.from_iterable(turns) if pair is not None]
    return ImageFolder(tuple(file for file, _ in pairs), tuple(label for _, label in pairs))


def read_images(files: Sequence[Path], preprocess: Preprocess, shape: torch.Size | None = None) -> Tensor:
    """Decode `files` to RGB, preprocess each alone, and stack them: `[n, C, H, W]`.

    Raises:
        MissingExtraError: Pillow is not installed.
        DataError: a file is damaged, or its image after `preprocess` is not of `shape` (None: the first's).
    """
    images = [_decoded(file, preprocess) for file in files]
    expected = images[0].shape if shape is None else shape
    for file, image in zip(files, images, strict=True):
        if image.shape != expected:
            raise DataError(
                f"{file} is {list(image.shape)} after the preprocess, the folder's first {list(expected)}; "
                "choose a --preprocess that brings all to one size, such as imagenet"
            )
    return torch.stack(images)


def _image_files(paths: Iterable[Path]) -> list[Path]:
    return sorted(p for p in paths if p.suffix.lower() in _ENDINGS and p.is_file())


def _decoded(file: Path, preprocess: Preprocess) -> Tensor:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingExtraError("imagefolder:", "Pillow", "vision") from error
    try:
        with Image.open(file) as image:
            pixels = np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{file} is no readable image: {error}") from error
    return preprocess(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0]
