"""The products of a network by their weights: which are known, which of them a device computes.

A product is known by its weight, not by the module that asks for it. A weight that is (a part of) a parameter is known
by its place in the parameter's memory; one that is computed from parameters by its values, which are compared at each
call.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from pimcal.fingerprint import checksum
from pimcal.forms import Product
from pimcal.layers import DeviceLayer
from pimcal.matrices import MatrixView
from pimcal.origins import Origin, Origins, version_of

# So many different values a computed weight may have, and still be taken for a few fixed ones.
MOST_VALUES = 32

_PARAMETER_NAMES = re.compile(r"\.(weight|weight_orig|weight_v|parametrizations\.weight\.original\d*)(?=\[|$)")


@dataclass(slots=True)
class Weight:
    """A weight that the network multiplies by. `layer` is set if a device does it; `reason` tells why none does.

    `exact`: it is a parameter's own memory; else `values` is a copy of what was computed.
    """

    name: str
    function: str
    view: MatrixView
    values: Tensor
    exact: bool
    version: int
    checksum: int
    key: Hashable
    layer: DeviceLayer | None = None
    reason: str = ""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy's tensor is a copy with a version of its own."""
        twin = copy.copy(self)
        memo[id(self)] = twin
        twin.layer = copy.deepcopy(self.layer, memo)
        twin.rebind(copy.deepcopy(self.values, memo))
        return twin

    def rebind(self, weight: Tensor) -> None:
        """Its values are from now on those of `weight`."""
        self.values, self.version, self.checksum = weight.detach(), version_of(weight), checksum(weight)

    def differs_from(self, weight: Tensor) -> bool:
        """Whether `weight` has other values than what was programmed, as far as that can still be told."""
        return checksum(weight) != self.checksum

    def same_memory(self, weight: Tensor) -> bool:
        """Whether a weight that is a parameter's is the one that was programmed."""
        return version_of(weight) == self.version and weight.data_ptr() == self.values.data_ptr()


class Weights:
    """All weights that products of one network were seen with."""

    def __init__(self, origins: Origins) -> None:
        self.origins = origins
        self._by_key: dict[Hashable, list[Weight]] = {}

    def __iter__(self) -> Iterator[Weight]:
        return (weight for weights in self._by_key.values() for weight in weights)

    def find(self, product: Product, origin: Origin) -> Weight | None:
        """The weight of a product, if it is known."""
        key, exact = self._key(product, origin)
        known = self._by_key.get(key, ())
        if exact:
            return known[0] if known else None
        return next((w for w in known if torch.equal(w.values, product.weight)), None)

    def add(self, product: Product, origin: Origin, function: str) -> Weight | None:
        """Know a weight from now on; None if it has another value at every call."""
        key, exact = self._key(product, origin)
        known = self._by_key.setdefault(key, [])
        if len(known) == MOST_VALUES:
            return None
        values = product.weight.detach() if exact else product.weight.detach().clone()
        name = self._unused(name_of(origin.label))
        version = version_of(product.weight)
        known.append(
            Weight(
                name,
                function,
                product.view,
                values,
                exact,
                version,
                checksum(values),
                key if exact else (key, len(known)),
            )
        )
        return known[-1]

    def _key(self, product: Product, origin: Origin) -> tuple[Hashable, bool]:
        exact = self.key_of(product.weight, product.view)
        if exact is not None:
            return exact, True
        view = product.view
        return (type(view).__name__, view.groups, tuple(product.weight.shape), origin.expression), False

    def key_of(self, weight: Tensor, view: MatrixView) -> Hashable | None:
        """What a parameter's memory is known by, read as the matrices of `view`; None if it is no parameter's."""
        parameter = self.origins.parameter_of(weight)
        if parameter is None:
            return None
        place = (parameter, weight.storage_offset(), tuple(weight.shape), weight.stride())
        return (type(view).__name__, view.groups, *place)

    def _unused(self, name: str) -> str:
        taken = {weight.name for weight in self}
        if name not in taken:
            return name
        return next(f"{name}#{i}" for i in range(2, len(taken) + 3) if f"{name}#{i}" not in taken)


def name_of(label: str) -> str:
    """What people call a weight: its layer's name if it is the layer's `weight`, else the parameter's own."""
    return _PARAMETER_NAMES.sub("", label)


Taps = dict[str, Callable[[Tensor], Tensor]]


class _Products:
    """What is no product with a weight stays torch's own affair."""

    def takes_constant(self, product: Product) -> bool:
        return False

    def other(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], digital: Callable[[], Any]) -> Any:
        return digital()


class DeviceProducts(_Products):
    """Answers products with what the device gives; `late(product, origin, function)` is asked for unknown weights."""

    def __init__(
        self, weights: Weights, taps: Taps, late: Callable[[Product, Origin, str], Weight | None], renew: Renew
    ) -> None:
        self._weights, self._taps, self._late, self._renew = weights, taps, late, renew

    def product(self, product: Product, origin: Origin, function: str, digital: Callable[[], Any]) -> Any:
        weight = self.weight_of(product, origin, function)
        return digital() if weight is None or weight.layer is None else self.run(weight, product)

    def weight_of(self, product: Product, origin: Origin, function: str) -> Weight | None:
        """The weight of a product; None if it has another value at each call."""
        return self._weights.find(product, origin) or self._late(product, origin, function)

    def run(self, weight: Weight, product: Product) -> Any:
        """The product's result from the device."""
        assert weight.layer is not None
        if weight.exact and not weight.same_memory(product.weight):
            self._renew(weight, product.weight)
        y = weight.layer.run(product.x, product.bias, product.view)
        return product.finish(_tapped(self._taps, weight.layer.name, y))


Renew = Callable[[Weight, Tensor], None]


class DigitalProducts(_Products):
    """Answers products as torch does, and shows the outputs of those that are tapped."""

    def __init__(self, weights: Weights, taps: Taps) -> None:
        self._weights, self._taps = weights, taps

    def product(self, product: Product, origin: Origin, function: str, digital: Callable[[], Any]) -> Any:
        weight = self._weights.find(product, origin)
        if weight is None or weight.layer is None or weight.layer.name not in self._taps:
            return digital()
        matrices = product.view.matrix(product.weight).transpose(0, 1).flatten(1)
        y = product.view.fused(product.x, matrices, product.bias)
        return product.finish(_tapped(self._taps, weight.layer.name, y))


def _tapped(taps: Taps, name: str, y: Tensor) -> Tensor:
    tap = taps.get(name)
    return y if tap is None else tap(y)
