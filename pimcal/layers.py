"""A layer's matrix products on the device, and what the host does around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pimcal import transforms
from pimcal.errors import DataError, UsageError
from pimcal.matrices import LinearView, MatrixView, geometry_of, view_with, walk_attributes
from pimcal.placement import Placed
from pimcal.products import Cut, DeviceProducts, HostProducts, Products, cuts_of
from pimcal.quantize import quantize
from pimcal.references import correct
from pimcal.tile_array import TileArray
from pimcal.weight_stamp import WeightStamp


@dataclass(frozen=True, slots=True)
class Converters:
    """What the host quantises before and after the array. `None`: floating point.

    `input_bits`: the device's DAC, or the profile's for a simulator. `output_bits`: the profile's ADC, played by
    the host; a device that has its own converts before the host sees anything.
    """

    input_bits: int | None = None
    output_bits: int | None = None
    signed_inputs: bool = True


class DeviceMatrix:
    """One weight on the device. `multiply` is the layer's forward pass, bias included."""

    def __init__(
        self, view: MatrixView, array: TileArray, placed: Placed, unit: float, *, converters: Converters
    ) -> None:
        """`unit` is what one device unit is worth in units of the layer's weights."""
        capabilities = array.device.capabilities
        self.view, self.array, self.placed, self.unit = view, array, placed, unit
        self.converters = converters
        self.differential = not capabilities.signed_weights
        self._products: Products
        if capabilities.effective_weights:
            self._products = HostProducts(array)
        else:
            self._products = DeviceProducts(array)
        self._cuts = cuts_of(placed)
        self._rows_driven = sum(b.stop - b.start for b in placed.blocks)
        self._cols_read = sum(b.last - b.first + array.references.count for b in placed.blocks)
        self._fused = (capabilities.effective_weights and len(placed.loads) == 1) and not (
            array.references.count or converters.output_bits or self.differential or not converters.signed_inputs
        )
        self._whole_tile = _whole_tile(placed)
        self._size = (placed.shape.rows, placed.shape.groups * placed.shape.cols)
        whole = [(placed.loads[0], placed.tiles)]
        self._steps = array.plan(whole if self._fused else [(cut.load, cut.tiles) for cut in self._cuts])

    def multiply(self, x: Tensor, bias: Tensor | None = None, view: MatrixView | None = None) -> Tensor:
        """The layer's output for `x`. `view` replaces the layer's geometry where a call brings its own."""
        view = view or self.view
        if not x.numel():  # no device is asked for nothing
            return view.fused(x, x.new_zeros(view.rows, view.groups * view.cols), bias)
        if self._fused:
            self.array.ensure(self._steps[0])
        if self.is_smooth:
            y = view.fused(x, self._weights(x.dtype), bias)
            self._count(view.positions(x, y))
            return y
        batch, added = view.batched(x)
        y = self._multiply_fused(view, batch, bias) if self._fused else self._multiply_cut(view, batch, bias)
        return y.squeeze(0) if added else y

    @property
    def is_smooth(self) -> bool:
        """Whether the product is torch's own, which has derivatives, and nothing is rounded."""
        return self._fused and self.converters.input_bits is None

    def _count(self, vectors: int) -> None:
        device, vectors = self.array.device, vectors * transforms.lanes()
        device.count(vectors * len(self.placed.blocks), self._rows_driven, self._cols_read, vectors)

    # torch's own kernel for the whole layer, on the weights as they are in this batch

    def _multiply_fused(self, view: MatrixView, x: Tensor, bias: Tensor | None) -> Tensor:
        codes, step = self._convert_inputs(x)
        y = view.fused(codes * step, self._weights(x.dtype), bias)
        self._count(view.positions(x, y))
        return y

    def _weights(self, dtype: torch.dtype) -> Tensor:
        matrices = self._effective_matrices()
        if self.unit != 1.0:
            matrices = matrices * self.unit
        return matrices if matrices.dtype == dtype else matrices.to(dtype)

    def _effective_matrices(self) -> Tensor:
        """The matrices of all groups side by side [rows, groups * cols]; columns lie in memory one after the other."""
        device, (rows, cols) = self.array.device, self._size
        if self._whole_tile is not None:
            weights = device.effective_weights(self._whole_tile)
            return weights if weights.shape == self._size else weights[:rows, :cols]  # others share the tile
        tiles = {tile: device.effective_weights(tile) for tile in self.placed.tiles}
        matrices = next(iter(tiles.values())).new_empty(cols, rows).t()
        for b in self.placed.blocks:
            block = tiles[b.tile][b.tile_row : b.tile_row + b.stop - b.start]
            first = b.group * self.placed.shape.cols + b.first
            last = first + b.last - b.first
            matrices[b.start : b.stop, first:last] = block[:, b.tile_col : b.tile_col + b.last - b.first]
        return matrices

    # cut by cut, with converters and reference columns in between

    def _multiply_cut(self, view: MatrixView, x: Tensor, bias: Tensor | None) -> Tensor:
        self._check_finite(view, x)
        codes, step = self._convert_inputs(x.float())
        if self.converters.signed_inputs or not bool((codes < 0).any()):
            columns = self._columns(view, codes)
        else:  # the device takes no negative inputs: two products, and the difference on the host
            both = self._columns(view, torch.cat([codes.clamp(min=0), codes.clamp(max=0).neg()]))
            columns = torch.sub(*both.chunk(2))
        if self.differential:
            columns = torch.sub(*columns.chunk(2, dim=2))
        y = view.finish(columns, x)
        if self.converters.input_bits is not None or self.unit != 1.0:
            y = y * (step * self.unit)
        if bias is not None:
            y = y + along_channels(bias, view)
        return y.to(x.dtype)

    def _convert_inputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The DAC: codes, and their step for each sample."""
        bits = self.converters.input_bits
        if bits is None:
            return x, x.new_ones(())
        return quantize(x, bits, signed=self.converters.signed_inputs, dims=tuple(range(1, x.dim())))

    def _check_finite(self, view: MatrixView, x: Tensor) -> None:
        """Raise DataError for NaN and infinity where the device takes whole numbers."""
        capabilities = self.array.device.capabilities
        if capabilities.input_bits is None or bool(x.isfinite().all()):
            return
        good = view.patches(x).isfinite().all(dim=3).all(dim=1)  # [n, positions]
        raise DataError(
            f"layer {self.placed.shape.name}: {int((~good).sum())} of {good.numel()} input vectors hold NaN or "
            f"infinity, and {capabilities.identity} takes whole numbers of {capabilities.input_bits} bits; check the "
            "images, and what the layers before it make of them"
        )

    def _columns(self, view: MatrixView, codes: Tensor) -> Tensor:
        """All columns [n, groups, cols, l]: cuts between rows are added up, cuts between columns joined."""
        sums: dict[int, Tensor] = {}
        vectors = 0
        for cut, step in zip(self._cuts, self._steps, strict=True):
            self.array.ensure(step)
            raw, inputs_sum = self._products.run(view, codes, cut)
            part = self._correct(self._convert_outputs(raw), inputs_sum, cut)
            sums[cut.first] = _added(sums.get(cut.first), part, cut, view.groups)
            vectors = part.shape[0] * part.shape[3]
        self._count(vectors)
        parts = [sums[first] for first in sorted(sums)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def _convert_outputs(self, raw: Tensor) -> Tensor:
        """The ADC: one full scale for each product, shared by the columns that are read (auto-ranging)."""
        if self.converters.output_bits is None:
            return raw
        codes, step = quantize(raw, self.converters.output_bits, dims=(2,))
        return codes * step

    def _correct(self, raw: Tensor, inputs_sum: Tensor, cut: Cut) -> Tensor:
        if not self.array.references.count:
            return raw
        layouts = self.array.layouts
        constants = raw.new_tensor([layouts[cut.load, b.tile].constant for b in cut.blocks])
        pool = torch.tensor(cut.tile_positions(), device=raw.device)
        return correct(raw, inputs_sum * constants[:, None, None], pool, self.array.references)


def _added(total: Tensor | None, part: Tensor, cut: Cut, groups: int) -> Tensor:
    """Columns [n, groups, cols, l] with those of a cut, which may have a part of the groups, added."""
    if len(cut.blocks) == groups:
        return part if total is None else total + part
    if total is None:
        total = part.new_zeros(part.shape[0], groups, *part.shape[2:])
    return total.index_add(1, torch.tensor(cut.groups, device=part.device), part)


def _whole_tile(placed: Placed) -> int | None:
    """The tile that holds a layer's matrices from its corner on, group beside group, if there is one."""
    shape, tile = placed.shape, placed.blocks[0].tile
    expected = {(tile, 0, g * shape.cols, shape.rows, shape.cols) for g in range(shape.groups)}
    found = {(b.tile, b.tile_row, b.tile_col, b.stop - b.start, b.last - b.first) for b in placed.blocks}
    return tile if found == expected else None


