"""Batches from the user's own Python: a DataLoader, a Dataset, a generator, or a function giving one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, default_collate

from pimcal.batches import batch_size as count_images
from pimcal.batches import is_input_list, split_batch, tidied
from pimcal.errors import DataError, UsageError
from pimcal.sources.batches import Batch, part
from pimcal.sources.objects import resolve
from pimcal.sources.preprocess import Preprocess, none
from pimcal.sources.walks import Draws, Generators, SameBatches

_END = object()
_ENDLESS = (itertools.count, itertools.cycle, itertools.repeat)


class UserData:
    """The iterable that `spec` names or returns, in its own batches, one after the other, as often as it is walked.

    An item is what `pimcal.batches` says; arrays become tensors, and images are preprocessed. A torch `Dataset` is put
    in batches of `batch_size`. Each walk draws the same random numbers and must give the same images.

    `images`: how many there are, where that is known without a walk.

    Raises UsageError where there is no such iterable or its code raised, and while walking: it can be walked once only,
    or it yields several inputs and `preprocess` is not `none` (which of them is the image cannot be known). DataError
    while walking: an item is no batch, has not as many labels as images, or is another one than before.
    """

    def __init__(self, spec: str, preprocess: Preprocess, batch_size: int) -> None:
        self._source, self._preprocess, self._batch_size = resolve(spec), preprocess, batch_size
        self._same, self._draws = SameBatches(spec), Draws()
        self._behind = self._draws.copy()  # where the draws are when the iterable is made
        with self._behind.in_use():
            self._value = self._made()
        self._generators = Generators(self._value)
        self._walked = False
        self.images = self._known_images()

    @property
    def tells_its_length(self) -> bool:
        with suppress(TypeError):
            return len(self._value) >= 0
        return False

    def check_ends(self) -> None:
        """Raises UsageError for what is known never to end."""
        if isinstance(self._value, _ENDLESS):
            raise UsageError(
                f"{self._source.spec} never ends; say how many images to use: --images for `evaluate`, --held-out for "
                "the images that other commands judge by"
            )

    def walk(self, start: int) -> Iterator[Batch]:
        """All batches from image `start` on; those before it are read all the same."""
        return part(self._batches(), start)

    def _made(self) -> Any:
        source = self._source
        value = source.make() if self._is_function else source.value
        if isinstance(value, Dataset):
            value = DataLoader(value, self._batch_size)
        if not isinstance(value, Iterable):
            raise UsageError(f"{source.spec} gives a {type(value).__name__}; an iterable of batches is needed")
        return value

    @property
    def _is_function(self) -> bool:
        return callable(self._source.value) and not isinstance(self._source.value, Iterable)

    def _known_images(self) -> int | None:
        if isinstance(self._value, list | tuple):
            return sum(map(count_images, self._all_alike(map(_as_tensors, self._value))))
        return _length(self._value) if isinstance(self._value, DataLoader) else None

    def _opened(self) -> tuple[Iterator[Any], Draws]:
        """An iterator for a walk, and the draws that it goes on with."""
        first, self._walked = not self._walked, True
        draws = (self._behind if first and isinstance(self._value, Iterator) else self._draws).copy()
        with draws.in_use(), self._source.running():
            if isinstance(self._value, Iterator) and not first:
                self._value = self._made_again()
            self._dismiss_workers()
            self._generators.rewind()
            return iter(self._value), draws

    def _made_again(self) -> Any:
        if not self._is_function:
            raise UsageError(
                f"{self._source.spec} is a {type(self._value).__name__}, which can be walked only once, and its images "
                "are needed again; name the function that makes it instead"
            )
        return self._made()

    def _items(self) -> Iterator[Batch]:
        """Batches as they come, preprocessed."""
        iterator, draws = self._opened()
        try:
            while True:
                with draws.in_use(), self._source.running():
                    item = next(iterator, _END)
                if item is _END:
                    return
                batch = _as_tensors(_tuples(item) if self._collates else item)
                if _checked_size(batch, self._source.spec):
                    with draws.in_use():
                        batch = self._preprocessed(batch)
                    yield batch
        finally:
            self._dismiss_workers()

    def _dismiss_workers(self) -> None:
        """End a DataLoader's persistent workers: they would go on with the draws of the walk before."""
        if getattr(self._value, "persistent_workers", False):
            self._value._iterator = None

    def _batches(self) -> Iterator[Batch]:
        for number, batch in enumerate(self._all_alike(self._items())):
            self._same.check(number, batch)
            yield batch

    def _all_alike(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches that hold images. Raises DataError for none, and where only some have labels."""
        spec, labelled = self._source.spec, set[bool]()
        for batch in batches:
            if not _checked_size(batch, spec):
                continue
            labelled.add(split_batch(batch)[2] is not None)
            if len(labelled) > 1:
                raise DataError(f"{spec} yields some batches with labels and some without; give all or none")
            yield batch

    @property
    def _collates(self) -> bool:
        """Whether lists are known to stand for tuples."""
        return isinstance(self._value, DataLoader) and self._value.collate_fn is default_collate

    def _preprocessed(self, batch: Batch) -> Batch:
        args, kwargs, _ = split_batch(batch)
        image: Any = args[0] if len(args) == 1 and not kwargs else None
        if isinstance(image, Tensor):
            return _with_input(batch, self._preprocess(image))
        if is_input_list(image) and isinstance(image[0], Tensor):
            return _with_input(batch, [self._preprocess(one[None])[0] for one in image])
        if self._preprocess is not none:
            raise UsageError(
                f"{self._source.spec} yields several inputs, or no images, which no --preprocess applies to; "
                f"preprocess in {self._source.spec} itself"
            )
        return batch


def _length(loader: DataLoader[Any]) -> int | None:
    """How many images a DataLoader gives, where it leaves them as they are."""
    plain = loader.collate_fn is default_collate and type(loader.batch_sampler) is BatchSampler
    if plain and not isinstance(loader.dataset, IterableDataset):
        with suppress(TypeError):
            images = len(loader.sampler)  # type: ignore[arg-type]
            return images - images % (loader.batch_size or 1) if loader.drop_last else images
    return None


def _tuples(item: Any) -> Any:
    """The tuples that torch's default collate function made lists of; texts stay in a list."""
    if isinstance(item, list) and not all(isinstance(part, str) for part in item):
        return tuple(map(_tuples, item))
    return item


def _as_tensors(item: Any) -> Batch:
    """A tidy batch, with arrays as tensors, and so are lists of class numbers."""
    batch = _arrays_as_tensors(item)
    batch = tidied(batch) if isinstance(batch, list | tuple) and batch else batch
    if isinstance(batch, Mapping):
        return {key: _numbers_as_tensor(value) for key, value in batch.items()}
    if isinstance(batch, tuple) and not hasattr(batch, "_fields"):
        return tuple(map(_numbers_as_tensor, batch))
    return batch


def _arrays_as_tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _array_as_tensor(value)
    if isinstance(value, Mapping):
        return {key: _arrays_as_tensors(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_arrays_as_tensors(item) for item in value]
    return tuple(map(_arrays_as_tensors, value)) if type(value) is tuple else value


def _array_as_tensor(array: np.ndarray[Any, Any]) -> Any:
    if array.dtype.kind not in "biufc":
        return array.tolist()  # texts
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.require(native, requirements=("C", "W")))


def _numbers_as_tensor(value: Any) -> Any:
    numbers = isinstance(value, list | tuple) and value and all(isinstance(v, int) for v in value)
    return torch.tensor(value) if numbers else value


def _with_input(batch: Batch, image: Any) -> Batch:
    """The same batch with another input in the place of its only one."""
    if not isinstance(batch, tuple):
        return image if isinstance(batch, Tensor) else (image,)
    return ((image,) if type(batch[0]) is tuple else image, *batch[1:])


def _checked_size(batch: Batch, spec: str) -> int:
    """How many images a batch holds. Raises DataError where it is none, or has not as many labels as images."""
    try:
        images = count_images(batch)
    except DataError:
        raise DataError(
            f"{spec} yields {_described(batch)}; x, (x, y), or a dict of keyword arguments is expected"
        ) from None
    labels = split_batch(batch)[2]
    if labels is not None and _count_labels(labels, spec) != images:
        raise DataError(f"{spec} yields {_count_labels(labels, spec)} labels with {images} images")
    return images


def _count_labels(labels: Any, spec: str) -> int:
    if isinstance(labels, Tensor | Mapping):
        return count_images(((labels,),))
    if isinstance(labels, list | tuple):
        return len(labels)
    raise DataError(f"{spec} yields labels as a {type(labels).__name__}; a tensor or a list, one an image, is expected")


def _described(item: Any) -> str:
    if isinstance(item, list | tuple):
        return f"a {type(item).__name__} of ({', '.join(type(part).__name__ for part in item)})"
    return f"a {type(item).__name__}"
