"""A set of images in batches, which can be walked again and again and cut in two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from pimcal.batches import inputs_in
from pimcal.errors import DataError, UsageError

# Inputs are one tensor [N, ...], a list of N tensors, or model arguments by name or in order; labels a tensor
# [N, ...] or N of anything. A list, and inputs in order, without labels are in a tuple of one, as
# `pimcal.batches.split_batch` has it.
Inputs = Tensor | list[Tensor] | Mapping[str, Any] | tuple[Any, ...]
Batch = Tensor | Mapping[str, Any] | tuple[Inputs] | tuple[Inputs, Any]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A batch of `images` images that is read when it is needed, and read anew each time."""

    images: int
    read: Callable[[], Batch]

    def read_part(self, first: int, last: int) -> Batch:
        """Images `first` to `last` (exclusive) of it."""
        return cut(self.read(), first, last)


@dataclass(frozen=True, slots=True)
class Batches:
    """Iterating yields `x` or, where `has_labels`, `(x, y)`.

    `x` is a tensor or a list of them, one an image; or, for models of several arguments, a dict or a tuple of
    them. Lists and tuples are `(x,)` without labels.
    """

    chunks: tuple[Chunk, ...]
    has_labels: bool

    @property
    def images(self) -> int:
        """How many images there are in all batches."""
        return sum(chunk.images for chunk in self.chunks)

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[Batch]:
        return (chunk.read() for chunk in self.chunks)

    def split(self, images: int) -> tuple[Batches, Batches]:
        """The first `images` images, and the rest.

        Raises:
            UsageError: `images` is less than 1.
            DataError: no image would remain.
        """
        if images < 1:
            raise UsageError(f"the first part of a set of images needs at least 1 image, not {images}")
        if images >= self.images:
            raise DataError(
                f"{self.images} images are too few to set {images} apart and have some left to judge by; "
                f"give at least {images + 1}"
            )
        return self._part(0, images), self._part(images, self.images)

    def resized(self, batch_size: int) -> Iterator[Batch]:
        """The same images in batches of at most `batch_size`."""
        for chunk in self.chunks:
            for first in range(0, chunk.images, batch_size):
                yield chunk.read_part(first, min(first + batch_size, chunk.images))

    def in_memory(self) -> Batches:
        """The same batches, read once and kept; for several passes over files that are slow to decode."""
        return Batches(tuple(kept(chunk.read()) for chunk in self.chunks), self.has_labels)

    def _part(self, first: int, last: int) -> Batches:
        chunks, start = [], 0
        for chunk in self.chunks:
            low, high = max(first - start, 0), min(last - start, chunk.images)
            if low < high:
                whole = high - low == chunk.images
                chunks.append(chunk if whole else Chunk(high - low, partial(chunk.read_part, low, high)))
            start += chunk.images
        return Batches(tuple(chunks), self.has_labels)


def kept(batch: Batch) -> Chunk:
    """A chunk of a batch that is in memory already."""
    return Chunk(count_images(unpack(batch)[0]), lambda: batch)


def unpack(batch: Batch) -> tuple[Inputs, Any]:
    """A batch as inputs and labels; the labels are `None` where it has none."""
    if isinstance(batch, tuple):
        return (batch[0], batch[1]) if len(batch) == 2 else (batch[0], None)
    return batch, None


def pack(inputs: Inputs, labels: Any) -> Batch:
    """The opposite of `unpack`."""
    if labels is not None:
        return inputs, labels
    return (inputs,) if isinstance(inputs, tuple | list) else inputs


def count_images(inputs: Inputs) -> int:
    """How many images `inputs` holds: the length of the first tensor, or list of tensors.

    Raises:
        DataError: there is no tensor with a batch axis.
    """
    for item in inputs_in(inputs):
        if isinstance(item, list) or item.ndim:
            return len(item)
    raise DataError("a batch holds no tensor with a batch axis; yield x, (x, y), or a dict of tensors")


def cut(batch: Batch, first: int, last: int) -> Batch:
    """Images `first` to `last` (exclusive) of a batch."""
    inputs, labels = unpack(batch)
    parts = tuple(_cut(x, first, last) for x in inputs) if isinstance(inputs, tuple) else _cut(inputs, first, last)
    return pack(parts, _cut(labels, first, last))


def _cut(value: Any, first: int, last: int) -> Any:
    if isinstance(value, Mapping):
        return {key: _cut(item, first, last) for key, item in value.items()}
    if isinstance(value, Tensor):
        return value[first:last] if value.ndim else value
    return value[first:last] if isinstance(value, list | tuple) else value
