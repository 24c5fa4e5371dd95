"""A network whose matrix products run on a device; everything else stays on the host."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from pimcal.attention import own_attention
from pimcal.batches import first_images
from pimcal.calling import call_with, device_of
from pimcal.copying import copy_model, plain_name
from pimcal.corrections import Corrections, corrections_in_force, load_corrections, reference_state, set_corrections
from pimcal.device import Device
from pimcal.discovery import Pass
from pimcal.errors import DataError, PlacementWarning, UsageError
from pimcal.events import BatchServed, RecordActivated, RecordReverted
from pimcal.fingerprint import model_hash
from pimcal.layers import DeviceLayer
from pimcal.network_products import NetworkProducts
from pimcal.opened import open_layers
from pimcal.placement_report import Placement, report
from pimcal.record import Record, check_fits
from pimcal.registry import emit
from pimcal.survey import Candidate, check_initialized, survey
from pimcal.tile_array import TileArray

_EXAMPLES = 8  # images that show which products a model makes


class Deployment(nn.Module):
    """A copy of a model on a device. Call it as you call the model; make it with `pimcal.deploy`.

    `module` is the copy, with the model's own names; `reference` the digital model, which shares its weights with
    the one that was deployed. `placement` tells what is where. `device` may be shared with further copies.
    """

    def __init__(self, model: nn.Module, device: Device, example: Any = None) -> None:
        super().__init__()
        self.device = device
        check_initialized(model)
        self._reference = (_share(model),)  # in a tuple: no child, so that its state is not saved twice
        self.module = _copy_for_host(model, survey(self.reference, device.profile.host))
        self._active: list[tuple[str, Corrections]] = []
        self.products = NetworkProducts(self.reference, self.module, device)
        self.products.place(None if example is None else self._looked_at(example))
        self._follow_torch_device()
        self.products.start()
        self._warn()

    @property
    def reference(self) -> nn.Module:
        """The digital model, in eval mode."""
        return self._reference[0]

    @property
    def placement(self) -> Placement:
        """What sits where on the device, and what stayed on the host and why."""
        return report(self.products)

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

    @property
    def layers(self) -> dict[str, DeviceLayer]:
        """What the device computes, by layer; a product that no module's own `forward` makes has its weight's name."""
        return self.products.layers

    @property
    def array(self) -> TileArray:
        """The tiles that this network uses."""
        return self.products.array

    def settle(self, batch: Any) -> None:
        """Run the digital model on `batch` once, to see which products it makes, and let the device make these.

        The network's first call does it; call it yourself to have everything in place before. Later calls do nothing.
        Warns (`PlacementWarning`) if more than a tenth of the multiplications by weights stays on the host, or a layer
        was not called.
        """
        if self.products.first_pass is None:
            self._settle(self._looked_at(batch))

    def _looked_at(self, batch: Any) -> Pass:
        """What the digital model does with a few images, or with the whole batch if it does not take a part of it."""
        try:
            return self._digital_pass(first_images(batch, _EXAMPLES))
        except (UsageError, DataError):
            return self._digital_pass(batch)

    def _digital_pass(self, batch: Any) -> Pass:
        with reference_state(self).apart():
            return self.products.look(lambda: call_with(self.reference, batch, device_of(self.reference)))

    def _settle(self, found: Pass) -> None:
        before = corrections_in_force(self)
        if self.products.settle(found):
            set_corrections(self, before)
        self._warn()

    def _warn(self) -> None:
        for text in self.products.warnings():
            warnings.warn(text, PlacementWarning, stacklevel=4)

    def release(self) -> None:
        """Give the tiles back to the device, for another network. Deploy this one again to use it again."""
        self.products.release()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own call: one inference batch on the device.

        Raises DeviceUnavailableError after the device was closed.
        """
        before = self.device.cost.mvms
        if self.products.first_pass is None:
            with self.device.batch(), own_attention(), self.products.first() as found:
                outputs = self.module(*args, **kwargs)
            self._settle(found)
        else:
            with self.session():
                outputs = self.module(*args, **kwargs)
        emit(BatchServed(self.device.cost.mvms - before))
        return outputs

    @contextmanager
    def session(self) -> Iterator[None]:
        """What a call of `module` needs around it: one inference batch on the device, torch's shortcuts off."""
        with self.device.batch(), own_attention(), self.products.on_device():
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
        self.products.restamp()
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
        found = super().load_state_dict(state_dict, strict, assign)
        self.products.restamp()
        return found

    @property
    def _layout(self) -> str:
        """A hash of what a simulator's state depends on: its backend, and what sits where on its tiles."""
        placed = {name: layer.matrix.placed for name, layer in self.layers.items()}
        layout = (self.device.profile.backend, self.array.references, placed)
        return hashlib.sha256(repr(layout).encode()).hexdigest()

    def _shared_weights(self) -> list[str]:
        placed = {id(p) for p in self.products.parameters()}
        return [name for name, p in self.module.named_parameters() if id(p) in placed]


def deploy(model: nn.Module, device: Device, example: Any = None) -> Deployment:
    """Put `model` on `device`. The model itself is not changed and stays the digital reference.

    Weights are programmed now, and again when a product finds them changed, which a `PlacementWarning` says. Other
    methods than the call itself want `with net.session():` around them. Layers that the `host:` patterns name,
    and those that no device can compute, stay digital: see `Deployment.placement`.

    `example` is a batch (`x`, `(x, y)` or a dict of inputs). The digital model runs on its first images, so that the
    device gets just the products that the model makes, whoever's code makes them. Without it layers of torch's own are
    placed now, and the network's first call tells the rest (`Deployment.settle`).

    Several networks share a device if its tiles suffice for all of them; `Deployment.release` gives tiles back.

    A compiled model, or part of one, is deployed as what it was compiled from.

    Raises UsageError for what is no module or device and for TorchScript, DataError for a model without a matrix
    product or with weights that are no numbers, ConfigError if reference columns or other networks leave no room on the
    device, DeviceUnavailableError on a closed device. Warns (`PlacementWarning`) as `Deployment.settle` does.
    """
    _check_arguments(model, device)
    with torch.inference_mode(False):  # what is copied there could not be corrected later
        return Deployment(model, device, example)


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


def _copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    twin = copy_model(model, memo)
    twin.eval()  # what it returns is the user's code's affair
    twin.requires_grad_(False)
    open_layers(twin)
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
    modules = [(plain_name(name), module) for name, module in model.named_modules()]
    for name, module in modules:
        if name in placed:
            memo |= {id(p): _twin(p) for p in module.parameters(recurse=False) if p.dim() > 1}
    kept = {id(p) for n, m in modules if n not in placed for p in m.parameters(recurse=False)}
    return _copy(model, {key: value for key, value in memo.items() if key not in kept})
