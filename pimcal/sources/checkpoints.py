"""Read a file of weights, or several with an index, without running code from them."""

from __future__ import annotations

import argparse
import json
import pathlib
import pickle
import pickletools
import re
import types
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pimcal.errors import DataError

EXTRA_STATE = "_extra_state"  # torch's name for what a module adds to its state: any plain data

_IN_FOLDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_OPTIMIZER = re.compile("optim", re.IGNORECASE)  # its averages have the names and shapes of the weights
_DEEPEST = 8

_CONVERT = (
    "convert it where you trust it: load it there, then "
    'safetensors.torch.save_file(model.state_dict(), "weights.safetensors")'
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a file holds, under dotted names: `tensors`, `extra` states of modules, and the names of all else."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def read_checkpoint(path: Path) -> Checkpoint:
    """What is in `path`: safetensors, a torch file that holds only plain data, an index of such files, or a folder.

    Dicts in dicts become dotted names.

    Raises:
        DataError: a file is absent or damaged, would run code, or holds no tensors with names.
    """
    if path.is_dir():
        path = _in_folder(path)
    content = _read_index(path) if path.suffix == ".json" else _read_file(path)
    found = Checkpoint()
    for name, value in _leaves(content):
        if isinstance(value, Tensor) and not name.endswith(EXTRA_STATE):
            found.tensors[name] = value
        elif name.endswith(EXTRA_STATE):
            found.extra[name] = value
        else:
            found.others.append(name)
    if not found.tensors:
        raise DataError(f"{path} holds no state dict (names and tensors); save model.state_dict()")
    return found


def _leaves(content: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Tensors and other entries by their names; what is no dict or no weights is one entry."""
    deeper = isinstance(content, Mapping | list | tuple) and depth < _DEEPEST and not _OPTIMIZER.search(name)
    if name.endswith(EXTRA_STATE) or not deeper or not _holds_tensors(content):
        if name:
            yield name, content
        return
    items = content.items() if isinstance(content, Mapping) else enumerate(content)
    for key, value in items:
        yield from _leaves(value, f"{name}.{key}" if name else str(key), depth + 1)


def _holds_tensors(content: Any, depth: int = 0) -> bool:
    if isinstance(content, Tensor):
        return True
    values = content.values() if isinstance(content, Mapping) else content
    nested = isinstance(content, Mapping | list | tuple) and depth < _DEEPEST
    return nested and any(_holds_tensors(value, depth + 1) for value in values)


def _in_folder(folder: Path) -> Path:
    for name in _IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"there is no weights file in the folder {folder} ({', '.join(_IN_FOLDER)}); name the file itself")


def _read_index(path: Path) -> dict[str, Tensor]:
    """The tensors of all shards that an index names, which lie beside it."""
    shards = _shards(path)
    absent = [name for name in shards if not (path.parent / name).is_file()]
    if absent:
        raise DataError(f"{path} names {len(shards)} files, of which {', '.join(absent)} is not there beside it")
    found: dict[str, Tensor] = {}
    for shard, names in shards.items():
        content = _read_file(path.parent / shard)
        lacking = [name for name in names if not isinstance(content.get(name), Tensor)]
        if lacking:
            raise DataError(f"{path.parent / shard} lacks {lacking[0]}, which {path} says it has; fetch both again")
        found |= {name: content[name] for name in names}
    return found


def _shards(path: Path) -> dict[str, list[str]]:
    """The names of tensors by the file that has them."""
    if not path.is_file():
        raise DataError(f"there is no weights file {path}")
    shards: dict[str, list[str]] = {}
    try:
        for name, shard in json.loads(path.read_text(encoding="utf-8"))["weight_map"].items():
            if shard != Path(shard).name:
                raise ValueError(f"{shard!r} is no file beside it")
            shards.setdefault(shard, []).append(name)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is no index of weights ('weight_map' with names and files): {error}") from error
    return shards


def _read_file(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"there is no weights file {path}")
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if start.startswith((b"PK", pickle.PROTO)):
        return _read_torch(path)
    if path.suffix == ".safetensors" or start[8:] == b"{":  # behind the length of its header
        return _read_safetensors(path)
    raise DataError(f"{path} is neither a torch file nor safetensors; {_CONVERT}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is no readable safetensors file, or is cut off: {error}") from error


def _read_torch(path: Path) -> Any:
    _check_no_program(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_PLAIN):
            warnings.simplefilter("ignore")  # torch's hints on pickle protocols; what counts is said below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DataError(_refusal(path, _asked_for(path, str(error)))) from error
    except Exception as error:  # torch lets anything through that a damaged file can cause
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} is no readable torch file, or is cut off: {reason}") from error


def _check_no_program(path: Path) -> None:
    """Refuse TorchScript and exported programs, which are zip files like torch's others."""
    names: list[str] = []
    with suppress(zipfile.BadZipFile, OSError, ValueError), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        raise DataError(
            f"{path} is TorchScript, a program and no file of weights; take those out where you trust it: "
            f'torch.save(torch.jit.load("{path.name}").state_dict(), "weights.pt")'
        )
    if any(name.endswith("/archive_format") for name in names):
        raise DataError(
            f"{path} is a program of torch.export and no file of weights; take them out where you trust it: "
            f'torch.save(torch.export.load("{path.name}").state_dict, "weights.pt")'
        )


def _plain_globals() -> list[Any]:
    """What people save beside weights, and what only holds data: settings, numbers and paths."""
    arrays: list[Callable[..., Any]] = [np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]]  # type: ignore[list-item]
    renamed = [(f, f"numpy.{core}.multiarray.{f.__name__}") for f in arrays for core in ("core", "_core")]
    number_types = [type(np.dtype(code)) for code in "?bhilqBHILQefdFD"]
    paths = [(kind, f"pathlib.{kind.__name__}") for kind in (pathlib.PosixPath, pathlib.PurePosixPath)]
    later = [(kind, f"pathlib._local.{kind.__name__}") for kind in (pathlib.PosixPath, pathlib.PurePosixPath)]
    return [
        argparse.Namespace, types.SimpleNamespace, np.dtype, np.ndarray, *number_types, *renamed, *paths, *later,
    ]  # fmt: skip


_PLAIN = _plain_globals()


def _refusal(path: Path, wanted: str | None) -> str:
    if wanted:
        return f"{path} is refused: its pickle asks for {wanted}, and pimcal loads only tensors; {_CONVERT}"
    return f"{path} is refused: it is no file of tensors, or its pickle holds more than those; {_CONVERT}"


def _asked_for(path: Path, message: str) -> str | None:
    """What a pickle asks for: as torch names it, or read from the bare pickle, which is not run."""
    if found := re.search(r"GLOBAL ([\w.]+)", message):
        return found[1]
    strings: list[str] = []
    with suppress(OSError, ValueError), path.open("rb") as file:
        for code, argument, _ in pickletools.genops(file):
            if code.name == "GLOBAL":
                return str(argument).replace(" ", ".")
            if code.name == "STACK_GLOBAL":
                return ".".join(strings[-2:])
            if isinstance(argument, str):
                strings.append(argument)
    return None
