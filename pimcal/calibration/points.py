"""Where a network is measured: the inputs of its normalisations, and the outputs of device layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from pimcal.corrections import norms_of
from pimcal.deployment import Deployment
from pimcal.network_products import NetworkProducts
from pimcal.opened import named_layers


@dataclass(frozen=True, slots=True)
class Point:
    """A module's input (normalisations) or output (layers), and the dimension of its channels.

    `products`: set for a layer whose products no module's own `forward` makes; they are tapped there.
    """

    name: str
    is_norm: bool
    channel_dim: int = 1
    products: NetworkProducts | None = None


Tap = Callable[[Point, Tensor], Tensor]


def norm_points(net: Deployment) -> list[Point]:
    """The inputs of all normalisations with running statistics."""
    return [Point(name, is_norm=True) for name in norms_of(net.module)]


def layer_points(net: Deployment) -> list[Point]:
    """The outputs of all device layers."""
    products = net.products
    return [
        Point(name, False, layer.matrix.view.channel_dim, products if products.is_functional(name) else None)
        for name, layer in net.layers.items()
    ]


@contextmanager
def tapped(model: nn.Module, points: list[Point], tap: Tap) -> Iterator[None]:
    """Within the block, `tap(point, tensor)` sees every tensor at the points; what it returns goes on (layers only)."""
    modules = dict(named_layers(model))
    with ExitStack() as stack:
        for point in points:
            if point.products is not None:
                continue
            module = modules[point.name]
            if point.is_norm:
                handle = module.register_forward_pre_hook(_norm_hook(point, tap), with_kwargs=True)
            else:
                handle = module.register_forward_hook(_layer_hook(point, tap))
            stack.callback(handle.remove)
        for products in {p.products for p in points if p.products is not None}:
            stack.enter_context(products.tapped({p.name: partial(tap, p) for p in points if p.products is products}))
        yield


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
