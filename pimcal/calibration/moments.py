"""Means and variances of channels, merged exactly over batches, and the estimators built on them. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Moments:
    """`count` values a channel, their mean [channels] and population variance [channels], in float64."""

    count: int
    mean: Tensor
    var: Tensor

    @property
    def is_enough(self) -> bool:
        """Whether there is a spread that can be told: at least two values a channel."""
        return self.count > 1

    @property
    def unbiased_var(self) -> Tensor:
        """Variance with the divisor count - 1, as BatchNorm records it."""
        return self.var * (self.count / max(self.count - 1, 1))


def nothing(like: Tensor) -> Moments:
    """Of no values at all, for as many channels as `like` [channels] has."""
    zeros = torch.zeros_like(like, dtype=torch.float64)
    return Moments(0, zeros, zeros)


def moments(values: Tensor, channel_dim: int = 1) -> Moments:
    """Moments of each channel of `values` over all other dimensions.

    In two passes, mean first, so that a large mean costs no precision; several times faster than torch.var_mean.
    """
    dims = [d for d in range(values.dim()) if d != channel_dim % values.dim()]
    if not values.numel():
        return nothing(values.new_empty(values.shape[channel_dim]))
    if not dims:  # one value a channel
        return Moments(1, values.double(), torch.zeros_like(values, dtype=torch.float64))
    values = values.float()
    mean = values.mean(dims, keepdim=True)
    var = (values - mean).square_().mean(dims)
    return Moments(values.numel() // values.shape[channel_dim], mean.flatten().double(), var.double())


def merge(parts: Sequence[Moments]) -> Moments:
    """Moments of the union of samples (Chan, Golub and LeVeque 1983, eq. 2.1, for any number of parts)."""
    parts = [part for part in parts if part.count] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    count = sum(part.count for part in parts)
    mean = torch.stack([part.mean * (part.count / count) for part in parts]).sum(0)
    spread = [(part.var + (part.mean - mean).square()) * (part.count / count) for part in parts]
    return Moments(count, mean, torch.stack(spread).sum(0))


def paired_statistics(mean: Tensor, var: Tensor, clean: Moments, noisy: Moments, eps: float) -> tuple[Tensor, Tensor]:
    """Running statistics moved by what the device does to the same images.

    mean + (mean_noisy - mean_clean) and var * (var_noisy + eps) / (var_clean + eps); `eps` is the
    normalisation's own, so that dead channels stay as they are. Sampling error cancels because both sides saw
    the same images; equal moments change nothing at all.
    """
    ratio = (noisy.var + eps) / (clean.var + eps)
    return mean + (noisy.mean - clean.mean).to(mean), var * ratio.to(var)


def matched_gain(clean: Moments, noisy: Moments, eps: float = 1e-12) -> tuple[Tensor, Tensor]:
    """Gain and offset [channels] that give the noisy channels the clean ones' mean and variance.

    Moment matching: gain = std_clean / std_noisy, offset = mean_clean - gain * mean_noisy. A channel that is
    constant on either side gets gain 1.
    """
    alive = (clean.var > eps) & (noisy.var > eps)
    gain = torch.where(alive, (clean.var / noisy.var.clamp(min=eps)).sqrt(), 1.0)
    return gain.float(), (clean.mean - gain * noisy.mean).float()


def moving_average(old: Tensor | None, new: Tensor, momentum: float) -> Tensor:
    """momentum * old + (1 - momentum) * new; the first value initialises (Tsai et al., Algorithm 1).

    PyTorch's BatchNorm calls 1 - momentum its momentum.
    """
    return new if old is None else momentum * old + (1 - momentum) * new
