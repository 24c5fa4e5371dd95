"""What a forward pass may write on a model: kept apart batch by batch, and put back when nobody needs it any more.

Modules, and the objects of other classes that they hold, stay what they are; their `__dict__` is exchanged as a whole.
So hooks, bound methods and whatever else refers to a module see what belongs to the batch whose turn it is, and a
change of turns costs next to nothing. What the attributes hold (tensors, lists, dictionaries) is copied.

Module-level variables, what a function closes over, and what cannot be copied (locks, open files) stay common to all.
"""

from __future__ import annotations

import argparse
import copy
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Contents = list[dict[str, Any]]  # the attributes of each owner
Path = tuple[Any, ...]  # attributes and keys on the way from the model to what it holds

_ATOMS = (type(None), bool, int, float, complex, str, bytes, type, types.FunctionType, types.BuiltinFunctionType)
_CONTAINERS = (list, tuple, set, frozenset, deque, Mapping)
_NAMESPACES = (types.SimpleNamespace, argparse.Namespace)
# What torch's modules keep for themselves: dictionaries whose values nobody writes to.
_INNER = frozenset(key for key, value in vars(nn.Module()).items() if isinstance(value, dict)) - {"_buffers"}


class ModelState:
    """The attributes of everything that a model consists of.

    `common`: tensors that no copy has of its own. `like`: the state of a copy of the model, which has gone on since:
    its numbers, tensors and containers of these, but not what is common there, are what this one starts with.
    """

    def __init__(self, model: nn.Module, common: Iterable[Tensor] = (), like: ModelState | None = None) -> None:
        found = _Found(model)
        self._owners, self._paths = list(found.owners.values()), list(found.owners)
        self._plain = [tensor for tensor in found.tensors if tensor.grad_fn is not None or not tensor.dim()]
        self._common = {id(value): value for value in (*common, *model.parameters(), *found.kept, *self._owners)}
        self._classes = {kind: _of_class(kind) for kind in {type(owner) for owner in self._owners}}
        self._own = self._start = self._taken()
        if like is not None:
            self._start = self._followed(like)

    def copy(self) -> Contents:
        """The attributes as they were at first, for one batch to write on."""
        memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in self._plain}  # copies of no graph
        memo |= self._common
        pairs = zip(self._owners, self._start, strict=True)
        with torch._C.DisableTorchFunction():  # copying is nothing that the model asks torch for
            return [_copied({**self._classes[type(owner)], **own}, memo) for owner, own in pairs]

    def put(self, contents: Contents) -> None:
        """From now on the model reads and writes these."""
        for owner, attributes in zip(self._owners, contents, strict=True):
            object.__setattr__(owner, "__dict__", attributes)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Within the block the model has a copy; whatever it writes there is gone afterwards."""
        before = self._taken()
        try:
            self.put(self.copy())
            yield
        finally:
            self.put(before)

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Within the block, for others, the model is what it was at first; what they write stays."""
        before = self._taken()
        try:
            self.put(self._own)
            yield
        finally:
            self.put(before)

    def _taken(self) -> Contents:
        return [vars(owner) for owner in self._owners]

    def _followed(self, like: ModelState) -> Contents:
        theirs = dict(zip(like._paths, like._own, strict=True))
        return [
            {**own, **_plain(theirs.get(path, {}), own, like._common)}
            for path, own in zip(self._paths, self._own, strict=True)
        ]


def _plain(theirs: dict[str, Any], own: dict[str, Any], common: Mapping[int, Any]) -> dict[str, Any]:
    """What a forward pass can have written there, buffers among it."""
    found = {key: value for key, value in theirs.items() if key not in _INNER and _is_plain(value, common)}
    if "_buffers" in theirs:
        buffers = {key: value for key, value in theirs["_buffers"].items() if _is_plain(value, common)}
        found["_buffers"] = {**own["_buffers"], **buffers}
    return found


def _is_plain(value: Any, common: Mapping[int, Any]) -> bool:
    if id(value) in common:
        return False
    if isinstance(value, _CONTAINERS):
        return all(_is_plain(item, common) for item in _inside(value).values())
    return isinstance(value, (*_ATOMS[:-2], Tensor))


class _Found:
    """`owners`: what has attributes, by its path. `kept`: what is to stay as it is, pimcal's own."""

    def __init__(self, model: nn.Module) -> None:
        self.owners: dict[Path, Any] = {}
        self.tensors: list[Tensor] = []
        self.kept: list[Any] = []
        seen: dict[int, Any] = {}
        todo: list[tuple[Path, Any]] = [((), model)]
        while todo:
            path, value = todo.pop()
            if not (isinstance(value, _ATOMS) or id(value) in seen):
                seen[id(value)] = value
                todo += [((*path, key), item) for key, item in self._noted(path, value).items()]

    def _noted(self, path: Path, value: Any) -> Mapping[Any, Any]:
        """What is to be looked at next."""
        if isinstance(value, Tensor):
            self.tensors.append(value)
        elif _is_pimcals(value):
            self.kept.append(value)
        elif _is_owner(value):
            self.owners[path] = value
            return {key: item for key, item in vars(value).items() if "_hooks" not in key}
        else:
            return _inside(value)
        return {}


def _is_pimcals(value: Any) -> bool:
    """Whether it is what took the place of a `forward`; the model's own modules may come from anywhere."""
    return type(value).__module__.partition(".")[0] == "pimcal" and not isinstance(value, nn.Module)


def _is_owner(value: Any) -> bool:
    if not type(value).__dictoffset__ or isinstance(value, (*_CONTAINERS, *_NAMESPACES, types.ModuleType, Enum)):
        return False
    return type(value).__module__.partition(".")[0] not in sys.stdlib_module_names and _can_be_exchanged(value)


def _can_be_exchanged(value: Any) -> bool:
    try:
        object.__setattr__(value, "__dict__", vars(value))
    except (AttributeError, TypeError):  # of a class in C
        return False
    return True


def _inside(value: Any) -> Mapping[Any, Any]:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, _CONTAINERS):
        return dict(enumerate(value))
    if isinstance(value, _NAMESPACES):
        return vars(value)
    if isinstance(value, types.MethodType):
        return {"self": value.__self__}
    if isinstance(value, partial):
        return {"func": value.func, "args": value.args, "keywords": value.keywords}
    return {}


def _copied(attributes: dict[str, Any], memo: dict[int, Any]) -> dict[str, Any]:
    return {
        key: value if isinstance(value, _ATOMS) else value.copy() if key in _INNER else _copied_value(value, memo)
        for key, value in attributes.items()
    }


def _copied_value(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, tuple) and all(isinstance(item, _ATOMS) for item in value):
        return value  # most of what modules have: sizes
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # a lock, an open file
        return value


def _of_class(kind: type) -> dict[str, Any]:
    """Lists, sets and dictionaries of a model's own classes: written through `self`, they would be common to all."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.partition(".")[0] not in (*sys.stdlib_module_names, "torch"):
            own = {key: value for key, value in vars(base).items() if isinstance(value, list | set | deque | dict)}
            found |= {key: value for key, value in own.items() if not key.startswith("__")}
    return found
