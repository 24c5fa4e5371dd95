"""Fit the names of a checkpoint to those of a model, and load it.

Names differ by what wraps a network: containers in the file, a prefix that all names share, and wrappers such as
DataParallel or torch.compile, which put a word of theirs anywhere into a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pimcal.blame import blamed_on
from pimcal.errors import DataError
from pimcal.sources.checkpoints import EXTRA_STATE, Checkpoint

_WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"))
_COUNTER = "num_batches_tracked"  # inference does not use it
_PROFILER = ("total_ops", "total_params")  # what a profiler of operations leaves in a model
_SHOWN = 3
_SHARD = re.compile(r"-\d+-of-(\d+)\.")


def load_weights(model: nn.Module, found: Checkpoint, path: Path) -> list[str]:
    """Copy what was read from `path` into `model`, and say what was stripped from names or ignored.

    Counters of batches (`num_batches_tracked`) may be absent: inference does not use them. Of tied tensors one is
    enough. Ignored are entries that are no weights, buffers that the model no longer keeps in its state, and, where the
    weights are under a prefix, what is beside it.

    Raises:
        DataError: names, shapes or kinds of numbers differ, or several sets of weights in the file fit; the message
            lists the first few of each kind, and what was tried.
    """
    names = _Names(model, found)
    fit = _only(names.fits, path)
    problems = fit.problems()
    if problems:
        raise DataError(
            f"the weights in {path} do not fit the model. {'. '.join(problems)}. {names.tried(fit)}{_shard_hint(path)}"
        )
    with blamed_on("loading the model's state"):
        model.load_state_dict(fit.state(), strict=False)
    remark = "; ".join(fit.remarks())
    return [f"{path}: {remark}"] if remark else []


class _Names:
    """Both sides' names without wrappers, and the ways in which they fit."""

    def __init__(self, model: nn.Module, found: Checkpoint) -> None:
        self.own: dict[str, Any] = model.state_dict()
        plain = {_unwrapped(name): name for name in self.own}
        self.keeps_wrappers = len(plain) < len(self.own)  # names that only wrappers tell apart
        self.raw = {self.plain(name): name for name in self.own}
        made = {self.plain(name): buffer for name, buffer in model.named_buffers()}
        self.remade = {name: buffer for name, buffer in made.items() if name not in self.raw}
        self.found = found
        self.theirs: dict[str, list[str]] = {}
        for name in found.tensors:
            self.theirs.setdefault(self.plain(name), []).append(name)

    def plain(self, name: str) -> str:
        """A name without wrappers."""
        return name if self.keeps_wrappers else _unwrapped(name)

    @cached_property
    def fits(self) -> list[_Fit]:
        """The best first; those that give all that the model needs are equally good."""
        pairs = [("", "")]
        for own in ("", *_common_prefixes(self.needed)):
            pairs += [(theirs, own) for theirs in self._prefixes(own)]
        fits = [_Fit(self, *prefixes) for prefixes in dict.fromkeys(pairs)]
        return sorted(fits, key=lambda f: (not f.is_complete, len(f.own_prefix), -len(f.pairs), len(f.prefix)))

    @cached_property
    def needed(self) -> list[str]:
        """What must be in a file, save where tied: tensors but for counters."""
        return [p for p, raw in self.raw.items() if isinstance(self.own[raw], Tensor) and not p.endswith(_COUNTER)]

    def _prefixes(self, own: str) -> Iterable[str]:
        """What stands in the file before names of the model, which are without `own`."""
        needed = {name.removeprefix(own) for name in self.needed}
        for name in self.theirs:
            parts = name.split(".")
            starts = ("".join(f"{part}." for part in parts[:i]) for i in range(len(parts)))
            yield from (start for start in starts if name.removeprefix(start) in needed)

    def tried(self, best: _Fit) -> str:
        names = list(self.found.tensors)
        prefixes = [repr(fit.prefix or f"{fit.own_prefix} of the model") for fit in self.fits if fit.any_prefix]
        without = f", and without the prefix {' or '.join(prefixes[:_SHOWN])}" if prefixes else ""
        told = f" (listed is how they differ without {best.prefix!r})" if best.prefix else ""
        return (
            f"The file has {_first(names)}. Tried were its names as they are, without wrappers "
            f"({', '.join(sorted(_WRAPPERS))}){without}{told}"
        )


