"""How far the device bends each layer's activations: KL and JS divergence, clean against noisy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pimcal.calibration.clean import clean_statistics
from pimcal.calibration.points import layer_points, norm_points
from pimcal.calling import call_with, device_of
from pimcal.deployment import Deployment
from pimcal.evaluation import undisturbed
from pimcal.opened import named_layers
from pimcal.transforms import check_measurable

BINS = 128


@dataclass(frozen=True, slots=True)
class Divergence:
    """Between the distributions of one layer's activations, in nats. `kl` is KL(clean || noisy), `js` <= ln 2."""

    kl: float
    js: float


def divergences(net: Deployment, batches: Iterable[Any]) -> dict[str, Divergence]:
    """Each layer's divergence on `batches`, with the corrections that are in force.

    Measured behind the normalisation that follows a device layer, or at the layer itself where none does: what the
    next layer gets to see. Histograms of 128 bins over the clean values' range, all channels together; values
    outside it count in the outermost bins.
    """
    batches, device = list(batches), device_of(net)
    names = _where(net, batches)
    clean, noisy = _Histograms(net.reference, names), _Histograms(net.module, names)
    with undisturbed(net, net.reference):
        for batch in batches:
            clean.run(net.reference, batch, device)
            noisy.edges = clean.edges
            with net.session():
                noisy.run(net.module, batch, device)
    return {name: divergence(clean.counts[name], noisy.counts[name]) for name in names if name in noisy.counts}


def divergence(clean: Tensor, noisy: Tensor) -> Divergence:
    """KL(clean || noisy) and Jensen-Shannon divergence of two histograms (counts), in nats.

    Half a count is added to every bin, so that an empty one does not make KL infinite.
    """
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (clean.double(), noisy.double()))
    m = (p + q) / 2
    return Divergence(_kl(p, q), (_kl(p, m) + _kl(q, m)) / 2)


def _kl(p: Tensor, q: Tensor) -> float:
    return float((p * (p / q).log()).sum())


def _where(net: Deployment, batches: Sequence[Any]) -> list[str]:
    """The modules to look behind, in the model's order."""
    follows = clean_statistics(net, batches[:1], layers=False).follows
    followed = set(follows.values())
    wanted = {point.name for point in norm_points(net)}
    wanted |= {point.name for point in layer_points(net) if point.name not in followed}
    return [name for name, _ in named_layers(net.module) if name in wanted]


class _Histograms:
    """Counts of a model's activations at some modules; `edges` (lowest, highest) come with the first batch."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        layers = dict(named_layers(model))
        self.modules = {name: layers[name] for name in names}
        self.counts: dict[str, Tensor] = {}
        self.edges: dict[str, tuple[float, float]] = {}

    def run(self, model: nn.Module, batch: Any, device: torch.device) -> None:
        handles = [
            module.register_forward_hook(lambda _module, _args, output, name=name: self._count(name, output))
            for name, module in self.modules.items()
        ]
        try:
            call_with(model, batch, device)
        finally:
            for handle in handles:
                handle.remove()

    def _count(self, name: str, output: Tensor) -> None:
        check_measurable(name)
        values = output.detach().float().flatten()
        if not values.numel():
            return  # a branch that got none of the images
        low, high = self.edges.setdefault(name, (float(values.min()), float(values.max())))
        width = (high - low) / BINS or 1.0
        bins = ((values - low) / width).nan_to_num(nan=0.0).clamp(0, BINS - 1).long()
        found = torch.bincount(bins, minlength=BINS)
        self.counts[name] = self.counts[name] + found if name in self.counts else found
