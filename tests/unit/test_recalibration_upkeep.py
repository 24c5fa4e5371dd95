"""Decisions and what follows from them, on devices that fail: what a daemon and a simulation share."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch

from pimcal.errors import DeviceUnavailableError
from pimcal.metrics import resolve_metric
from pimcal.profile.sections import Recalibration
from pimcal.recalibration.engine import Engine, MemoryJournal
from pimcal.recalibration.simulate import Clock, Simulation
from pimcal.recalibration.triggers import BUILT_IN
from pimcal.recalibration.upkeep import Upkeep

from .recalibration_devices import Faulty, batches, images, on_faulty

HOUR_S = 3600.0
PROBING = {"every": "1h", "when": ({"probe_error": 0.02},)}


class Life:
    """A device of three tiles, and the hours that pass."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.net, self.backend = on_faulty()
        self.clock, self.journal = Clock(), MemoryJournal()
        self.engine = Engine(
            self.net, batches(64, seed=1), batches(192, seed=2), resolve_metric("agreement"), self.journal,
            clock=self.clock.wall_s,
        )  # fmt: skip
        parsed = Recalibration.model_validate(settings)
        self.upkeep = Upkeep(self.engine, parsed, self.clock.now, BUILT_IN, Random(0))
        self.turns: list[str] = []
        self._operator = Simulation(self.upkeep, lambda turn: self.turns.append(turn.decision.kind))

    def goes_on(self, hours: float) -> list[str]:
        """The decisions of that time."""
        self.turns.clear()
        end_s = self.clock.elapsed_s + hours * HOUR_S
        while self.clock.elapsed_s < end_s:
            self.clock.elapsed_s = min(end_s, self.clock.elapsed_s + self._operator.turn())
        return self.turns

    def alerts(self) -> set[str]:
        return {event.kind for event in self.journal.events if hasattr(event, "kind")}


@pytest.fixture
def life() -> Life:
    made = Life(PROBING)
    made.goes_on(2.5)
    return made


def broken(backend: Faulty, *tiles: int) -> None:
    backend.factors = dict.fromkeys(tiles, 0.0)


def test_a_tile_that_dies_is_noticed_by_the_next_scheduled_look(life: Life) -> None:
    broken(life.backend, 1)
    life.goes_on(1)
    assert "dead tiles" in life.alerts()
    assert life.engine.dead_tiles == {(0, 1)}
    runs = len(life.journal.runs)
    life.goes_on(3)
    assert len(life.journal.runs) == runs  # it was told and remedied as far as can be


def test_a_device_that_dies_is_noticed_and_not_tried_all_the_time(life: Life) -> None:
    broken(life.backend, 0, 1, 2)
    life.goes_on(1)
    assert {"dead tiles", "accuracy"} <= life.alerts()
    runs, generation = len(life.journal.runs), life.engine.active
    life.goes_on(24)
    assert len(life.journal.runs) == runs
    assert life.engine.active is generation  # a calibration to a dead device would have been as good


def test_a_device_that_comes_back_to_life_is_what_it_was(life: Life) -> None:
    corrected = life.net(images(8, seed=4))
    broken(life.backend, 0, 1, 2)
    life.goes_on(2)
    broken(life.backend)
    life.goes_on(1)
    assert not life.engine.dead_tiles
    assert not life.engine.worth.shortfall
    assert torch.equal(life.net(images(8, seed=4)), corrected)


def test_other_settings_do_not_put_the_next_look_off(life: Life) -> None:
    sooner = []
    for _ in range(8):
        sooner += life.goes_on(0.5)
        life.upkeep.use(life.upkeep.settings)
    assert sooner.count("probe") == 4


def test_a_run_without_an_end_is_not_noted(life: Life) -> None:
    history = life.upkeep.history
    life.backend.failing = dict.fromkeys(range(3), DeviceUnavailableError("unplugged"))
    with pytest.raises(DeviceUnavailableError):
        life.upkeep.look()
    assert life.upkeep.history == history
