"""What calibration changes on the host, by module name, and how it is put in force.

A normalisation's correction is {"mean": [channels], "var": [channels]}: its running statistics on this device.
A device layer's correction is {"gain": [channels], "offset": [channels]}: gain * y + offset on its output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pimcal.errors import DataError
from pimcal.layers import ChannelCorrection, DeviceLayer
from pimcal.model_state import ModelState

Corrections = dict[str, dict[str, Tensor]]


class Correctable(Protocol):
    """What corrections are put on: a network on a device, with its digital reference (a `Deployment`)."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def reference(self) -> nn.Module: ...

    @property
    def layers(self) -> Mapping[str, DeviceLayer]: ...


def norms_of(model: nn.Module) -> dict[str, nn.Module]:
    """All normalisations of `model` that use running statistics: BatchNorm, SyncBatchNorm, frozen variants."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "running_mean", None), Tensor)
        and isinstance(getattr(module, "running_var", None), Tensor)
    }


def state_of(net: Correctable) -> ModelState:
    """What a forward pass may write on a deployed network: all but parameters, and what corrections set."""
    statistics = (value for norm in norms_of(net.module).values() for value in statistics_of(norm))
    return ModelState(net.module, statistics)


def reference_state(net: Correctable) -> ModelState:
    """The same of the digital model, which starts with what earlier batches have left on the deployed network."""
    return ModelState(net.reference, like=state_of(net))


def statistics_of(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A normalisation's running mean and variance themselves; they need not be buffers."""
    return norm.running_mean, norm.running_var  # type: ignore[return-value]


def eps_of(norm: nn.Module) -> float:
    """What a normalisation adds to a variance; torch's default where it does not say."""
    return float(getattr(norm, "eps", 1e-5))


def set_statistics(norm: nn.Module, mean: Tensor, var: Tensor) -> None:
    """Overwrite a normalisation's running statistics, in place; they may have further dimensions, of size 1."""
    with torch.no_grad():
        for ours, value in zip(statistics_of(norm), (mean, var), strict=True):
            ours.copy_(value.reshape(ours.shape))


def set_corrections(net: Correctable, corrections: Corrections) -> None:
    """Put exactly `corrections` in force: every module that they do not name gets its digital values back.

    Raises DataError, before anything is changed, where they name a module or a shape that the network lacks.
    """
    norms, originals = norms_of(net.module), norms_of(net.reference)
    _check(net, norms, corrections)
    for name, norm in norms.items():
        values: Any = corrections.get(name) or {
            "mean": originals[name].running_mean,
            "var": originals[name].running_var,
        }
        set_statistics(norm, values["mean"], values["var"])
    for name, layer in net.layers.items():
        found = corrections.get(name)
        layer.correction = None if found is None else ChannelCorrection(found["gain"], found["offset"])


def corrections_in_force(net: Correctable) -> Corrections:
    """What `set_corrections` would need to bring back the present state: all statistics, gains and offsets."""
    found: Corrections = {
        name: dict(zip(("mean", "var"), (value.detach().clone() for value in statistics_of(norm)), strict=True))
        for name, norm in norms_of(net.module).items()
    }
    for name, layer in net.layers.items():
        if layer.correction is not None:
            found[name] = {"gain": layer.correction.gain, "offset": layer.correction.offset}
    return found


def _check(net: Correctable, norms: Mapping[str, nn.Module], corrections: Corrections) -> None:
    for name, values in corrections.items():
        if name in norms:
            keys, shape = {"mean", "var"}, tuple(statistics_of(norms[name])[0].shape)
        elif name in net.layers:
            keys, shape = {"gain", "offset"}, (net.layers[name].matrix.view.channels,)
        else:
            raise DataError(f"a correction names {name}, which is neither a normalisation nor a device layer here")
        if set(values) != keys or any(tuple(value.shape) != shape for value in values.values()):
            found = {key: tuple(value.shape) for key, value in values.items()}
            raise DataError(f"the correction of {name} has {found}; expected {sorted(keys)} of shape {shape}")


def load_corrections(values: Mapping[str, Mapping[str, Tensor]]) -> Corrections:
    """A plain copy, as it comes from a saved state."""
    return {name: dict(tensors) for name, tensors in values.items()}
