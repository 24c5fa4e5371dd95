"""Calibration that goes on while the network serves."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from pimcal.attention import own_attention
from pimcal.batches import moved
from pimcal.calibration.meter import Meter
from pimcal.calibration.moments import Moments, moving_average, paired_statistics
from pimcal.calibration.points import Point, norm_points, tapped
from pimcal.calling import device_of
from pimcal.corrections import (
    Corrections,
    corrections_in_force,
    eps_of,
    norms_of,
    reference_state,
    set_statistics,
    statistics_of,
)
from pimcal.deployment import Deployment
from pimcal.errors import UsageError


class DynamicCalibration:
    """Within the `with` block every call of the network also updates its BatchNorm statistics.

    `ema`: each served batch moves the running mean and variance, `momentum * old + (1 - momentum) * batch`, starting
    from what is in force (Tsai et al., Algorithm 1, continued). `paired`: a share of the batches, drawn with
    `generator`, is also run by the digital model on the host, and the averages are taken of what the device did to
    the same images; no extra product on the device in either case.

    On leaving the block the statistics stay in force under the name "dynamic", and `net.revert()` brings back what was
    there before it; after an exception that happens at once. `corrections` holds them.
    """

    def __init__(
        self,
        net: Deployment,
        method: Literal["ema", "paired"] = "paired",
        *,
        momentum: float = 0.99,
        share: float = 0.05,
        generator: torch.Generator | None = None,
    ) -> None:
        """Raises UsageError for another method, shares or momenta outside [0, 1], or a model without BatchNorm."""
        if method not in ("ema", "paired"):
            raise UsageError(f"dynamic calibration knows 'ema' and 'paired', not '{method}'")
        if not (0 <= share <= 1 and 0 <= momentum <= 1):
            raise UsageError(f"share ({share}) and momentum ({momentum}) must lie between 0 and 1")
        if not norm_points(net):
            raise UsageError("dynamic calibration moves BatchNorm statistics, and this model has none")
        self.net, self.method, self.momentum, self.share = net, method, momentum, share
        self.generator = generator or torch.Generator().manual_seed(0)
        self.updates = 0
        self._norms, self._originals = norms_of(net.module), norms_of(net.reference)
        self._meter = Meter(net)
        self._clean: dict[str, Moments] = {}  # of the batch that is being served, where it was sampled
        self._averages: dict[str, tuple[Moments, Moments]] = {}
        self._stack = ExitStack()

    @property
    def corrections(self) -> Corrections:
        """The statistics as they are now; layers' gains and offsets that were in force stay part of them."""
        return corrections_in_force(self.net)

    def __enter__(self) -> Self:
        tap = self._follow if self.method == "ema" else self._compare
        self._stack.enter_context(tapped(self.net.module, norm_points(self.net), tap))
        if self.method == "paired":
            handle = self.net.register_forward_pre_hook(self._maybe_run_clean, with_kwargs=True)
            self._stack.callback(handle.remove)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._stack.close()
        found = self.corrections
        self.net.push("dynamic", found)
        if kind is not None:
            self.net.revert()

    def _follow(self, point: Point, tensor: Tensor) -> Tensor:
        norm, now = self._norms[point.name], self._meter.moments(point, tensor)
        if now is not None and now.is_enough:
            old_mean, old_var = (value.double().flatten() for value in statistics_of(norm))
            mean = moving_average(old_mean, now.mean, self.momentum)
            set_statistics(norm, mean, moving_average(old_var, now.unbiased_var, self.momentum))
            self.updates += 1
        return tensor

    def _maybe_run_clean(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._clean = {}
        if float(torch.rand((), generator=self.generator)) < self.share:
            found: dict[str, Moments] = {}
            reference, device = self.net.reference, device_of(self.net)
            measured, state = tapped(reference, norm_points(self.net), self._collect(found)), reference_state(self.net)
            with measured, torch.no_grad(), own_attention(), state.apart():
                reference(*moved(args, device), **moved(kwargs, device))
            self._clean = found

    def _compare(self, point: Point, tensor: Tensor) -> Tensor:
        clean = self._clean.pop(point.name, None)  # once a batch: both sides have a shared module's first call
        now = None if clean is None else self._meter.moments(point, tensor)
        if clean is not None and now is not None and clean.is_enough and now.is_enough:
            pair = (clean, now)
            old = self._averages.get(point.name)
            pair = pair if old is None else (self._blend(old[0], pair[0]), self._blend(old[1], pair[1]))
            self._averages[point.name] = pair
            norm, original = self._norms[point.name], self._originals[point.name]
            mean, var = (value.flatten() for value in statistics_of(original))
            set_statistics(norm, *paired_statistics(mean, var, *pair, eps=eps_of(norm)))
            self.updates += 1
        return tensor

    def _collect(self, found: dict[str, Moments]) -> Callable[[Point, Tensor], Tensor]:
        def tap(point: Point, tensor: Tensor) -> Tensor:
            now = self._meter.moments(point, tensor)
            if now is not None:
                found.setdefault(point.name, now)
            return tensor

        return tap

    def _blend(self, old: Moments, new: Moments) -> Moments:
        mean = moving_average(old.mean, new.mean, self.momentum)
        return Moments(new.count, mean, moving_average(old.var, new.var, self.momentum))
