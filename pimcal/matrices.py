"""How a layer becomes matrix-vector products: its weights as matrices, its input as vectors.

A layer with `groups` groups is `groups` matrices of `rows` inputs by `cols` outputs, kept as one tensor
[groups, rows, cols]. Five views of the same product are offered; they agree up to rounding:

- `fused`: the whole layer by torch's own kernel, for matrices that need no treatment on the way; it takes them side
  by side [rows, groups * cols], as a tile holds them;
- `product`: some rows of the matrices by torch's own kernel, columns left as they are [n, groups, cols, l];
- `patches`: the input vectors themselves [n, groups, l, rows], for a device that multiplies them;
- `overlapping`: the same as places in maps, where there are any, for a device that takes those;
- `finish`: from such columns [n, groups, cols, l] to the layer's output.

`n` counts samples and `l` the positions of a sample, for example the output pixels of a convolution.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pimcal.contraction import block_product
from pimcal.patches import Loop, Patches

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)

Numbers = int | Sequence[int]


class MatrixView(ABC):
    """One layer's geometry; holds no weights."""

    groups: int
    rows: int
    cols: int
    row_unit: int  # rows that belong to one input channel; cuts between rows prefer multiples of it

    @abstractmethod
    def matrix(self, weight: Tensor) -> Tensor:
        """The layer's weight as [groups, rows, cols]."""

    @abstractmethod
    def fused(self, x: Tensor, matrices: Tensor, bias: Tensor | None) -> Tensor: ...

    @abstractmethod
    def product(self, x: Tensor, matrix: Tensor, start: int, stop: int) -> Tensor: ...

    @abstractmethod
    def patches(self, x: Tensor) -> Tensor: ...

    def overlapping(self, x: Tensor, group: int, start: int, stop: int) -> Patches | None:
        """The rows `start:stop` of a group's vectors; None where vectors do not overlap, or rows cut a channel."""
        return None

    @abstractmethod
    def finish(self, columns: Tensor, x: Tensor) -> Tensor: ...

    def batched(self, x: Tensor) -> tuple[Tensor, bool]:
        """`x` with a leading sample dimension, and whether it had to be added."""
        return x, False

    @abstractmethod
    def positions(self, x: Tensor, y: Tensor) -> int:
        """How many vectors the layer multiplied by each of its matrices to get from `x` to `y`."""

    @property
    def channels(self) -> int:
        """The layer's output channels."""
        return self.groups * self.cols

    @property
    @abstractmethod
    def channel_dim(self) -> int:
        """The dimension of the output that holds the channels, counted from the end."""


class LinearView(MatrixView):
    """y = x W^T over the last dimension of x; every leading dimension counts vectors."""

    def __init__(self, in_features: int, out_features: int) -> None:
        self.groups, self.rows, self.cols, self.row_unit = 1, in_features, out_features, 1

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.t().unsqueeze(0)

    def fused(self, x: Tensor, matrices: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, matrices.t(), bias)

    def product(self, x: Tensor, matrix: Tensor, start: int, stop: int) -> Tensor:
        y = x.reshape(-1, self.rows)[:, start:stop] @ matrix[0]
        return y[:, None, :, None]

    def patches(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 1, 1, self.rows)

    def finish(self, columns: Tensor, x: Tensor) -> Tensor:
        return columns.reshape(*x.shape[:-1], self.cols)

    def batched(self, x: Tensor) -> tuple[Tensor, bool]:
        return (x.unsqueeze(0), True) if x.dim() == 1 else (x, False)

    def positions(self, x: Tensor, y: Tensor) -> int:
        return x.numel() // self.rows

    @property
    def channel_dim(self) -> int:
        return -1


class StackView(MatrixView):
    """Several products side by side: [..., groups * rows] times [groups, rows, cols] gives [..., groups * cols].

    For `torch.bmm` and `torch.einsum` with weights of three or more dimensions.
    """

    row_unit = 1

    def __init__(self, groups: int, rows: int, cols: int) -> None:
        self.groups, self.rows, self.cols = groups, rows, cols

    def matrix(self, weight: Tensor) -> Tensor:
        return weight

    def fused(self, x: Tensor, matrices: Tensor, bias: Tensor | None) -> Tensor:
        y = block_product(x, matrices.unflatten(1, (self.groups, self.cols)).transpose(0, 1))
        return y if bias is None else y + bias

    def product(self, x: Tensor, matrix: Tensor, start: int, stop: int) -> Tensor:
        vectors = x.reshape(-1, self.groups, self.rows)[..., start:stop]
        return torch.einsum("ngr,grc->ngc", vectors, matrix).unsqueeze(-1)

    def patches(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.groups, 1, self.rows)

    def finish(self, columns: Tensor, x: Tensor) -> Tensor:
        return columns.reshape(*x.shape[:-1], self.groups * self.cols)

    def batched(self, x: Tensor) -> tuple[Tensor, bool]:
        return (x.unsqueeze(0), True) if x.dim() == 1 else (x, False)

    def positions(self, x: Tensor, y: Tensor) -> int:
        return x.numel() // (self.groups * self.rows)

    @property
    def channel_dim(self) -> int:
        return -1


