"""Which layers of a network go to the device, and why the others stay on the host."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy

from pimcal.errors import DataError, UsageError
from pimcal.matrices import LinearView, MatrixView, inherits_forward, view_of
from pimcal.opened import named_layers
from pimcal.projection import Projection, opened_forward

KEPT = "kept by host pattern"  # how the reason of a layer begins that the profile keeps on the host
_LOOKUPS = (nn.Embedding, nn.EmbeddingBag)
_BY_HOOK = "a hook computes its weights anew at each call; use torch.nn.utils.parametrizations instead"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A module that holds a matrix: `view` if its `forward` can be replaced by a device's product, else the `reason`.

    `may_multiply`: its own code may still ask torch for products, which are found when it does.
    """

    name: str
    module: nn.Module
    view: MatrixView | None
    reason: str = ""
    may_multiply: bool = False


def survey(model: nn.Module, host: Sequence[str]) -> list[Candidate]:
    """All modules of `model` that hold weights of two or more dimensions, in order.

    `host` are glob patterns of layers to keep digital; a pattern also covers the layers inside a match.

    Raises DataError for weights that are NaN or infinite.
    """
    return list(_candidates(model, host))


def check_initialized(model: nn.Module) -> None:
    """Raise UsageError if a lazy layer has no weights yet, DataError for tensors without values."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise UsageError(f"{name} is lazy and has no values yet; call the model once before you deploy it")
        if tensor.is_meta:
            raise DataError(f"{name} is on torch's meta device and has no values; load its weights first")


def unmatched(names: Collection[str], host: Sequence[str]) -> list[str]:
    """The patterns of `host` that none of the layers' names matches: most often a typing error."""
    return [pattern for pattern in host if not any(kept_by(name, (pattern,)) for name in names)]


def _candidates(model: nn.Module, host: Sequence[str]) -> Iterator[Candidate]:
    for name, module in named_layers(model):
        if opened_forward(module) is not None:
            continue  # opened: its projections are candidates of their own
        if not _holds_matrix(module):
            continue
        pattern = kept_by(name, host)
        if pattern is not None:
            yield Candidate(name, module, None, f"{KEPT} '{pattern}'")
            continue
        reason = _why_never(module)
        if reason:
            yield Candidate(name, module, None, reason)
            continue
        view = _projection_view(module) if isinstance(module, Projection) else view_of(module)
        reason = _why_not_its_forward(module, view)
        if reason:
            yield Candidate(name, module, None, reason, may_multiply=True)
            continue
        check_finite(name, module.weight)  # type: ignore[arg-type]
        yield Candidate(name, module, view)


def _projection_view(projection: Projection) -> MatrixView:
    out_features, in_features = projection.weight.shape
    return LinearView(in_features, out_features)


def kept_by(name: str, patterns: Sequence[str]) -> str | None:
    """The first of `patterns` that matches a layer, or a weight such as `experts.down_proj[4]`, or what it is in."""
    whole = name.split(".")
    names = {".".join(whole[: i + 1]) for i in range(len(whole))} | {name.split("[")[0]}
    return next((p for p in patterns if p in names or any(fnmatchcase(n, p) for n in names)), None)


def _holds_matrix(module: nn.Module) -> bool:
    if isinstance(module, Projection):
        return True
    # a view without such a parameter: weights computed by a parametrization
    if view_of(module) is not None or any(p.dim() > 1 for p in module.parameters(recurse=False)):
        return True
    return _is_quantized(module) or any(
        "weight" in name and buffer.dim() > 1 for name, buffer in module.named_buffers(recurse=False)
    )


def _is_quantized(module: nn.Module) -> bool:
    """Whether it is one of torch's quantised layers, whose weights are no parameters."""
    return hasattr(module, "_packed_params") or type(module).__module__.startswith(("torch.ao.", "torch.nn.quantized"))


def _why_never(module: nn.Module) -> str:
    """Why no device can compute anything of a module, whatever it asks torch for; empty if one can."""
    kind = type(module).__name__
    if isinstance(module, _LOOKUPS):
        return f"{kind} looks up, it multiplies nothing"
    if _is_quantized(module):
        return f"{kind} keeps its weights quantised, for kernels of the host; deploy the model that was quantised"
    return ""


def _why_not_its_forward(module: nn.Module, view: MatrixView | None) -> str:
    """Why a module's `forward` is not replaced; empty if it is."""
    kind = type(module).__name__
    if isinstance(module, Projection):
        return _why_not_projected(module)
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return f"{kind} has a forward of its own"
    if view is None:
        return f"{kind} uses its weights in its own code"
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return "its attention has a forward of its own"
    if not inherits_forward(module):
        return f"{kind} has a forward of its own"
    return _why_not_its_weights(module)


def _why_not_projected(projection: Projection) -> str:
    weight = projection.weight
    return _BY_HOOK if any(value is weight for value in vars(projection.owner).values()) else ""


def _why_not_its_weights(module: nn.Module) -> str:
    if "weight" in vars(module):
        return _BY_HOOK
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    if type(weight).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return f"its weights are {type(weight).__name__}s, which compute in their own way"
    return "" if weight.is_floating_point() else f"its weights are {weight.dtype}"


def check_finite(name: str, weight: torch.Tensor) -> None:
    """Raise DataError if a weight of a layer is NaN or infinite."""
    finite = torch.isfinite(weight)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise DataError(
            f"layer {name}: {bad} of {weight.numel()} weights are NaN or infinite; "
            "a device cannot hold them, check the checkpoint"
        )
