"""LSTM, GRU and RNN, and their cells, opened so that each of their matrices is a layer of its own.

torch computes a whole sequence inside one function. Here its own `forward` runs up to that function, checks and
rearrangements included, and only the function is replaced: the products with the inputs of all time steps are one call
of a layer, those with the hidden state are a call a step, and the gates stay on the host. Layers have the names of
torch's parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pimcal.projection import OpenedForward, Projection

State = tuple[Tensor, ...]  # the hidden state [n, hidden] and, in an LSTM, that of the cell
Gates = Callable[[Tensor, Tensor, State], State]  # from the products with the input and with the hidden state


class RecurrentForward(OpenedForward):
    """Takes the place of the `forward` of a recurrent layer or cell."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.parts = {name: _projection(module, name) for name in _matrix_names(module)}
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()  # a copy may still hold the original's

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Opened(self.parts):
            return type(self.module).forward(self.module, *args, **kwargs)


def _matrix_names(module: nn.Module) -> list[str]:
    if isinstance(module, nn.RNNBase):
        return [name for name in module._flat_weights_names if name.startswith("weight")]
    return ["weight_ih", "weight_hh"]


def _projection(module: Any, name: str) -> Projection:
    bias = name.replace("weight", "bias")
    has_bias = module.bias and not name.startswith("weight_hr")
    return Projection(module, attrgetter(name), attrgetter(bias) if has_bias else _no_bias)


def _no_bias(module: nn.Module) -> None:
    return None


class _Opened(TorchFunctionMode):
    """Computes torch's recurrent functions by `parts`, and leaves all others alone."""

    def __init__(self, parts: Mapping[str, Projection]) -> None:
        super().__init__()
        self._parts = parts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        compute = _FUNCTIONS.get(func)
        return func(*args, **(kwargs or {})) if compute is None else compute(self._parts, *args)


# what happens to the products of one step


def _lstm(inputs: Tensor, hidden: Tensor, state: State) -> State:
    i, f, g, o = (inputs + hidden).chunk(4, -1)
    cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def _gru(inputs: Tensor, hidden: Tensor, state: State) -> State:
    """The reset gate acts on the product with the hidden state, its bias included."""
    (r, z, n), (hidden_r, hidden_z, hidden_n) = inputs.chunk(3, -1), hidden.chunk(3, -1)
    new = (n + (r + hidden_r).sigmoid() * hidden_n).tanh()
    return ((state[0] - new) * (z + hidden_z).sigmoid() + new,)


def _rnn(nonlinearity: Callable[[Tensor], Tensor], inputs: Tensor, hidden: Tensor, state: State) -> State:
    return (nonlinearity(inputs + hidden),)


# one step


def _cell(
    gates: Gates, parts: Mapping[str, Projection], x: Tensor, hx: Tensor | State, *weights: Tensor | None
) -> Tensor | State:
    """In place of `torch.lstm_cell` and its like: a tuple where it was given one."""
    state = hx if isinstance(hx, tuple | list) else (hx,)
    _check_state(state, (len(x),), (parts["weight_hh"].weight.shape[1],) * len(state))
    new = gates(parts["weight_ih"](x), parts["weight_hh"](state[0]), tuple(state))
    return new if isinstance(hx, tuple | list) else new[0]


def _check_state(state: Sequence[Tensor], leading: tuple[int, ...], widths: Sequence[int]) -> None:
    """What torch's functions refuse is not to be broadcast here."""
    for tensor, width in zip(state, widths, strict=True):
        if tensor.shape != (*leading, width):
            raise RuntimeError(f"Expected hidden size {(*leading, width)}, got {list(tensor.shape)}")


# whole sequences: data [vectors, features], all of the first time step, then all of the second, ...


@dataclass(frozen=True, slots=True)
class _Sequences:
    """`sizes`: how many sequences are still there at each time step, the longest ones first."""

    data: Tensor
    sizes: Sequence[int]
    hx: Tensor | State


@dataclass(frozen=True, slots=True)
class _Layers:
    count: int
    dropout: float
    training: bool
    directions: int


