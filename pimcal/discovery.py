"""A pass, watched: which products a model makes, by which weights, and which multiply inputs by inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pimcal.forms import Product, attention_macs, read_inputs
from pimcal.functional import DeviceProducts, Weight, Weights
from pimcal.opened import named_layers
from pimcal.origins import Origin, tensors_of
from pimcal.transforms import lanes
from pimcal.watch import Watch

See = Callable[[str, Product], None]


@dataclass(slots=True)
class Use:
    """How a pass used one weight: in the own `forward` of `modules` that a device can compute, or also elsewhere."""

    weight: Weight
    modules: list[str] = field(default_factory=list)
    elsewhere: bool = False


@dataclass(slots=True)
class Pass:
    """What one pass did.

    `uses`: by the weight's key, in the order of the first use. `called`: modules that were called. `macs`, `vectors`:
    multiplications and input vectors by layer. `inputs`: multiplications of inputs by inputs, by module. `others`:
    multiplications by weights in functions of torch's that no device can stand in for, or by weights that differ at
    each call; by what makes them. `constants`: multiplications of inputs by buffers and constants, no weights.
    """

    uses: dict[Hashable, Use] = field(default_factory=dict)
    called: set[str] = field(default_factory=set)
    macs: Counter[str] = field(default_factory=Counter)
    vectors: Counter[str] = field(default_factory=Counter)
    inputs: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    constants: Counter[str] = field(default_factory=Counter)

    def use(self, weight: Weight) -> Use:
        """How `weight` was used so far."""
        return self.uses.setdefault(weight.key, Use(weight))

    def count(self, layer: str, vectors: int, macs_each: int) -> None:
        """Add input vectors of a layer, each of which takes `macs_each` multiplications."""
        self.vectors[layer] += vectors
        self.macs[layer] += vectors * macs_each

    def join(self) -> None:
        """Count a weight that is used within modules and elsewhere under one name, its own."""
        for use in self.uses.values():
            for module in use.modules if use.elsewhere else ():
                for counts in (self.macs, self.vectors):
                    if module != use.weight.name and module in counts:
                        counts[use.weight.name] += counts.pop(module)


def discover(
    model: nn.Module,
    weights: Weights,
    own: Mapping[str, nn.Module],
    call: Callable[[], Any],
    see: See = lambda layer, product: None,
) -> Pass:
    """Watch `call()`, a digital pass of `model`. `own` are the modules whose `forward` a device can stand in for.

    New weights are added to `weights`. `see(layer, product)` is called for each product with a weight.
    """
    finder = _DigitalFinder(weights, own, see)
    weights.origins.begin_pass()
    with finder.following(model), torch.no_grad(), Watch(weights.origins, finder):
        call()
    finder.found.join()
    return finder.found


class _Finder:
    """Counts what is no product with a weight, and knows which module's `forward` is running."""

    def __init__(self, weights: Weights) -> None:
        self.found = Pass()
        self._weights = weights
        self._inside: list[str] = []

    @property
    def module(self) -> str:
        return self._inside[-1] if self._inside else ""

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Know, within the block, which module's `forward` is running."""
        with ExitStack() as hooks:
            for name, module in named_layers(model):
                hooks.callback(module.register_forward_pre_hook(self._entering(name), prepend=True).remove)
                hooks.callback(module.register_forward_hook(self._leaving, always_call=True).remove)
            yield

    def _entering(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            self._inside.append(name)
            self.found.called.add(name)

        return hook

    def _leaving(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._inside:
            self._inside.pop()

    def takes_constant(self, product: Product) -> bool:
        return False

    def count_changing(self, function: str, macs: int) -> None:
        """A product with a weight that differs at each call."""
        self.found.others[f"{function} in {self.module or 'the model'}, by a weight that differs at each call"] += macs

    def other(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], digital: Callable[[], Any]) -> Any:
        known = [self._weights.origins.of(tensor) for tensor in tensors_of((*args, *kwargs.values()))]
        if None not in known:
            return digital()
        if macs := attention_macs(function, args, kwargs):
            self.found.inputs[self.module] += macs
            return digital()
        product = read_inputs(function, args, kwargs)
        if product is not None and not self._has_parameters(product.operand):
            result = digital()
            macs = product.view.positions(product.x, result) * product.macs_each
            if self._weights.origins.of(product.operand) is None:
                self.found.inputs[self.module] += macs
            else:
                name = getattr(function, "__name__", str(function))
                self.found.constants[f"{name} in {self.module or 'the model'}"] += macs
            return result
        if any(origin is not None and origin.parameters for origin in known):
            return self._with_parameters(function, digital)
        return digital()

    def _has_parameters(self, operand: Tensor) -> bool:
        origin = self._weights.origins.of(operand)
        return origin is not None and origin.parameters

    def _with_parameters(self, function: Any, digital: Callable[[], Any]) -> Any:
        """A function of inputs and parameters: a product in disguise, or an addition, a normalisation, a look-up."""
        with FlopCounterMode(display=False) as flops:
            result = digital()
        if macs := flops.get_total_flops() // 2:
            name = getattr(function, "__name__", str(function))
            self.found.others[f"{name} in {self.module or 'the model'}"] += macs
        return result


class _DigitalFinder(_Finder):
    """Handles a watched digital pass; every result is torch's own."""

    def __init__(self, weights: Weights, own: Mapping[str, nn.Module], see: See) -> None:
        super().__init__(weights)
        self._own, self._see = own, see
        self._first = {name: module._parameters.get("weight") for name, module in own.items()}

    def product(self, product: Product, origin: Origin, function: str, digital: Callable[[], Any]) -> Any:
        result = digital()
        vectors = product.view.positions(product.x, result) * lanes()
        weight = self._weights.find(product, origin) or self._weights.add(product, origin, function)
        if weight is None:
            self.count_changing(function, vectors * product.macs_each)
            return result
        use, own = self.found.use(weight), self._is_own(product.operand)
        if own and not use.modules:
            weight.name = self.module
        if own and self.module not in use.modules:
            use.modules.append(self.module)
        use.elsewhere |= not own
        layer = self.module if own else weight.name
        self._see(layer, product)
        self.found.count(layer, vectors, product.macs_each)
        return result

    def takes_constant(self, product: Product) -> bool:
        return self._is_own(product.operand)  # on the device its `forward` is replaced, whatever it is called with

    def _is_own(self, operand: Tensor) -> bool:
        if self.module not in self._own:
            return False
        first = self._first[self.module]
        return first is None or first is operand


class DeviceFinder(_Finder):
    """Handles a watched pass on a device: products with weights go there."""

    def __init__(self, weights: Weights, device: DeviceProducts) -> None:
        super().__init__(weights)
        self._device = device

    def product(self, product: Product, origin: Origin, function: str, digital: Callable[[], Any]) -> Any:
        weight = self._device.weight_of(product, origin, function)
        result = digital() if weight is None or weight.layer is None else self._device.run(weight, product)
        vectors = product.view.positions(product.x, result) * lanes()
        if weight is None:
            self.count_changing(function, vectors * product.macs_each)
            return result
        self.found.use(weight).elsewhere = True
        self.found.count(weight.name, vectors, product.macs_each)
        return result
