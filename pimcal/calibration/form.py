"""Batches part by part: what in them has an entry for each image, and what is the same for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from pimcal.batches import Called, images_of

Path = tuple[Any, ...]  # keys and places on the way to a value


@dataclass(frozen=True, slots=True)
class Part:
    """A batch, or some of its images."""

    content: Any
    images: int


class Form:
    """How some batches are made: a tensor or list as long as its batch, in all of them, has an entry for each image."""

    def __init__(self, batches: Sequence[Any], sizes: Sequence[int]) -> None:
        self.batches = [
            Part(images_of(batch, 0, images), images) for batch, images in zip(batches, sizes, strict=True) if images
        ]
        self._common = {path for batch in self.batches for path in _common(batch.content, batch.images)}

    def kind(self, batch: Part) -> Any:
        """Equal for batches that can be joined."""
        return self._kind(batch.content, ())

    def part(self, batch: Part, first: int, last: int) -> Part:
        """Images `first` to `last` (exclusive)."""
        return Part(self._part(batch.content, slice(first, last), ()), last - first)

    def joined(self, parts: Sequence[Part]) -> Part:
        """Parts of batches of a kind as one."""
        if len(parts) == 1:
            return parts[0]
        return Part(self._joined([part.content for part in parts], ()), sum(part.images for part in parts))

    def _kind(self, value: Any, path: Path) -> Any:
        if isinstance(value, Tensor):
            common = path in self._common
            content = str(value.tolist()) if common else None
            return value.dtype, value.device, value.shape if common else value.shape[1:], content
        if isinstance(value, PackedSequence):
            return PackedSequence, value.data.dtype, value.data.device, value.data.shape[1:]
        if self._is_list_of_images(value, path):
            return list
        items = _items(value)
        return type(value), repr(value) if items is None else [
            (key, self._kind(item, (*path, key))) for key, item in items
        ]

    def _part(self, value: Any, part: slice, path: Path) -> Any:
        if isinstance(value, Tensor):
            return value if path in self._common else value[part]
        if isinstance(value, PackedSequence):
            return _packed(unpack_sequence(value)[part])
        if self._is_list_of_images(value, path):
            return value[part]
        items = _items(value)
        return value if items is None else _like(value, {key: self._part(v, part, (*path, key)) for key, v in items})

    def _joined(self, values: Sequence[Any], path: Path) -> Any:
        first = values[0]
        if isinstance(first, Tensor):
            return first if path in self._common else torch.cat(list(values))
        if isinstance(first, PackedSequence):
            return _packed([sequence for value in values for sequence in unpack_sequence(value)])
        if self._is_list_of_images(first, path):
            return [item for value in values for item in value]
        items = _items(first)
        if items is None:
            return first
        columns = [dict(_items(value) or ()) for value in values]
        return _like(first, {key: self._joined([column[key] for column in columns], (*path, key)) for key, _ in items})

    def _is_list_of_images(self, value: Any, path: Path) -> bool:
        return isinstance(value, list) and path not in self._common


def _common(value: Any, images: int, path: Path = ()) -> Iterator[Path]:
    """Where there is what has no entry for each image."""
    if isinstance(value, PackedSequence):
        return
    if isinstance(value, Tensor):
        if not value.dim() or value.shape[0] != images:
            yield path
    elif not (isinstance(value, list) and len(value) == images):
        yield path
        for key, item in _items(value) or ():
            yield from _common(item, images, (*path, key))


def _items(value: Any) -> list[tuple[Any, Any]] | None:
    """What is in a structure, by key or place; None for what is none."""
    if isinstance(value, Called):
        return [("batch", value.batch)]
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, tuple | list) else None


def _like(value: Any, items: Mapping[Any, Any]) -> Any:
    if isinstance(value, Called):
        return replace(value, batch=items["batch"])
    if isinstance(value, Mapping):
        return dict(items)
    return type(value)(*items.values()) if hasattr(value, "_fields") else type(value)(items.values())


def _packed(sequences: Sequence[Tensor]) -> PackedSequence:
    return pack_sequence(list(sequences), enforce_sorted=False)
