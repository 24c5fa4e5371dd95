"""What the digital model does with the calibration images: free, on the host, once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pimcal.calibration.meter import Meter
from pimcal.calibration.moments import Moments
from pimcal.calibration.points import CallCounter, Point, layer_points, norm_points, tapped
from pimcal.calling import call_with, device_of
from pimcal.corrections import reference_state
from pimcal.deployment import Deployment

Occasion = tuple[int, int]  # which call of a module in a forward pass, and in which batch


@dataclass(slots=True)
class CleanStatistics:
    """Moments by module, then by call and batch; and which device layer's output each normalisation reads directly."""

    moments: dict[str, dict[Occasion, Moments]] = field(default_factory=dict)
    follows: dict[str, str] = field(default_factory=dict)


def clean_statistics(
    net: Deployment, batches: Sequence[Any], *, layers: bool, progress: Callable[[float], None] = lambda share: None
) -> CleanStatistics:
    """Run the reference over `batches`; measure normalisations' inputs and, if `layers`, device layers' outputs."""
    found = CleanStatistics()
    # by id and version; the tensor is kept alive so that ids stay unique
    outputs: dict[tuple[int, int], tuple[Tensor, str]] = {}
    counter, batch_number, meter = CallCounter(), 0, Meter(net)

    def tap(point: Point, tensor: Tensor) -> Tensor:
        identity = id(tensor), _version(tensor)
        occasion = (counter.next(point.name), batch_number)
        now = meter.moments(point, tensor) if point.is_norm or layers else None
        if now is not None:
            found.moments.setdefault(point.name, {})[occasion] = now
        if point.is_norm and now is not None and identity in outputs:
            found.follows[point.name] = outputs[identity][1]
        if not point.is_norm:
            outputs.clear()  # only the last layer's output can go straight into the next normalisation
            outputs[identity] = (tensor, point.name)
        return tensor

    with tapped(net.reference, [*norm_points(net), *layer_points(net)], tap):
        state = reference_state(net)  # no batch finds what another one left on the model
        for batch_number, batch in enumerate(batches):
            counter = CallCounter()
            with state.apart():
                call_with(net.reference, batch, device_of(net))
            progress((batch_number + 1) / len(batches))
    return found


def _version(tensor: Tensor) -> int:
    """Grows with every change in place, for example by an activation between a layer and its normalisation."""
    return 0 if tensor.is_inference() else tensor._version
