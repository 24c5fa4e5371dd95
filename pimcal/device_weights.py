"""The weights of a network on its device: each placed once, programmed, and programmed anew if it changes."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pimcal.backend import Capabilities
from pimcal.device import Device
from pimcal.errors import ConfigError
from pimcal.layers import Converters, DeviceMatrix
from pimcal.matrices import MatrixView, as_float32
from pimcal.placement import Limits, MatrixShape, Packer, Placed
from pimcal.quantize import largest_code
from pimcal.references import ReferenceColumns
from pimcal.tile_array import TileArray

WeightOf = Callable[[], Tensor]


@dataclass(slots=True)
class _Held:
    """A weight that tiles hold, and the matrices (of tied layers several) that use it."""

    placed: Placed
    unit: float
    matrices: list[DeviceMatrix] = field(default_factory=list)


class DeviceWeights:
    """Places weights in the order in which they are added, and gives a `DeviceMatrix` for each use."""

    def __init__(self, device: Device) -> None:
        """Raises ConfigError if the reference columns leave no room on the device's tiles."""
        wanted, capabilities = device.profile.references, device.capabilities
        self.device = device
        self.array = TileArray(device, ReferenceColumns(wanted.offset, wanted.gain))
        lease = self.array.lease
        if lease.room is not None and lease.room < (capabilities.tiles or 0):
            gc.collect()  # networks that nobody uses any more hold tiles until the collector comes
        limits = Limits(lease.room, capabilities.rows, capabilities.cols, self.array.references.count)
        self._packer = Packer(limits, lease.tile)
        self._converters = _converters(device)
        self._held: dict[Hashable, _Held] = {}
        self._started = False

    def add(self, name: str, view: MatrixView, weight: WeightOf, key: Hashable) -> DeviceMatrix:
        """Place a weight under the name of its layer; one with the `key` of an earlier one shares its tiles.

        `weight` is asked for its values at each programming. Added behind `start`, it gets tiles of its own, which are
        programmed when they are needed.
        """
        held = self._held.get(key)
        if held is None:
            held = self._held[key] = self._place(name, view, weight)
        matrix = DeviceMatrix(view, self.array, held.placed, held.unit, converters=self._converters)
        held.matrices.append(matrix)
        if self._started:
            self.array.connect()
        return matrix

    def _place(self, name: str, view: MatrixView, weight: WeightOf) -> _Held:
        if self._packer.limits.tiles == 0:
            raise self._no_tiles()
        capabilities = self.device.capabilities
        cols = view.cols * (1 if capabilities.signed_weights else 2)
        shape = MatrixShape(name, view.groups, view.rows, cols, view.row_unit)
        held = _Held(self._packer.add(shape, apart=self._started), _unit(weight(), capabilities))
        self.array.add(held.placed, lambda: _in_units(view.matrix(as_float32(weight())), held.unit, capabilities))
        return held

    def start(self) -> None:
        """Program what was added, as far as it fits at once.

        Raises ConfigError, before anything is programmed, if it needs tiles that belong to another network.
        """
        if self.array.loads > 1 and self.array.lease.others:
            raise self._no_tiles()
        self.array.start()
        self._started = True

    def _no_tiles(self) -> ConfigError:
        return ConfigError(
            f"the network needs more tiles than are free: other networks hold {self.array.lease.others} of the "
            f"device's {self.device.capabilities.tiles}; call release() of the network that is deployed there, or open "
            "another device"
        )

    def reprogram(self, matrix: DeviceMatrix, weight: Tensor) -> None:
        """A weight has other values now: its tiles are programmed anew before their next product."""
        held = next(held for held in self._held.values() if matrix in held.matrices)
        held.unit = _unit(weight, self.device.capabilities)
        for each in held.matrices:
            each.unit = held.unit
        self.array.forget(held.placed.tiles)

    def release(self) -> None:
        """Give the tiles back, for another network."""
        self.array.lease.give_back()


def _converters(device: Device) -> Converters:
    capabilities, io = device.capabilities, device.profile.io
    bits = [b for b in (capabilities.input_bits, io.input_bits) if b is not None]
    own_adc = capabilities.output_bits is not None
    return Converters(min(bits, default=None), None if own_adc else io.output_bits, capabilities.signed_inputs)


def _unit(weight: Tensor, capabilities: Capabilities) -> float:
    """What one device unit is worth in units of the weights."""
    weight = as_float32(weight)
    if capabilities.weight_unit == "raw":
        return 1.0
    if capabilities.weight_unit == "std":
        return float(weight.std(correction=0)) or 1.0
    bits = capabilities.weight_bits
    top = largest_code(bits, signed=capabilities.signed_weights) if bits else 1
    return float(weight.abs().amax()) / top or 1.0


def _in_units(matrix: Tensor, unit: float, capabilities: Capabilities) -> Tensor:
    """Matrices [groups, rows, cols] as a device gets them; positive and negative parts apart if it wants that."""
    if unit != 1.0:
        matrix = matrix / unit
    if capabilities.weight_bits is not None:
        matrix = matrix.round()
    if not capabilities.signed_weights:
        matrix = torch.cat([matrix.clamp(min=0), matrix.clamp(max=0).neg()], dim=2)
    return matrix
