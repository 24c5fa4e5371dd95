"""What an engine knows besides the record in force, and has to find again after a restart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

from pimcal.recalibration.probe import Accepted, ProbeSettings
from pimcal.recalibration.state import Conditions
from pimcal.stored import Number, checked


@dataclass(frozen=True, slots=True)
class Learned:
    """All None at first.

    `accepted`: what the tiles answered when the corrections were found to be right; `under`: the conditions then.
    `level`, `best`: see `Worth`. `sensitivity`: what a probe takes for drift since, as some changes cost nothing.
    """

    accepted: Accepted | None = None
    under: Conditions | None = None
    level: Number | None = None
    best: Number | None = None
    sensitivity: ProbeSettings | None = None

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, for `from_state`."""
        return {
            "accepted": self.accepted and self.accepted.state_dict(),
            "under": self.under and [self.under.at_s, dict(self.under.telemetry)],
            "level": self.level,
            "best": self.best,
            "sensitivity": self.sensitivity and asdict(self.sensitivity),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Raises KeyError, TypeError, ValueError for what `state_dict` did not give."""
        accepted, under, sensitivity = state["accepted"], state["under"], state["sensitivity"]
        level, best = checked(_Worth, {"level": state["level"], "best": state["best"]})
        return cls(
            None if accepted is None else Accepted.from_state(accepted),
            None if under is None else checked(Conditions, dict(zip(("at_s", "telemetry"), under, strict=True))),
            level,
            best,
            None if sensitivity is None else checked(ProbeSettings, sensitivity),
        )


class _Worth(NamedTuple):
    level: Number | None
    best: Number | None
