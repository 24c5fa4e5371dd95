"""Does the installed aihwkit work beside the installed torch? Found out by trying.

aihwkit's compiled part fits the torch that it was built with, and a few around it; its requirements do not say
which. A wrong pair fails at import, or as soon as a tile gets weights.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pimcal.errors import ConfigError, MissingExtraError

_BEFORE_3_12 = ("torch>=2.10,<2.12", "aihwkit==1.1.*")
_SINCE_3_12 = ("torch>=2.13,<2.16", "aihwkit==1.2.*")

# What works together, by Python version; for other versions aihwkit has no wheels that do.
PAIRS = {(3, 11): _BEFORE_3_12, (3, 12): _SINCE_3_12, (3, 13): _SINCE_3_12}

_NEEDED = (
    "aihwkit",
    "aihwkit.inference",
    "aihwkit.nn.conversion",
    "aihwkit.simulator.configs",
    "aihwkit.simulator.presets",
    "aihwkit.simulator.tiles.inference",
)


class _Cause(NamedTuple):
    """Why a pair fails, and the command that mends it."""

    reason: str
    command: str


_OTHER_TORCH = _Cause("aihwkit was compiled for another torch", "pip install {torch} {aihwkit}")
# --force-reinstall: the versions may be right already, and pip would leave them as they are.
_NOT_COMPILED = _Cause("it has no compiled part for this Python", "pip install --force-reinstall {torch} {aihwkit}")
_TWO_PLACES = _Cause(
    "torch and torchvision come from different places",
    "pip install --force-reinstall {torch} torchvision {aihwkit}",
)
_UNKNOWN = _Cause("the trial failed", "pip install --force-reinstall {torch} {aihwkit}")

# By what the error says.
_CAUSES = {
    "undefined symbol": _OTHER_TORCH,  # 1.1.0 with torch 2.9
    "weights must be a CPU tensor": _OTHER_TORCH,  # 1.1.0 with torch 2.13
    "tensor does not have a device": _OTHER_TORCH,  # 1.2.0 with torch 2.11
    "cannot import name 'rpu_base'": _NOT_COMPILED,  # installed for another Python, or not built
    "operator torchvision::nms does not exist": _TWO_PLACES,  # torch+cpu beside a plain torchvision
}


def import_aihwkit() -> ModuleType:
    """The package aihwkit, with all its modules that the backend uses.

    Raises:
        MissingExtraError: it is not installed.
        ConfigError: it does not load beside this torch, or there is none for this Python.
    """
    with _trial():
        for module in _NEEDED:
            importlib.import_module(module)
    return sys.modules["aihwkit"]


def check_pair() -> str:
    """Multiply on an exact tile and in a converted layer; the versions that did so, in words.

    Raises:
        MissingExtraError: aihwkit is not installed.
        ConfigError: aihwkit and torch do not work together; names both, what failed, and the pair to install.
    """
    aihwkit: Any = import_aihwkit()
    with _trial(), torch.random.fork_rng(devices=[]), torch.no_grad():
        _try_tile(aihwkit)
        _try_conversion(aihwkit)
    return f"aihwkit {_version('aihwkit')} with torch {_version('torch')}"


def _try_tile(aihwkit: Any) -> None:
    weights, inputs = torch.linspace(-0.5, 0.5, 24).view(4, 6), torch.linspace(-1.0, 1.0, 12).view(2, 6)
    tile = aihwkit.simulator.tiles.inference.InferenceTile(4, 6, _exact(aihwkit))
    tile.set_weights(weights)
    _compare(tile.forward(inputs), inputs @ weights.t())


def _try_conversion(aihwkit: Any) -> None:
    layer, inputs = nn.Linear(6, 4), torch.linspace(-1.0, 1.0, 12).view(2, 6)
    expected = layer(inputs)
    converted = aihwkit.nn.conversion.convert_to_analog(layer, _exact(aihwkit)).eval()
    _compare(converted(inputs), expected)


def _exact(aihwkit: Any) -> Any:
    config = aihwkit.simulator.configs.InferenceRPUConfig()
    config.forward.is_perfect = True
    return config


def _compare(got: Tensor, expected: Tensor) -> None:
    if not torch.allclose(got, expected, rtol=1e-4, atol=1e-5):
        raise RuntimeError(f"its exact products differ from torch's by up to {(got - expected).abs().max():.2g}")


@contextmanager
def _trial() -> Iterator[None]:
    """What aihwkit prints goes to stderr, its warnings nowhere, and what it raises becomes a ConfigError."""
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        if _interrupted(error):
            raise KeyboardInterrupt from error
        raise explained(error, sys.version_info[:2]) from error


def _interrupted(error: BaseException | None) -> bool:
    """Whether it is Ctrl-C that failed: the initialisation of a compiled module turns that into an ImportError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def explained(error: Exception, python: tuple[int, int]) -> ConfigError:
    """What aihwkit raised on Python version `python`, as an error that says what to install."""
    version = ".".join(map(str, python))
    if python not in PAIRS:
        works = ", ".join(f"{major}.{minor}" for major, minor in PAIRS)
        return ConfigError(f"aihwkit has no wheel for Python {version}; the backend 'aihwkit' needs Python {works}")
    if isinstance(error, ModuleNotFoundError) and error.name == "aihwkit":
        return MissingExtraError("the backend 'aihwkit'", "aihwkit", "aihwkit")
    if (shadow := _shadow()) is not None:
        return ConfigError(
            f"{shadow} has the name of the library aihwkit and is found in its place; rename it, or run from another "
            f"folder\n({_in_short(error)})"
        )
    said = str(error)
    cause = next((cause for sign, cause in _CAUSES.items() if sign in said), _UNKNOWN)
    torch_, aihwkit = (f"'{requirement}'" for requirement in PAIRS[python])
    return ConfigError(
        f"aihwkit {_version('aihwkit')} does not work with torch {_version('torch')}: {cause.reason}\n"
        f"({_in_short(error)})\n"
        f"on Python {version} install the pair that works:\n"
        f"    {cause.command.format(torch=torch_, aihwkit=aihwkit)}"
    )


def _shadow() -> Path | None:
    """A file or folder that is imported as `aihwkit` and is not the library; None: there is none."""
    spec = importlib.util.find_spec("aihwkit")
    if spec is None or spec.origin is None:
        return None
    found = Path(spec.origin)
    if spec.submodule_search_locations is None:
        return found  # a single file; the library is a package
    try:
        library = Path(str(importlib.metadata.distribution("aihwkit").locate_file("aihwkit/__init__.py")))
    except importlib.metadata.PackageNotFoundError:
        return None
    return found.parent if library.exists() and not library.samefile(found) else None


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no reason given')}"


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "(of unknown version)"
