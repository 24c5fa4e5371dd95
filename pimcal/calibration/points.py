"""Where a network is measured: the inputs of its normalisations, and the outputs of device layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pimcal.attention import named_layers
from pimcal.corrections import norms_of
from pimcal.deployment import Deployment


@dataclass(frozen=True, slots=True)
class Point:
    """A module's input (normalisations) or output (layers), and the dimension of its channels."""

    name: str
    is_norm: bool
    channel_dim: int = 1


Tap = Callable[[Point, Tensor], Tensor]


def norm_points(net: Deployment) -> list[Point]:
    """The inputs of all normalisations with running statistics."""
    return [Point(name, is_norm=True) for name in norms_of(net.module)]


def layer_points(net: Deployment) -> list[Point]:
    """The outputs of all device layers."""
    return [Point(name, is_norm=False, channel_dim=layer.matrix.view.channel_dim) for name, layer in net.layers.items()]


@contextmanager
def tapped(model: nn.Module, points: list[Point], tap: Tap) -> Iterator[None]:
    """Within the block, `tap(point, tensor)` sees every tensor at the points; what it returns goes on (layers only)."""
    modules = dict(named_layers(model))
    handles = []
    for point in points:
        module = modules[point.name]
        if point.is_norm:
            handles.append(module.register_forward_pre_hook(_norm_hook(point, tap), with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(_layer_hook(point, tap)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _norm_hook(point: Point, tap: Tap) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        tap(point, next(iter((*args, *kwargs.values()))))

    return hook


def _layer_hook(point: Point, tap: Tap) -> Callable[[nn.Module, Any, Any], Tensor]:
    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return tap(point, output)

    return hook


class CallCounter:
    """Numbers the calls of each module within one forward pass: a shared layer is measured call by call."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def next(self, name: str) -> int:
        self._counts[name] += 1
        return self._counts[name] - 1