def along_channels(values: Tensor, view: MatrixView) -> Tensor:
    """Values [channels], shaped to broadcast over a layer's output."""
    return values.reshape(-1, *(1,) * (-1 - view.channel_dim))


@dataclass(frozen=True, slots=True)
class ChannelCorrection:
    """What the host does to a layer's output: `gain * y + offset`, a value a channel each."""

    gain: Tensor
    offset: Tensor

    def apply(self, y: Tensor, view: MatrixView) -> Tensor:
        gain, offset = (along_channels(v.to(y), view) for v in (self.gain, self.offset))
        return gain * y + offset


class DeviceLayer:
    """A weight's products on the device, corrected on the host. `name` is the layer's, or the parameter's."""

    def __init__(self, name: str, matrix: DeviceMatrix) -> None:
        self.name, self.matrix = name, matrix
        self.correction: ChannelCorrection | None = None
        self.count: Callable[[str, int, int], None] | None = None  # gets name, vectors and multiplications of each

    def run(self, x: Tensor, bias: Tensor | None, view: MatrixView) -> Tensor:
        """The product of `x`, in the geometry of `view`."""
        y = self._multiplied(x, bias, view)
        if self.count is not None:
            vectors = view.positions(x, y) * transforms.lanes()
            self.count(self.name, vectors, view.groups * view.rows * view.cols)
        return y if self.correction is None else self.correction.apply(y, view)

    def _multiplied(self, x: Tensor, bias: Tensor | None, view: MatrixView) -> Tensor:
        if not transforms.active() or (self.matrix.is_smooth and not transforms.only_vmap()):
            return self.matrix.multiply(x, bias, view)
        if not transforms.only_vmap():
            raise UsageError(
                f"layer {self.name} is called inside torch.func.grad, vjp or jvp, and "
                f"{self.matrix.array.device.capabilities.identity} has no derivatives; take them of the digital model"
            )
        return transforms.together(
            lambda x, bias: self.matrix.multiply(x, bias, view), x, bias, lambda x: view.batched(x)[1]
        )


