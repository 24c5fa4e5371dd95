"""The gate: a candidate is put in force only where it is not worse, on held-out images, than what is in force."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from pimcal.deployment import Deployment
from pimcal.evaluation import Evaluation, Progress, evaluate, repeatable
from pimcal.metrics import Metric
from pimcal.record import Record


@dataclass(frozen=True, slots=True)
class Verdict:
    """The metric before (what was in force) and after (the candidate); `record` carries both."""

    record: Record
    before: float
    after: float
    activated: bool
    images: int
    mvms: int
    reason: str


def gate(
    net: Deployment,
    record: Record,
    batches: Iterable[Any],
    metric: Metric,
    *,
    max_drop: float | None = None,
    repeats: int | None = None,
    before: float | None = None,
    progress: Progress = lambda done: None,
) -> Verdict:
    """Measure `record` against what is in force on `batches`, and apply it unless it is worse by over `max_drop`.

    Each side is measured `repeats` times (a new noise draw for each batch) and averaged; both default to the
    profile's `gate:` section. `max_drop` is in the metric's own unit (for accuracy a fraction). `batches` must not be
    the calibration images; they are walked several times, and kept in memory where that is not possible. `before`: what
    is in force, where that has just been measured on them.

    Raises DataError where the record does not fit the network or the images do not suit the metric; what was in
    force stays in force then.
    """
    settings, batches = net.device.profile.gate, repeatable(batches)
    allowed = settings.max_drop if max_drop is None else max_drop
    if before is None:
        old = measure(net, batches, metric, repeats=repeats, progress=progress)
    else:
        old = Evaluation(metric.name, before, 0, 0, 0.0)
    net.apply(record)
    keep = False
    try:
        new = measure(net, batches, metric, repeats=repeats, progress=progress)
        drop = _drop(old.value, new.value, metric.higher_is_better)
        keep = drop <= allowed
    finally:
        if not keep:
            net.revert()
    told = (
        f"{metric.name} {old.value:.4f} -> {new.value:.4f}, {'a drop of' if drop > 0 else 'better by'} {abs(drop):.4f}"
    )
    reason = f"{told}; allowed drop {allowed:g}"
    judged = record.judged(metric.name, old.value, new.value)
    return Verdict(judged, old.value, new.value, keep, new.images, old.mvms + new.mvms, reason)


def measure(
    net: Deployment,
    batches: Iterable[Any],
    metric: Metric,
    *,
    repeats: int | None = None,
    progress: Progress = lambda done: None,
) -> Evaluation:
    """What is in force now: the mean over `repeats` evaluations, by default as many as the gate makes."""
    batches = repeatable(batches)
    times = net.device.profile.gate.repeats if repeats is None else repeats
    found = [evaluate(net, batches, metric, progress=progress) for _ in range(times)]
    return replace(found[0], value=fmean(e.value for e in found), mvms=sum(e.mvms for e in found))


def _drop(old: float, new: float, higher_is_better: bool) -> float:
    """How much worse `new` is; a metric that is no number is worse than any other."""
    if math.isnan(new):
        return math.inf
    if math.isnan(old):
        return -math.inf
    return old - new if higher_is_better else new - old
