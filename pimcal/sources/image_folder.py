"""Images from a folder, with the class folders in it as labels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pimcal.errors import DataError
from pimcal.sources.classes import class_file, listed_classes, ordered_classes
from pimcal.sources.pixels import read_pixels
from pimcal.sources.preprocess import Preprocess

_ENDINGS = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*")  # of images whose name does not tell
_LEFTOVERS = ("__MACOSX", "@eaDir")  # folders of copies and thumbnails that systems leave behind, without a dot
_SHOWN = 3


class ImageFolder(NamedTuple):
    """The images of a folder in their order of use; `labels` is empty where there are no class folders."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    remarks: tuple[str, ...] = ()


def find_images(folder: Path, classes: Path | None = None) -> ImageFolder:
    """List the images of `folder`: of its subfolders, one class each, or else its own. What is hidden is left out.

    Class numbers come from the file `classes`, else from one in the folder, else from the order of the names. One image
    of every class is taken in turn, so that the first few images are not all of one class.

    Raises:
        DataError: there is no such folder, no image in it or in a class, images both beside and inside class folders,
            or the folders are no classes.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    loose, others = _sorted_out(path for path in _entries(folder) if not path.is_dir())
    subfolders = [path for path in _entries(folder) if path.is_dir()]
    found = {path.name: _sorted_out(_files(path, {os.path.realpath(folder)})) for path in subfolders}
    images = {name: files for name, (files, _) in found.items()}
    if loose and any(images.values()):
        raise DataError(f"{folder} has images beside its class folders ({loose[0].name}); move them into one")
    if not loose and not any(images.values()):
        raise DataError(f"{folder} has no images ({', '.join(sorted(_ENDINGS))}), also not in its subfolders")
    if loose:
        return ImageFolder(tuple(loose), (), tuple(_left_out(others)))
    numbers, remarks = _numbers(folder, images, classes or class_file(folder))
    ordered = sorted(numbers, key=numbers.__getitem__)
    turns = zip_longest(*([(file, numbers[name]) for file in images[name]] for name in ordered))
    pairs = [pair for pair in chain.from_iterable(turns) if pair is not None]
    remarks += _left_out([path for _, rest in found.values() for path in rest])
    return ImageFolder(tuple(file for file, _ in pairs), tuple(label for _, label in pairs), tuple(remarks))


def read_images(files: Sequence[Path], preprocess: Preprocess, shape: torch.Size | None = None) -> Tensor:
    """Decode `files` to RGB, preprocess each alone, and stack them: `[n, C, H, W]`.

    Raises:
        MissingExtraError: Pillow is not installed.
        DataError: a file is damaged or of a mode that is not RGB exactly, or its image after `preprocess` is not of
            `shape` (None: the first's).
    """
    images = [preprocess(read_pixels(file)[None])[0] for file in files]
    expected = images[0].shape if shape is None else shape
    for file, image in zip(files, images, strict=True):
        if image.shape != expected:
            raise DataError(
                f"{file} is {list(image.shape)} after the preprocess, the folder's first {list(expected)}; "
                "choose a --preprocess that brings all to one size, such as imagenet"
            )
    return torch.stack(images)


def _numbers(folder: Path, images: Mapping[str, Sequence[Path]], file: Path | None) -> tuple[dict[str, int], list[str]]:
    """The class numbers of the folders that count, and remarks on them."""
    if file is not None:
        return listed_classes(file, folder, [name for name, files in images.items() if files]), []
    found = ordered_classes(folder, list(images))
    _check_filled(folder, images)
    return found


def _entries(folder: Path) -> list[Path]:
    """What is in a folder and not hidden, by the alphabet."""
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.name not in _LEFTOVERS)
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error


def _files(folder: Path, above: set[str]) -> Iterator[Path]:
    """All files at any depth; a link to a folder above ends there."""
    place = os.path.realpath(folder)
    if place in above:
        return
    for path in _entries(folder):
        if path.is_dir():
            yield from _files(path, above | {place})
        else:
            yield path


def _sorted_out(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Images, by their ending or else by how they begin, and all others."""
    images: list[Path] = []
    others: list[Path] = []
    for path in paths:
        (images if _is_image(path) else others).append(path)
    return images, others


def _is_image(path: Path) -> bool:
    if not path.is_file():
        return path.suffix.lower() in _ENDINGS and not path.exists()  # a link to nothing, which is told when it is read
    if path.suffix.lower() in _ENDINGS:
        return True
    start = b""
    with suppress(OSError), path.open("rb") as file:
        start = file.read(12)
    return start.startswith(_BEGINNINGS) or (start[:4], start[8:]) == (b"RIFF", b"WEBP")


def _left_out(others: Sequence[Path]) -> list[str]:
    """A remark on files that are no images: they may be some, of a kind that cannot be read."""
    if not others:
        return []
    more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    return [f"left out, as no images: {', '.join(path.name for path in others[:_SHOWN])}{more}"]


def _check_filled(folder: Path, images: Mapping[str, Sequence[Path]]) -> None:
    """No class without images, which would shift the others' numbers; and not the folder above the classes."""
    empty = [name for name, files in images.items() if not files]
    if empty:
        raise DataError(f"{folder / empty[0]} has no images, but would count as a class; remove it or move it away")
    (name, files), *more = images.items()
    deeper = {file.relative_to(folder).parts[1] for file in files if len(file.relative_to(folder).parts) > 2}
    if not more and len(deeper) > 1 and len(files) == sum(len(f.relative_to(folder).parts) > 2 for f in files):
        raise DataError(
            f"{folder} holds one folder, {name}, with folders of its own ({', '.join(sorted(deeper)[:_SHOWN])}); "
            f"name the one that holds the class folders: imagefolder:{folder / name}"
        )
