"""What the daemon tells of itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pimcal.daemon.clock import told_time

State = Literal["starting", "waiting", "working", "paused", "released", "lost", "stopped"]


@dataclass(slots=True)
class Counters:
    """Since the daemon started. `served`: requests of others that ran on the device; `lost`: times it went away."""

    looks: int = 0
    activations: int = 0
    failures: int = 0
    served: int = 0
    lost: int = 0
    mvms: int = 0


@dataclass(frozen=True, slots=True)
class Look:
    """The newest look at the device, or run of the engine, and what came of it."""

    at_s: float
    outcome: str
    reason: str


@dataclass(slots=True)
class Status:
    """A snapshot. Times are Unix seconds. `problems`: what somebody should look at now, by kind.

    `lost`: the device is waited for. `ready`: it is open and calibrated. `metric_value`: what `metric_name` was for
    what is in force, when that was measured last; None where it was not.
    """

    state: State = "starting"
    device: str | None = None
    model_hash: str | None = None
    generation: str | None = None
    record: str | None = None
    calibrated: bool = False
    metric_name: str | None = None
    metric_value: float | None = None
    paused: bool = False
    released_until_s: float | None = None
    last_look: Look | None = None
    next_decision_s: float | None = None
    lost_since_s: float | None = None
    decision: tuple[str, ...] = ()
    telemetry: dict[str, float] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return self.state in ("waiting", "working", "paused") and self.calibrated and self.lost_since_s is None

    def as_dict(self) -> dict[str, Any]:
        """All of it for JSON, times in ISO 8601."""
        found = {name: value for name, value in asdict(self).items() if not name.endswith("_s")}
        last = self.last_look
        return {
            **found,
            "ready": self.ready,
            "released_until": told_time(self.released_until_s),
            "lost_since": told_time(self.lost_since_s),
            "next_decision": told_time(self.next_decision_s),
            "last_look": last and {"at": told_time(last.at_s), "outcome": last.outcome, "reason": last.reason},
        }

    def line(self) -> str:
        """The shortest thing that can be said of it."""
        if self.state == "lost":
            return f"lost: {', '.join(self.problems.values()) or 'the device is waited for'}"
        about = [self.state, self.device or "", f"generation {self.generation}" if self.generation else ""]
        return ", ".join(filter(None, [*about, *self.problems.values()]))
