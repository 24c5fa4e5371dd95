"""Images, with or without labels, from the specs that `--data` and `--calibration-data` take."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from pimcal.batches import split_batch, tensors_in
from pimcal.errors import DataError, UsageError
from pimcal.sources import preprocess as preprocesses
from pimcal.sources.batches import Batch, Batches, at_least
from pimcal.sources.image_folder import find_images, read_images
from pimcal.sources.npz import read_npz
from pimcal.sources.preprocess import Preprocess
from pimcal.sources.user_data import UserData

Tell = Callable[[str], None]

_log = logging.getLogger(__name__)


def load_batches(
    spec: str,
    preprocess: Preprocess = preprocesses.none,
    images: int | None = None,
    batch_size: int = 64,
    image_shape: Sequence[int] | None = None,
    *,
    classes: Path | None = None,
    tell: Tell = _log.warning,
) -> Batches:
    """The first `images` images that `spec` names, preprocessed, in batches of `batch_size`; read while walking.

    Args:
        spec: `npz:FILE`, `imagefolder:DIR`, or `pkg.mod:name` or `file.py:name`, whose batches keep size.
        preprocess: as `load_preprocess` gives it.
        images: how many to use; None for all.
        batch_size: images in a batch.
        image_shape: `[C, H, W]` that the images must have after `preprocess`; None for any.
        classes: a file of class numbers, for `imagefolder:`.
        tell: is called with remarks on what was left out or cannot be known.

    Raises:
        UsageError: the spec names nothing, a number is below 1, or the user's code raised.
        DataError: the data is unreadable, empty, fewer than `images`, of another shape, or holds NaN or
            infinities. The first batch is read now, so that most mistakes show at once; others show while walking.
    """
    if batch_size < 1 or (images is not None and images < 1):
        raise UsageError(f"images ({images}) and batch size ({batch_size}) must be at least 1")
    kind, _, place = spec.partition(":")
    if not place:
        raise UsageError(f"{spec!r} names no data; write npz:FILE, imagefolder:DIR, pkg.mod:name or file.py:name")
    if classes is not None and kind != "imagefolder":
        raise UsageError(f"--classes numbers the folders of imagefolder:, and {spec} is none")
    if kind == "npz":
        found = _npz(Path(place), preprocess, batch_size)
    elif kind == "imagefolder":
        found = _folder(Path(place), preprocess, batch_size, classes, tell)
    else:
        found = _user(spec, preprocess, batch_size, images, tell)
    checked = found.mapped(partial(_checked, spec=spec, image_shape=image_shape))
    return _limited(checked, images, spec)


def _npz(path: Path, preprocess: Preprocess, batch_size: int) -> Batches:
    pixels, labels = read_npz(path)

    def read(first: int, last: int) -> Batch:
        x = preprocess(pixels[first:last])
        return x if labels is None else (x, labels[first:last])

    return _ranges(read, len(pixels), batch_size)


def _folder(folder: Path, preprocess: Preprocess, batch_size: int, classes: Path | None, tell: Tell) -> Batches:
    files, labels, remarks = find_images(folder, classes)
    shape = read_images(files[:1], preprocess).shape[1:]
    for remark in remarks:
        tell(remark)

    def read(first: int, last: int) -> Batch:
        x = read_images(files[first:last], preprocess, shape)
        return (x, torch.tensor(labels[first:last])) if labels else x

    return _ranges(read, len(files), batch_size)


def _user(spec: str, preprocess: Preprocess, batch_size: int, images: int | None, tell: Tell) -> Batches:
    data = UserData(spec, preprocess, batch_size)
    if images is None:
        data.check_ends()
        if not data.tells_its_length:
            tell(f"{spec} does not say how many images it holds and is used to its end; an endless one needs a number")
    return Batches(data.walk, data.images)


def _ranges(read: Callable[[int, int], Batch], available: int, batch_size: int) -> Batches:
    def walk(start: int) -> Iterator[Batch]:
        bounds = [start, *range((start // batch_size + 1) * batch_size, available, batch_size), available]
        return (read(first, last) for first, last in pairwise(bounds))

    return Batches(walk, available)


def _limited(batches: Batches, images: int | None, spec: str) -> Batches:
    def too_few(found: int, wanted: int) -> DataError:
        if not found:
            return DataError(f"{spec} is empty: at least one image is needed")
        return DataError(f"{spec} is too small: it holds {found} images, {wanted} were asked for")

    known = batches.images
    if known is not None and known < (images or 1):
        raise too_few(known, images or 1)
    if images is None:
        found = Batches(lambda start: at_least(batches.starting(start), 1 - start, lambda n: too_few(n, 1)), known)
    else:
        found = batches.up_to(images, too_few)
    _ = found.first  # is read now, so that most mistakes show at once
    return found


def _checked(batch: Batch, spec: str, image_shape: Sequence[int] | None) -> Batch:
    args, kwargs, _ = split_batch(batch)
    if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):  # masks among several inputs may hold infinities
        if any(tensor.isnan().any() for tensor in tensors_in((args, kwargs))):
            raise DataError(f"{spec}: an input holds NaN")
        return batch
    _check_images(args[0], spec, image_shape)
    return batch


def _check_images(images: Tensor, spec: str, shape: Sequence[int] | None) -> None:
    if shape is not None and list(images.shape[1:]) != list(shape):
        raise DataError(f"{spec}: images are {list(images.shape[1:])} after the preprocess, not {list(shape)}")
    bad_images = (~images.isfinite()).reshape(len(images), -1).any(dim=1).nonzero()
    if len(bad_images):
        raise DataError(
            f"{spec}: {len(bad_images)} of a batch of {len(images)} images hold NaN or infinities after the "
            f"preprocess; the first is number {int(bad_images[0])} of the batch"
        )
