"""What torch's functions multiply: a call as vectors and matrices that a device can take.

`read(function, args, kwargs, is_weight)` names the product of a call whose one operand is a weight. What the function
does beyond the product (adding another tensor, putting axes back) is in `finish`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pimcal.contraction import Contraction, of_einsum, of_matmul, of_tensordot
from pimcal.matrices import (
    ConvTransposeView,
    ConvView,
    LinearView,
    MatrixView,
    StackView,
    conv_geometry,
)

IsWeight = Callable[[Tensor], bool]


def _same(y: Tensor) -> Tensor:
    return y


@dataclass(frozen=True, slots=True)
class Product:
    """One product that a call asks for.

    `operand` is the weight as the call has it; `weight` the same as `view` wants it, with the operand's memory wherever
    that is possible. `x` and `bias` are what the view's kernels take; `finish` makes the call's result of their output.
    """

    x: Tensor
    operand: Tensor
    weight: Tensor
    view: MatrixView
    bias: Tensor | None = None
    finish: Callable[[Tensor], Tensor] = _same

    @property
    def macs_each(self) -> int:
        """Multiplications for one input vector."""
        return self.view.groups * self.view.rows * self.view.cols


def read(function: Any, args: Sequence[Any], kwargs: dict[str, Any], is_weight: IsWeight) -> Product | None:
    """The product in a call, or None if there is none, or not exactly one of its two operands is a weight."""
    reader = _READERS.get(getattr(function, "__name__", ""))
    if reader is None:
        return None
    try:
        return reader(is_weight, *args, **kwargs)
    except (TypeError, ValueError, IndexError):  # arguments that torch itself is about to refuse
        return None


def read_inputs(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Product | None:
    """The same for a product of two inputs: its second operand is taken for the weight."""
    asked = itertools.count(1)
    return read(function, args, kwargs, lambda tensor: next(asked) % 2 == 0)


def attention_macs(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    """Multiplications of queries by keys, and of what comes of it by values; 0 if a call is no attention."""
    if getattr(function, "__name__", "") not in ("scaled_dot_product_attention", "multi_head_attention_forward"):
        return 0
    query, key = (kwargs[name] if name in kwargs else args[i] for i, name in enumerate(("query", "key")))
    first = 0 if function.__name__ == "multi_head_attention_forward" else -2  # the axis of the sequence
    return 2 * query.numel() * key.shape[first]


def _linear(is_weight: IsWeight, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Product | None:
    if is_weight(input) or not is_weight(weight):
        return None
    if weight.dim() != 2:
        return _two(is_weight, input, weight.mT if weight.dim() > 1 else weight, bias)
    return Product(input, weight, weight, LinearView(weight.shape[1], weight.shape[0]), bias)


def _conv(
    is_weight: IsWeight,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Product | None:
    if is_weight(input) or not is_weight(weight):
        return None
    geometry = conv_geometry(weight.shape[2:], stride, padding, dilation, groups)
    return Product(input, weight, weight, ConvView(weight.shape, geometry), bias)


def _conv_transpose(
    is_weight: IsWeight,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Product | None:
    if is_weight(input) or not is_weight(weight):
        return None
    geometry = conv_geometry(weight.shape[2:], stride, padding, dilation, groups, output_padding)
    return Product(input, weight, weight, ConvTransposeView(weight.shape, geometry), bias)


def _in_order(tensors: Sequence[Any], named: dict[str, Any]) -> list[Any]:
    """Operands as torch counts them, some of them given by name: `input` comes first."""
    named = _without_out(named)
    first = [named.pop("input")] if "input" in named else []
    return [*first, *tensors, *named.values()]


def _without_out(named: dict[str, Any]) -> dict[str, Any]:
    if named.get("out") is not None:
        raise TypeError("a result that is written into a tensor of the caller's is torch's own affair")
    return {key: value for key, value in named.items() if key != "out"}


def _matmul(is_weight: IsWeight, *tensors: Tensor, **named: Tensor) -> Product | None:
    first, second = _in_order(tensors, named)
    return _two(is_weight, first, second)


def _rmatmul(is_weight: IsWeight, second: Tensor, first: Tensor) -> Product | None:
    return _two(is_weight, first, second)


def _inner(is_weight: IsWeight, *tensors: Tensor, **named: Tensor) -> Product | None:
    first, second = _in_order(tensors, named)
    if first.dim() == 0 or second.dim() == 0:
        return None
    return _tensordot(is_weight, first, second, ([-1], [-1]))


def _two(is_weight: IsWeight, first: Tensor, second: Tensor, bias: Tensor | None = None) -> Product | None:
    weights = is_weight(first), is_weight(second)
    if weights[0] == weights[1]:
        return None
    x, weight = (first, second) if weights[1] else (second, first)
    found = _contracted(of_matmul(x, weight, x_first=weights[1]), x, weight)
    return found if found is None or bias is None else _plus(found, lambda y: y + bias)


def _contracted(contraction: Contraction | None, x: Tensor, weight: Tensor) -> Product | None:
    if contraction is None or not contraction.is_a_product():
        return None
    found = contraction.vectors(x, weight)
    groups, rows, cols = found.matrices.shape
    if groups == 1:
        return Product(found.inputs, weight, found.matrices[0].t(), LinearView(rows, cols), None, found.restore)
    return Product(found.inputs, weight, found.matrices, StackView(groups, rows, cols), None, found.restore)


def _plus(product: Product, more: Callable[[Tensor], Tensor]) -> Product:
    finish = product.finish
    return replace(product, finish=lambda y: more(finish(y)))


def _added(is_weight: IsWeight, *tensors: Tensor, beta: float = 1, alpha: float = 1, **named: Tensor) -> Product | None:
    """addmm, addmv, baddbmm: beta * input + alpha * product."""
    input, first, second = _in_order(tensors, named)
    found = _two(is_weight, first, second)
    return None if found is None else _plus(found, lambda y: alpha * y + (beta * input if beta else 0))


def _added_batches(
    is_weight: IsWeight, *tensors: Tensor, beta: float = 1, alpha: float = 1, **named: Tensor
) -> Product | None:
    input, first, second = _in_order(tensors, named)
    found = _two(is_weight, first, second)
    return None if found is None else _plus(found, lambda y: alpha * y.sum(0) + (beta * input if beta else 0))


def _einsum(is_weight: IsWeight, equation: Any, *tensors: Any) -> Product | None:
    given = tuple(tensors[0]) if len(tensors) == 1 and isinstance(tensors[0], list | tuple) else tensors
    if not isinstance(equation, str) or len(given) != 2:
        return None
    weights = [is_weight(tensor) for tensor in given]
    if weights[0] == weights[1]:
        return None
    x, weight = given if weights[1] else given[::-1]
    return _contracted(of_einsum(equation, x, weight, x_first=weights[1]), x, weight)


def _tensordot(is_weight: IsWeight, a: Tensor, b: Tensor, dims: Any = 2, **named: Any) -> Product | None:
    _without_out(named)
    weights = is_weight(a), is_weight(b)
    if weights[0] == weights[1]:
        return None
    if isinstance(dims, int):
        axes = ([*range(-dims, 0)], [*range(dims)])
    else:
        first, second = dims.tolist() if isinstance(dims, Tensor) else dims
        axes = (_list(first), _list(second))
    x, weight = (a, b) if weights[1] else (b, a)
    return _contracted(of_tensordot(x, weight, axes, x_first=weights[1]), x, weight)


def _list(value: Any) -> list[int]:
    return [value] if isinstance(value, int) else [*value]


def _bilinear(
    is_weight: IsWeight, input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Product | None:
    """y_k = x1 W_k x2: x1 meets the weight on the device, and x2 what comes of it on the host."""
    if is_weight(input1) or is_weight(input2) or not is_weight(weight):
        return None
    outs, rows, others = weight.shape
    matrix = weight.permute(0, 2, 1).reshape(outs * others, rows)

    def finish(y: Tensor) -> Tensor:
        result = (y.unflatten(-1, (outs, others)) * input2.unsqueeze(-2)).sum(-1)
        return result if bias is None else result + bias

    return Product(input1, weight, matrix, LinearView(rows, outs * others), None, finish)


def _deform_conv2d(
    is_weight: IsWeight, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor | None, *walk: Any
) -> Product | None:
    """torchvision's deformable convolution: it samples on the host, with single ones as its kernel."""
    if is_weight(input) or not is_weight(weight):
        return None
    stride_h, stride_w, pad_h, pad_w, gap_h, gap_w, groups, offset_groups, use_mask = walk
    channels, size = input.shape[1], math.prod(weight.shape[2:])
    ones = input.new_zeros(size, 1, *weight.shape[2:])
    ones.view(size, size).fill_diagonal_(1)
    sampled = torch.ops.torchvision.deform_conv2d(
        input, ones.repeat(channels, 1, 1, 1), offset, mask, input.new_zeros(channels * size),
        stride_h, stride_w, pad_h, pad_w, gap_h, gap_w, channels, offset_groups, use_mask,
    )  # fmt: skip
    flat = weight.reshape(weight.shape[0], -1, 1, 1)
    return Product(sampled, weight, flat, ConvView(flat.shape, conv_geometry((1, 1), 1, 0, 1, groups)), bias)


_READERS: dict[str, Callable[..., Product | None]] = {
    "linear": _linear,
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "conv_transpose1d": _conv_transpose,
    "conv_transpose2d": _conv_transpose,
    "conv_transpose3d": _conv_transpose,
    "matmul": _matmul,
    "__matmul__": _matmul,
    "__rmatmul__": _rmatmul,
    "mm": _matmul,
    "bmm": _matmul,
    "mv": _matmul,
    "dot": _matmul,
    "inner": _inner,
    "addmm": _added,
    "addmv": _added,
    "baddbmm": _added,
    "addbmm": _added_batches,
    "einsum": _einsum,
    "tensordot": _tensordot,
    "bilinear": _bilinear,
    "deform_conv2d": _deform_conv2d,
}
