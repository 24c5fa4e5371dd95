"""Calling a model, digital or deployed, with a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, Literal

import torch
from torch import nn

from pimcal.attention import own_attention
from pimcal.batches import Called, moved, split_batch
from pimcal.blame import blamed_on
from pimcal.errors import UsageError

WORDS = ("positional", "keywords")

# How a model is called with a batch: a dict's items as one positional argument or by their names, or a function of the
# model and a batch, as the data has it, that returns the outputs.
Calling = Literal["positional", "keywords"] | Callable[[Callable[..., Any], Any], Any]


def device_of(model: nn.Module) -> torch.device:
    """Where a model's own tensors are."""
    return next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))


def call_with(model: Callable[..., Any], batch: Any, device: torch.device) -> Any:
    """Call a model with a batch's inputs, on `device`, without gradients and torch's shortcuts around its layers.

    The model gets copies: what it does to them, others do not see.

    Raises UsageError for whatever the model's own code raises, with its place.
    """
    if isinstance(batch, Called):
        with torch.no_grad(), own_attention(), blamed_on("the function that calls the model"):
            return batch.by(model, moved(batch.batch, device))
    args, kwargs = arguments(model, batch)
    with torch.no_grad(), own_attention(), blamed_on("the model"):
        return model(*moved(args, device), **moved(kwargs, device))


def arguments(model: Callable[..., Any], batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a model is called with: a batch's inputs, those with names as one dict where it takes none of the names."""
    args, kwargs, _ = split_batch(batch)
    return ((kwargs,), {}) if kwargs and _takes_a_dict(model, kwargs) else (args, kwargs)


def called(batch: Any, calling: Calling | None) -> Any:
    """The batch in a form that is called as `calling` says; None leaves it as it is.

    Raises UsageError for another word than `positional` and `keywords`, and for `keywords` without names.
    """
    if calling is None or isinstance(batch, Called):
        return batch
    if callable(calling):
        return Called(batch, calling)
    args, kwargs, target = split_batch(batch)
    if calling == "positional":
        return ((kwargs,) if kwargs else args, target) if target is not None else ((kwargs,) if kwargs else args,)
    if calling != "keywords":
        raise UsageError(f"a model is called {' or '.join(WORDS)}, or by a function, not {calling!r}")
    named = kwargs or (args[0] if len(args) == 1 and isinstance(args[0], Mapping) else None)
    if named is None:
        raise UsageError("the batches hold no names, so the model cannot be called by keywords")
    return Called((named, target), _by_name)


def _by_name(model: Callable[..., Any], batch: Any) -> Any:
    return model(**batch[0])


def _takes_a_dict(model: Callable[..., Any], named: Mapping[str, Any]) -> bool:
    """Whether a call by names must fail, and one with the dict as the only argument need not."""
    try:
        signature = _signature(model)
        if any(p.kind is p.VAR_KEYWORD or p.name in named for p in signature.parameters.values()):
            return False
        signature.bind(named)
    except (TypeError, ValueError):
        return False
    return True


def _signature(model: Callable[..., Any]) -> inspect.Signature:
    """Of the model's own `forward`, behind wrappers that pass on whatever comes."""
    found = inspect.signature(model.forward if isinstance(model, nn.Module) else model)
    kinds = {parameter.kind for parameter in found.parameters.values()}
    inner = getattr(model, "module", None)
    passes_on = kinds == {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return _signature(inner) if passes_on and isinstance(inner, nn.Module) else found
