"""Which layers of a network go to the device, and why the others stay on the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy

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

    Raises DataError for weights that are NaN or infinite.
    """
    return list(_candidates(model, host))


def check_initialized(model: nn.Module) -> None:
    """Raise UsageError where a lazy layer has no weights yet."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise UsageError(f"{name} is lazy and has no values yet; call the model once before you deploy it")


def unmatched(candidates: Sequence[Candidate], host: Sequence[str]) -> list[str]:
    """The patterns of `host` that no layer matches: most often a typing error."""
    return [pattern for pattern in host if not any(_matching(c.name, (pattern,)) for c in candidates)]


def _candidates(model: nn.Module, host: Sequence[str]) -> Iterator[Candidate]:
    for name, module in named_layers(model):
        if isinstance(module, nn.MultiheadAttention) and "forward" in vars(module):
            continue  # opened: its projections are candidates of their own
        if not _holds_matrix(module):
            continue
        view = _projection_view(module) if isinstance(module, Projection) else view_of(module)
        pattern = _matching(name, host)
        reason = _why_not(module, view) if pattern is None else f"kept by host pattern '{pattern}'"
        if reason:
            yield Candidate(name, module, None, reason)
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


def _holds_matrix(module: nn.Module) -> bool:
    if isinstance(module, Projection):
        return True
    # a view without such a parameter: weights computed by a parametrization
    return view_of(module) is not None or any(p.dim() > 1 for p in module.parameters(recurse=False))


def _why_not(module: nn.Module, view: MatrixView | None) -> str:
    """Why no device can compute a module; empty where one can."""
    kind = type(module).__name__
    if isinstance(module, Projection):
        return ""
    if isinstance(module, _LOOKUPS):
        return f"{kind} looks up, it multiplies nothing"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return f"{kind} multiplies inside one torch function, step by step"
    if view is None:
        return f"{kind} uses its weights in its own code"
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return "its attention has a forward of its own"
    if not inherits_forward(module):
        return f"{kind} has a forward of its own"
    return _why_not_its_weights(module)


def _why_not_its_weights(module: nn.Module) -> str:
    if "weight" in vars(module):
        return "a hook computes its weights anew at each call; use torch.nn.utils.parametrizations instead"
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return "" if weight.is_floating_point() else f"its weights are {weight.dtype}"


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
