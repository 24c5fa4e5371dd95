"""Normal draws that depend on a key alone: not on earlier draws, their order, or the torch device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
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


@cache
def _quantiles() -> NDArray[np.float64]:
    """The standard normal distribution as 65,536 equally likely values, of mean 0 and variance 1."""
    ranks = (torch.arange(65536, dtype=torch.float64) + 0.5) / 65536
    values: NDArray[np.float64] = torch.special.ndtri(ranks).numpy()
    return values / values.std()


class Normal:
    """N(mean, std^2), drawn on the CPU so that every torch device sees the same values.

    A draw looks up 16 random bits in the table of quantiles: twice as fast as a transformation of uniform
    numbers. The distribution function is right to 1e-5; the largest value is 4.3 standard deviations.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        self._table = (mean + std * _quantiles()).astype(np.float32)
        self._bits = np.random.PCG64DXSM(0)

    def draw(self, key: int, shape: Sequence[int]) -> Tensor:
        """Independent draws of `shape`, float32."""
        # Setting the state of one generator costs a tenth of making one.
        state = {"state": key << 64 | mix(key), "inc": 1}
        self._bits.state = {"bit_generator": "PCG64DXSM", "state": state, "has_uint32": 0, "uinteger": 0}
        count = math.prod(shape)
        ranks = self._bits.random_raw(-(-count // 4)).view(np.uint16)
        return torch.from_numpy(self._table.take(ranks[:count])).view(shape)
