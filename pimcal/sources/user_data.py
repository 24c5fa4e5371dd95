"""Batches from the user's own Python: a DataLoader, a Dataset, a generator, or a function giving one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pimcal.batches import is_image_list, split_batch
from pimcal.errors import DataError, UsageError
from pimcal.sources.batches import Batch, Inputs, count_images, cut, pack, unpack
from pimcal.sources.objects import UserObject, resolve
from pimcal.sources.preprocess import Preprocess, none

_END = object()


def read_user_batches(spec: str, preprocess: Preprocess, images: int | None, batch_size: int) -> list[Batch]:
    """The first `images` images (None: all) of the iterable that `spec` names or returns, in its own batches.

    An item is what `pimcal.batches.split_batch` takes: `x`, `(x, y)`, `(x1, x2, y)`, or a dict of the
    keyword arguments with the labels under `"labels"`; `x` may be a list of tensors, one an image, and is
    then preprocessed one by one. Arrays become tensors. A torch `Dataset` is put in batches of `batch_size`.
    No more items are taken than needed.

    Raises:
        UsageError: there is no such iterable, its code raised, or it yields several inputs and `preprocess`
            is not `none` (which of them is the image cannot be known).
        DataError: an item is none of the above, or has not as many labels as images.
    """
    batches: list[Batch] = []
    taken = 0
    for item in _items(resolve(spec), batch_size):
        inputs, labels = _inputs_and_labels(item, spec)
        n = count_images(inputs)
        if labels is not None and _count_labels(labels, spec) != n:
            raise DataError(f"{spec} yields {_count_labels(labels, spec)} labels with {n} images")
        if n == 0:
            continue
        n = n if images is None else min(n, images - taken)
        inputs, labels = unpack(cut(pack(inputs, labels), 0, n))
        batches.append(pack(_preprocessed(inputs, preprocess, spec), labels))
        taken += n
        if taken == images:
            break
    if len({unpack(batch)[1] is None for batch in batches}) > 1:
        raise DataError(f"{spec} yields some batches with labels and some without; give all or none")
    return batches


def _items(source: UserObject, batch_size: int) -> Iterator[Any]:
    value = source.make() if callable(source.value) and not isinstance(source.value, Iterable) else source.value
    if isinstance(value, Dataset):
        value = DataLoader(value, batch_size)
    if not isinstance(value, Iterable):
        raise UsageError(f"{source.spec} gives a {type(value).__name__}; an iterable of batches is needed")
    with source.running():
        iterator = iter(value)
    while True:
        with source.running():
            item = next(iterator, _END)
        if item is _END:
            return
        yield item


def _inputs_and_labels(item: Any, spec: str) -> tuple[Inputs, Any]:
    positional, named, labels = split_batch(item)
    arguments = tuple(map(_tensor, positional))
    if named:
        return {key: _tensor(value) for key, value in named.items()}, _tensor(labels)
    if not any(isinstance(argument, Tensor) or is_image_list(argument) for argument in arguments):
        raise DataError(f"{spec} yields {_described(item)}; x, (x, y), or a dict of keyword arguments is expected")
    return arguments if len(arguments) > 1 else arguments[0], _tensor(labels)


def _count_labels(labels: Any, spec: str) -> int:
    if isinstance(labels, Tensor | Mapping):
        return count_images(labels)
    if isinstance(labels, list | tuple):
        return len(labels)
    raise DataError(f"{spec} yields labels as a {type(labels).__name__}; a tensor or a list, one an image, is expected")


def _tensor(value: Any) -> Any:
    """Arrays and lists of class numbers as tensors; anything else as it is."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    numbers = isinstance(value, list | tuple) and value and all(isinstance(v, int) for v in value)
    return torch.tensor(value) if numbers else value


def _preprocessed(inputs: Inputs, preprocess: Preprocess, spec: str) -> Inputs:
    if isinstance(inputs, Tensor):
        return preprocess(inputs)
    if isinstance(inputs, list):
        return [preprocess(image[None])[0] for image in inputs]
    if preprocess is not none:
        raise UsageError(f"{spec} yields several inputs, which no --preprocess applies to; preprocess in {spec} itself")
    return inputs


def _described(item: Any) -> str:
    if isinstance(item, list | tuple):
        return f"a {type(item).__name__} of ({', '.join(type(part).__name__ for part in item)})"
    return f"a {type(item).__name__}"
