"""`pimcal doctor`: does this installation work, found out by trying."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import typer

from pimcal.cli.options import Json
from pimcal.cli.output import print_json, print_table
from pimcal.errors import ConfigError, PimcalError

EXTRAS = {"torchvision": "vision", "matplotlib": "report", "sklearn": "demo", "aihwkit": "aihwkit"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried. `needed`: pimcal does not work without it."""

    what: str
    ok: bool
    told: str
    needed: bool = True


def doctor(as_json: Json = False) -> None:
    """Try what pimcal needs, and say what is missing and how to get it; exits with 78 if pimcal cannot work."""
    findings = [
        Finding("python", sys.version_info >= (3, 11), platform.python_version()),
        _try("torch", _torch),
        _try("torch device", _torch_devices),
        *(_optional(library, extra) for library, extra in EXTRAS.items()),
        _try("a network on the simulator", _simulator),
    ]
    if as_json:
        print_json({"ok": all(f.ok for f in findings if f.needed), "findings": [asdict(f) for f in findings]})
    else:
        marks = {(True, True): "ok", (True, False): "ok", (False, True): "FAILED", (False, False): "missing"}
        print_table(("", "what", "found"), [(marks[f.ok, f.needed], f.what, f.told) for f in findings])
    if not all(f.ok for f in findings if f.needed):
        raise typer.Exit(ConfigError.exit_code)


def _try(what: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, check())
    except (PimcalError, ImportError, OSError, RuntimeError) as error:
        return Finding(what, False, f"{type(error).__name__}: {str(error).splitlines()[0]}")


def _optional(library: str, extra: str) -> Finding:
    name = "scikit-learn" if library == "sklearn" else library
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, f"optional; install with: pip install 'pimcal[{extra}]'", needed=False)
    try:
        importlib.import_module(library)
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        told = f"{version} is installed but does not load beside this torch ({reason}); reinstall both from one place"
        return Finding(name, False, told, needed=False)
    return Finding(name, True, version, needed=False)


def _torch() -> str:
    import torch

    return f"{torch.__version__}, {torch.get_num_threads()} threads"


def _torch_devices() -> str:
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return ", ".join(["cpu", *(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count()))])


def _simulator() -> str:
    import torch
    from torch import nn

    from pimcal.deployment import deploy
    from pimcal.device import open_device

    with open_device("ideal") as device:
        layer = nn.Linear(8, 4)
        x = torch.ones(2, 8)
        with torch.no_grad():
            if not torch.allclose(deploy(layer, device)(x), layer(x), atol=1e-5):
                raise RuntimeError("a linear layer on the ideal device differs from torch's own")
    return "works"
