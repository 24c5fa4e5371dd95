"""What a batch may be, exactly.

| batch | is called as |
|---|---|
| `x`, `(x,)`, `(x, y)` | `model(x)`; `y` is the target |
| `(x1, x2, ..., y)`, `((x1, x2), y)`, `((x1, x2),)` | `model(x1, x2)`; the last item of a longer tuple is the target |
| `{"a": x1, "b": x2, "labels": y}`, `({"a": x1}, y)` | `model(a=x1, b=x2)`; `labels`, `label`, `targets`, `target` or `y` is the target |
| `((d,), y)`, `((d,),)`, with a dict `d` | `model(d)`: the dict is the one argument |

A dict is also the one argument where the model's `forward` takes none of its names and can take it so.

An input (`x`) of N images is a tensor `[N, ...]`; a list of N tensors, of equal size or not; a list of N dicts or of N
texts; a `PackedSequence` of N sequences; or any object with a method `to(device)`, such as a batch of graphs, whose
batch has a target that tells N.

A batch that is itself a list is one input where it holds dicts only, or images only: tensors `[C, H, W]` with the same
C of 1, 3 or 4. Any other list stands for a tuple, since torch's DataLoader makes lists of tuples. Tuples of N images and
N targets, as `tuple(zip(*items))` gives them, stand for lists. Where this is not what a model needs, `Called` carries a
function that calls it.
"""  # noqa: E501

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from pimcal.errors import DataError

_TARGET_KEYS = ("labels", "label", "targets", "target", "y")
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True, slots=True)
class Called:
    """A batch, and a function of the model and this batch that calls the one with the other and returns its outputs."""

    batch: Any
    by: Callable[[Callable[..., Any], Any], Any]


