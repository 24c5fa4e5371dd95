"""What plugins can be told through the hook `pimcal_on_event`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""


@dataclass(frozen=True, slots=True)
class BatchServed(Event):
    """A deployed network answered one batch with `mvms` matrix-vector products."""

    mvms: int


@dataclass(frozen=True, slots=True)
class CalibrationFinished(Event):
    """A calibration made a record; it is not active yet."""

    method: str
    images: int
    mvms: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RecordActivated(Event):
    """A calibration record's corrections are applied from now on."""

    record_id: str


@dataclass(frozen=True, slots=True)
class RecordReverted(Event):
    """A calibration record's corrections were taken back."""

    record_id: str


@dataclass(frozen=True, slots=True)
class DriftCompensated(Event):
    """Global drift compensation measured the tiles of a device and gave each its gain.

    `identity` is the device's, `gains` are by tile; `simulated_time_s` is None where the device tells no such time.
    """

    identity: str
    gains: dict[int, float]
    simulated_time_s: float | None


@dataclass(frozen=True, slots=True)
class SweepFinished(Event):
    """A sweep wrote its results to the folder `out`; `table` is what its JSON holds."""

    table: dict[str, Any]
    out: Path


@dataclass(frozen=True, slots=True)
class TimelineFinished(Event):
    """A timeline wrote its results to the folder `out`; `table` is what its JSON holds."""

    table: dict[str, Any]
    out: Path


@dataclass(frozen=True, slots=True)
class PlanFinished(Event):
    """A plan wrote its results to the folder `out`; `table` is what its JSON holds."""

    table: dict[str, Any]
    out: Path


@dataclass(frozen=True, slots=True)
class DeviceProbed(Event):
    """A device was asked its golden vectors; `error` is its answers' relative change, `reason` says what that shows."""

    identity: str
    error: float
    drifted: bool
    reason: str
    mvms: int


@dataclass(frozen=True, slots=True)
class RecalibrationFinished(Event):
    """A run of the recalibration engine came to its end: fine, activated, kept, failed or waiting, and why."""

    identity: str
    outcome: str
    reason: str
    mvms: int


@dataclass(frozen=True, slots=True)
class RecalibrationAlert(Event):
    """Somebody should look at a device; `kind` is "dead tiles" or "no remedy"."""

    identity: str
    kind: str
    message: str
