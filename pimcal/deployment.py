"""A network whose matrix products run on a device; everything else stays on the host."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from pimcal.attention import Projection, open_attention, own_attention
from pimcal.backend import Capabilities
from pimcal.corrections import Corrections, corrections_in_force, load_corrections, set_corrections
from pimcal.device import Device
from pimcal.errors import ConfigError, DataError, UsageError
from pimcal.events import BatchServed, RecordActivated, RecordReverted
from pimcal.fingerprint import model_hash
from pimcal.layers import Converters, DeviceMatrix, LayerForward
from pimcal.matrices import MatrixView, as_float32
from pimcal.placement import Limits, MatrixShape, Placed, place
from pimcal.placement_report import Placement, report
from pimcal.quantize import largest_code
from pimcal.record import Record, check_fits
from pimcal.references import ReferenceColumns
from pimcal.registry import emit
from pimcal.survey import Candidate, check_initialized, survey
from pimcal.tile_array import TileArray

_COMPILED = "_orig_mod"  # what torch.compile calls the module that it wraps


class Deployment(nn.Module):
    """A copy of a model on a device. Call it as you call the model; make it with `pimcal.deploy`.

    `module` is the copy, with the model's own names; `reference` the digital model, which shares its weights with
    the one that was deployed. `placement` tells what is where. `device` may be shared with further copies.
    """

    def __init__(self, model: nn.Module, device: Device) -> None:
        super().__init__()
        self.device = device
        check_initialized(model)
        self._reference = (_share(model),)  # in a tuple: no child, so that its state is not saved twice
        self.candidates = survey(self.reference, device.profile.host)
        self.module = _copy_for_host(model, self.candidates)
        self._active: list[tuple[str, Corrections]] = []
        self.array = TileArray(device, _references(device))
        self.layers: dict[str, LayerForward] = {}
        self._placed: dict[str, Placed] = {}
        self._place(survey(self.module, device.profile.host))
        self._follow_torch_device()
        self.array.start()

    @property
    def reference(self) -> nn.Module:
        """The digital model, in eval mode."""
        return self._reference[0]

    @property
    def placement(self) -> Placement:
        """What sits where on the device, and what stayed on the host and why."""
        return report(self.candidates, self._placed, self.array, self.device.profile.host)

    @property
    def model_hash(self) -> str:
        """SHA-256 of the digital model's state: what a calibration record is bound to."""
        return model_hash(self.reference)

    @property
    def active(self) -> str | None:
        """The id of the record whose corrections are applied, or None."""
        return self._active[-1][0] if self._active else None

    @property
    def corrections(self) -> Corrections:
        """What the record in force corrects, by module name."""
        return self._active[-1][1] if self._active else {}

    def _place(self, candidates: Sequence[Candidate]) -> None:
        todo = [(c.name, c.module, c.view) for c in candidates if c.view is not None]
        if not todo:
            raise _nothing_to_place(candidates)
        capabilities = self.device.capabilities
        owners = _owners(todo)
        factor = 1 if capabilities.signed_weights else 2
        shapes = [
            MatrixShape(name, view.groups, view.rows, view.cols * factor, view.row_unit)
            for name, _, view in todo
            if owners[name] == name
        ]
        limits = Limits(capabilities.tiles, capabilities.rows, capabilities.cols, self.array.references.count)
        placed = {p.shape.name: p for p in place(shapes, limits)}
        converters = _converters(self.device)
        for name, layer, view in todo:
            spot = placed[owners[name]]
            unit = _unit(layer, capabilities)
            if owners[name] == name:
                self.array.add(spot, _source(layer, view, unit, capabilities))
            self._placed[name] = spot
            matrix = DeviceMatrix(view, self.array, spot, unit, converters=converters)
            self.layers[name] = LayerForward(layer, matrix)
            layer.forward = self.layers[name]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own call: one inference batch on the device.

        Raises DeviceUnavailableError after the device was closed.
        """
        before = self.device.cost.mvms
        with self.session():
            outputs = self.module(*args, **kwargs)
        emit(BatchServed(self.device.cost.mvms - before))
        return outputs

    @contextmanager
    def session(self) -> Iterator[None]:
        """What a call of `module` needs around it: one inference batch on the device, torch's shortcuts off."""
        self.array.begin_pass()
        with self.device.batch(), own_attention():
            yield

    # corrections

    def apply(self, record: Record | Callable[[nn.Module], Any], *, force: bool = False) -> Self:
        """Put a record's corrections in force; `revert` undoes it.

        Raises DataError where the record was made for another model or another device (`force` skips the latter).
        Given a function it does what `nn.Module.apply` does.
        """
        if not isinstance(record, Record):
            return super().apply(record)
        check_fits(record, self.model_hash, self.device, force=force)
        self.push(record.id, record.corrections)
        emit(RecordActivated(record.id))
        return self

    def push(self, name: str, corrections: Corrections) -> None:
        """Put corrections in force under a name, whatever they were made for."""
        set_corrections(self, corrections)
        self._active.append((name, corrections))

    def revert(self) -> None:
        """Undo the last `apply`: what was in force before it is in force again.

        Raises UsageError where nothing is applied.
        """
        if not self._active:
            raise UsageError("no record is applied, so there is nothing to revert")
        name, _ = self._active.pop()
        set_corrections(self, self.corrections)
        emit(RecordReverted(name))

    @contextmanager
    def uncorrected(self) -> Iterator[None]:
        """The network without corrections, for the length of a block; what was in force comes back after it."""
        before = corrections_in_force(self)
        set_corrections(self, {})
        try:
            yield
        finally:
            set_corrections(self, before)

    # state

    def _follow_torch_device(self) -> None:
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            self.device.to(tensor.device)
            return

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.reference._apply(fn, recurse)
        self._follow_torch_device()
        return self

    def train(self, mode: bool = True) -> Self:
        """Device layers have no training mode: a deployed network is for inference and calibration only."""
        return super().train(False)

    def get_extra_state(self) -> dict[str, Any]:
        """What the tensors of the model do not tell: the simulated device's state, the records in force."""
        return {
            "device": self.device.state_dict(),
            "layout": self._layout,
            "resident": self.array.resident,
            "active": [[name, corrections] for name, corrections in self._active],
        }

    def set_extra_state(self, state: Any) -> None:
        if state["device"]:  # a real device has kept its own state, and what is on it
            self.device.load_state_dict(state["device"])
            self.array.adopt(state["resident"])
        self._active = [(name, load_corrections(corrections)) for name, corrections in state["active"]]
        set_corrections(self, self.corrections)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Restore a state that `state_dict` gave: the same outputs follow, noise included.

        Raises DataError where it belongs to another model (the weights on the device cannot be swapped this way), or
        to a simulator with another backend or another placement.
        """
        saved = state_dict.get("_extra_state")
        if saved and saved["device"] and saved["layout"] != self._layout:
            raise DataError(
                "state was saved with another backend, other tiles, host layers or reference columns; deploy with the "
                "profile that it was saved with, or carry the calibration over as a record"
            )
        for name in self._shared_weights():
            theirs = state_dict.get(f"module.{name}")
            ours = self.module.get_parameter(name)
            if theirs is not None and not torch.equal(theirs.to(ours), ours):
                raise DataError(f"state has other weights for {name} than the device holds; deploy that model instead")
        return super().load_state_dict(state_dict, strict, assign)

    @property
    def _layout(self) -> str:
        """A hash of what a simulator's state depends on: its backend, and what sits where on its tiles."""
        layout = (self.device.profile.backend, self.array.references, self._placed)
        return hashlib.sha256(repr(layout).encode()).hexdigest()

    def _shared_weights(self) -> list[str]:
        placed = {id(p) for forward in self.layers.values() for p in _parameters(forward.layer)}
        return [name for name, p in self.module.named_parameters() if id(p) in placed]


