"""Counts multiplications with weights, by what torch's kernels are asked for; it knows nothing of pimcal's reports.

A product counts where one operand comes from the inputs and the other from parameters or constants alone. Products of
inputs with inputs (attention's scores) are counted apart, and so are those that need no input at all.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pimcal.layers import DeviceMatrix

aten = torch.ops.aten
_LIKE_A_PRODUCT = re.compile(r"mm(?![a-z])|conv|(?<![a-z])linear(?!1d)|(?<![a-z])dot|lstm|gru|rnn")


class Macs(TorchDispatchMode):
    """Within the block: multiply-accumulates with weights in `weights`, on the device (see `on_device`) in `device`,
    of inputs with inputs in `inputs`."""

    def __init__(self, inputs: Any) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.uncounted: set[str] = set()  # kernels that seem to multiply and are not known here
        self._from_inputs: set[int] = set()
        self._alive: list[Tensor] = []  # so that no id is used again
        self._device = False
        for leaf in tree_leaves(inputs):
            self._mark(leaf)

    def _mark(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._from_inputs.add(id(value))
            self._alive.append(value)

    def _is_input(self, value: Any) -> bool:
        return isinstance(value, Tensor) and id(value) in self._from_inputs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        leaves = tree_leaves((args, kwargs))
        if any(self._is_input(leaf) for leaf in leaves):
            for leaf in tree_leaves(result):
                self._mark(leaf)
            if func._schema.is_mutable:
                self._mark(args[0])
        operands, macs = product(func, args, result)
        if not macs and _LIKE_A_PRODUCT.search(func.name()) and any(self._is_input(leaf) for leaf in leaves):
            self.uncounted.add(func.name())
        if macs:
            touched = [self._is_input(operand) for operand in operands]
            if all(touched):
                self.counts["inputs"] += macs
            elif any(touched):
                self.counts["weights"] += macs
                self.counts["device"] += macs * self._device
        return result

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Within the block, what a deployed layer multiplies counts as the device's."""
        multiply = DeviceMatrix.multiply

        def counting(matrix: DeviceMatrix, *args: Any, **kwargs: Any) -> Tensor:
            before, self._device = self._device, True
            try:
                return multiply(matrix, *args, **kwargs)
            finally:
                self._device = before

        DeviceMatrix.multiply = counting  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            DeviceMatrix.multiply = multiply  # type: ignore[method-assign]


def product(func: Any, args: Any, result: Any) -> tuple[tuple[Any, ...], int]:
    """The operands of a product and its multiply-accumulates; 0 where `func` is none."""
    packet = func.overloadpacket
    if packet in (aten.mm, aten.bmm, aten.mv, aten.dot):
        return args[:2], result.numel() * args[0].shape[-1]
    if packet is aten._grouped_mm:
        return args[:2], result.numel() * args[0].shape[-1]
    if packet in (aten.addmm, aten.baddbmm, aten.addmv, aten.addbmm, aten._addmm_activation):
        return args[1:3], result.numel() * args[1].shape[-1]
    if packet in (aten.convolution, aten._convolution):
        x, weight, transposed = args[0], args[1], args[6]
        each = math.prod(weight.shape[1:])
        return (x, weight), (x.numel() if transposed else result.numel()) * each
    if packet is aten._trilinear:
        return (args[0], args[1]), math.prod(args[1].shape) * args[0].numel() // max(1, args[0].shape[-1])
    if func.name().startswith("aten::_scaled_dot_product"):
        query, key, value = args[:3]
        return (value, value), (query.numel() + result[0].numel()) * key.shape[-2]
    if func.name().startswith("torchvision::deform_conv2d"):
        return args[:2], result.numel() * math.prod(args[1].shape[1:])
    return (), 0
