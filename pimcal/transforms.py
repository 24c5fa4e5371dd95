"""Layers inside `torch.vmap`, `torch.func.grad` and their like, which hand on tensors that stand for others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import VmapInterpreter, retrieve_all_functorch_interpreters

from pimcal.errors import UsageError

Run = Callable[[Tensor, Tensor | None], Tensor]


def active() -> bool:
    """Whether the calling code runs inside of one."""
    return torch._C._are_functorch_transforms_active()


def only_vmap() -> bool:
    """Whether all that is active is `torch.vmap`."""
    return all(isinstance(one, VmapInterpreter) for one in retrieve_all_functorch_interpreters())


def lanes() -> int:
    """How many tensors one stands for."""
    if not active():
        return 1
    return math.prod(o.batch_size() for o in retrieve_all_functorch_interpreters() if isinstance(o, VmapInterpreter))


def check_measurable(name: str) -> None:
    """Raise UsageError inside of one: what a tensor stands for there cannot be looked at."""
    if active():
        raise UsageError(
            f"{name} is called inside torch.vmap or another transform of torch.func, where nothing can be measured; "
            "let the model call it on the whole batch, or choose a method that does not look at it"
        )


def together(run: Run, x: Tensor, bias: Tensor | None, is_single: Callable[[Tensor], bool]) -> Tensor:
    """`run(x, bias)` for all that `x` stands for inside `torch.vmap`, at once, as further samples of one batch.

    `is_single(x)`: whether it is one sample, without a dimension for several. Raises UsageError where each has a bias
    of its own.
    """
    y: Tensor = _Together.apply(x, bias, run, is_single)  # type: ignore[no-untyped-call]
    return y


class _Together(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, bias: Tensor | None, run: Run, is_single: Any) -> Tensor:
        return run(x, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise UsageError("a layer on a device has no derivatives inside torch.vmap; take them of the digital model")

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, bias: Tensor | None, run: Run, is_single: Any) -> tuple[Tensor, int]:
        if in_dims[1] is not None:
            raise UsageError("torch.vmap gives a layer on a device another bias for each sample; it holds one only")
        x = x.movedim(in_dims[0], 0)
        single = is_single(x.new_empty(x.shape[1:]))
        y = together(run, x if single else x.flatten(0, 1), bias, is_single)
        return (y if single else y.unflatten(0, x.shape[:2])), 0
