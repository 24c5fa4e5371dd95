"""Normal draws that depend on a key alone: not on earlier draws, their order, or the torch device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 2**64 - 1


def mix(state: int) -> int:
    """Scatter a 64-bit number, one to one (the output function of SplitMix64, Steele et al. 2014)."""
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


def key_of(*parts: int) -> int:
    """One 64-bit key for a sequence of whole numbers, such as seed, purpose, tile, count."""
    key = 0
    for part in parts:
        key = mix(key ^ (part & _MASK))
    return key


class Draws:
    """Draws on the CPU, so that every torch device sees the same values."""

    def __init__(self) -> None:
        # One generator, seeded anew for every draw, is cheaper than one generator a draw.
        self._generator = torch.Generator()

    def normal(self, key: int, shape: Sequence[int], mean: float, std: float) -> Tensor:
        """N(mean, std^2), float32, of `shape`."""
        self._generator.manual_seed(key)
        return torch.empty(shape).normal_(mean, std, generator=self._generator)
