"""A product that a module computes inside a function of torch's, as a layer that a device can compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn


class Projection(nn.Module):
    """One of its owner's matrices: y = x W^T + b, with the owner's parameters as they are at each call."""

    def __init__(self, owner: nn.Module, weight: Callable[[Any], Tensor], bias: Callable[[Any], Tensor | None]) -> None:
        """`weight` and `bias` find them in an owner: a copy of a projection belongs to the owner's copy."""
        super().__init__()
        self._owner = (owner,)  # in a tuple, so that it is not registered as a child
        self._weight_of, self._bias_of = weight, bias

    @property
    def owner(self) -> nn.Module:
        """The module whose parameters these are."""
        return self._owner[0]

    @property
    def weight(self) -> Tensor:
        return self._weight_of(self.owner)

    @property
    def bias(self) -> Tensor | None:
        return self._bias_of(self.owner)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class OpenedForward:
    """A callable in place of a module's `forward`, with its signature and results; `parts` compute the products.

    `replaced` names the module's children that are never called now.
    """

    replaced: ClassVar[tuple[str, ...]] = ()
    parts: Mapping[str, Projection]


def opened_forward(module: nn.Module) -> OpenedForward | None:
    """What computes an opened module; None for every other."""
    forward = vars(module).get("forward")
    return forward if isinstance(forward, OpenedForward) else None
