"""Copies of a model that refer to nothing of the original: not through hooks, closures or methods either."""

from __future__ import annotations

import copy
import dis
import functools
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pimcal.errors import DataError

_COMPILED = "_orig_mod"  # what torch.compile calls the module that it wraps


def copy_model(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy; objects that `memo` has under their id are taken from there, as `copy.deepcopy` does.

    Functions that hooks and attributes hold are bound to the copy wherever they refer to a module of the original. A
    compiled module is copied as what it was compiled from.

    Raises DataError for what cannot be copied, and for a hook that reaches the original through a global name.
    """
    modules = [*model.modules()]
    memo |= {id(t): t.detach().clone() for m in modules for t in _computed_tensors(vars(m)) if id(t) not in memo}
    try:
        _uncompiled(model, memo)
        twin = copy.deepcopy(model, memo)
    except Exception as error:
        raise _not_copied(model, memo, error) from error
    _Rebinding(model, memo).rebind(twin)
    return twin


def _computed_tensors(value: Any) -> Iterator[Tensor]:
    """Tensors that torch does not copy, as they were computed with gradients: pruned or normalised weights."""
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, Tensor):
            if not item.is_leaf:
                yield item
        elif isinstance(item, dict | list | tuple):
            yield from _computed_tensors(item)


def _uncompiled(model: nn.Module, memo: dict[int, Any]) -> None:
    """Let a copy of `model` have copies of the plain modules where torch.compile wrapped them."""
    for module in reversed([*model.modules()]):  # the innermost first
        if _COMPILED in module._modules:
            memo[id(module)] = copy.deepcopy(module._modules[_COMPILED], memo)


def plain_name(name: str) -> str:
    """A module's name without the wrappers of torch.compile."""
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def _not_copied(model: nn.Module, memo: dict[int, Any], error: Exception) -> DataError:
    reason = f"{type(error).__name__}: {error}"
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute.startswith("_") and attribute in _OWN_ATTRIBUTES:
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception as cause:
                where = f"{name or type(model).__name__}.{attribute}"
                remedy = _remedy(value)
                return DataError(f"{where} cannot be copied ({type(cause).__name__}: {cause}); {remedy}")
    return DataError(f"{type(model).__name__} cannot be copied ({reason}); deploy a freshly loaded model")


def _remedy(value: Any) -> str:
    if isinstance(value, Tensor):
        return "detach it from its training graph, or deploy a freshly loaded model"
    return (
        f"a {type(value).__name__} belongs to one model only: remove it before you deploy the model, or give its class "
        "a __deepcopy__"
    )


_OWN_ATTRIBUTES = frozenset(vars(nn.Module())) - {"_parameters", "_buffers"}


class _Rebinding:
    """Finds what still refers to modules of the original, and lets it refer to the copy's."""

    def __init__(self, original: nn.Module, memo: dict[int, Any]) -> None:
        self._twins = {id(m): memo[id(m)] for m in original.modules() if id(m) in memo}
        self._originals = {id(m): (name, m) for name, m in original.named_modules()}
        self._owned = {id(value) for value in memo.values()}  # objects that are the copy's own
        self._functions: dict[int, tuple[Any, Any]] = {}  # with what it was made of, so that ids stay unique
        self._where = ""

    def rebind(self, twin: nn.Module) -> None:
        for name, module in twin.named_modules():
            for attribute, value in [*vars(module).items()]:
                if attribute == "_modules":
                    continue
                self._where = f"{name or 'the model'}.{attribute}"
                new = self._bound(value, set())
                if new is not value:
                    vars(module)[attribute] = new

    def _bound(self, value: Any, path: set[int]) -> Any:
        """`value`, or what takes its place in the copy."""
        if id(value) in self._twins:
            return self._twins[id(value)]
        if id(value) in path or isinstance(value, _LEAVES):
            return value
        binder = next((bind for kind, bind in _BINDERS if isinstance(value, kind)), _Rebinding._object)
        return binder(self, value, path | {id(value)})

    def _function(self, function: types.FunctionType, path: set[int]) -> Any:
        if id(function) in self._functions:
            return self._functions[id(function)][0]
        self._refuse_globals(function)
        cells = function.__closure__ or ()
        old = [*map(_content, cells), function.__defaults__, function.__kwdefaults__, *vars(function).values()]
        new = [self._bound(part, path) for part in old]
        if all(a is b for a, b in zip(old, new, strict=True)):
            return function
        closure = tuple(
            cell if a is b else types.CellType(b) for cell, a, b in zip(cells, old, new[: len(cells)], strict=False)
        )
        defaults, keywords, *attributes = new[len(cells) :]
        twin = types.FunctionType(function.__code__, function.__globals__, function.__name__, defaults, closure)
        twin.__kwdefaults__ = keywords
        vars(twin).update(zip(vars(function), attributes, strict=True))
        twin.__qualname__, twin.__doc__, twin.__module__ = function.__qualname__, function.__doc__, function.__module__
        self._functions[id(function)] = (twin, function)
        return twin

    def _refuse_globals(self, function: types.FunctionType) -> None:
        for name in _globals_of(function.__code__):
            found = self._originals.get(id(function.__globals__.get(name)))
            if found is not None:
                what = f"layer {found[0]} of the model" if found[0] else "the model itself"
                code = function.__code__
                raise DataError(
                    f"{self._where}: the function {function.__qualname__} ({code.co_filename}:{code.co_firstlineno}) "
                    f"uses the global '{name}', which is {what}: it would work on the original instead of the deployed "
                    "copy; let it use the module that a hook gets as its first argument"
                )

    def _method(self, method: types.MethodType, path: set[int]) -> Any:
        owner, function = self._bound(method.__self__, path), self._bound(method.__func__, path)
        same = owner is method.__self__ and function is method.__func__
        return method if same else types.MethodType(function, owner)

    def _partial(self, value: functools.partial[Any], path: set[int]) -> Any:
        func, args = self._bound(value.func, path), self._bound(value.args, path)
        keywords = self._bound(value.keywords, path)
        same = func is value.func and args is value.args and keywords is value.keywords
        return value if same else type(value)(func, *args, **keywords)

    def _weak(self, reference: weakref.ref[Any], path: set[int]) -> Any:
        target = reference()
        new = self._bound(target, path)
        return reference if new is target else weakref.ref(new)

    def _mapping(self, value: Any, path: set[int]) -> Any:
        """In place if the container is the copy's own; one that only a function has is made anew."""
        new = {key: self._bound(item, path) for key, item in value.items()}
        if all(new[key] is item for key, item in value.items()):
            return value
        if id(value) not in self._owned:
            return new
        for key, item in new.items():
            value[key] = item
        return value

    def _sequence(self, value: Any, path: set[int]) -> Any:
        new = [self._bound(item, path) for item in value]
        if all(a is b for a, b in zip(value, new, strict=True)):
            return value
        if isinstance(value, list) and id(value) in self._owned:
            value[:] = new
            return value
        return type(value)(*new) if hasattr(value, "_fields") else type(value)(new)

    def _object(self, value: Any, path: set[int]) -> Any:
        """An object of the user's: its attributes are looked at, and set in place."""
        for name, item in [*getattr(value, "__dict__", {}).items()]:
            new = self._bound(item, path)
            if new is item:
                continue
            if id(value) not in self._owned:
                raise DataError(
                    f"{self._where}: its {type(value).__name__} is shared by the model and its deployed copy, and "
                    f"refers to the model in '{name}'; let its class be copied with the model, or remove it first"
                )
            vars(value)[name] = new
        return value


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet
        return None


def _globals_of(code: types.CodeType) -> Iterator[str]:
    """The global names that a function reads, those of functions within it among them."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals_of(constant)


# Nothing in these refers to a module, or they are no data.
_LEAVES = (
    Tensor, str, bytes, int, float, complex, type(None), type, types.ModuleType, types.BuiltinFunctionType, nn.Module,
    torch.dtype, torch.device, torch.Size, torch.Generator,
)  # fmt: skip
_BINDERS: tuple[tuple[Any, Callable[[_Rebinding, Any, set[int]], Any]], ...] = (
    (types.FunctionType, _Rebinding._function),
    (types.MethodType, _Rebinding._method),
    (functools.partial, _Rebinding._partial),
    (weakref.ref, _Rebinding._weak),
    (Mapping, _Rebinding._mapping),
    (list | tuple | set | frozenset, _Rebinding._sequence),
)
