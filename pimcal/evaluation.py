"""How good a network is on a set of images, and what finding out cost the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pimcal.batches import batch_size, moved, split_batch, tensors_in
from pimcal.calling import Calling, call_with, called, device_of
from pimcal.corrections import state_of
from pimcal.deployment import Deployment
from pimcal.errors import DataError
from pimcal.metrics import Metric
from pimcal.model_state import ModelState

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A metric's value over `images` images; `mvms` and `seconds` are the run's cost on the device and in time.

    `not_finite` counts the images for which the network gave NaN or infinity. `device_share`: the part of all
    multiplications by weights that the device made; None for a plain model.
    """

    metric: str
    value: float
    images: int
    mvms: int
    seconds: float
    not_finite: int = 0
    device_share: float | None = None


def evaluate(
    net: Deployment | nn.Module,
    batches: Iterable[Any],
    metric: Metric,
    *,
    reference: nn.Module | None = None,
    calling: Calling | None = None,
    progress: Progress = lambda done: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Evaluation:
    """Run `net` (deployed, or a plain model) over `batches` and give the metric's value.

    `batches` are walked once, and one is held at a time; `pimcal.batches` says what each may be, and `calling` how the
    model is called with it: `"positional"` or `"keywords"` for a dict, or a function of the model and a batch that
    returns the outputs.

    A metric without labels compares with `reference`, by default the deployed network's own digital model.
    `progress` is called with the number of images done. What a model keeps from batch to batch in its attributes is
    afterwards as it was before.

    Raises DataError where the metric needs labels and a batch has none, or where there is no image at all.
    """
    reference = reference or (net.reference if isinstance(net, Deployment) else net)
    start, mvms_before = clock(), _mvms(net)
    running, images, not_finite, device = metric.start(), 0, 0, device_of(net)
    with undisturbed(net, reference):
        for given in batches:
            batch = called(given, calling)
            labels = moved(split_batch(batch)[2], device)
            compared = labels if metric.needs_labels else call_with(reference, batch, device)
            if compared is None:
                raise DataError(f"metric '{metric.name}' needs labels and the data has none; use metric 'agreement'")
            count = batch_size(batch)
            outputs = compared if reference is net and not metric.needs_labels else call_with(net, batch, device)
            not_finite += _not_finite(outputs, count)
            running.update(outputs, compared, count)
            images += count
            progress(images)
    if not images:
        walked = "; they are an iterator, which can be walked only once" if isinstance(batches, Iterator) else ""
        raise DataError(f"there is no image to evaluate on{walked}")
    share = net.placement.device_share if isinstance(net, Deployment) else None
    cost = _mvms(net) - mvms_before, clock() - start
    return Evaluation(metric.name, running.compute(), images, *cost, not_finite, share)


def repeatable(batches: Iterable[Any]) -> Iterable[Any]:
    """`batches`, in memory where they can be walked only once."""
    return list(batches) if isinstance(batches, Iterator) else batches


@contextmanager
def undisturbed(net: Deployment | nn.Module, reference: nn.Module) -> Iterator[None]:
    """Within the block both may be called, the same batches each; what that writes on them is gone afterwards.

    A network's own digital model starts with what earlier batches have left on the network.
    """
    state = state_of(net) if isinstance(net, Deployment) else ModelState(net)
    followed = state if isinstance(net, Deployment) and reference is net.reference else None
    with ExitStack() as stack:
        stack.enter_context(state.apart())
        if reference is not net:
            stack.enter_context(ModelState(reference, like=followed).apart())
        yield


def _not_finite(outputs: Any, images: int) -> int:
    """For how many images a tensor among the outputs holds NaN or infinity."""
    floating = (t for t in tensors_in(outputs) if t.is_floating_point() and t.shape[:1] == (images,))
    finite = [t.isfinite().reshape(images, -1).all(dim=1) for t in floating]
    return int((~torch.stack(finite).all(dim=0)).sum()) if finite else 0


def _mvms(net: nn.Module) -> int:
    return net.device.cost.mvms if isinstance(net, Deployment) else 0
