"""Measuring at a point: which dimension holds the channels, and what could not be measured.

torch's own BatchNorm has its channels in dimension 1. Any other normalisation with running statistics is tried: where
its input and its statistics are moved and scaled alike along the right dimension, its output stays what it was. That is
just what a calibration relies on; a normalisation that does something else with its input is left alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pimcal.batches import tensors_in
from pimcal.calibration.moments import Moments, moments, nothing
from pimcal.calibration.points import Point
from pimcal.corrections import eps_of, norms_of, statistics_of
from pimcal.deployment import Deployment
from pimcal.model_state import ModelState
from pimcal.transforms import check_measurable

_TORCHS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
_SCALE = 1.5
_TOLERANCE = 0.01  # of the output's largest value; along a wrong dimension it changes by about half of that


class Meter:
    """Moments of a network's activations. `unknown`: normalisations that cannot be measured, and why."""

    def __init__(self, net: Deployment) -> None:
        self._norms = norms_of(net.reference)
        self._dims: dict[tuple[str, int], int | None] = {}
        self.unknown: dict[str, str] = {}

    def moments(self, point: Point, tensor: Tensor) -> Moments | None:
        """None where nobody knows which dimension holds the channels. Raises UsageError inside torch.vmap."""
        check_measurable(point.name)
        if not point.is_norm:
            return moments(tensor, point.channel_dim)
        if not tensor.numel():
            return nothing(statistics_of(self._norms[point.name])[0].flatten())
        dim = self._dim(point.name, tensor)
        return None if dim is None else moments(tensor, dim)

    def _dim(self, name: str, tensor: Tensor) -> int | None:
        key = name, tensor.dim()
        if key not in self._dims:
            self._dims[key] = channel_dim(self._norms[name], tensor)
        if self._dims[key] is None:
            channels, shape = statistics_of(self._norms[name])[0].numel(), list(tensor.shape)
            self.unknown[name] = f"it normalises no dimension of its input {shape} by its {channels} statistics alone"
        return self._dims[key]


@torch.no_grad()
def channel_dim(norm: nn.Module, x: Tensor) -> int | None:
    """The dimension of `x` along which `norm` has a mean and a variance for each index; None where there is no such."""
    if type(norm).forward in _TORCHS:
        return 1
    channels = statistics_of(norm)[0].numel()
    dims = [d for d in range(x.dim()) if x.shape[d] == channels]
    found = [d for d in dims if _stays(norm, x, d)]
    return found[0] if len(found) == 1 else None


def _stays(norm: nn.Module, x: Tensor, dim: int) -> bool:
    """Whether the output stays the same where input and statistics are moved and scaled alike."""
    mean, var = (value.detach() for value in statistics_of(norm))
    eps, along = eps_of(norm), [-1 if d == dim else 1 for d in range(x.dim())]
    x = x.nan_to_num(0.0, 0.0, 0.0)
    steps = torch.linspace(0.5, 1.5, mean.numel(), device=x.device) * (var.flatten() + eps).sqrt()
    shifted = mean + steps.reshape(mean.shape)
    old, new = mean.reshape(along), shifted.reshape(along)
    moved = (new + _SCALE * (x.float() - old)).to(x)
    try:
        before = _output(norm, x, mean, var)
        after = _output(norm, moved, shifted, _SCALE**2 * (var + eps) - eps)
    except Exception:  # it takes more than one argument, or an input of another shape
        return False
    return after.shape == before.shape and float((after - before).abs().max()) <= _TOLERANCE * float(before.abs().max())


def _output(norm: nn.Module, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    with ModelState(norm).apart():
        _exchange(norm, "running_mean", mean)
        _exchange(norm, "running_var", var)
        return next(iter(tensors_in(norm.forward(x.clone())))).float()  # no hooks: nobody is to see this


def _exchange(norm: nn.Module, name: str, value: Tensor) -> None:
    """A tensor in the place of a buffer, a parameter or a plain attribute: the one that is there may be shared."""
    places: tuple[Any, ...] = (norm._buffers, norm._parameters, vars(norm))
    place = next(place for place in places if name in place)
    place[name] = nn.Parameter(value.clone(), requires_grad=False) if place is norm._parameters else value.clone()