class LayerForward:
    """Takes the place of a layer's `forward`; the layer keeps its parameters, its hooks and its type.

    Geometry is what torch would read from the layer at this call. `changed(layer)` is called before a product whose
    weight is no longer the one that was programmed; it says whether the device has it now.
    """

    def __init__(self, layer: nn.Module, device_layer: DeviceLayer, changed: Callable[[LayerForward], bool]) -> None:
        self.layer, self.device_layer = layer, device_layer
        self._changed = changed
        self._seen: tuple[Any, ...] = ()  # attributes that the view was made of
        self._view = device_layer.matrix.view
        self._convolves = not isinstance(self._view, LinearView)
        self.stamp = WeightStamp(layer)

    def __call__(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not self.stamp.holds() and not self._changed(self):
            return self._digital(input, output_size)
        view = self._present_view() if output_size is None else self._resized(input, output_size)
        bias: Any = self.layer.bias
        if not torch._C._len_torch_function_stack():
            return self.device_layer.run(input, bias, view)
        with torch._C.DisableTorchFunction():  # what the host does for the device is no product of the model's
            return self.device_layer.run(input, bias, view)

    def _digital(self, input: Tensor, output_size: list[int] | None) -> Tensor:
        """torch's own answer, for a weight that the device does not hold."""
        more = () if output_size is None else (output_size,)
        y: Tensor = type(self.layer).forward(self.layer, input, *more)
        return y

    def check_size(self) -> None:
        """Raise UsageError if the weight has another size than what the device holds."""
        self._fitting(view_with(self.layer, self._weight_shape(), geometry_of(self.layer)))

    def _present_view(self) -> MatrixView:
        """The view of the device's matrix in the geometry of the layer's attributes, which may have changed."""
        if self._convolves and (attributes := walk_attributes(self.layer)) != self._seen:
            self._view = self._fitting(view_with(self.layer, self._weight_shape(), geometry_of(self.layer)))
            self._seen = tuple(list(value) if isinstance(value, list) else value for value in attributes)
        return self._view

    def _fitting(self, view: MatrixView) -> MatrixView:
        held = self.device_layer.matrix.view
        if (view.groups, view.rows, view.cols) != (held.groups, held.rows, held.cols):
            raise UsageError(
                f"layer {self.device_layer.name} was changed after it was deployed: it has {view.groups} matrices of "
                f"{view.rows} x {view.cols} now, and the device holds {held.groups} of {held.rows} x {held.cols}; "
                "deploy the changed model"
            )
        return view

    def _weight_shape(self) -> torch.Size:
        weight: Any = self.layer.weight
        shape: torch.Size = weight.shape
        return shape

    def _resized(self, x: Tensor, output_size: list[int]) -> MatrixView:
        """The geometry of a transposed convolution that is called with the size of its output."""
        layer: Any = self.layer
        dims = len(layer.kernel_size)
        padding = layer._output_padding(
            x, output_size, layer.stride, layer.padding, layer.kernel_size, dims, layer.dilation
        )
        return self._fitting(view_with(layer, self._weight_shape(), geometry_of(layer, padding)))
