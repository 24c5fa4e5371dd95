"""The four methods: how each turns measurements into corrections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pimcal.calibration.clean import CleanStatistics, call_with, clean_statistics, device_of
from pimcal.calibration.lockstep import Lockstep
from pimcal.calibration.moments import (
    Moments,
    matched_gain,
    merge,
    moments,
    moving_average,
    paired_statistics,
)
from pimcal.calibration.points import CallCounter, Point, layer_points, norm_points, tapped
from pimcal.corrections import Corrections, norms_of, set_statistics
from pimcal.deployment import Deployment
from pimcal.errors import DataError, UsageError
from pimcal.layers import ChannelCorrection

Method = Literal["ema", "pooled", "paired", "affine"]
METHODS: tuple[Method, ...] = get_args(Method)
Progress = Callable[[int], None]


def find_corrections(
    net: Deployment, batches: Sequence[Any], method: Method, *, momentum: float, progress: Progress
) -> Corrections:
    """Measure and correct `net` on `batches`; its modules are left as the measurement needed them.

    Raises UsageError for an unknown method, or for a model without BatchNorm where the method needs one.
    """
    if method not in METHODS:
        raise UsageError(f"unknown calibration method '{method}'; choose one of: {', '.join(METHODS)}")
    if method != "affine" and not norm_points(net):
        raise UsageError(
            f"method '{method}' corrects BatchNorm statistics, and this model has no BatchNorm with running "
            "statistics; use method 'affine', which corrects the device layers' outputs"
        )
    if method == "ema":
        return _ema(net, batches, momentum, progress)
    clean = CleanStatistics()
    if method != "pooled":
        clean = clean_statistics(net, batches, layers=method == "affine", progress=progress)
    return _LayerByLayer(net, clean, method).run(batches, progress)


def _ema(net: Deployment, batches: Sequence[Any], momentum: float, progress: Progress) -> Corrections:
    """Tsai et al., Algorithm 1: moving averages of each mini-batch's mean and variance under noise.

    As in training, a batch is normalised by its own statistics while the averages are built.
    """
    norms = norms_of(net.module)
    averages: dict[str, tuple[Tensor, Tensor]] = {}

    def tap(point: Point, tensor: Tensor) -> Tensor:
        now = moments(tensor)
        old_mean, old_var = averages.get(point.name, (None, None))
        mean = moving_average(old_mean, now.mean, momentum)
        averages[point.name] = mean, moving_average(old_var, now.unbiased_var, momentum)
        set_statistics(norms[point.name], now.mean, now.var)
        return tensor

    with tapped(net.module, norm_points(net), tap):
        for i, batch in enumerate(batches):
            call_with(net, batch, device_of(net))
            progress(i + 1)
    return {name: {"mean": mean.float(), "var": var.float()} for name, (mean, var) in averages.items()}


class _LayerByLayer:
    """One pass over all batches in lockstep: measure a point, correct it, go on with corrected values."""

    def __init__(self, net: Deployment, clean: CleanStatistics, method: Method) -> None:
        self.net, self.clean, self.method = net, clean, method
        self.norms, self.originals = norms_of(net.module), norms_of(net.reference)
        self.seen: dict[str, list[Moments]] = {}
        self.corrections: Corrections = {}
        self.lockstep = Lockstep(self._measure, on_turn=net.device.backend.new_batch)

    def run(self, batches: Sequence[Any], progress: Progress) -> Corrections:
        points = norm_points(self.net)
        if self.method == "affine":
            followed = set(self.clean.follows.values())
            points += [point for point in layer_points(self.net) if point.name not in followed]
        counters: dict[int, CallCounter] = {}
        device = device_of(self.net)

        def tap(point: Point, tensor: Tensor) -> Tensor:
            call = counters.setdefault(self.lockstep.batch_index, CallCounter()).next(point.name)
            return self.lockstep.meet((point, call), tensor)

        with tapped(self.net.module, points, tap), self.net.session():
            self.lockstep.run(lambda batch: call_with(self.net.module, batch, device), batches)
        progress(len(batches))
        return self.corrections

    def _measure(self, key: Any, tensors: list[Tensor]) -> list[Tensor]:
        point: Point = key[0]
        call: int = key[1]
        seen = self.seen.setdefault(point.name, [])
        seen += [moments(tensor, point.channel_dim) for tensor in tensors]
        noisy = merge(seen)
        if point.is_norm:
            self._correct_norm(point.name, call, noisy)
            return tensors
        return self._correct_layer(point.name, call, noisy, tensors)

    def _correct_norm(self, name: str, call: int, noisy: Moments) -> None:
        norm: Any = self.norms[name]
        mean, var = noisy.mean, noisy.unbiased_var
        if self.method != "pooled":
            clean = self.clean.upto(name, call)
            if clean is None:
                return
            original: Any = self.originals[name]
            mean, var = paired_statistics(original.running_mean, original.running_var, clean, noisy, _eps(norm))
        _check_finite(name, mean, var)
        self.corrections[name] = {"mean": mean.float(), "var": var.float()}
        set_statistics(norm, mean, var)

    def _correct_layer(self, name: str, call: int, noisy: Moments, tensors: list[Tensor]) -> list[Tensor]:
        clean = self.clean.upto(name, call)
        if clean is None:
            return tensors
        gain, offset = matched_gain(clean, noisy)
        _check_finite(name, gain, offset)
        self.corrections[name] = {"gain": gain, "offset": offset}
        layer = self.net.layers[name]
        layer.correction = ChannelCorrection(gain, offset)
        return [layer.correction.apply(tensor, layer.matrix.view) for tensor in tensors]


def _eps(norm: nn.Module) -> float:
    return float(getattr(norm, "eps", 1e-5))


def _check_finite(name: str, *values: Tensor) -> None:
    if not all(bool(torch.isfinite(value).all()) for value in values):
        raise DataError(
            f"calibration measured NaN or infinity at {name}; check the images and the device's outputs there"
        )