def _recur(gates: Gates, parts: Mapping[str, Projection], *args: Any) -> State:
    """In place of `torch.lstm` and its like, which are called in two ways: output and final states."""
    if isinstance(args[2], list | tuple) and isinstance(args[3], bool):
        x, hx, _, _, count, dropout, training, both, batch_first = args
        return _padded(gates, parts, x, hx, _Layers(count, dropout, training, 1 + both), batch_first)
    data, sizes, hx, _, _, count, dropout, training, both = args
    layers = _Layers(count, dropout, training, 1 + both)
    return _run_layers(gates, parts, _Sequences(data, sizes.tolist(), hx), layers)


def _padded(
    gates: Gates, parts: Mapping[str, Projection], x: Tensor, hx: Tensor | State, layers: _Layers, batch_first: bool
) -> State:
    x = x.transpose(0, 1) if batch_first else x
    steps, n = x.shape[:2]
    output, *final = _run_layers(gates, parts, _Sequences(x.flatten(0, 1), [n] * steps, hx), layers)
    output = output.unflatten(0, (steps, n))
    return (output.transpose(0, 1) if batch_first else output, *final)


def _run_layers(gates: Gates, parts: Mapping[str, Projection], sequences: _Sequences, layers: _Layers) -> State:
    data, sizes, hx = sequences.data, sequences.sizes, sequences.hx
    if not sizes:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    state = hx if isinstance(hx, tuple | list) else (hx,)
    _check_state(state, (layers.count * layers.directions, sizes[0]), _widths(parts, len(state)))
    finals: list[State] = []
    for layer in range(layers.count):
        outputs = []
        for direction in range(layers.directions):
            start = tuple(tensor[len(finals)] for tensor in state)
            matrices = _Matrices.of(parts, f"l{layer}{'_reverse' if direction else ''}")
            output, final = _run_direction(gates, matrices, data, sizes, start, backwards=direction == 1)
            outputs.append(output)
            finals.append(final)
        data = torch.cat(outputs, -1)
        if layer < layers.count - 1:
            data = F.dropout(data, layers.dropout, layers.training)
    return (data, *(torch.stack(tensors) for tensors in zip(*finals, strict=True)))


def _widths(parts: Mapping[str, Projection], states: int) -> list[int]:
    """Of the hidden state, which may be projected, and of an LSTM's cell."""
    hidden = parts["weight_hh_l0"].weight.shape[1]
    projection = parts.get("weight_hr_l0")
    return [hidden, hidden if projection is None else projection.weight.shape[1]][:states]


@dataclass(frozen=True, slots=True)
class _Matrices:
    """Of one direction of one layer. `projection`: of an LSTM's hidden state, in some."""

    inputs: Projection
    hidden: Projection
    projection: Projection | None

    @classmethod
    def of(cls, parts: Mapping[str, Projection], place: str) -> _Matrices:
        return cls(parts[f"weight_ih_{place}"], parts[f"weight_hh_{place}"], parts.get(f"weight_hr_{place}"))


def _run_direction(
    gates: Gates, matrices: _Matrices, data: Tensor, sizes: Sequence[int], state: State, *, backwards: bool
) -> tuple[Tensor, State]:
    """The hidden states of all time steps, and the final state of all sequences.

    A sequence that has ended, or, backwards, has not begun, keeps its state.
    """
    products = matrices.inputs(data).split(sizes)
    outputs: list[Tensor] = [data] * len(sizes)
    for t in range(len(sizes))[:: -1 if backwards else 1]:
        active = tuple(tensor[: sizes[t]] for tensor in state)
        new = gates(products[t], matrices.hidden(active[0]), active)
        if matrices.projection is not None:
            new = (matrices.projection(new[0]), *new[1:])
        outputs[t] = new[0]
        state = tuple(_replaced(old, now) for old, now in zip(state, new, strict=True))
    return torch.cat(outputs), state


def _replaced(old: Tensor, first: Tensor) -> Tensor:
    """`old` with its first rows replaced."""
    return first if len(first) == len(old) else torch.cat([first, old[len(first) :]])


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    torch.lstm: partial(_recur, _lstm),
    torch.gru: partial(_recur, _gru),
    torch.rnn_tanh: partial(_recur, partial(_rnn, torch.tanh)),
    torch.rnn_relu: partial(_recur, partial(_rnn, torch.relu)),
    torch.lstm_cell: partial(_cell, _lstm),
    torch.gru_cell: partial(_cell, _gru),
    torch.rnn_tanh_cell: partial(_cell, partial(_rnn, torch.tanh)),
    torch.rnn_relu_cell: partial(_cell, partial(_rnn, torch.relu)),
}