def deploy(model: nn.Module, device: Device) -> Deployment:
    """Put `model` on `device`. The model itself is not changed and stays the digital reference.

    Weights are programmed now. Deploy again after changing the model: the digital reference shares its memory, while
    the device keeps what was programmed. Other methods than the call itself want `with net.session():` around them.
    Layers that the profile's `host:` patterns name, and those that no device can
    compute, stay digital: see `Deployment.placement`.

    A compiled model, or part of one, is deployed as what it was compiled from.

    Raises UsageError for what is no module or device and for TorchScript, DataError for a model without a matrix
    product or with weights that are no numbers, ConfigError where reference columns leave no room on the device,
    DeviceUnavailableError on a closed device.
    """
    _check_arguments(model, device)
    with torch.inference_mode(False):  # what is copied there could not be corrected later
        return Deployment(model, device)


def _parameters(layer: nn.Module) -> Iterator[nn.Parameter]:
    """A layer's parameters; an opened attention's projections have those of the attention."""
    return (layer.attention if isinstance(layer, Projection) else layer).parameters()


def _check_arguments(model: object, device: object) -> None:
    if not isinstance(model, nn.Module):
        raise UsageError(f"deploy takes a torch.nn.Module, not a {type(model).__name__}")
    if not isinstance(device, Device):
        raise UsageError(
            f"deploy takes an open device, not a {type(device).__name__}; open one with pimcal.open_device(profile)"
        )
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UsageError(
                f"{name or 'the model'} is TorchScript, whose layers cannot be replaced; "
                "deploy the Python module it was scripted from"
            )


