"""What a run will cost, before it is started."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pimcal.batches import batch_size, first_images
from pimcal.calibration.methods import Method
from pimcal.calling import call_with, device_of
from pimcal.corrections import reference_state
from pimcal.deployment import Deployment


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """`mvms`: products on the device. `programmed_cells`: cells written, for a network that takes several turns on the
    device. `seconds`: wall time; None for a device whose speed is not known yet."""

    images: int
    mvms: int
    programmed_cells: int
    seconds: float | None


def vectors_per_input(net: Deployment, batch: Any) -> dict[str, int]:
    """How many vectors one input gives each device layer, seen by running the digital model on one of them."""
    one = first_images(batch, 1)
    with reference_state(net).apart():
        found = net.products.look(lambda: call_with(net.reference, one, device_of(net)))
    return {name: found.vectors[name] for name in net.layers if name in found.vectors}


def estimate(
    net: Deployment,
    batch: Any,
    images: int,
    method: Method | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> CostEstimate:
    """The cost of running `images` inputs like those of `batch`, or of calibrating on them where `method` is given.

    Products are exact; only a device that takes no negative inputs needs up to twice as many, since it computes layers
    with such inputs twice. Seconds come from the device's own speed where it states one, from its runs so far, or, for
    simulators that use the host's kernels, from timing the digital model on a few images.
    """
    placement = net.placement.with_positions(vectors_per_input(net, batch))
    mvms = (placement.mvms or 0) * images
    few = first_images(batch, 8)
    with reference_state(net).apart():
        start = clock()
        call_with(net.reference, few, device_of(net))
        digital = (clock() - start) / batch_size(few) * images
    on_device = _device_seconds(net, mvms, digital)
    extra = digital if method in ("paired", "affine") else 0.0
    return CostEstimate(images, mvms, _cells(net), None if on_device is None else on_device + extra)


def _cells(net: Deployment) -> int:
    """What a run over all layers writes, each tile of each load once; nothing where all is on the device already."""
    if net.array.loads == 1:
        return 0
    references = net.array.references.count
    return sum(layout.rows * (layout.cols + references) for layout in net.array.layouts.values())


def _device_seconds(net: Deployment, mvms: int, digital: float) -> float | None:
    capabilities, cost = net.device.capabilities, net.device.cost
    if capabilities.mvm_s is not None:
        return mvms * capabilities.mvm_s
    if capabilities.effective_weights:
        return digital
    return mvms * cost.seconds / cost.mvms if cost.mvms else None
