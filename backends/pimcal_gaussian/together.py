"""Small tiles drawn together: between the layers of a network an operation takes longer than the few numbers in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_CELLS = 2**20  # as many are drawn together at most: the memory for it stays small


class Held(Protocol):
    """What is on a tile: weights and, if any, their noise factor, both [cols, rows]."""

    weights: Tensor
    factor: Tensor | None
    key: int


# The noisy weights for weights and factors, and the keys and counts of the noise, one after the other.
Noisy = Callable[[Tensor, Tensor | None, list[tuple[int, int]]], Tensor]


@dataclass(frozen=True, slots=True)
class _Stack:
    """Tiles one behind the other in one dimension, and where each is: its offset, columns and rows."""

    weights: Tensor
    factor: Tensor | None
    parts: list[tuple[int, int]]
    places: dict[int, tuple[int, int, int]]


class SmallTiles:
    """The noisy weights of small tiles, of all with one draw where most of them are read in every batch.

    Their values are those that each would have alone. Where tiles are programmed between batches, each is drawn alone.
    """

    def __init__(self, noisy: Noisy, smaller_than: int) -> None:
        self._noisy, self._smaller_than = noisy, smaller_than
        self._stack: _Stack | None = None
        self._together: _Stack | None = None  # the same, in a batch in which it is drawn
        self._drawn: dict[int, Tensor] = {}
        self._changed = True  # since the last batch began
        self._cells_read = 0  # likewise

    def new_batch(self, tiles: Mapping[int, Held]) -> None:
        """Draw anew from now on; `tiles` are all that are programmed."""
        if self._stack is None and self._cells_read and not self._changed:
            self._stack = _stacked(self._members(tiles))
        worthwhile = self._stack is not None and 2 * self._cells_read >= self._stack.weights.numel()
        self._together = self._stack if worthwhile else None
        self._drawn, self._changed, self._cells_read = {}, False, 0

    def redraw(self) -> None:
        """The law of the noise has changed."""
        self._drawn = {}

    def changed(self) -> None:
        """Tiles were programmed, or moved."""
        self._stack, self._together, self._drawn, self._changed = None, None, {}, True

    def weights(self, tile: int, held: Held) -> Tensor | None:
        """The noisy weights of a tile [rows, cols], or None where it is to be drawn alone."""
        size = held.weights.numel()
        if size >= self._smaller_than:
            return None
        self._cells_read += size
        stack = self._together
        if stack is None or tile not in stack.places:
            return None
        if tile not in self._drawn:
            self._drawn = self._draw(stack)
        return self._drawn[tile]

    def _draw(self, stack: _Stack) -> dict[int, Tensor]:
        with torch.inference_mode(False):  # the next to read may train
            noisy = self._noisy(stack.weights, stack.factor, stack.parts)
            return {
                tile: noisy.as_strided((rows, cols), (1, rows), offset)
                for tile, (offset, cols, rows) in stack.places.items()
            }

    def _members(self, tiles: Mapping[int, Held]) -> dict[int, Held]:
        members: dict[int, Held] = {}
        cells = 0
        for tile in sorted(tiles):
            held = tiles[tile]
            size = held.weights.numel()
            if size < self._smaller_than and cells + size <= _CELLS and _alike(held, members):
                members[tile] = held
                cells += size
        return members


def _alike(held: Held, members: Mapping[int, Held]) -> bool:
    """Whether a tile's weights can stand beside those of the others."""
    first = next(iter(members.values()), held).weights
    return held.weights.dtype == first.dtype == torch.float32 and held.weights.device == first.device


def _stacked(members: Mapping[int, Held]) -> _Stack | None:
    if len(members) < 2:
        return None
    places, parts, offset = {}, [], 0
    for tile, held in members.items():
        places[tile] = (offset, *held.weights.shape)
        parts.append((held.key, held.weights.numel()))
        offset += held.weights.numel()
    factors = [held.factor.flatten() for held in members.values() if held.factor is not None]
    with torch.inference_mode(False):
        weights = torch.cat([held.weights.flatten() for held in members.values()])
        return _Stack(weights, torch.cat(factors) if factors else None, parts, places)
