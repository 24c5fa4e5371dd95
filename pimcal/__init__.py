"""pimcal: calibrate PyTorch networks on analog processing-in-memory devices.

Names are imported when they are used: `import pimcal` alone does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pimcal.backend import Backend as Backend
    from pimcal.backend import Capabilities as Capabilities
    from pimcal.calibration import calibrate as calibrate
    from pimcal.deployment import Deployment as Deployment
    from pimcal.deployment import deploy as deploy
    from pimcal.device import Device as Device
    from pimcal.device import open_device as open_device
    from pimcal.errors import PimcalError as PimcalError
    from pimcal.hookspecs import hookimpl as hookimpl
    from pimcal.profile import Profile as Profile
    from pimcal.profile import load_profile as load_profile
    from pimcal.record import Record as Record
    from pimcal.store import Store as Store
    from pimcal.store import load_active as load_active

_HOMES = {
    "Backend": "pimcal.backend",
    "Capabilities": "pimcal.backend",
    "Deployment": "pimcal.deployment",
    "Device": "pimcal.device",
    "PimcalError": "pimcal.errors",
    "Profile": "pimcal.profile",
    "Record": "pimcal.record",
    "Store": "pimcal.store",
    "calibrate": "pimcal.calibration",
    "deploy": "pimcal.deployment",
    "hookimpl": "pimcal.hookspecs",
    "load_active": "pimcal.store",
    "load_profile": "pimcal.profile",
    "open_device": "pimcal.device",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pimcal' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
