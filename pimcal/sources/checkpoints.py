"""Read a file of weights without running code from it, and fit the weights to a model."""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pimcal.errors import DataError

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every key
_SHOWN = 3

_CONVERT = (
    "convert it where you trust it: load it there, then "
    'safetensors.torch.save_file(model.state_dict(), "weights.safetensors")'
)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in `path`: safetensors by its ending, else a torch file that holds only plain data.

    A state dict in a dict, under `state_dict`, `model_state_dict` or `model`, is taken out.

    Raises:
        DataError: the file is absent or damaged, would run code, or holds no state dict.
    """
    if not path.is_file():
        raise DataError(f"there is no weights file {path}")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return _state_dict(content, path)


def load_weights(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy `state`, read from `path`, into `model`.

    Counters of batches (`num_batches_tracked`) may be absent: inference does not use them. Of tied tensors
    one is enough.

    Raises:
        DataError: names or shapes differ; the message lists the first few of each kind.
    """
    own = model.state_dict()
    state = _without_prefixes(state, own)
    missing = _missing(own, state)
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} is {list(state[key].shape)} in the file, {list(own[key].shape)} in the model"
        for key in own.keys() & state.keys()
        if isinstance(own[key], Tensor) and own[key].shape != state[key].shape
    ]
    problems = [
        f"{label}: {_first(names)}"
        for label, names in (
            ("missing in the file", missing),
            ("unknown to the model", unexpected),
            ("of another shape", sorted(shapes)),
        )
        if names
    ]
    if problems:
        raise DataError(f"the weights in {path} do not fit the model. " + ". ".join(problems))
    model.load_state_dict(state, strict=False)


def check_finite(model: nn.Module, source: str) -> None:
    """Raise `DataError` naming the first parameter or running statistic of `model` with a NaN or an infinity.

    Other buffers are left alone: attention masks hold infinities on purpose.
    """
    statistics = [(name, b) for name, b in model.named_buffers() if name.endswith(("running_mean", "running_var"))]
    for name, tensor in [*model.named_parameters(), *statistics]:
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise DataError(f"{source}: {name} has {bad} NaN or infinite values of {tensor.numel()}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is no readable safetensors file, or is cut off: {error}") from error


def _read_torch(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            if not file.read(2).startswith((b"PK", pickle.PROTO)):
                raise DataError(f"{path} is neither a torch file nor named .safetensors; {_CONVERT}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's hints on pickle protocols; what counts is said below
            return torch.load(path, map_location="cpu", weights_only=True)
    except DataError:
        raise
    except pickle.UnpicklingError as error:
        raise DataError(_refusal(path, _asked_for(path, str(error)))) from error
    except Exception as error:  # torch lets anything through that a damaged file can cause
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} is no readable torch file, or is cut off: {reason}") from error


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


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)
        if inner and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in inner.items()):
            return dict(inner)
    raise DataError(f"{path} holds no state dict (names and tensors); save model.state_dict()")


def _missing(own: Mapping[str, Any], state: Mapping[str, Tensor]) -> list[str]:
    given = {own[key].data_ptr() for key in state if isinstance(own.get(key), Tensor)}
    return [
        key
        for key, value in own.items()
        if key not in state
        and not key.endswith("num_batches_tracked")
        and not (isinstance(value, Tensor) and value.data_ptr() in given)  # tied to a tensor in the file
    ]


def _without_prefixes(state: Mapping[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state) and not any(key.startswith(prefix) for key in own):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)


def _first(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
