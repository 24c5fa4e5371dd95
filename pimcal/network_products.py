"""All products of one network: which its device makes, for which of torch's calls, and what stays on the host.

Layers whose `forward` is torch's own are the quick way: their `forward` is replaced. Any other product with a weight is
caught where the model asks torch for it. What there is of these only a pass can tell, so the first one is watched
(`settle`); what comes up later gets its place when it comes up.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from pimcal.device import Device
from pimcal.device_weights import DeviceWeights
from pimcal.discovery import DeviceFinder, Pass, See, discover
from pimcal.errors import ConfigError, DataError, PlacementWarning
from pimcal.forms import Product
from pimcal.functional import DeviceProducts, DigitalProducts, Taps, Weight, Weights
from pimcal.layers import DeviceLayer, LayerForward
from pimcal.matrices import MatrixView
from pimcal.origins import Origin, Origins
from pimcal.placement import Placed
from pimcal.projection import Projection
from pimcal.survey import KEPT, Candidate, check_finite, kept_by, survey
from pimcal.tile_array import TileArray
from pimcal.watch import Watch

CallModel = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Row:
    """A layer or a weight: its place, or the reason why it has none; `macs` of the first pass, None before it."""

    name: str
    kind: str
    placed: Placed | None
    reason: str
    macs: int | None


class LateForward:
    """Takes the place of the `forward` of a layer that the first pass did not call: it is placed when it is called."""

    def __init__(self, layer: nn.Module, place: Callable[[nn.Module], LayerForward]) -> None:
        self._layer, self._place = layer, place
        self._forward: LayerForward | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if self._forward is None:
            self._forward = self._place(self._layer)
        return self._forward(*args, **kwargs)


class NetworkProducts:
    """The products of a network (`module`) and of its digital reference."""

    def __init__(self, reference: nn.Module, module: nn.Module, device: Device) -> None:
        self.device = device
        self.host = device.profile.host
        self.candidates = survey(reference, self.host)
        self.layers: dict[str, DeviceLayer] = {}
        self.taps: Taps = {}
        self._functional: set[str] = set()  # layers whose products are caught, not replaced
        self.first_pass: Pass | None = None
        self._reference, self._module = reference, module
        self._surveyed = {c.name: c for c in survey(module, self.host) if c.view is not None}
        self._known = Weights(Origins(reference, module))
        self._watching = True
        self._told: set[str] = set()

    # placing

    def look(self, call: CallModel, see: See = lambda layer, product: None) -> Pass:
        """Watch `call()`, a digital pass of the reference; `see` gets each product with the name of its layer."""
        own = {c.name: c.module for c in self.candidates if c.view is not None and c.name not in self._functional}
        return discover(self._reference, self._known, own, call, see)

    def place(self, first_pass: Pass | None) -> None:
        """Give each weight its place on the device: those that a pass used, or without one those of all layers.

        Raises DataError for weights that are no numbers, or if there is none, ConfigError if all stay on the host.
        """
        self.first_pass = first_pass
        self._weights = DeviceWeights(self.device)
        self.layers.clear()
        self._functional.clear()
        self._replaced: dict[Hashable, list[str]] = {}  # layers whose `forward` is replaced, by their weight
        self._known.origins.begin_pass()
        if first_pass is None:
            for name in self._surveyed:
                self._replace(name)
        else:
            self._place_used(first_pass)
        self._watching = first_pass is None or self._needs_watching(first_pass)
        if not self.layers and not (first_pass is None and any(c.may_multiply for c in self.candidates)):
            raise _nothing_to_place(self.candidates)

    def _place_used(self, first_pass: Pass) -> None:
        # What is used elsewhere, too, is caught each time where it is asked for.
        elsewhere = {use.weight.name: use.weight for use in first_pass.uses.values() if use.elsewhere}
        for name in first_pass.macs:
            if name in elsewhere:
                self._place_weight(elsewhere[name])
            elif name in self._surveyed:
                self._replace(name)
        for name, candidate in self._surveyed.items():
            if name not in self.layers and name not in self._functional:
                candidate.module.forward = LateForward(candidate.module, partial(self._place_layer, name))

    def _replace(self, name: str) -> None:
        layer = self._surveyed[name].module
        layer.forward = self._place_layer(name, layer)

    def _place_layer(self, name: str, layer: nn.Module) -> LayerForward:
        view = self._surveyed[name].view
        assert view is not None
        source: Any = layer
        key = self._key_of(layer, view)
        matrix = self._weights.add(name, view, lambda: source.weight, key)
        self.layers[name] = device_layer = DeviceLayer(name, matrix)
        self._replaced.setdefault(key, []).append(name)
        return LayerForward(layer, device_layer, self._changed)

    def _key_of(self, layer: Any, view: MatrixView) -> Hashable:
        """The same for layers that share a weight and read it as the same matrices."""
        return self._known.key_of(layer.weight, view) or (id(layer), type(view).__name__)

    def _place_weight(self, weight: Weight) -> None:
        """The same for a weight that is used outside of a layer's own `forward`; all its products are caught then."""
        modules = self._replaced.pop(weight.key, [])
        former = [self.layers.pop(name) for name in modules]
        for name in modules:
            vars(self._surveyed[name].module).pop("forward", None)
        weight.name = modules[0] if modules else weight.name
        self._functional.update((weight.name, *modules))
        weight.reason = self._why_not(weight)
        if weight.reason:
            weight.layer = None
            return
        check_finite(weight.name, weight.values)
        matrix = self._weights.add(weight.name, weight.view, lambda: weight.values, weight.key)
        weight.layer = self.layers[weight.name] = DeviceLayer(weight.name, matrix)
        if former:
            weight.layer.correction = former[0].correction

    def is_functional(self, name: str) -> bool:
        """Whether a layer's products are caught where the model asks for them; else its `forward` is replaced."""
        return name in self._functional

    def _why_not(self, weight: Weight) -> str:
        pattern = kept_by(weight.name, self.host)
        if pattern is not None:
            return f"{KEPT} '{pattern}'"
        return "" if weight.values.is_floating_point() else f"its weights are {weight.values.dtype}"

    def _needs_watching(self, first_pass: Pass) -> bool:
        """Whether a later pass may make products outside of replaced `forward`s."""
        hidden = [c.name for c in self.candidates if c.view is None and c.may_multiply]
        unseen = any(name not in first_pass.called for name in hidden) or bool(self._foreign(first_pass))
        return unseen or bool(first_pass.others) or any(use.elsewhere for use in first_pass.uses.values())

    def restamp(self) -> None:
        """The network's tensors were moved or converted: what is on the device stays what they are."""
        for candidate in self._surveyed.values():
            if isinstance(candidate.module.forward, LayerForward):
                candidate.module.forward.stamp.renew()
        for weight in self._known:
            weight.rebind(weight.values)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that the device holds."""
        for name, candidate in self._surveyed.items():
            if name in self.layers:
                module = candidate.module
                yield from (module.owner if isinstance(module, Projection) else module).parameters()

    def _foreign(self, first_pass: Pass) -> list[str]:
        """Layers that were called without a product by their own weights."""
        return [name for name in self._surveyed if name in first_pass.called - first_pass.macs.keys()]

    def start(self) -> None:
        """Program what was placed. Raises ConfigError if it does not fit beside other networks."""
        self._weights.start()

    def release(self) -> None:
        """Give the device's tiles back."""
        self._weights.release()

    def settle(self, found: Pass) -> bool:
        """Take note of the first pass, and place anew if that is better; says whether it was done.

        It is if products were made elsewhere than in the layers that were placed, or if layers that were not called
        hold tiles that others could have.
        """
        if not found.macs.total():  # nothing went through
            return False
        unused = self._surveyed.keys() - found.macs.keys()
        elsewhere = any(
            use.elsewhere and use.weight.layer is None and not self._why_not(use.weight) for use in found.uses.values()
        )
        self.first_pass = found
        if elsewhere or (unused and self.device.capabilities.tiles is not None):
            self._weights.release()
            self.place(found)
            self._weights.start()
            return True
        for use in found.uses.values():
            use.weight.reason = "" if use.modules else self._why_not(use.weight)
        self._watching = self._needs_watching(found)
        return False

    # what there is to tell

    def rows(self) -> Iterator[Row]:
        """All layers and weights in the order of the model: what the device computes, and what stays on the host."""
        seen = self.first_pass
        weights = [use.weight for use in seen.uses.values() if use.elsewhere] if seen is not None else []
        late = [w for w in self._known if w.layer is not None and w not in weights and w.name in self._functional]
        todo = {weight.name: weight for weight in (*weights, *late)}
        for candidate in self.candidates:
            name, kind = candidate.name, type(candidate.module).__name__
            inside = [key for key in todo if key == name or key.startswith((f"{name}.", f"{name}[", f"{name}#"))]
            inside = [key for key in inside if key == name or not self._is_another(key, name)]
            for key in inside:
                weight = todo.pop(key)
                yield self._row(key, kind if key == name else weight.function, weight.reason)
            if not inside and name not in self._functional:
                yield self._row(name, kind, candidate.reason)
        for weight in todo.values():
            yield self._row(weight.name, weight.function, weight.reason)

    def _is_another(self, weight: str, candidate: str) -> bool:
        """Whether a weight's name is that of another candidate, deeper inside."""
        return any(
            c.name != candidate and weight.startswith(c.name) and c.name.startswith(candidate) for c in self.candidates
        )

    def _row(self, name: str, kind: str, reason: str) -> Row:
        layer = self.layers.get(name)
        macs = None if self.first_pass is None else self.first_pass.macs[name]
        if layer is None and not reason:
            reason = "not called by the first pass: placed when it is called"
        elif layer is None and macs == 0 and self._may_multiply(name):
            reason += ", and asked torch for no product with them"
        return Row(name, kind, None if layer is None else layer.matrix.placed, reason, macs)

    def _may_multiply(self, name: str) -> bool:
        return any(c.name == name and c.may_multiply for c in self.candidates)

    def warnings(self) -> list[str]:
        """What a user should know of the first pass: work that stays on the host, layers that were not called."""
        seen = self.first_pass
        if seen is None:
            return []
        rows = [*self.rows()]
        wanted = {row.name for row in rows if row.placed is None and row.reason.startswith(KEPT)}
        total = seen.macs.total() + seen.others.total()
        on_host = sum(row.macs or 0 for row in rows if row.placed is None and row.name not in wanted)
        on_host += seen.others.total()
        found = []
        if total and on_host > total / 10:
            names = [row.name for row in rows if row.placed is None and row.macs and row.name not in wanted]
            found.append(
                f"{100 * on_host / total:.0f} % of the multiplications by weights stay on the host and see nothing of "
                f"the device ({_listed([*names, *seen.others])}); print(net.placement) tells why"
            )
        foreign = self._foreign(seen)
        if foreign:
            found.append(f"{_listed(foreign)}: called with weights that are not their own, which stay on the host")
        idle = [name for name in self._surveyed if name not in seen.macs and name not in foreign]
        if idle:
            found.append(f"the model did not call {_listed(idle)}, which the device could compute")
        return found

    # running

    @property
    def array(self) -> TileArray:
        return self._weights.array

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Within the block the network's products are made by the device."""
        self.array.begin_pass()
        if not self._watching:
            yield
            return
        self._known.origins.begin_pass(apart_from=self._reference)
        with Watch(self._known.origins, self._on_device):
            yield

    @contextmanager
    def first(self) -> Iterator[Pass]:
        """The same for the first pass: what it does is counted in the `Pass` that the block gets."""
        self.array.begin_pass()
        self._known.origins.begin_pass(apart_from=self._reference)
        finder = DeviceFinder(self._known, self._on_device)
        for layer in self.layers.values():
            layer.count = finder.found.count
        try:
            with finder.following(self._module), Watch(self._known.origins, finder):
                yield finder.found
        finally:
            for layer in self.layers.values():
                layer.count = None

    @property
    def _on_device(self) -> DeviceProducts:
        return DeviceProducts(self._known, self.taps, self._late, self._renew)

    @contextmanager
    def tapped(self, taps: Taps) -> Iterator[None]:
        """Within the block `taps`, by layer, see (and may change) outputs of products that no module makes.

        They see those of the digital model and of the network on the device.
        """
        if not taps:
            yield
            return
        before = dict(self.taps)
        self.taps |= taps
        self._known.origins.begin_pass()
        try:
            with Watch(self._known.origins, DigitalProducts(self._known, self.taps)):
                yield
        finally:
            self.taps.clear()
            self.taps.update(before)

    def _late(self, product: Product, origin: Origin, function: str) -> Weight | None:
        """A weight that no pass used so far."""
        weight = self._known.add(product, origin, function)
        if weight is None:
            self._tell(f"{function} multiplies by {origin.label}, which differs at each call: computed on the host")
            return None
        self._place_weight(weight)
        return weight

    def _renew(self, weight: Weight, values: Tensor) -> None:
        """The parameter has other memory or another version than before."""
        assert weight.layer is not None
        changed = weight.differs_from(values)
        weight.rebind(values)
        if changed:
            self._tell(f"the weights of {weight.name} were changed: they are programmed anew")
            self._weights.reprogram(weight.layer.matrix, values)

    def _changed(self, forward: LayerForward) -> bool:
        """A layer's weight is not what was programmed."""
        layer: Any = forward.layer
        name, weight = forward.device_layer.name, layer.weight
        if "weight" in layer._parameters and not isinstance(weight, nn.Parameter):  # for one call, by functional_call
            if not self._watching:
                self._tell(f"{name} is called with weights that are not its own: computed on the host")
            return False
        forward.check_size()
        self._tell(f"the weights of {name} were changed: they are programmed anew")
        self._weights.reprogram(forward.device_layer.matrix, weight)
        forward.stamp.renew()
        return True

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            warnings.warn(text, PlacementWarning, stacklevel=2)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _nothing_to_place(candidates: Sequence[Candidate]) -> Exception:
    if not candidates:
        return DataError("the model has no layer with a matrix product, so there is nothing to put on a device")
    listed = "; ".join(f"{c.name}: {c.reason}" for c in candidates[:5])
    return ConfigError(f"every layer of the model stays on the host, nothing is left for the device ({listed})")
