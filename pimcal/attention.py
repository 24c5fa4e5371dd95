"""Multi-head attention, opened so that its four projections are layers of their own.

torch's module keeps the three input projections in one parameter and computes them inside one function. Here each
is a layer that a device can compute and that calibration can observe; masks, softmax and the products between
activations stay torch's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pimcal.projection import OpenedForward, Projection

PARTS = ("q_proj", "k_proj", "v_proj", "out_proj")


def _projection(attention: nn.MultiheadAttention, part: str) -> Projection:
    return Projection(attention, partial(_weight, part=part), partial(_bias, part=part))


def _weight(attention: nn.MultiheadAttention, part: str) -> Tensor:
    if part == "out_proj":
        return attention.out_proj.weight
    if attention.in_proj_weight is None:
        weight: Tensor = getattr(attention, f"{part}_weight")
        return weight
    return attention.in_proj_weight.chunk(3)[PARTS.index(part)]


def _bias(attention: nn.MultiheadAttention, part: str) -> Tensor | None:
    if part == "out_proj":
        return attention.out_proj.bias
    return None if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)[PARTS.index(part)]


class AttentionForward(OpenedForward):
    """Takes the place of `nn.MultiheadAttention.forward`."""

    replaced = ("out_proj",)  # its Linear is never called: the projection is

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        self.attention = attention
        self.parts = {part: _projection(attention, part) for part in PARTS}

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        layer = self.attention
        inputs = zip(PARTS, (query, key, value), strict=False)
        q, k, v = (self.parts[part](x) for part, x in inputs)
        swap = layer.batch_first and q.dim() == 3
        if swap:
            q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        one = torch.eye(layer.embed_dim, dtype=q.dtype, device=q.device)  # the projections are done already
        y, weights = F.multi_head_attention_forward(
            q, k, v, layer.embed_dim, layer.num_heads, None, None, layer.bias_k, layer.bias_v, layer.add_zero_attn,
            layer.dropout, one, None, training=layer.training, key_padding_mask=key_padding_mask,
            need_weights=need_weights, attn_mask=attn_mask, use_separate_proj_weight=True,
            q_proj_weight=one, k_proj_weight=one, v_proj_weight=one,
            average_attn_weights=average_attn_weights, is_causal=is_causal,
        )  # fmt: skip
        return self.parts["out_proj"](y.transpose(0, 1) if swap else y), weights


@contextmanager
def own_attention() -> Iterator[None]:
    """Keep torch's transformer layers from computing their layers inside one fused function."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
