"""Which layers of a network go to the device, and why the others stay on the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from pimcal.attention import Projection, named_layers
from pimcal.errors import DataError, UsageError
from pimcal.matrices import LinearView, MatrixView, inherits_forward, view_of

_LOOKUPS = (nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A module that holds a matrix: `view` where a device can compute it, else the `reason` why it stays."""

    name: str
    module: nn.Module
    view: MatrixView | None
    reason: str = ""


def survey(model: nn.Module, host: Sequence[str]) -> list[Candidate]:
    """All modules of `model` that hold weights of two or more dimensions, in order.

    `host` are glob patterns of layers to keep digital; a pattern also covers the layers inside a match.

    Raises DataError for weights that are NaN or infinite, UsageError for lazy layers without weights.
    """
    return list(_candidates(model, host))


def unmatched(candidates: Sequence[Candidate], host: Sequence[str]) -> list[str]:
    """The patterns of `host` that no layer matches: most often a typing error."""
    return [pattern for pattern in host if not any(_matching(c.name, (pattern,)) for c in candidates)]


def _candidates(model: nn.Module, host: Sequence[str]) -> Iterator[Candidate]:
    for name, module in named_layers(model):
        if isinstance(module, nn.MultiheadAttention) and "forward" in vars(module):
            continue  # opened: its projections are candidates of their own
        if not _holds_matrix(name, module):
            continue
        view = _projection_view(module) if isinstance(module, Projection) else view_of(module)
        pattern = _matching(name, host)
        if pattern is not None:
            yield Candidate(name, module, None, f"kept by host pattern '{pattern}'")
        elif view is None or not (isinstance(module, Projection) or inherits_forward(module)):
            yield Candidate(name, module, None, _why_not(module, view))
        else:
            _check_finite(name, module)
            yield Candidate(name, module, view)


def _projection_view(projection: Projection) -> MatrixView:
    out_features, in_features = projection.weight.shape
    return LinearView(in_features, out_features)


def _matching(name: str, patterns: Sequence[str]) -> str | None:
    parts = name.split(".")
    names = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return next((p for p in patterns if any(fnmatchcase(n, p) for n in names)), None)


def _holds_matrix(name: str, module: nn.Module) -> bool:
    if isinstance(module, Projection):
        return True
    for parameter in module.parameters(recurse=False):
        if isinstance(parameter, UninitializedParameter):
            raise UsageError(f"layer {name} is lazy and has no weights yet; call the model once before you deploy it")
        if parameter.dim() > 1:
            return True
    return view_of(module) is not None  # weights computed by a parametrization


def _why_not(module: nn.Module, view: MatrixView | None) -> str:
    kind = type(module).__name__
    if isinstance(module, _LOOKUPS):
        return f"{kind} looks up, it multiplies nothing"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return f"{kind} multiplies inside one torch function, step by step"
    if view is not None:
        return f"{kind} has a forward of its own"
    return f"{kind} uses its weights in its own code"


def _check_finite(name: str, module: nn.Module) -> None:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    finite = torch.isfinite(weight)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise DataError(
            f"layer {name}: {bad} of {weight.numel()} weights are NaN or infinite; "
            "a device cannot hold them, check the checkpoint"
        )
