"""What a batch may look like: `x`, `(x, y)`, `(x1, x2, ..., y)`, `((x1, x2), y)`, or a dict of named inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pimcal.errors import DataError

_TARGET_KEYS = ("labels", "label", "targets", "target", "y")


def split_batch(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Positional inputs, named inputs and target (None where there is none) of a batch.

    A tuple's or list's last item is the target; a tuple of one item has none. In a dict the target is the item
    called labels, label, targets, target or y; all others are passed to the model by name.

    Raises DataError for anything that holds no input.
    """
    if isinstance(batch, Mapping):
        named = {str(key): value for key, value in batch.items()}
        key = next((key for key in _TARGET_KEYS if key in named), None)
        target = None if key is None else named.pop(key)
        return (), named, target
    if isinstance(batch, tuple | list):
        if not batch:
            raise DataError("a batch is an empty tuple; give x, (x, y) or a dict of the model's inputs")
        *inputs, target = batch if len(batch) > 1 else (batch[0], None)
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            return (), dict(inputs[0]), target
        if len(inputs) == 1 and isinstance(inputs[0], tuple | list):
            inputs = list(inputs[0])
        return tuple(inputs), {}, target
    return (batch,), {}, None


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors inside nested tuples, lists and mappings (a model's inputs or outputs)."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)


def batch_size(batch: Any) -> int:
    """The number of images: the length of the first input tensor.

    Raises DataError where a batch holds no tensor.
    """
    args, kwargs, _ = split_batch(batch)
    for tensor in tensors_in((args, kwargs)):
        return tensor.shape[0] if tensor.dim() else 1
    raise DataError(f"a batch holds no tensor but {type(batch).__name__}; give x, (x, y) or a dict of inputs")


def first_images(batch: Any, images: int) -> Any:
    """The first `images` images of a batch, in the same form: every tensor of the batch's length is cut."""
    whole = batch_size(batch)
    return batch if images >= whole else _cut(batch, whole, images)


def _cut(value: Any, whole: int, images: int) -> Any:
    if isinstance(value, Tensor):
        return value[:images] if value.dim() and value.shape[0] == whole else value
    if isinstance(value, Mapping):
        return {key: _cut(item, whole, images) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_cut(item, whole, images) for item in value)
    if isinstance(value, list):
        return [_cut(item, whole, images) for item in value]
    return value


def moved(value: Any, device: torch.device) -> Any:
    """The same structure with its tensors on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: moved(item, device) for key, item in value.items()}
    if isinstance(value, list):
        return [moved(item, device) for item in value]
    if isinstance(value, tuple):
        items = [moved(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value
