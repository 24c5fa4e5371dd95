"""What the digital model does with the calibration images: free, on the host, once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pimcal.batches import moved, split_batch
from pimcal.calibration.moments import Moments, merge, moments
from pimcal.calibration.points import CallCounter, Point, layer_points, norm_points, tapped
from pimcal.deployment import Deployment


@dataclass(slots=True)
class CleanStatistics:
    """Moments by module and call, and which device layer's output each normalisation reads directly."""

    moments: dict[tuple[str, int], list[Moments]] = field(default_factory=dict)
    follows: dict[str, str] = field(default_factory=dict)

    def upto(self, name: str, call: int) -> Moments | None:
        """Moments over all batches and the calls 0..`call` of a module; None where it was not called so often."""
        parts = [part for k in range(call + 1) for part in self.moments.get((name, k), [])]
        return merge(parts) if (name, call) in self.moments else None


def device_of(model: nn.Module) -> torch.device:
    """Where a model's own tensors are."""
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def call_with(model: Callable[..., Any], batch: Any, device: torch.device) -> Any:
    """Call a model with a batch's inputs, on `device`, without gradients."""
    args, kwargs, _ = split_batch(batch)
    with torch.no_grad():
        return model(*moved(args, device), **moved(kwargs, device))


def clean_statistics(
    net: Deployment, batches: Sequence[Any], *, layers: bool, progress: Callable[[int], None] = lambda done: None
) -> CleanStatistics:
    """Run the reference over `batches`; measure normalisations' inputs and, if `layers`, device layers' outputs."""
    found = CleanStatistics()
    outputs: dict[int, tuple[Tensor, str]] = {}  # by id, with the tensor kept alive so that ids stay unique
    counter = CallCounter()

    def tap(point: Point, tensor: Tensor) -> Tensor:
        if point.is_norm and id(tensor) in outputs:
            found.follows[point.name] = outputs[id(tensor)][1]
        if not point.is_norm:
            outputs.clear()  # only the last layer's output can go straight into the next normalisation
            outputs[id(tensor)] = (tensor, point.name)
        if point.is_norm or layers:
            key = (point.name, counter.next(point.name))
            found.moments.setdefault(key, []).append(moments(tensor, point.channel_dim))
        return tensor

    with tapped(net.reference, [*norm_points(net), *layer_points(net)], tap):
        for i, batch in enumerate(batches):
            counter = CallCounter()
            call_with(net.reference, batch, device_of(net))
            progress(i + 1)
    return found
