"""The four methods: how each turns measurements into corrections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pimcal.calibration.clean import CleanStatistics, Occasion, clean_statistics
from pimcal.calibration.cutting import recut
from pimcal.calibration.interlude import Interlude
from pimcal.calibration.left_alone import tell_what_is_left
from pimcal.calibration.lockstep import Lockstep
from pimcal.calibration.meter import Meter
from pimcal.calibration.moments import (
    Moments,
    matched_gain,
    merge,
    moving_average,
    paired_statistics,
)
from pimcal.calibration.points import CallCounter, Point, layer_points, norm_points, tapped
from pimcal.calling import call_with, device_of
from pimcal.corrections import Corrections, eps_of, norms_of, set_statistics, state_of, statistics_of
from pimcal.deployment import Deployment
from pimcal.errors import DataError, UsageError
from pimcal.layers import ChannelCorrection
from pimcal.model_state import Contents
from pimcal.transforms import check_measurable

Method = Literal["ema", "pooled", "paired", "affine"]
METHODS: tuple[Method, ...] = get_args(Method)
Progress = Callable[[float], None]  # told the share of the work that is done, 0 to 1


def default_batch_size(method: str) -> int:
    """Images in a calibration batch, unless the profile says otherwise.

    What is measured over all batches together gains from many small ones, each with a noise draw of its own; `ema`
    takes each batch's variance by itself, and needs larger ones.
    """
    return 64 if method == "ema" else 16


def batch_size_for(net: Deployment, method: Method) -> int:
    """Images in a calibration batch of `net`."""
    return net.device.profile.calibration.batch_size or default_batch_size(method)


def check_method(net: Deployment, method: str) -> None:
    """Raise UsageError for an unknown method, or for a model without BatchNorm where the method needs one."""
    if method not in METHODS:
        raise UsageError(f"unknown calibration method '{method}'; choose one of: {', '.join(METHODS)}")
    if method != "affine" and not norm_points(net):
        raise UsageError(
            f"method '{method}' corrects BatchNorm statistics, and this model has no BatchNorm with running "
            "statistics; use method 'affine', which corrects the device layers' outputs"
        )


def find_corrections(
    net: Deployment,
    batches: Sequence[Any],
    method: Method,
    *,
    momentum: float,
    clean: CleanStatistics | None = None,
    progress: Progress,
    interlude: Interlude,
) -> Corrections:
    """Measure and correct `net` on `batches`; its modules are left as the measurement needed them.

    Raises UsageError for an unknown method, or for a model without BatchNorm where the method needs one.
    """
    check_method(net, method)
    if method == "ema":
        return _ema(net, batches, momentum, progress, interlude)
    start = 0.0 if method == "pooled" or clean is not None else 0.5

    def on_clean(share: float) -> None:
        interlude()
        progress(share / 2)

    if clean is None and method in ("paired", "affine"):
        clean = clean_statistics(net, batches, layers=method == "affine", progress=on_clean)
    clean = clean or CleanStatistics()
    layer_by_layer = _LayerByLayer(net, clean, method, interlude)
    return layer_by_layer.run(batches, lambda share: progress(start + (1 - start) * share))


def clean_for(
    net: Deployment, batches: Sequence[Any], method: Method, progress: Progress = lambda share: None
) -> CleanStatistics:
    """What the digital model does with `batches`, as far as `method` looks at it, and cut as it wants them."""
    if method in ("ema", "pooled"):
        return CleanStatistics()
    cut = recut(net, batches, batch_size_for(net, method))
    return clean_statistics(net, cut, layers=method == "affine", progress=progress)


def _ema(
    net: Deployment, batches: Sequence[Any], momentum: float, progress: Progress, interlude: Interlude
) -> Corrections:
    """Tsai et al., Algorithm 1: moving averages of each mini-batch's mean and variance under noise.

    As in training, a batch is normalised by its own statistics while the averages are built.
    """
    norms, meter = norms_of(net.module), Meter(net)
    averages: dict[str, tuple[Tensor, Tensor]] = {}
    most: Counter[str] = Counter()  # values a channel, in any batch

    def tap(point: Point, tensor: Tensor) -> Tensor:
        now, norm = meter.moments(point, tensor), norms[point.name]
        most[point.name] = max(most[point.name], now.count if now else 0)
        if now is not None and now.is_enough:
            old_mean, old_var = averages.get(point.name, (None, None))
            mean = moving_average(old_mean, now.mean, momentum)
            averages[point.name] = mean, moving_average(old_var, now.unbiased_var, momentum)
            set_statistics(norm, now.mean, now.var)
        elif point.name in averages:
            set_statistics(norm, *averages[point.name])
        return tensor

    state = state_of(net)
    with tapped(net.module, norm_points(net), interlude.deaf(tap)), state.apart():
        for i, batch in enumerate(batches):
            interlude(state.outside)
            call_with(net, batch, device_of(net))
            progress((i + 1) / len(batches))
    tell_what_is_left(meter, norms, averages, most)
    return {name: _statistics(name, norms[name], mean, var) for name, (mean, var) in averages.items()}


class _LayerByLayer:
    """One pass over all batches in lockstep: measure a point, correct it, go on with corrected values."""

    def __init__(self, net: Deployment, clean: CleanStatistics, method: Method, interlude: Interlude) -> None:
        self.net, self.clean, self.method, self.interlude = net, clean, method, interlude
        self.norms, self.originals = norms_of(net.module), norms_of(net.reference)
        self.unfollowed = set(net.layers) - set(clean.follows.values()) if method == "affine" else set()
        self.seen: dict[str, dict[Occasion, Moments]] = {}
        self.corrections: Corrections = {}
        self.lockstep = Lockstep(self._measure, on_turn=net.device.new_batch, own=self._own)
        self.meter, self.state = Meter(net), state_of(net)
        self.own: dict[int, Contents] = {}  # by batch: what it wrote on the model's attributes

    def run(self, batches: Sequence[Any], progress: Progress) -> Corrections:
        streamed = self.net.array.loads > 1  # all batches wait behind each layer: a load is programmed once
        layers = [point for point in layer_points(self.net) if streamed or point.name in self.unfollowed]
        points = [*norm_points(self.net), *layers]
        counters: dict[int, CallCounter] = {}
        reached: set[tuple[str, int]] = set()
        device = device_of(self.net)

        def tap(point: Point, tensor: Tensor) -> Tensor:
            check_measurable(point.name)
            self.interlude(self.state.outside)
            call = counters.setdefault(self.lockstep.batch_index, CallCounter()).next(point.name)
            reached.add((point.name, call))
            progress(min(1.0, len(reached) / (len(points) + 1)))  # more where modules are called several times
            return self.lockstep.meet((point, call), tensor)

        with tapped(self.net.module, points, self.interlude.deaf(tap)), self.net.session(), self.state.apart():
            self.lockstep.run(lambda batch: call_with(self.net.module, batch, device), batches)
        values = {name: sum(part.count for part in parts.values()) for name, parts in self.seen.items()}
        tell_what_is_left(self.meter, [*self.norms, *self.unfollowed], self.corrections, values)
        progress(1.0)
        return self.corrections

    def _own(self, batch: int) -> None:
        if batch not in self.own:
            self.own[batch] = self.state.copy()
        self.state.put(self.own[batch])

    def _measure(self, key: Any, tensors: dict[int, Tensor]) -> dict[int, Tensor]:
        point: Point = key[0]
        call: int = key[1]
        if not (point.is_norm or point.name in self.unfollowed):
            return tensors
        seen = self.seen.setdefault(point.name, {})
        found = {(call, batch): self.meter.moments(point, tensor) for batch, tensor in tensors.items()}
        seen |= {occasion: now for occasion, now in found.items() if now is not None}
        if not point.is_norm:
            return self._correct_layer(point.name, tensors)
        self._correct_norm(point.name)
        return tensors

    def _pair(self, name: str) -> tuple[Moments, Moments] | None:
        """Clean and noisy moments over the same calls and batches, as far as both models got there; None where that
        is not enough to tell a spread.
        """
        clean, noisy = self.clean.moments.get(name, {}), self.seen[name]
        both = [occasion for occasion in noisy if occasion in clean]
        if not both:
            return None
        pair = merge([clean[occasion] for occasion in both]), merge([noisy[occasion] for occasion in both])
        return pair if pair[0].is_enough and pair[1].is_enough else None

    def _correct_norm(self, name: str) -> None:
        norm = self.norms[name]
        found = self._pooled(name) if self.method == "pooled" else self._paired(name)
        if found is not None:
            self.corrections[name] = _statistics(name, norm, *found)
            set_statistics(norm, *found)

    def _pooled(self, name: str) -> tuple[Tensor, Tensor] | None:
        found = merge([*self.seen[name].values()]) if self.seen[name] else None
        return (found.mean, found.unbiased_var) if found is not None and found.is_enough else None

    def _paired(self, name: str) -> tuple[Tensor, Tensor] | None:
        pair, original = self._pair(name), self.originals[name]
        if pair is None:
            return None
        mean, var = (value.flatten() for value in statistics_of(original))
        return paired_statistics(mean, var, *pair, eps_of(original))

    def _correct_layer(self, name: str, tensors: dict[int, Tensor]) -> dict[int, Tensor]:
        """The layer itself stays uncorrected: its next call is to be measured as this one was."""
        pair = self._pair(name)
        if pair is None:
            return tensors
        gain, offset = matched_gain(*pair)
        _check_finite(name, gain, offset)
        self.corrections[name] = {"gain": gain, "offset": offset}
        correction, view = ChannelCorrection(gain, offset), self.net.layers[name].matrix.view
        return {batch: correction.apply(tensor, view) for batch, tensor in tensors.items()}


def _statistics(name: str, norm: nn.Module, mean: Tensor, var: Tensor) -> dict[str, Tensor]:
    """A correction, in the shape that the normalisation keeps its statistics in."""
    _check_finite(name, mean, var)
    shape = statistics_of(norm)[0].shape
    return {"mean": mean.float().reshape(shape), "var": var.float().reshape(shape)}


def _check_finite(name: str, *values: Tensor) -> None:
    if not all(bool(torch.isfinite(value).all()) for value in values):
        raise DataError(
            f"calibration measured NaN or infinity at {name}; check the images and the device's outputs there"
        )