@dataclass(frozen=True)
class _Fit:
    """The file's names without `prefix` against the model's without `own_prefix`."""

    names: _Names
    prefix: str
    own_prefix: str

    @cached_property
    def pairs(self) -> dict[str, str]:
        """The model's names, and the file's for the same tensor."""
        found = ((plain, f"{self.prefix}{plain.removeprefix(self.own_prefix)}") for plain in self.names.raw)
        return {plain: self.names.theirs[theirs][0] for plain, theirs in found if theirs in self.names.theirs}

    @property
    def any_prefix(self) -> bool:
        return bool(self.prefix or self.own_prefix)

    @cached_property
    def missing(self) -> list[str]:
        given = {_place(self._own(plain)) for plain in self.pairs}
        return [p for p in self.names.needed if p not in self.pairs and _place(self._own(p)) not in given]

    @cached_property
    def is_complete(self) -> bool:
        return bool(self.pairs) and not self.missing and not self._unequal_shapes()

    def tensors(self) -> dict[str, Tensor]:
        """By the model's names, without wrappers."""
        return {plain: self.names.found.tensors[raw] for plain, raw in self.pairs.items()}

    def state(self) -> dict[str, Any]:
        """What the model is to load."""
        extra = {self.names.plain(name): value for name, value in self.names.found.extra.items()}
        found: dict[str, Any] = dict(self.tensors())
        for plain, raw in self.names.raw.items():
            theirs = f"{self.prefix}{plain.removeprefix(self.own_prefix)}"
            if raw.endswith(EXTRA_STATE) and theirs in extra:
                found[plain] = extra[theirs]
        return {self.names.raw[plain]: value for plain, value in found.items()}

    def problems(self) -> list[str]:
        kinds = (
            ("missing in the file", self.missing),
            ("unknown to the model", self.unknown),
            ("of another shape", self._unequal_shapes()),
            ("of another kind", self._unequal_kinds()),
            ("several in the file", self._doubles()),
            ("tied in the model but not in the file", self._untied()),
        )
        return [f"{label}: {_first(names)}" for label, names in kinds if names]

    def remarks(self) -> list[str]:
        """What was stripped, taken as something else, or ignored."""
        wrappers = {part for name in self.pairs.values() for part in name.split(".")} & _WRAPPERS
        own_wrappers = {part for plain in self.pairs for part in plain.split(".")}
        stripped = sorted(wrappers - own_wrappers) if not self.names.keeps_wrappers else []
        lacking = [raw for raw in self.names.raw.values() if raw.endswith(EXTRA_STATE) and raw not in self.state()]
        told = (
            ("the weights are those under", [self.prefix] if self.prefix else []),
            ("the model's names begin with", [self.own_prefix] if self.own_prefix else []),
            ("stripped from names", [f"{part}." for part in stripped]),
            ("ignored, beside the weights", [*self._beside, *self.names.found.others]),
            ("ignored, as they are no parameters", self._no_parameters),
            ("ignored, as the model makes these buffers itself", self._remade(same=True)),
            ("ignored, as the model makes these buffers itself, though with other values", self._remade(same=False)),
            ("ignored, as the model has no such extra state", self._extra_unused()),
            ("not in the file and left as the model made it", lacking),
        )
        return [f"{label}: {_first(names)}" for label, names in told if names]

    @cached_property
    def _within(self) -> list[str]:
        """The file's names under the prefix that are none of the model's, without the prefix."""
        used = set(self.pairs.values())
        names = ((plain, raw) for plain, raws in self.names.theirs.items() for raw in raws)
        return [
            plain.removeprefix(self.prefix) for plain, raw in names if plain.startswith(self.prefix) and raw not in used
        ]

    @property
    def _beside(self) -> list[str]:
        return [name for name in self.names.theirs if not name.startswith(self.prefix)]

    @property
    def unknown(self) -> list[str]:
        known = {*self._no_parameters, *self._buffers}
        return [name for name in self._within if name not in known and name not in self.names.raw]

    @property
    def _buffers(self) -> list[str]:
        return [name for name in self._within if f"{self.own_prefix}{name}" in self.names.remade]

    @property
    def _no_parameters(self) -> list[str]:
        return [
            name for name in self._within if name not in self._buffers and _is_no_parameter(name, self._their(name))
        ]

    def _remade(self, *, same: bool) -> list[str]:
        return [name for name in self._buffers if self._is_as_made(name) is same]

    def _is_as_made(self, name: str) -> bool:
        made = self.names.remade[f"{self.own_prefix}{name}"]
        theirs = self._their(name)
        return made.shape == theirs.shape and torch.equal(made.to(theirs), theirs)

    def _extra_unused(self) -> list[str]:
        used = {f"{self.prefix}{plain.removeprefix(self.own_prefix)}" for plain in self.names.raw}
        return [name for name in self.names.found.extra if self.names.plain(name) not in used]

    def _their(self, name: str) -> Tensor:
        return self.names.found.tensors[self.names.theirs[f"{self.prefix}{name}"][0]]

    def _own(self, plain: str) -> Any:
        return self.names.own[self.names.raw[plain]]

    def _unequal_shapes(self) -> list[str]:
        return [
            f"{plain} is {list(theirs.shape)} in the file, {list(self._own(plain).shape)} in the model"
            for plain, theirs in sorted(self.tensors().items())
            if theirs.shape != self._own(plain).shape
        ]

    def _unequal_kinds(self) -> list[str]:
        """Codes of quantised weights, for example, are no weights."""
        return [
            f"{plain} is {theirs.dtype} in the file, {self._own(plain).dtype} in the model"
            for plain, theirs in sorted(self.tensors().items())
            if _kind(theirs) != _kind(self._own(plain))
        ]

    def _doubles(self) -> list[str]:
        """Names that are the same without wrappers, of other values."""
        tensors = self.names.found.tensors
        several = [self.names.theirs[self.names.plain(raw)] for raw in self.pairs.values()]
        return [" and ".join(raws) for raws in several if not all(_equal(tensors[raws[0]], tensors[r]) for r in raws)]

    def _untied(self) -> list[str]:
        found: dict[Any, str] = {}
        unequal = []
        for plain, theirs in self.tensors().items():
            first = found.setdefault(_place(self._own(plain)), plain)
            if not _equal(self.tensors()[first], theirs):
                unequal.append(f"{first} and {plain}")
        return unequal


