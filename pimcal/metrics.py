"""How good a deployed network is: against labels, or against the digital model where there are none.

A metric takes a batch's outputs and its targets. The targets are labels or, for a metric with
`needs_labels=False`, the digital model's outputs on the same images. Outputs may be a tensor, a dict with
`"out"` or `"logits"`, or a tuple, whose first entry counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from pimcal.errors import DataError, UsageError
from pimcal.sources.objects import UserObject, resolve
from pimcal.suggest import did_you_mean

# A batch's score (outputs, targets, images) as a sum and the weight to divide it by after the last batch.
Score = Callable[[Any, Any, int], tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of merit; `score` gives a batch's sum and weight, see `per_batch` for plain functions."""

    name: str
    score: Score
    higher_is_better: bool = True
    needs_labels: bool = True

    def __call__(self, outputs: Any, targets: Any) -> float:
        """The value for one batch."""
        running = self.start()
        running.update(outputs, targets, images=1)
        return running.compute()

    def start(self) -> Running:
        """A running value over batches, empty so far."""
        return Running(self)


@dataclass(slots=True)
class Running:
    """The value of a metric over the batches seen so far."""

    metric: Metric
    total: float = 0.0
    weight: float = 0.0

    def update(self, outputs: Any, targets: Any, images: int) -> None:
        """Add a batch of `images` images. Raises `DataError` if the targets do not fit the outputs."""
        total, weight = self.metric.score(outputs, targets, images)
        self.total += total
        self.weight += weight

    def compute(self) -> float:
        """The weighted mean. Raises `DataError` if nothing was counted, as when every label is void."""
        if not self.weight:
            raise DataError(f"{self.metric.name}: there was nothing to count, no image or no valid label")
        return self.total / self.weight


def per_batch(
    name: str,
    function: Callable[[Any, Any], Any],
    higher_is_better: bool = True,
    needs_labels: bool = True,
) -> Metric:
    """A metric from `function(outputs, targets) -> float`, averaged over batches weighted by their images."""

    def score(outputs: Any, targets: Any, images: int) -> tuple[float, float]:
        value = function(outputs, targets)
        try:
            return float(value) * images, float(images)
        except (TypeError, ValueError) as error:
            raise UsageError(f"the metric {name} returned a {type(value).__name__}; a number is needed") from error

    return Metric(name, score, higher_is_better, needs_labels)


def accuracy(outputs: Any, targets: Tensor) -> float:
    """Share of right top-1 predictions, in 0..1.

    Args:
        outputs: `[N, C]`, or dense `[N, C, ...]`.
        targets: class numbers `[N]`, or `[N, ...]`. Dense labels below 0 or from C on (void) are not counted.

    Raises:
        DataError: shapes do not fit, a label of `[N]` is no class, or nothing was left to count.
    """
    return _ACCURACY(outputs, targets)


def agreement(outputs: Any, reference: Any) -> float:
    """Share of top-1 predictions, in 0..1, that are those of the digital model: no labels needed.

    Args:
        outputs: `[N, C]` or `[N, C, ...]`; `reference`: the digital model's, of the same shape.

    Raises:
        DataError: shapes differ.
    """
    return _AGREEMENT(outputs, reference)


def mse(outputs: Any, reference: Any) -> float:
    """Mean squared difference from the digital model's outputs, in their units squared.

    Raises:
        DataError: shapes differ.
    """
    ours, theirs = _same_shape(outputs, reference)
    return float(F.mse_loss(ours.double(), theirs.double()))


def cosine(outputs: Any, reference: Any) -> float:
    """Cosine similarity with the digital model's outputs, each image's flattened; the mean over images.

    Raises:
        DataError: shapes differ.
    """
    ours, theirs = _same_shape(outputs, reference)
    return float(F.cosine_similarity(ours.double().flatten(1), theirs.double().flatten(1)).mean())


