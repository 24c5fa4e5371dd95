"""What the decisions need to know of the past, from a store: so that a restart forgets nothing."""

from __future__ import annotations

from dataclasses import dataclass

from pimcal.daemon.journal import RUN_KIND
from pimcal.recalibration.clock import Moment
from pimcal.recalibration.decide import History
from pimcal.recalibration.triggers import Readings
from pimcal.recalibration.upkeep import ATTEMPTS
from pimcal.record import Record
from pimcal.store import Generation, Key, Store
from pimcal.store.journal import Run

_RUNS = 200  # of the newest; those of the last hour are needed


@dataclass(frozen=True, slots=True)
class Past:
    """History as `decide` wants it, and when the device was last looked at."""

    history: History
    last_look: Moment | None


def remembered(store: Store, key: Key, active: tuple[Generation, Record] | None, programming: str, now: Moment) -> Past:
    """What a store knows. `programming`: what is on the tiles now; they were programmed when the device was opened."""
    runs = [run for run in store.journal.runs(key, limit=_RUNS) if run.kind == RUN_KIND]
    attempts = [run for run in runs if run.outcome in ATTEMPTS]
    rejected = 0
    while rejected < len(attempts) and attempts[-1 - rejected].outcome == "failed":
        rejected += 1
    history = History(
        calibrated=None if active is None else _calibrated(*active, _confirmed_at(runs), programming, now),
        attempts=tuple(Moment.remembered(run.at, now) for run in attempts),
        rejected=rejected,
    )
    looks = [*(run.at for run in runs[-1:]), *(look.at for look in store.journal.probes(key, limit=1))]
    return Past(history, Moment.remembered(max(looks), now) if looks else None)


def unremembered(active: tuple[Generation, Record] | None, programming: str, now: Moment) -> Past:
    """The same where the store cannot be read."""
    return Past(History(calibrated=None if active is None else _calibrated(*active, 0.0, programming, now)), None)


def _confirmed_at(runs: list[Run]) -> float:
    """When a new calibration was found to be no better than the one in force, the last time."""
    return max((run.at for run in runs if run.outcome == "kept"), default=0.0)


def _calibrated(generation: Generation, record: Record, confirmed_at: float, programming: str, now: Moment) -> Readings:
    activated_at = generation.activated_at or generation.created_at  # going back to an older one is a choice of today
    made = Moment.remembered(max(activated_at, confirmed_at), now)
    return Readings(at=made, telemetry=record.made_with.telemetry, programming=programming)
