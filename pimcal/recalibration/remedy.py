"""Remedies for drift, the smallest first: refreshed gains and offsets, then a whole calibration.

A calibration of those layers only that lie behind drifted tiles is no remedy of its own. It would save next to nothing:
a layer is measured behind all others before it, so that their products are needed just the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pimcal.calibration.clean import CleanStatistics
from pimcal.calibration.interlude import Pause
from pimcal.calibration.provenance import provenance
from pimcal.calibration.run import calibrate
from pimcal.corrections import corrections_in_force
from pimcal.deployment import Deployment
from pimcal.recalibration.golden import Answer, Spot
from pimcal.recalibration.probe import Accepted, Probe
from pimcal.recalibration.refresh import refreshed_layers, tile_changes
from pimcal.record import Record


@dataclass(frozen=True, slots=True)
class Situation:
    """What a remedy has to go by. `probe` and `answers`: the look that confirmed the drift, None without one.

    `pause`: see `calibrate`.
    """

    net: Deployment
    calibration: Sequence[Any]
    at_s: float
    accepted: Accepted | None = None
    probe: Probe | None = None
    answers: Mapping[Spot, Answer] | None = None
    pause: Pause = lambda: None


@dataclass(frozen=True, slots=True)
class Remedy:
    """`propose` gives a candidate for the gate, or None where there is nothing that it could do."""

    name: str
    propose: Callable[[Situation], Record | None]


def refresh(situation: Situation) -> Record | None:
    """Undo what golden vectors tell of each tile's gain and offset; takes no product beyond theirs.

    None where no look was taken, or it found no drift of gain or offset: noise and shape are beyond it.
    """
    net, accepted, look, answers = situation.net, situation.accepted, situation.probe, situation.answers
    if accepted is None or look is None or answers is None or not (look.size_of("gain") or look.size_of("offset")):
        return None
    changes = tile_changes(accepted, look, answers)
    corrections = corrections_in_force(net) | refreshed_layers(net, changes, situation.calibration[0])
    return Record(
        method="refresh", corrections=corrections, made_with=provenance(net, _time(situation), mvms=look.mvms)
    )


def recalibrate(situation: Situation, clean: CleanStatistics | None = None) -> Record:
    """A whole calibration by the profile's method; `clean` as in `calibrate`."""
    return calibrate(
        situation.net, situation.calibration, clean=clean, now=lambda: _time(situation), pause=situation.pause
    )


REMEDIES = (Remedy("refresh", refresh), Remedy("calibrate", recalibrate))


def _time(situation: Situation) -> datetime:
    return datetime.fromtimestamp(situation.at_s, UTC)
