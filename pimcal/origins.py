"""Which tensors of a forward pass come from a model's own tensors alone, and not from its inputs.

Followed by what torch is asked to do, so that weights are recognised in whatever form a model uses them: a view, an
index, a transpose, or something computed from parameters.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

_MARK = "_pimcal_origin"  # an attribute of buffers, which copies of them have, too


@dataclass(frozen=True, slots=True)
class Origin:
    """What a tensor was computed from.

    `label`: the parameter with what was taken of it, such as `experts.down_proj[4]`; of several the largest.
    `expression`: the same for the same computation on the same tensors. `parameters`: False if only buffers and
    constants went into it. `elements`: how many the labelled parameter has.
    """

    label: str
    expression: int
    parameters: bool
    elements: int


def version_of(tensor: Tensor) -> int:
    """Grows whenever a tensor is changed in place; tensors made in inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version


class Origins:
    """The origins of the tensors of one model: of its parameters and buffers, and of what is computed from them."""

    def __init__(self, *models: nn.Module) -> None:
        """`models` have the same tensors, or copies of them, under the same names."""
        self._models = models
        self._own: dict[int, tuple[Tensor, Origin]] = {}
        self._computed: dict[int, tuple[weakref.ref[Tensor], Origin, int]] = {}
        self._memory: dict[int, str] = {}
        self._apart: frozenset[int] = frozenset()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Of copies of the models, whose tensors are others."""
        twin = type(self)()
        memo[id(self)] = twin
        twin._models = copy.deepcopy(self._models, memo)
        return twin

    def begin_pass(self, apart_from: nn.Module | None = None) -> None:
        """Know the models' tensors as they are now, and forget what an earlier pass computed.

        What `apart_from`, one of the models, does is nobody's business in this pass: its parameters are no weights.
        """
        self._apart = frozenset() if apart_from is None else frozenset(map(id, apart_from.parameters()))
        self._own.clear()
        self._computed.clear()
        self._memory.clear()
        for model in self._models:
            self._know_all(model)

    def _know_all(self, model: nn.Module) -> None:
        for name, tensor in model.named_parameters():  # of a tied one the first name
            self._know(name, tensor)
        for name, buffer in model.named_buffers():
            origin = Origin(name, hash(name), False, buffer.numel())
            setattr(buffer, _MARK, origin)
            self._remember(buffer, origin)

    def parameter_of(self, tensor: Tensor) -> str | None:
        """The name of the parameter whose memory a tensor is a view of; None if it has memory of its own."""
        return self._memory.get(_memory_of(tensor))

    def of(self, tensor: Tensor) -> Origin | None:
        """Where a tensor comes from; None if inputs went into it, or nobody knows."""
        if id(tensor) in self._apart:
            return None
        own = self._own.get(id(tensor))
        if own is not None and own[0] is tensor:
            return own[1]
        found = self._computed.get(id(tensor))
        if found is not None and found[0]() is tensor and found[2] == version_of(tensor):
            return found[1]
        if isinstance(tensor, nn.Parameter):
            return self._replaced(tensor)
        if found is None or found[0]() is not tensor:
            mark: Origin | None = getattr(tensor, _MARK, None)  # a buffer's copy, first seen
            if mark is not None:
                self._remember(tensor, mark)
            return mark
        return None

    def _replaced(self, parameter: Tensor) -> Origin:
        """Of a parameter that was put in another one's place, or added, since the model was made known."""
        for model in self._models:
            for name, tensor in model.named_parameters():
                if tensor is parameter:
                    return self._know(name, tensor)
        label = f"unregistered{list(parameter.shape)}"  # of a layer in a plain list, say: known by its values
        return Origin(label, hash(label), True, parameter.numel())

    def _know(self, name: str, parameter: Tensor) -> Origin:
        origin = Origin(name, hash(name), True, parameter.numel())
        self._own[id(parameter)] = (parameter, origin)
        if memory := _memory_of(parameter):
            self._memory.setdefault(memory, name)
        return origin

    def follow(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Tell of a call of torch's, so that what it computed from known tensors alone is known as well."""
        origins = []
        for tensor in tensors_of((args, kwargs.values())):
            if tensor is result:  # changed in place: its own origin counts, whatever its version is by now
                found = self._computed.get(id(tensor))
                origin = found[1] if found is not None and found[0]() is tensor else self.of(tensor)
            else:
                origin = self.of(tensor)
            if origin is None:
                self._computed.pop(id(result), None)
                return
            origins.append(origin)
        if isinstance(result, Tensor):
            self._remember(result, _derived(function, args, kwargs, origins, None))
        elif isinstance(result, tuple | list):
            for i, part in enumerate(result):
                if isinstance(part, Tensor):
                    self._remember(part, _derived(function, args, kwargs, origins, i))

    def _remember(self, tensor: Tensor, origin: Origin) -> None:
        if id(tensor) not in self._own:
            key = id(tensor)
            self._computed[key] = (weakref.ref(tensor), origin, version_of(tensor))


def _derived(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], origins: list[Origin], part: int | None
) -> Origin:
    name = getattr(function, "__name__", "")
    plain = (_plain(args), _plain(tuple(sorted(kwargs.items()))))
    expression = hash((name, part, plain, *(origin.expression for origin in origins)))
    main = max(origins, key=lambda o: (o.parameters, o.elements), default=None)
    if main is None:
        return Origin("", expression, False, 0)
    label = main.label + _taken(name, args, part)
    return Origin(label, expression, any(o.parameters for o in origins), main.elements)


def _taken(function: str, args: tuple[Any, ...], part: int | None) -> str:
    """What of a parameter a call took, as an index: "[4]"; empty if all of it."""
    if part is not None:
        return f"[{part}]"
    if function == "__getitem__" and len(args) == 2:
        return f"[{_index(args[1])}]"
    if function == "select" and len(args) == 3:
        return f"[{', '.join([':'] * int(args[1]) + [str(args[2])])}]"
    return ""


def _index(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_index, value))
    if isinstance(value, slice):
        ends = ("" if end is None else str(end) for end in (value.start, value.stop))
        return ":".join(ends)
    return "..." if value is Ellipsis or isinstance(value, Tensor | list) else str(value)


def _plain(value: Any) -> Any:
    """What of a call's arguments tells it from other calls, in a form that can be hashed."""
    if isinstance(value, tuple | list):
        return tuple(_plain(item) for item in value)
    if isinstance(value, slice):
        return (value.start, value.stop, value.step)
    return value if isinstance(value, int | float | str | bool | None) else type(value).__name__


def _memory_of(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a tensor without memory, such as one within torch.vmap
        return 0


def tensors_of(value: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among a call's arguments, those in lists among them."""
    for item in value:
        if isinstance(item, Tensor):
            yield item
        elif not isinstance(item, str | bytes | int | float | None) and isinstance(item, Iterable):
            yield from tensors_of(item)