@dataclass(frozen=True, slots=True)
class ConvGeometry:
    """How a convolution walks over its input, in the terms of torch's functions; numbers one a dimension.

    `padding`: margins in the order of `torch.nn.functional.pad` (last dimension first, before and after), filled as
    `pad_mode` says. `output_padding` is a transposed convolution's own.
    """

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding: tuple[int, ...]
    pad_mode: str = "constant"
    output_padding: tuple[int, ...] = ()


def conv_geometry(
    kernel: Sequence[int],
    stride: Numbers,
    padding: Numbers | str,
    dilation: Numbers,
    groups: int,
    output_padding: Numbers = (),
) -> ConvGeometry:
    """What `torch.nn.functional.conv2d(..., stride, padding, dilation, groups)` does for a kernel of this size."""
    dims = len(kernel)
    steps, gaps = _each(stride, dims), _each(dilation, dims)
    if padding == "same":  # torch puts the odd one behind
        spans = [gap * (size - 1) for gap, size in zip(gaps, kernel, strict=True)]
        pads = [(span // 2, span - span // 2) for span in spans]
    elif padding == "valid":
        pads = [(0, 0)] * dims
    else:
        pads = [(p, p) for p in _each(padding, dims)]  # type: ignore[arg-type]
    margins = tuple(margin for pair in reversed(pads) for margin in pair)
    return ConvGeometry(steps, gaps, groups, margins, output_padding=_each(output_padding, dims))


def _each(value: Numbers, dims: int) -> tuple[int, ...]:
    """A number for each dimension, as torch's functions take one for all."""
    numbers = (value,) if isinstance(value, int) else tuple(value)
    return numbers * dims if len(numbers) == 1 else numbers


class ConvView(MatrixView):
    """A convolution of one, two or three dimensions; a row is (input channel, kernel position)."""

    def __init__(self, weight_shape: Sequence[int], geometry: ConvGeometry) -> None:
        """`weight_shape`: [out channels, in channels of a group, *kernel]."""
        out_channels, channels, *kernel = weight_shape
        self.geometry = geometry
        self.groups = geometry.groups
        self.dims = len(kernel)
        self.kernel = tuple(kernel)
        self.row_unit = math.prod(kernel)
        self.rows = channels * self.row_unit
        self.cols = out_channels // self.groups
        self._weight_shape = tuple(weight_shape)
        self.stride, self.dilation = geometry.stride, geometry.dilation
        self.pad_mode, self.pad = geometry.pad_mode, geometry.padding
        before, after = self.pad[0::2][::-1], self.pad[1::2][::-1]
        self.kernel_pad = before if self.pad_mode == "constant" and before == after else None

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.reshape(self.groups, self.cols, self.rows).transpose(1, 2)

    def _kernel_call(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Sequence[int] | int = 0
        if self.kernel_pad is None:
            x = F.pad(x, self.pad, mode=self.pad_mode)
        else:
            padding = self.kernel_pad
        conv: Any = _CONV[self.dims]
        y: Tensor = conv(x, weight, bias, self.stride, padding, self.dilation, self.groups)
        return y

    def fused(self, x: Tensor, matrices: Tensor, bias: Tensor | None) -> Tensor:
        return self._kernel_call(x, matrices.t().reshape(self._weight_shape), bias)

    def product(self, x: Tensor, matrix: Tensor, start: int, stop: int) -> Tensor:
        first, last = start // self.row_unit, -(-stop // self.row_unit)
        margins = (0, 0, start - first * self.row_unit, last * self.row_unit - stop)
        if any(margins):  # a cut inside a channel: rows of other tiles count as zeros here
            matrix = F.pad(matrix, margins)
        cols = matrix.shape[-1]
        weight = matrix.transpose(1, 2).reshape(self.groups * cols, last - first, *self.kernel)
        if (first, last) != (0, self.rows // self.row_unit):
            x = x.unflatten(1, (self.groups, -1))[:, :, first:last].flatten(1, 2)
        return self._kernel_call(x, weight, None).unflatten(1, (self.groups, cols)).flatten(3)

    def patches(self, x: Tensor) -> Tensor:
        x = F.pad(x, self.pad, mode=self.pad_mode)
        for i, (size, step, gap) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
            x = x.unfold(2 + i, (size - 1) * gap + 1, step)[..., ::gap]
        # [n, groups, channels, *out, *kernel], copied so that positions lie side by side in memory: that goes in
        # long runs, while gathering vector by vector takes many times as long.
        x = x.unflatten(1, (self.groups, -1))
        out, kernel = range(3, 3 + self.dims), range(3 + self.dims, 3 + 2 * self.dims)
        positions = math.prod(x.shape[3 : 3 + self.dims])
        rows_first = x.permute(1, 2, *kernel, 0, *out).reshape(self.groups, self.rows, len(x), positions)
        return rows_first.permute(2, 0, 3, 1)

    def overlapping(self, x: Tensor, group: int, start: int, stop: int) -> Patches | None:
        if self.row_unit == 1 or start % self.row_unit or stop % self.row_unit:
            return None
        channels = self.rows // self.row_unit
        first, last = (group * channels + row // self.row_unit for row in (start, stop))
        x = F.pad(x[:, first:last], self.pad, mode=self.pad_mode)
        # Channels lie side by side, so that rows of an image follow one another: some of them are one piece of memory.
        maps = x.movedim(1, -1)
        strides = [math.prod(maps.shape[2 + i :]) for i in range(self.dims)]
        kernel = zip(self.kernel, strides, self.dilation, strict=True)
        rows = (Loop(last - first, 1), *(Loop(size, stride * gap) for size, stride, gap in kernel))
        out = zip(self._out_size(x.shape[2:]), strides, self.stride, strict=True)
        positions = tuple(Loop(size, stride * step) for size, stride, step in out)
        return Patches(maps.reshape(len(x), -1), rows, positions)

    def _out_size(self, padded: Sequence[int]) -> list[int]:
        spec = zip(padded, self.kernel, self.stride, self.dilation, strict=True)
        return [(size - gap * (kernel - 1) - 1) // step + 1 for size, kernel, step, gap in spec]

    def finish(self, columns: Tensor, x: Tensor) -> Tensor:
        pads = [self.pad[2 * i] + self.pad[2 * i + 1] for i in range(self.dims)][::-1]
        padded = [size + pad for size, pad in zip(x.shape[2:], pads, strict=True)]
        return columns.reshape(x.shape[0], self.channels, *self._out_size(padded))

    def batched(self, x: Tensor) -> tuple[Tensor, bool]:
        return (x.unsqueeze(0), True) if x.dim() == self.dims + 1 else (x, False)

    def positions(self, x: Tensor, y: Tensor) -> int:
        return y.numel() // self.channels

    @property
    def channel_dim(self) -> int:
        return -1 - self.dims


class ConvTransposeView(MatrixView):
    """A transposed convolution: one product per input pixel, its columns added up on the host.

    A row is an input channel, a column is (output channel, kernel position).
    """

    row_unit = 1

    def __init__(self, weight_shape: Sequence[int], geometry: ConvGeometry) -> None:
        """`weight_shape`: [in channels, out channels of a group, *kernel]."""
        in_channels, self.out_channels, *kernel = weight_shape
        self.geometry = geometry
        self.dims = len(kernel)
        self.groups = geometry.groups
        self.rows = in_channels // self.groups
        self.kernel = tuple(kernel)
        self.cols = self.out_channels * math.prod(kernel)
        self.stride, self.dilation = geometry.stride, geometry.dilation
        self.padding = geometry.padding[0::2][::-1]
        self.output_padding = geometry.output_padding

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.reshape(self.groups, self.rows, self.cols)

    def fused(self, x: Tensor, matrices: Tensor, bias: Tensor | None) -> Tensor:
        by_group = matrices.unflatten(1, (self.groups, self.cols)).transpose(0, 1)
        weight = by_group.reshape(self.groups * self.rows, self.out_channels, *self.kernel)
        kernel: Any = _CONV_TRANSPOSE[self.dims]
        y: Tensor = kernel(x, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        return y

    def product(self, x: Tensor, matrix: Tensor, start: int, stop: int) -> Tensor:
        return (self.patches(x)[..., start:stop] @ matrix).transpose(2, 3)

    def patches(self, x: Tensor) -> Tensor:
        return x.flatten(2).unflatten(1, (self.groups, self.rows)).transpose(2, 3)

    def finish(self, columns: Tensor, x: Tensor) -> Tensor:
        if self.dims > 2:
            return self._added_by_kernel(columns.flatten(1, 2).reshape(len(x), -1, *x.shape[2:]))
        spec = zip(x.shape[2:], self.stride, self.dilation, self.kernel, strict=True)
        size = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in spec]
        one = self.dims == 1  # torch folds images only: a signal is an image one pixel high

        def pair(values: Sequence[int], unit: int) -> tuple[int, ...]:
            return (unit, *values) if one else tuple(values)

        y = F.fold(
            columns.flatten(1, 2),
            pair(size, 1),
            pair(self.kernel, 1),
            pair(self.dilation, 1),
            stride=pair(self.stride, 1),
        )
        ends = zip(self.padding, self.output_padding, strict=True)  # padding crops; the last dimension comes first
        crop = [margin for p, o in ends for margin in (o - p, -p)][::-1]
        return F.pad(y.squeeze(2) if one else y, crop)

    def _added_by_kernel(self, columns: Tensor) -> Tensor:
        """Columns put where they belong by a transposed convolution with ones: torch folds no volumes."""
        size = math.prod(self.kernel)
        ones = torch.eye(size, dtype=columns.dtype, device=columns.device).reshape(size, 1, *self.kernel)
        kernel: Any = _CONV_TRANSPOSE[self.dims]
        y: Tensor = kernel(
            columns, ones.repeat(self.channels, *[1] * (self.dims + 1)), None,
            self.stride, self.padding, self.output_padding, self.channels, self.dilation,
        )  # fmt: skip
        return y

    def batched(self, x: Tensor) -> tuple[Tensor, bool]:
        return (x.unsqueeze(0), True) if x.dim() == self.dims + 1 else (x, False)

    def positions(self, x: Tensor, y: Tensor) -> int:
        return x.numel() // (self.groups * self.rows)

    @property
    def channels(self) -> int:
        return self.groups * self.out_channels

    @property
    def channel_dim(self) -> int:
        return -1 - self.dims


# What torch's convolutions read when they are called.
walk_attributes = attrgetter(
    "stride", "padding", "dilation", "groups", "padding_mode", "output_padding", "_reversed_padding_repeated_twice"
)


def geometry_of(layer: Any, output_padding: Sequence[int] | None = None) -> ConvGeometry | None:
    """How torch's own `forward` of a convolution would walk, read from the attributes that it reads; None for Linear.

    Attributes may have been changed since the layer was made. `output_padding` replaces a transposed convolution's.
    """
    if not isinstance(layer, _CONVOLUTIONS):
        return None
    kernel = layer.weight.shape[2:]
    if isinstance(layer, _TRANSPOSED):
        extra = layer.output_padding if output_padding is None else output_padding
        return conv_geometry(kernel, layer.stride, layer.padding, layer.dilation, layer.groups, extra)
    if layer.padding_mode == "zeros":
        return conv_geometry(kernel, layer.stride, layer.padding, layer.dilation, layer.groups)
    walk = conv_geometry(kernel, layer.stride, 0, layer.dilation, layer.groups)
    margins = tuple(int(p) for p in layer._reversed_padding_repeated_twice)
    return replace(walk, padding=margins, pad_mode=layer.padding_mode)


def view_with(layer: nn.Module, weight_shape: Sequence[int], geometry: ConvGeometry | None) -> MatrixView:
    """The matrix view of a layer of torch's, for the weight and the geometry that it has now."""
    if geometry is None:
        out_features, in_features = weight_shape
        return LinearView(in_features, out_features)
    return (ConvTransposeView if isinstance(layer, _TRANSPOSED) else ConvView)(weight_shape, geometry)


def view_of(layer: nn.Module) -> MatrixView | None:
    """The matrix view of a layer that a device can compute, or None for every other module."""
    weight: Any = getattr(layer, "weight", None)
    if not isinstance(layer, (nn.Linear, *_CONVOLUTIONS)) or not isinstance(weight, Tensor):
        return None
    return view_with(layer, weight.shape, geometry_of(layer))


def inherits_forward(layer: nn.Module) -> bool:
    """Whether a layer computes what torch's own class does (a subclass or a layer may have its own `forward`)."""
    cls = type(layer)
    if any(name in vars(layer) for name in ("forward", "_conv_forward")):
        return False
    for base in (nn.Linear, *_CONVOLUTIONS):
        if isinstance(layer, base):
            same_kernel = getattr(cls, "_conv_forward", None) is getattr(base, "_conv_forward", None)
            return cls.forward is base.forward and same_kernel
    return False


def as_float32(weight: Tensor) -> Tensor:
    """The weight as the device gets it: float32, detached."""
    return weight.detach().to(torch.float32)
