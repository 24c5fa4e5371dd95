"""A set of images in batches, which are read when they are needed, and can be cut in two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from pimcal.batches import batch_size, images_of, split_batch
from pimcal.errors import DataError, UsageError

Batch = Any  # see `pimcal.batches`
Walk = Callable[[int], Iterator[Batch]]  # all batches, from that image on; those before need not be read


class Batches:
    """Batches that are read anew each time they are walked: no more than one is held, and the first.

    `images`: how many there are in all; None where only a walk to the end tells.
    """

    def __init__(self, walk: Walk, images: int | None = None) -> None:
        self.images = images
        self._walk = walk
        self._first: Batch = None
        self._begun: Iterator[Batch] | None = None  # a walk behind its first batch, for whoever comes next

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> Batches:
        """Of batches that are in memory already."""
        return cls(lambda start: part(batches, start), sum(map(batch_size, batches)))

    @property
    def first(self) -> Batch:
        """The first batch, read once; a walk that begins later goes on from there.

        Raises DataError where there is none.
        """
        if self._first is None:
            begun = self._walk(0)
            self._first = next(begun, None)
            if self._first is None:
                raise DataError("there is no image: at least one is needed")
            self._begun = begun
        return self._first

    def count(self) -> int:
        """How many images there are; walks to the end where that is not known."""
        if self.images is None:
            self.images = sum(map(batch_size, self))
        return self.images

    @property
    def has_labels(self) -> bool:
        return split_batch(self.first)[2] is not None

    def __iter__(self) -> Iterator[Batch]:
        return self.starting(0)

    def split(self, images: int) -> tuple[Batches, Batches]:
        """The first `images` images, and the rest.

        Raises:
            UsageError: `images` is less than 1.
            DataError: no image would remain; where `self.images` is None, when that is found.
        """
        if images < 1:
            raise UsageError(f"the first part of a set of images needs at least 1 image, not {images}")
        if self.images is not None and images >= self.images:
            raise _too_few(self.images, images)

        def rest(start: int) -> Iterator[Batch]:
            return at_least(self.starting(images + start), 1 - start, lambda found: _too_few(None, images))

        return self.up_to(images, _too_few), Batches(rest, None if self.images is None else self.images - images)

    def up_to(self, images: int, too_few: Callable[[int, int], DataError] | None = None) -> Batches:
        """The first `images` images; where there are fewer, `too_few(found, images)` is raised, or all are given."""

        def walk(start: int) -> Iterator[Batch]:
            cut = part(self.starting(start), 0, images - start)
            if too_few is None:
                return cut
            return at_least(cut, images - start, lambda found: too_few(start + found, images))

        sure = too_few is not None or (self.images is not None and self.images >= images)
        return Batches(walk, images if sure else self.images)

    def resized(self, size: int) -> Iterator[Batch]:
        """The same images in batches of at most `size`."""
        for batch in self:
            for first in range(0, batch_size(batch), size):
                yield images_of(batch, first, first + size)

    def mapped(self, change: Callable[[Batch], Batch]) -> Batches:
        """The same batches, each as `change` makes it, which keeps the images."""
        return Batches(lambda start: map(change, self.starting(start)), self.images)

    def in_memory(self) -> Batches:
        """The same batches, read once and kept; for several walks over what is slow to read."""
        return Batches.of(list(self))

    def starting(self, start: int) -> Iterator[Batch]:
        """The batches from image `start` on."""
        if start or self._begun is None:
            return self._walk(start)
        begun, self._begun = self._begun, None
        return chain([self._first], begun)


def part(batches: Iterable[Batch], first: int, last: int | None = None) -> Iterator[Batch]:
    """Images `first` to `last` (exclusive; None: the end) of all batches; nothing behind them is read."""
    start = 0
    for batch in batches:
        size = batch_size(batch)
        low, high = max(first - start, 0), size if last is None else min(last - start, size)
        start += size
        if low < high:
            yield images_of(batch, low, high)
        if last is not None and start >= last:
            return


def at_least(batches: Iterable[Batch], images: int, problem: Callable[[int], DataError]) -> Iterator[Batch]:
    """The same batches; raises `problem(found)` at the end where they hold fewer images."""
    found = 0
    for batch in batches:
        found += batch_size(batch)
        yield batch
    if found < images:
        raise problem(found)


def _too_few(found: int | None, apart: int) -> DataError:
    return DataError(
        f"{apart if found is None else found} images are too few to set {apart} apart and have some left to judge by; "
        f"give at least {apart + 1}"
    )
