"""Modules that multiply inside a function of torch's, opened so that each of their matrices is a layer of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from pimcal.attention import AttentionForward
from pimcal.projection import OpenedForward, opened_forward
from pimcal.recurrent import RecurrentForward

_FORWARDS: dict[type[nn.Module], Callable[[Any], OpenedForward]] = {
    nn.MultiheadAttention: AttentionForward,
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell), RecurrentForward),
}


def open_layers(model: nn.Module) -> None:
    """Let every attention and every recurrent layer of `model` compute through projections that are layers.

    Attention with a `forward` of its own is left alone; a recurrent layer's own `forward` runs as it is, up to torch's
    function.
    """
    for module in model.modules():
        for kind, opened in _FORWARDS.items():
            if isinstance(module, kind) and "forward" not in vars(module) and _may_be_opened(module, kind):
                module.forward = opened(module)  # type: ignore[assignment]


def _may_be_opened(module: nn.Module, kind: type[nn.Module]) -> bool:
    return kind is not nn.MultiheadAttention or type(module).forward is kind.forward


def named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules by name, the projections of opened ones among them, in the order of the model."""
    replaced: set[str] = set()
    for name, module in model.named_modules():
        if name in replaced:
            continue
        yield name, module
        opened = opened_forward(module)
        if opened is not None:
            replaced |= {_inside(name, child) for child in opened.replaced}
            yield from ((_inside(name, part), projection) for part, projection in opened.parts.items())


def _inside(name: str, part: str) -> str:
    return f"{name}.{part}" if name else part
