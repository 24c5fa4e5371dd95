"""Sees every product that a model asks torch for, whoever's code asks; a handler answers those with a weight."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pimcal.forms import Product, read
from pimcal.origins import Origin, Origins, tensors_of

_ATTENTION = "multi_head_attention_forward"
_GROUPED = ("_grouped_mm", "grouped_mm")


class Handler(Protocol):
    """What becomes of calls. `digital()` is torch's own answer."""

    def product(self, product: Product, origin: Origin, function: str, digital: Callable[[], Any]) -> Any:
        """A product with a weight that comes from parameters."""
        ...

    def takes_constant(self, product: Product) -> bool:
        """Whether a product is one for `product` though no input went into it, so that it could be a weight itself."""
        ...

    def other(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], digital: Callable[[], Any]) -> Any:
        """Any other call."""
        ...


class Watch(TorchFunctionMode):
    """Within the block, calls of torch's functions go to a handler; see `Handler`."""

    def __init__(self, origins: Origins, handler: Handler) -> None:
        super().__init__()
        self._origins, self._handler = origins, handler

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__" or name in _QUIET:
            return self._followed(func, args, named)
        if name == _ATTENTION and (opened := self._opened_attention(args, named)) is not None:
            return opened
        if name in _GROUPED and (opened := self._opened_groups(*args, **named)) is not None:
            return opened
        product = read(func, args, named, self._is_weight)
        if product is not None and (not self._knows_all(args, named) or self._handler.takes_constant(product)):
            origin = self._origins.of(product.operand)
            assert origin is not None  # that made it a weight
            return self._handler.product(product, origin, name, lambda: func(*args, **named))
        result = self._handler.other(func, args, named, lambda: func(*args, **named))
        self._origins.follow(func, args, named, result)
        return result

    def _knows_all(self, args: tuple[Any, ...], named: dict[str, Any]) -> bool:
        """Whether no input went into a call, so that its result is one more tensor of the model's."""
        return all(self._origins.of(tensor) is not None for tensor in tensors_of((*args, *named.values())))

    def _followed(self, func: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        result = func(*args, **named)
        if isinstance(result, Tensor | tuple | list):
            self._origins.follow(func, args, named, result)
        return result

    def _is_weight(self, tensor: Tensor) -> bool:
        origin = self._origins.of(tensor) if isinstance(tensor, Tensor) else None
        return origin is not None and origin.parameters

    def _opened_attention(self, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """torch's attention function with its projections as products of their own; None if it has no weights."""
        call = dict(zip(_ATTENTION_ARGS, args, strict=False)) | named
        weights = [call.get(key) for key in ("in_proj_weight", "out_proj_weight", "q_proj_weight")]
        if not any(isinstance(weight, Tensor) and self._is_weight(weight) for weight in weights):
            return None
        with self:
            q, k, v = _projected(call)
        one = torch.eye(call["embed_dim_to_check"], dtype=q.dtype, device=q.device)
        y, scores = F.multi_head_attention_forward(
            **{
                **call, "query": q, "key": k, "value": v, "in_proj_weight": None, "in_proj_bias": None,
                "out_proj_weight": one, "out_proj_bias": None, "use_separate_proj_weight": True,
                "q_proj_weight": one, "k_proj_weight": one, "v_proj_weight": one,
            }
        )  # fmt: skip
        with self:
            return F.linear(y, call["out_proj_weight"], call["out_proj_bias"]), scores

    def _opened_groups(self, x: Tensor, weights: Tensor, offs: Tensor | None = None, **rest: Any) -> Tensor | None:
        """A product for each group of vectors by its own matrix (of an expert, say); None if these are no weights."""
        if offs is None or x.dim() != 2 or weights.dim() != 3 or not self._is_weight(weights) or any(rest.values()):
            return None
        ends = offs.tolist()
        with self:
            parts = [x[first:last] @ weights[i] for i, (first, last) in enumerate(pairwise([0, *ends]))]
        return torch.cat([*parts, x.new_zeros(len(x) - ends[-1], weights.shape[2])])


def _projected(call: dict[str, Any]) -> list[Tensor]:
    """Queries, keys and values of torch's attention function."""
    if call.get("use_separate_proj_weight"):
        weights = [call[f"{part}_proj_weight"] for part in "qkv"]
    else:
        weights = call["in_proj_weight"].chunk(3)
    bias = call["in_proj_bias"]
    biases = [None] * 3 if bias is None else bias.chunk(3)
    inputs = (call["query"], call["key"], call["value"])
    return [F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True)]


_ATTENTION_ARGS = (
    "query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias", "bias_k", "bias_v",
    "add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias", "training", "key_padding_mask", "need_weights",
    "attn_mask", "use_separate_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "static_k", "static_v",
    "average_attn_weights", "is_causal",
)  # fmt: skip
# Asked for all the time, and never a product.
_QUIET = frozenset(("size", "dim", "stride", "is_floating_point", "numel", "__getitem__", "view", "reshape", "permute"))
