"""What makes a user's data the same whenever it is walked: the same random numbers, and a look at what comes."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from pimcal.batches import tensors_in
from pimcal.errors import DataError


class Draws:
    """The global random generators as they are now; whatever runs `in_use` leaves those outside alone."""

    def __init__(self) -> None:
        self._state = _global_state()

    def copy(self) -> Draws:
        twin = Draws()
        twin._state = self._state
        return twin

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """What runs in the block draws from here, and the next block goes on from there."""
        outside = _global_state()
        _set_global_state(self._state)
        try:
            yield
        finally:
            self._state = _global_state()
            _set_global_state(outside)


class SameBatches:
    """Checksums of the batches that came in earlier walks."""

    def __init__(self, spec: str) -> None:
        self._spec, self._sums = spec, list[int]()

    def check(self, number: int, batch: Any) -> None:
        """Raises DataError where batch `number` is not what it was in an earlier walk."""
        found = _checksum(batch)
        if number == len(self._sums):
            self._sums.append(found)
        elif found != self._sums[number]:
            raise DataError(
                f"{self._spec} gives other images when it is walked again (batch {number + 1} is another one), so that "
                "images to calibrate on could be among those to judge by; do without shuffling, or seed what draws"
            )


class Generators:
    """The random generators that a DataLoader was given, as they are now."""

    def __init__(self, loader: Any) -> None:
        owners = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
        found = (getattr(owner, "generator", None) for owner in owners)
        self._states = [(g, g.get_state()) for g in found if isinstance(g, torch.Generator)]

    def rewind(self) -> None:
        """Bring them back to what they were."""
        for generator, state in self._states:
            generator.set_state(state)


def _checksum(batch: Any) -> int:
    found = 0
    for tensor in tensors_in(batch):
        if tensor.layout is torch.strided and not tensor.is_quantized:
            content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            found = zlib.crc32(content.numpy().data, found)
    return found


def _global_state() -> tuple[Any, Any, Any]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_global_state(state: tuple[Any, Any, Any]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