def split_batch(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Positional inputs, named inputs and target (None where there is none) of a batch, as the module's text says.

    Raises DataError for an empty tuple or list.
    """
    batch = tidied(batch)
    if isinstance(batch, Called):
        return split_batch(batch.batch)
    if isinstance(batch, Mapping):
        named = {str(key): value for key, value in batch.items()}
        key = next((key for key in _TARGET_KEYS if key in named), None)
        target = None if key is None else named.pop(key)
        return (), named, target
    if not _is_tuple(batch):
        return (batch,), {}, None
    *inputs, target = batch if len(batch) > 1 else (batch[0], None)
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        return (), dict(inputs[0]), target
    if len(inputs) == 1 and _is_tuple(inputs[0]):
        inputs = list(inputs[0])
    return tuple(inputs), {}, target


def tidied(batch: Any) -> Any:
    """The same batch, with tuples and lists where they are what they stand for.

    Raises DataError for an empty tuple or list.
    """
    if isinstance(batch, list):
        batch = (batch,) if _is_whole_input(batch) else _uncollated(batch)
    if _is_tuple(batch) and not batch:
        raise DataError("a batch is an empty tuple; give x, (x, y) or a dict of the model's inputs")
    if _is_tuple(batch) and len(batch) == 2 and _is_zipped(*batch):
        return list(batch[0]), list(batch[1])
    return batch


def _uncollated(batch: list[Any]) -> tuple[Any, ...]:
    """The tuples that torch's DataLoader made lists of: a batch, and several inputs that are its first item."""
    if batch and len(batch) <= 2 and isinstance(batch[0], list) and not _is_whole_input(batch[0]):
        return tuple(batch[0]), *batch[1:]
    return tuple(batch)


def _is_tuple(value: Any) -> bool:
    return isinstance(value, tuple) and not isinstance(value, PackedSequence)


def _is_whole_input(batch: list[Any]) -> bool:
    """Whether a list is one input, an item an image, and no tuple."""
    return bool(batch) and (_are_images(batch) or all(isinstance(item, Mapping) for item in batch))


def _are_images(items: Sequence[Any]) -> bool:
    if not all(isinstance(item, Tensor) and item.dim() == 3 for item in items):
        return False
    return {int(item.shape[0]) for item in items} in ({channels} for channels in _CHANNELS)


def _is_zipped(images: Any, targets: Any) -> bool:
    """Whether these are a tuple of N images and N targets."""
    both = _is_tuple(images) and (_is_tuple(targets) or isinstance(targets, list))
    return both and 0 < len(images) == len(targets) and _are_images(images)


def is_input_list(value: Any) -> bool:
    """Whether `value` is one input that holds a tensor, a dict or a text for each image."""
    kinds = (Tensor, Mapping, str)
    return isinstance(value, list) and bool(value) and any(all(isinstance(v, k) for v in value) for k in kinds)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors inside nested tuples, lists and mappings (a model's inputs or outputs)."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, PackedSequence):
        yield value.data
    elif isinstance(value, Mapping):
        yield from tensors_in(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)


def batch_size(batch: Any) -> int:
    """The number of images N: what the first input that has a batch axis tells, else the target.

    Raises DataError where nothing tells it.
    """
    args, kwargs, target = split_batch(batch)
    inputs = (*args, *kwargs.values())
    found = _first_count(inputs)
    if found is None and any(_is_foreign(item) for item in inputs):
        found = len(target) if isinstance(target, list | tuple) else _first_count([target])
    if found is None and next(tensors_in(inputs), None) is not None:
        return 1  # a number or a scalar alone
    if found is None:
        raise DataError(f"a batch holds no tensor but {type(batch).__name__}; give x, (x, y) or a dict of inputs")
    return found


def _first_count(values: Iterable[Any]) -> int | None:
    return next((count for count in map(_count, values) if count is not None), None)


def _count(value: Any) -> int | None:
    """How many images an input holds; None where it does not tell."""
    if isinstance(value, Tensor):
        return int(value.shape[0]) if value.dim() else None
    if isinstance(value, PackedSequence):
        return int(value.batch_sizes[0])
    if is_input_list(value):
        return len(value)
    if isinstance(value, Mapping):
        return _first_count(value.values())
    return _first_count(value) if isinstance(value, tuple | list) else None


def _is_foreign(value: Any) -> bool:
    """Whether it is an input of some library's own kind, as far as one can tell."""
    return not isinstance(value, Tensor | PackedSequence) and callable(getattr(value, "to", None))


def first_images(batch: Any, images: int) -> Any:
    """The first `images` images of a batch, in the same form: every tensor and list of the batch's length is cut."""
    return batch if images >= batch_size(batch) else images_of(batch, 0, images)


def images_of(batch: Any, first: int, last: int) -> Any:
    """Images `first` to `last` (exclusive) of a batch, in the same form: all of the batch's length is cut.

    Of a list, as torch's DataLoader gives it, becomes the tuple that it stands for.

    Raises DataError where a part of the batch is of a kind that cannot be cut.
    """
    if isinstance(batch, Called):
        return replace(batch, batch=images_of(batch.batch, first, last))
    whole = batch_size(batch)
    return tidied(batch) if first <= 0 and last >= whole else _cut(tidied(batch), whole, slice(first, last))


def _cut(value: Any, whole: int, part: slice) -> Any:
    if isinstance(value, Tensor):
        return value[part] if value.dim() and value.shape[0] == whole else value
    if isinstance(value, PackedSequence):
        return pack_sequence(unpack_sequence(value)[part], enforce_sorted=value.sorted_indices is None)
    if isinstance(value, Mapping):
        return {key: _cut(item, whole, part) for key, item in value.items()}
    if isinstance(value, list) and len(value) == whole:
        return value[part]
    if isinstance(value, list | tuple):
        if len(value) == whole and value and all(isinstance(item, Mapping | str | int | float) for item in value):
            return value[part]  # a target an image
        return _rebuilt(value, [_cut(item, whole, part) for item in value])
    if _is_foreign(value):
        raise DataError(
            f"a batch holds a {type(value).__name__}, which cannot be cut into smaller batches; "
            "give batches of the size that is wanted"
        )
    return value


def moved(value: Any, device: torch.device) -> Any:
    """The same structure with tensors of its own on `device`: models, and metrics, may write on what they get."""
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if isinstance(value, PackedSequence):
        placed = value.to(device)  # type: ignore[arg-type]  # torch's hints know types only
        return PackedSequence(placed.data.clone(), *placed[1:])
    if isinstance(value, Called):
        return replace(value, batch=moved(value.batch, device))
    if isinstance(value, Mapping):
        return {key: moved(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return _rebuilt(value, [moved(item, device) for item in value])
    return _copied(value.to(device) if _is_foreign(value) else value)


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # of a class that allows no copy
        return value


def _rebuilt(old: list[Any] | tuple[Any, ...], items: list[Any]) -> Any:
    """A list, tuple or named tuple like `old`, of other items."""
    return type(old)(*items) if hasattr(old, "_fields") else items if isinstance(old, list) else tuple(items)
