"""Images, with or without labels, from the specs that `--data` and `--calibration-data` take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pimcal.batches import tensors_in
from pimcal.errors import DataError, UsageError
from pimcal.sources import preprocess as preprocesses
from pimcal.sources.batches import Batch, Batches, Chunk, Inputs, kept, unpack
from pimcal.sources.image_folder import find_images, read_images
from pimcal.sources.npz import read_npz
from pimcal.sources.preprocess import Preprocess
from pimcal.sources.user_data import read_user_batches


def load_batches(
    spec: str,
    preprocess: Preprocess = preprocesses.none,
    images: int | None = None,
    batch_size: int = 64,
    image_shape: Sequence[int] | None = None,
) -> Batches:
    """The first `images` images that `spec` names, preprocessed, in batches of `batch_size`.

    Args:
        spec: `npz:FILE`, `imagefolder:DIR`, or `pkg.mod:name` or `file.py:name`, whose batches keep size.
        preprocess: as `load_preprocess` gives it.
        images: how many to use; None for all.
        batch_size: images in a batch.
        image_shape: `[C, H, W]` that the images must have after `preprocess`; None for any.

    Raises:
        UsageError: the spec names nothing, a number is below 1, or the user's code raised.
        DataError: the data is unreadable, empty, fewer than `images`, of another shape, or holds NaN or
            infinities. Files are decoded while iterating, so that a damaged one is reported then.
    """
    if batch_size < 1 or (images is not None and images < 1):
        raise UsageError(f"images ({images}) and batch size ({batch_size}) must be at least 1")
    kind, _, place = spec.partition(":")
    if not place:
        raise UsageError(f"{spec!r} names no data; write npz:FILE, imagefolder:DIR, pkg.mod:name or file.py:name")
    check = partial(_checked, spec=spec, image_shape=image_shape)
    if kind == "npz":
        chunks = _npz_chunks(Path(place), preprocess, images, batch_size)
    elif kind == "imagefolder":
        chunks = _folder_chunks(Path(place), preprocess, images, batch_size)
    else:
        chunks = _user_chunks(spec, preprocess, images, batch_size)
    return _batches([Chunk(c.images, partial(_read_checked, c, check)) for c in chunks], images, spec)


def _npz_chunks(path: Path, preprocess: Preprocess, images: int | None, batch_size: int) -> list[Chunk]:
    pixels, labels = read_npz(path)

    def read(first: int, last: int) -> Batch:
        x = preprocess(pixels[first:last])
        return x if labels is None else (x, labels[first:last])

    return _ranges(read, len(pixels), images, batch_size)


def _folder_chunks(folder: Path, preprocess: Preprocess, images: int | None, batch_size: int) -> list[Chunk]:
    files, labels = find_images(folder)
    shape = read_images(files[:1], preprocess).shape[1:]

    def read(first: int, last: int) -> Batch:
        x = read_images(files[first:last], preprocess, shape)
        return (x, torch.tensor(labels[first:last])) if labels else x

    return _ranges(read, len(files), images, batch_size)


def _user_chunks(spec: str, preprocess: Preprocess, images: int | None, batch_size: int) -> list[Chunk]:
    return [kept(batch) for batch in read_user_batches(spec, preprocess, images, batch_size)]


def _ranges(read: Callable[[int, int], Batch], available: int, images: int | None, batch_size: int) -> list[Chunk]:
    end = available if images is None else min(images, available)
    starts = range(0, end, batch_size)
    return [Chunk(min(s + batch_size, end) - s, partial(read, s, min(s + batch_size, end))) for s in starts]


def _batches(chunks: Sequence[Chunk], images: int | None, spec: str) -> Batches:
    available = sum(chunk.images for chunk in chunks)
    if not available:
        raise DataError(f"{spec} is empty: at least one image is needed")
    if images is not None and available < images:
        raise DataError(f"{spec} is too small: it holds {available} images, {images} were asked for")
    labels = unpack(chunks[0].read())[1]  # reads a batch now, so that most mistakes show at once
    return Batches(tuple(chunks), labels is not None)


def _read_checked(chunk: Chunk, check: Callable[[Inputs], None]) -> Batch:
    batch = chunk.read()
    check(unpack(batch)[0])
    return batch


def _checked(inputs: Inputs, spec: str, image_shape: Sequence[int] | None) -> None:
    if not isinstance(inputs, Tensor):  # masks among several inputs may hold infinities
        if any(tensor.isnan().any() for tensor in tensors_in(inputs)):
            raise DataError(f"{spec}: an input holds NaN")
        return
    if image_shape is not None and list(inputs.shape[1:]) != list(image_shape):
        raise DataError(f"{spec}: images are {list(inputs.shape[1:])} after the preprocess, not {list(image_shape)}")
    bad_images = (~inputs.isfinite()).reshape(len(inputs), -1).any(dim=1).nonzero()
    if len(bad_images):
        raise DataError(
            f"{spec}: {len(bad_images)} of a batch of {len(inputs)} images hold NaN or infinities after the "
            f"preprocess; the first is number {int(bad_images[0])} of the batch"
        )