def _only(fits: Sequence[_Fit], path: Path) -> _Fit:
    """The best of the fits. Raises DataError where another, of other values, is as good."""
    best, *others = fits
    good = [fit for fit in others if fit.is_complete and fit.own_prefix == best.own_prefix and not _same(best, fit)]
    if not good:
        same = [fit for fit in others if fit.is_complete and best.is_complete and _same(best, fit)]
        return next((fit for fit in (best, *same) if not fit.problems()), best)
    places = " and ".join(repr(fit.prefix or "the names as they are") for fit in (best, *good))
    raise DataError(
        f"{path} holds several sets of weights that fit the model: {places}; save the one that is meant into a file of "
        "its own"
    )


def _same(one: _Fit, other: _Fit) -> bool:
    theirs = other.tensors()
    return all(plain in theirs and _equal(tensor, theirs[plain]) for plain, tensor in one.tensors().items())


def _equal(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other))


def _unwrapped(name: str) -> str:
    parts = name.split(".")
    return ".".join([part for part in parts[:-1] if part not in _WRAPPERS] + parts[-1:])


def _common_prefixes(names: Sequence[str]) -> list[str]:
    """What all names begin with, in whole parts, and at least one part less than a name."""
    parts = [name.split(".")[:-1] for name in names]
    common = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))]
    return [".".join(common[:i]) + "." for i in range(1, len(common) + 1)]


def _place(value: Any) -> Any:
    """The same for tensors that are tied, and for no others."""
    if isinstance(value, Tensor) and value.numel():
        return value.data_ptr(), value.shape, value.stride()
    return id(value)


def _kind(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    return "floating" if tensor.is_floating_point() else "whole"


def _is_no_parameter(name: str, tensor: Tensor) -> bool:
    """Masks, indices and counters, which are never trained, and what tools add."""
    trained = tensor.is_floating_point() or tensor.is_complex()
    return not trained or tensor.dim() == 0 or name.rpartition(".")[2] in _PROFILER


def _shard_hint(path: Path) -> str:
    if found := _SHARD.search(path.name):
        return f". It is one of {int(found[1])} files: name the index beside it, which ends in .index.json"
    return ""


def _first(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