def resolve_metric(spec: str) -> Metric:
    """The metric that `spec` names: built in, of a plugin, or the user's `pkg.mod:name` or `file.py:name`.

    A plugin's or user's own is a `Metric`, or a function `(outputs, labels) -> float` where higher is
    better, which is averaged over batches weighted by their images.

    Raises:
        UsageError: there is no such metric; the metric raises it for whatever the user's code raises.
    """
    if spec in BUILT_IN:
        return BUILT_IN[spec]
    if ":" in spec:
        return _of_user(resolve(spec))
    from pimcal import registry  # loads plugins: only when nothing built in has the name

    registered = registry.metrics()
    if spec not in registered:
        known = [*BUILT_IN, *registered]
        raise UsageError(
            f"there is no metric {spec!r}{did_you_mean(spec, known)} (known: {', '.join(known)}; name your own "
            "as pkg.mod:name or file.py:name)"
        )
    function = registered[spec]
    return function if isinstance(function, Metric) else per_batch(spec, function)


def main_output(outputs: Any) -> Tensor:
    """The tensor to judge: `outputs`, its entry `"out"` or `"logits"`, or the first of a tuple or list.

    Raises:
        DataError: there is none.
    """
    if isinstance(outputs, Mapping):
        found = next((outputs[key] for key in ("out", "logits") if key in outputs), None)
    else:
        found = outputs[0] if isinstance(outputs, list | tuple) and outputs else outputs
    if not isinstance(found, Tensor):
        held = (
            f"a dict with {', '.join(map(repr, outputs))}" if isinstance(outputs, Mapping) else type(outputs).__name__
        )
        raise DataError(
            f"the model returns {held}; a tensor, a dict with 'out' or 'logits', or a tuple that begins with "
            "one is expected: use a metric of your own, --metric file.py:name"
        )
    return found


def _accuracy(outputs: Any, targets: Any, images: int) -> tuple[float, float]:
    logits = _logits(outputs)
    labels = _labels(targets, logits)
    valid = (labels >= 0) & (labels < logits.shape[1])
    if logits.ndim == 2 and not valid.all():
        wrong = labels[~valid][0]
        raise DataError(
            f"label {int(wrong)} is no class of a model with {logits.shape[1]} outputs: "
            f"labels from 0 to {logits.shape[1] - 1} are expected"
        )
    right = (_top1(logits) == labels) & valid
    return float(right.sum()), float(valid.sum())


def _agreement(outputs: Any, reference: Any, images: int) -> tuple[float, float]:
    _same_shape(outputs, reference)
    ours, theirs = _top1(_logits(outputs)), _top1(_logits(reference))
    return float(((ours == theirs) & (ours >= 0)).sum()), float(ours.numel())


def _of_user(source: UserObject) -> Metric:
    if isinstance(source.value, Metric):
        return source.value
    if not callable(source.value):
        raise UsageError(f"--metric {source.spec} is a {type(source.value).__name__}, not a function")
    return per_batch(source.spec, source.call)


def _logits(outputs: Any) -> Tensor:
    logits = main_output(outputs)
    if logits.ndim < 2 or logits.shape[1] < 2:
        raise DataError(
            f"the model's output is {list(logits.shape)}; [N, C] or [N, C, ...] with 2 or more classes is "
            "expected (for outputs that are no classes use --metric mse or cosine)"
        )
    return logits


def _labels(targets: Any, logits: Tensor) -> Tensor:
    expected = [len(logits), *logits.shape[2:]]
    if not isinstance(targets, Tensor) or targets.is_floating_point() or list(targets.shape) != expected:
        got = f"{targets.dtype} {list(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
        raise DataError(f"labels are {got}; class numbers (integers) of shape {expected} are expected")
    return targets.to(logits.device)


def _top1(logits: Tensor) -> Tensor:
    """The class of the largest output, -1 where one is NaN: `argmax` alone would call the NaN the largest."""
    return logits.argmax(dim=1).masked_fill(logits.isnan().any(dim=1), -1)


def _same_shape(outputs: Any, reference: Any) -> tuple[Tensor, Tensor]:
    ours, theirs = main_output(outputs), main_output(reference)
    if ours.shape != theirs.shape:
        raise DataError(f"outputs are {list(ours.shape)}, the digital model's {list(theirs.shape)}; they must match")
    return ours, theirs.to(ours.device)


_ACCURACY = Metric("accuracy", _accuracy)
_AGREEMENT = Metric("agreement", _agreement, needs_labels=False)

BUILT_IN: dict[str, Metric] = {
    "accuracy": _ACCURACY,
    "agreement": _AGREEMENT,
    "mse": per_batch("mse", mse, higher_is_better=False, needs_labels=False),
    "cosine": per_batch("cosine", cosine, needs_labels=False),
}
