"""What a batch may look like: `x`, `(x, y)`, `(x1, x2, ..., y)`, `((x1, x2), y)`, or a dict of named inputs.

An input is a tensor [N, ...] or, for images of unequal size, a list of N tensors: `([image1, image2], y)`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pimcal.errors import DataError

_TARGET_KEYS = ("labels", "label", "targets", "target", "y")


def split_batch(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Positional inputs, named inputs and target (None where there is none) of a batch.

    A tuple's last item is the target; a tuple of one item has none. In a dict the target is the item called
    labels, label, targets, target or y; all others are passed to the model by name. A list of tensors is one
    input; only in a batch that is itself a list it stands for a tuple, of which torch's DataLoader makes lists.

    Raises DataError for anything that holds no input.
    """
    batch = _uncollated(batch)
    if isinstance(batch, Mapping):
        named = {str(key): value for key, value in batch.items()}
        key = next((key for key in _TARGET_KEYS if key in named), None)
        target = None if key is None else named.pop(key)
        return (), named, target
    if isinstance(batch, tuple):
        if not batch:
            raise DataError("a batch is an empty tuple; give x, (x, y) or a dict of the model's inputs")
        *inputs, target = batch if len(batch) > 1 else (batch[0], None)
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            return (), dict(inputs[0]), target
        if len(inputs) == 1 and isinstance(inputs[0], tuple):
            inputs = list(inputs[0])
        return tuple(inputs), {}, target
    return (batch,), {}, None


def _uncollated(batch: Any) -> Any:
    """The tuples that torch's DataLoader made lists of: a batch, and several inputs that are its first item."""
    if not isinstance(batch, list):
        return batch
    if batch and len(batch) <= 2 and isinstance(batch[0], list):
        return tuple(batch[0]), *batch[1:]
    return tuple(batch)


def is_image_list(value: Any) -> bool:
    """Whether `value` is one input that holds a tensor for each image."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, Tensor) for item in value)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors inside nested tuples, lists and mappings (a model's inputs or outputs)."""
    for item in inputs_in(value):
        yield from item if isinstance(item, list) else (item,)


def batch_size(batch: Any) -> int:
    """The number of images: the length of the first input, a tensor or a list of tensors.

    Raises DataError where a batch holds no tensor.
    """
    args, kwargs, _ = split_batch(batch)
    for item in inputs_in((args, kwargs)):
        return 1 if isinstance(item, Tensor) and not item.dim() else len(item)
    raise DataError(f"a batch holds no tensor but {type(batch).__name__}; give x, (x, y) or a dict of inputs")


def inputs_in(value: Any) -> Iterator[Tensor | list[Tensor]]:
    """As `tensors_in`, but a list of tensors, one an image, is one item."""
    if isinstance(value, Tensor) or is_image_list(value):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from inputs_in(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from inputs_in(item)


def first_images(batch: Any, images: int) -> Any:
    """The first `images` images of a batch, in the same form: every tensor and list of the batch's length is cut.

    Of a list, as torch's DataLoader gives it, becomes the tuple that it stands for.
    """
    return batch if images >= batch_size(batch) else images_of(batch, 0, images)


def images_of(batch: Any, first: int, last: int) -> Any:
    """Images `first` to `last` (exclusive) of a batch, as `first_images`."""
    return _cut(_uncollated(batch), batch_size(batch), slice(first, last))


def _cut(value: Any, whole: int, part: slice) -> Any:
    if isinstance(value, Tensor):
        return value[part] if value.dim() and value.shape[0] == whole else value
    if isinstance(value, Mapping):
        return {key: _cut(item, whole, part) for key, item in value.items()}
    if isinstance(value, tuple):
        items = [_cut(item, whole, part) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return value[part] if len(value) == whole else [_cut(item, whole, part) for item in value]
    return value


def moved(value: Any, device: torch.device) -> Any:
    """The same structure with tensors of its own on `device`: models, and metrics, may write on what they get."""
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if isinstance(value, Mapping):
        return {key: moved(item, device) for key, item in value.items()}
    if isinstance(value, list):
        return [moved(item, device) for item in value]
    if isinstance(value, tuple):
        items = [moved(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return _copied(value)


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # of a class that allows no copy
        return value
