"""Normal draws that depend on a key alone: not on earlier draws, their order, or the torch device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from torch import Tensor

_MASK = 2**64 - 1
_BLOCK = 4  # 32-bit numbers in a block of AES
_AES = algorithms.AES(bytes(16))
_ZEROS = memoryview(bytes(2**18))  # what is enciphered: the bits are AES's own
_INSIDE = 1 - 2**-24  # the largest float32 below 1: the inverse error function has no value at 1


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


def normal_like(tensor: Tensor, key: int, mean: float, std: float) -> Tensor:
    """Independent draws from N(mean, std^2), of the shape, precision and torch device of `tensor`."""
    return normal([(key, tensor.numel())], mean, std).view(tensor.shape).to(tensor)


def normal(parts: Sequence[tuple[int, int]], mean: float, std: float) -> Tensor:
    """Independent draws from N(mean, std^2) in one dimension: of each (key, count) in `parts`, so many.

    A part's values depend on its key alone. They are float32, at most 5.4 standard deviations from the mean, and on the
    CPU, so that every torch device sees the same.
    """
    bits = _bits(parts)
    uniform = bits.view(torch.float32).copy_(bits).mul_(_INSIDE / 2**31)  # in place: fresh memory costs as much
    return uniform.erfinv_().mul_(std * math.sqrt(2)).add_(mean)


def _bits(parts: Sequence[tuple[int, int]]) -> Tensor:
    """Whole numbers, of which each 32-bit one is as likely as any other.

    They are AES in counter mode, which turns key and position into bits without a state (Salmon et al., SC 2011, on
    such generators): processors do that six times as fast as torch's generator runs, and seeding costs nothing.
    """
    cipher = Cipher(_AES, modes.CTR(bytes(16))).encryptor()
    bits, array = _int32(
        sum(count for _, count in parts) + _BLOCK
    )  # older versions of the library ask for a block more
    room, at = array.data.cast("B"), 0
    for key, count in parts:
        cipher.reset_nonce((key << 64).to_bytes(16, "big"))  # 2^64 blocks for each key
        for size in _sizes(4 * count):
            cipher.update_into(_ZEROS[:size], room[at:])
            at += size
    return bits[:-_BLOCK]


def _int32(count: int) -> tuple[Tensor, NDArray[np.int32]]:
    """Fresh memory, as a tensor and as an array: torch's own, which its allocator hands out sooner than numpy's."""
    tensor = torch.empty(count, dtype=torch.int32, device="cpu")
    try:
        return tensor, tensor.numpy()
    except RuntimeError:  # inside `torch.func`, whose tensors have no address
        array = np.empty(count, dtype=np.int32)
        return torch.from_numpy(array), array


def _sizes(total: int) -> Iterator[int]:
    for start in range(0, total, len(_ZEROS)):
        yield min(len(_ZEROS), total - start)


@contextmanager
def seeded(key: int) -> Iterator[None]:
    """Seed torch's global CPU generator inside a block, for libraries that take no generator; restored after it."""
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(key)
    try:
        yield
    finally:
        generator.set_state(before)
