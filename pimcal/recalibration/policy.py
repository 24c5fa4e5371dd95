"""Policies that a plan compares: when a device is looked at again, written in one word each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pimcal.errors import UsageError
from pimcal.profile.sections import Recalibration
from pimcal.suggest import did_you_mean

PROBE_EVERY, PROBE_LIMIT = "1h", 0.035
GRAMMAR = "never, once, every:1h, cron:0 3 * * *, probe, probe:1h, probe:1h:0.035 or profile"


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy as `--policies` names it. `settings` None: the device is never calibrated at all."""

    name: str
    settings: Recalibration | None


def parse_policies(text: str, profile: Recalibration) -> list[Policy]:
    """The policies of a text with commas between them, each once; see `parse_policy`."""
    return [parse_policy(name, profile) for name in dict.fromkeys(part.strip() for part in text.split(","))]


def parse_policy(name: str, profile: Recalibration) -> Policy:
    """`never`: no calibration. `once`: one at the start. `every:DURATION`, `cron:EXPRESSION`: one whenever that is due.

    `probe[:DURATION[:LIMIT]]`: a probe at that interval, a recalibration where its error reaches the limit. `profile`:
    what the profile's `recalibration` section says. Of that section all others take the time zone alone.

    Raises UsageError for a policy that does not exist.
    """
    kind, _, argument = name.partition(":")
    if kind not in _KINDS:
        raise UsageError(f"unknown policy '{name}' in --policies{did_you_mean(kind, _KINDS)} (write {GRAMMAR})")
    if kind == "profile" and not argument:
        return Policy(name, profile)
    values = _KINDS[kind](argument)
    if values is None:
        raise UsageError(f"policy '{name}' in --policies is written otherwise (write {GRAMMAR})")
    if kind == "never":
        return Policy(name, None)
    try:
        return Policy(name, Recalibration.model_validate({**values, "timezone": profile.timezone}))
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"policy '{name}' in --policies: {reason}; commas separate policies") from error


def _bare(argument: str) -> dict[str, Any] | None:
    return None if argument else {}


def _probe(argument: str) -> dict[str, Any] | None:
    every, _, limit = argument.partition(":")
    try:
        error = float(limit or PROBE_LIMIT)
    except ValueError:
        return None
    return {"every": every or PROBE_EVERY, "when": ({"probe_error": error},)} if error > 0 else None


_KINDS: dict[str, Callable[[str], dict[str, Any] | None]] = {
    "never": _bare,
    "once": _bare,
    "every": lambda argument: {"every": argument} if argument else None,
    "cron": lambda argument: {"cron": argument} if argument else None,
    "probe": _probe,
    "profile": lambda argument: None,
}
