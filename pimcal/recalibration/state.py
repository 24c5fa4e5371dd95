"""What can be told of a device and its calibration without a single product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from pimcal.deployment import Deployment
from pimcal.record import Record, elsewhere
from pimcal.stored import Finite, Number, Text


@dataclass(frozen=True, slots=True)
class Conditions:
    """Under which a calibration was accepted: when (s, by the engine's clock), and the device's telemetry then."""

    at_s: Finite
    telemetry: dict[Text, Number]

    @classmethod
    def now(cls, net: Deployment, at_s: float) -> Self:
        return cls(at_s, net.device.telemetry())


@dataclass(frozen=True, slots=True)
class State:
    """`age_s` of what is in force; `temperature_change_c` since then; `restarts` of the device since then.

    `missing_tiles` hold nothing of the network now and will be programmed by its next call. None: not known.
    `misfits`: why what is in force cannot be kept, whatever a probe would say.
    """

    at_s: float
    age_s: float | None
    temperature_change_c: float | None
    restarts: int | None
    missing_tiles: int
    misfits: tuple[str, ...]


def check_state(net: Deployment, active: Record | None, accepted_under: Conditions | None, now: Conditions) -> State:
    """Compare the device with what is in force; needs no device time. `now` is what it says of itself."""
    before = accepted_under
    restarts = _change(before, now, "board_restarts")
    return State(
        now.at_s,
        None if before is None else now.at_s - before.at_s,
        _change(before, now, "temperature_c"),
        None if restarts is None else int(restarts),
        0 if net.array.loads > 1 else len(net.array.layouts) - len(net.array.resident),
        misfits(net, active),
    )


def _change(before: Conditions | None, now: Conditions, name: str) -> float | None:
    if before is None or name not in before.telemetry or name not in now.telemetry:
        return None
    return now.telemetry[name] - before.telemetry[name]


def misfits(net: Deployment, active: Record | None) -> tuple[str, ...]:
    """Why `active` cannot be in force on this device; empty where it can, or where there is none."""
    if active is None:
        return ()
    made, device = active.made_with, net.device
    found = [*elsewhere(made, device)]
    if made.model_hash != net.model_hash:
        found.append(("model", made.model_hash[:12], net.model_hash[:12]))
    if made.firmware != device.capabilities.firmware:
        found.append(("firmware", made.firmware, device.capabilities.firmware))
    return tuple(f"it was made for {what} {there}, this is {here}" for what, there, here in found)