def _uncompiled(model: nn.Module, memo: dict[int, Any]) -> None:
    """Let a copy of `model` have copies of the plain modules where torch.compile wrapped them."""
    for module in reversed([*model.modules()]):  # the innermost first
        if _COMPILED in module._modules:
            memo[id(module)] = copy.deepcopy(module._modules[_COMPILED], memo)


def _plain_name(name: str) -> str:
    """A module's name without the wrappers of torch.compile."""
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def _copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        _uncompiled(model, memo)
        twin = copy.deepcopy(model, memo)
    except Exception as error:
        raise DataError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}); "
            "deploy a freshly loaded model, outside of any training graph"
        ) from error
    twin.eval().requires_grad_(False)
    open_attention(twin)
    return twin


def _twin(tensor: Tensor) -> Tensor:
    """Another tensor object on the same storage."""
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.detach(), requires_grad=False)
    return tensor.detach()


def _share(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers share the model's memory."""
    return _copy(model, {id(t): _twin(t) for t in (*model.parameters(), *model.buffers())})


def _copy_for_host(model: nn.Module, candidates: Sequence[Candidate]) -> nn.Module:
    """A copy with memory of its own, save for weights that the device holds: those it only keeps to be looked at."""
    placed = {c.name for c in candidates if c.view is not None}
    memo: dict[int, Any] = {}
    modules = [(_plain_name(name), module) for name, module in model.named_modules()]
    for name, module in modules:
        if name in placed:
            memo |= {id(p): _twin(p) for p in module.parameters(recurse=False) if p.dim() > 1}
    kept = {id(p) for n, m in modules if n not in placed for p in m.parameters(recurse=False)}
    return _copy(model, {key: value for key, value in memo.items() if key not in kept})


def _owners(todo: Sequence[tuple[str, nn.Module, MatrixView]]) -> dict[str, str]:
    """For each layer the first one with the same (tied) weight: they share its tiles."""
    first: dict[tuple[int, str, int], str] = {}
    owners = {}
    for name, layer, view in todo:
        weight = layer._parameters.get("weight")
        key = (id(layer if weight is None else weight), type(view).__name__, view.groups)
        owners[name] = first.setdefault(key, name)
    return owners


def _references(device: Device) -> ReferenceColumns:
    wanted = device.profile.references
    return ReferenceColumns(wanted.offset, wanted.gain)


def _converters(device: Device) -> Converters:
    capabilities, io = device.capabilities, device.profile.io
    bits = [b for b in (capabilities.input_bits, io.input_bits) if b is not None]
    own_adc = capabilities.output_bits is not None
    return Converters(min(bits, default=None), None if own_adc else io.output_bits, capabilities.signed_inputs)


def _unit(layer: nn.Module, capabilities: Capabilities) -> float:
    """What one device unit is worth in units of the layer's weights."""
    weight = as_float32(layer.weight)  # type: ignore[arg-type]
    if capabilities.weight_unit == "raw":
        return 1.0
    if capabilities.weight_unit == "std":
        return float(weight.std(correction=0)) or 1.0
    bits = capabilities.weight_bits
    top = largest_code(bits, signed=capabilities.signed_weights) if bits else 1
    return float(weight.abs().amax()) / top or 1.0


def _source(layer: nn.Module, view: MatrixView, unit: float, capabilities: Capabilities) -> Callable[[], Tensor]:
    def matrices() -> Tensor:
        matrix = view.matrix(as_float32(layer.weight))  # type: ignore[arg-type]
        if unit != 1.0:
            matrix = matrix / unit
        if capabilities.weight_bits is not None:
            matrix = matrix.round()
        if not capabilities.signed_weights:
            matrix = torch.cat([matrix.clamp(min=0), matrix.clamp(max=0).neg()], dim=2)
        return matrix

    return matrices


def _nothing_to_place(candidates: Sequence[Candidate]) -> Exception:
    if not candidates:
        return DataError("the model has no layer with a matrix product, so there is nothing to put on a device")
    listed = "; ".join(f"{c.name}: {c.reason}" for c in candidates[:5])
    return ConfigError(f"every layer of the model stays on the host, nothing is left for the device ({listed})")
