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
        # Seeding one generator anew for every draw costs half of making one, and torch's own draw is the
        # fastest here: neither numpy's generators nor a table of quantiles gained anything inside a network.
        self._generator = torch.Generator()

    def normal(self, key: int, shape: Sequence[int], mean: float, std: float) -> Tensor:
        """Independent draws from N(mean, std^2), float32, of `shape`."""
        return torch.empty(shape).normal_(mean, std, generator=self._generator.manual_seed(key))
