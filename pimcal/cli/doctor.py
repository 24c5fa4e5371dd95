"""`pimcal doctor`: does this installation work, found out by trying."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import typer

from pimcal import registry
from pimcal.cli.options import Json
from pimcal.cli.output import print_json, print_table, say, stdout_for_json
from pimcal.errors import ConfigError, MissingExtraError, PimcalError

EXTRAS = {"torchvision": "vision", "matplotlib": "report", "sklearn": "demo"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried. `needed`: pimcal does not work without it. `missing`: it is not installed."""

    what: str
    ok: bool
    told: str
    needed: bool = True
    missing: bool = False

    @property
    def mark(self) -> str:
        if self.ok:
            return "ok"
        return "missing" if self.missing else "FAILED"


def doctor(as_json: Json = False) -> None:
    """Try what pimcal needs, and say what is missing and how to get it; exits with 78 if pimcal cannot work."""
    with stdout_for_json(as_json):
        findings = _findings()
    works = all(found.ok for found in findings if found.needed)
    if as_json:
        print_json({"ok": works, "findings": [asdict(found) for found in findings]})
    else:
        _print(findings)
    if not works:
        raise typer.Exit(ConfigError.exit_code)


def _findings() -> list[Finding]:
    return [
        Finding("python", sys.version_info >= (3, 11), platform.python_version()),
        _try("torch", _torch),
        _try("torch device", _torch_devices),
        *(_optional(library, extra) for library, extra in EXTRAS.items()),
        _try("a network on the simulator", _simulator),
        *(_try(f"backend {name}", partial(_backend, name), needed=False) for name in registry.backend_names()),
    ]


def _print(findings: list[Finding]) -> None:
    """A table with each finding's first line; the rest comes below, so that commands stay whole to copy."""
    told = [(found, *found.told.partition("\n")) for found in findings]
    print_table(("", "what", "found"), [(found.mark, found.what, first) for found, first, _, _ in told])
    for found, _, _, rest in told:
        if rest:
            say(f"\n{found.what}:\n{rest}")


def _try(what: str, check: Callable[[], str], needed: bool = True) -> Finding:
    try:
        return Finding(what, True, check(), needed)
    except PimcalError as error:
        return Finding(what, False, str(error), needed, missing=isinstance(error, MissingExtraError))
    except Exception as error:  # whatever is broken, the rest is still worth knowing
        return Finding(what, False, f"{type(error).__name__}: {_first_line(error)}", needed)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no reason given")


def _optional(library: str, extra: str) -> Finding:
    name = "scikit-learn" if library == "sklearn" else library
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        told = f"optional; install with: pip install 'pimcal[{extra}]'"
        return Finding(name, False, told, needed=False, missing=True)
    try:
        importlib.import_module(library)
    except Exception as error:
        told = (
            f"{version} is installed but does not load beside this torch ({_first_line(error)}); "
            "reinstall both from one place"
        )
        return Finding(name, False, told, needed=False)
    return Finding(name, True, version, needed=False)


def _backend(name: str) -> str:
    return registry.backend_class(name).check_installation() or "loads"


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
