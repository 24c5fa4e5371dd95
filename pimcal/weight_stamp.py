"""Notices that a layer's weight is another one, or was changed in place, since it was programmed."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable
from itertools import chain
from typing import Any, Self

from torch import Tensor, nn

from pimcal.fingerprint import checksum
from pimcal.origins import version_of
from pimcal.projection import Projection


class WeightStamp:
    """The tensors that a layer's weight is made of, and their versions, when it was last programmed.

    It sees another tensor in the weight's place and every change that torch counts. Changes behind torch's back
    (through `weight.data` or a NumPy view) are not counted by torch, and not seen.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._tensors: tuple[Tensor, ...] | None = None  # not looked at yet
        self._versions: tuple[int, ...] = ()
        self.renew()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy's tensors are copies with versions of their own, which are looked at when it is used."""
        twin = copy.copy(self)
        memo[id(self)] = twin
        twin._layer, twin._tensors = copy.deepcopy(self._layer, memo), None
        return twin

    def renew(self) -> None:
        """The weight as it is now is what the device holds."""
        self._plain = isinstance(self._layer._parameters.get("weight"), Tensor)
        self._tensors = tuple(self._parts())
        self._versions = tuple(map(version_of, self._tensors))
        self._checksums = tuple(map(checksum, self._tensors))

    def holds(self) -> bool:
        """Whether the weight is still the same."""
        if self._tensors is None:
            self.renew()
            return True
        if self._plain:  # the hot path
            weight = self._layer._parameters.get("weight")
            if weight is self._tensors[0] and version_of(self._tensors[0]) == self._versions[0]:
                return True
        return self._still(tuple(self._parts()))

    def _still(self, now: tuple[Tensor, ...]) -> bool:
        """Whether these are the same tensors, or others with the same values."""
        same = len(now) == len(self._tensors or ()) and all(map(operator.is_, now, self._tensors or ()))
        if same and tuple(map(version_of, now)) == self._versions:
            return True
        if any(tensor is None for tensor in now) or tuple(map(checksum, now)) != self._checksums:
            return False
        self._tensors, self._versions = now, tuple(map(version_of, now))
        return True

    def _parts(self) -> Iterable[Tensor]:
        layer: Any = self._layer
        if self._plain:
            return (layer._parameters.get("weight"),)
        if isinstance(layer, Projection):
            return chain(layer.owner.parameters(), layer.owner.buffers())
        if not hasattr(layer, "parametrizations"):
            return ()
        return chain(layer.parametrizations.parameters(), layer.parametrizations.buffers())
