"""What a record was made with."""

from __future__ import annotations

from datetime import datetime

import torch

import pimcal
from pimcal.deployment import Deployment
from pimcal.record import Provenance


def provenance(
    net: Deployment,
    made_at: datetime,
    *,
    mvms: int,
    images: int = 0,
    batches: int = 0,
    seconds: float = 0.0,
    seed: int | None = None,
) -> Provenance:
    """Of a record for `net` as it is deployed now."""
    device = net.device
    return Provenance(
        pimcal=pimcal.__version__,
        torch=torch.__version__,
        backend=device.profile.backend,
        profile=device.profile.name,
        profile_hash=device.profile.hardware_hash,
        hardware=device.profile.hardware,
        model_hash=net.model_hash,
        device=device.capabilities.identity,
        firmware=device.capabilities.firmware,
        wall_time=made_at.isoformat(timespec="seconds"),
        images=images,
        batches=batches,
        mvms=mvms,
        seconds=round(seconds, 6),
        seed=seed,
        telemetry=device.telemetry(),
    )
