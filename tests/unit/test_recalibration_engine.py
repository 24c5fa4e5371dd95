"""The engine on simulated time: what it does about drift, what it costs, and what it never does."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pimcal.calibration import calibrate
from pimcal.calibration.gate import Verdict
from pimcal.corrections import corrections_in_force
from pimcal.deployment import Deployment
from pimcal.errors import DataError, DeviceUnavailableError, StorageError
from pimcal.evaluation import evaluate
from pimcal.events import RecalibrationAlert
from pimcal.metrics import resolve_metric
from pimcal.recalibration.engine import Engine, EngineSettings, MemoryJournal
from pimcal.recalibration.learned import Learned
from pimcal.recalibration.remedy import Remedy, Situation, recalibrate, refresh
from pimcal.record import Record

from .recalibration_devices import REFUSED, batches, images, on_faulty, on_gaussian

METRIC = resolve_metric("agreement")
CALIBRATION, HELD_OUT = batches(64, seed=1), batches(192, seed=2)


def engine_of(net: Deployment, journal: Any = None, **options: Any) -> tuple[Engine, MemoryJournal]:
    journal = MemoryJournal() if journal is None else journal
    clock: Callable[[], float] = lambda: net.device.telemetry().get("simulated_time_s", 0.0)  # noqa: E731
    return Engine(net, CALIBRATION, HELD_OUT, METRIC, journal, **{"clock": clock, **options}), journal


def quality(net: Deployment) -> float:
    return evaluate(net, HELD_OUT, METRIC).value


def in_force(net: Deployment) -> dict[str, torch.Tensor]:
    return {f"{n}.{k}": v.clone() for n, values in corrections_in_force(net).items() for k, v in values.items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[key]) for key, value in a.items())


def alerts_of(journal: MemoryJournal, kind: str) -> list[str]:
    return [event.message for event in journal.events if isinstance(event, RecalibrationAlert) and event.kind == kind]


# a life


def test_the_first_run_calibrates_the_next_look_and_find_nothing_to_do() -> None:
    with on_gaussian(eta0=0.3) as net:
        engine, journal = engine_of(net)
        first, second = engine.run(), engine.run()
        assert (first.outcome, second.outcome) == ("activated", "fine")
        assert [attempt.remedy for attempt in first.attempts] == ["calibrate"]
        assert journal.active == engine.active
        assert net.active == journal.records[0].id
        assert second.spent.remedy_mvms == second.spent.gate_mvms == 0
        assert second.spent.probe_mvms == 24
        assert journal.runs == [first, second]
        assert set(second.tiles.values()) == {"good"}


@pytest.mark.parametrize(("noise", "eta0"), [("mul", 0.2), ("add", 0.01)])
def test_drift_is_undone_by_golden_vectors_alone(noise: str, eta0: float) -> None:
    with on_gaussian(noise, eta0=eta0, sigma_temporal=0.05) as net:
        engine, _ = engine_of(net)
        engine.run()
        net.device.advance(1.5)
        drifted = quality(net)
        run = engine.run()
        assert run.outcome == "activated"
        assert run.attempts[0].remedy == "refresh"
        assert run.attempts[0].outcome == "activated"
        assert run.spent.remedy_mvms == 0 or len(run.attempts) > 1
        assert quality(net) > drifted
        assert engine.run().outcome == "fine"


def test_a_refresh_is_the_exact_inverse_of_a_common_gain() -> None:
    net, backend = on_faulty()
    x = images(8, seed=4)
    engine, _ = engine_of(net)
    engine.run()
    before = net(x)
    backend.factors = {0: 1.3, 1: 0.8, 2: 1.1}
    assert not torch.allclose(net(x), before, atol=1e-2)
    run = engine.run()
    assert [attempt.remedy for attempt in run.attempts] == ["refresh"]
    assert torch.allclose(net(x), before, atol=1e-3)


def test_refreshes_add_up() -> None:
    net, backend = on_faulty()
    x = images(8, seed=4)
    engine, _ = engine_of(net)
    engine.run()
    before = net(x)
    for factor in (1.2, 1.5, 0.7, 1.0):
        backend.factors = dict.fromkeys(range(3), factor)
        assert engine.run().outcome == "activated"
    assert torch.allclose(net(x), before, atol=2e-3)


def test_a_refresh_has_nothing_to_say_of_noise() -> None:
    with on_gaussian("awgn", eta0=0.1) as net:
        engine, _ = engine_of(net)
        engine.run()
        net.device.advance(3.0)
        run = engine.run()
        assert run.probes[-1].everywhere == ("noise",)
        assert [(a.remedy, a.outcome == "nothing to do") for a in run.attempts] == [
            ("refresh", True),
            ("calibrate", False),
        ]


def test_records_do_not_pile_up_on_the_host() -> None:
    net, backend = on_faulty()
    engine, journal = engine_of(net)
    for i in range(6):
        backend.factors = dict.fromkeys(range(3), 1.2 + 0.2 * (i % 2))
        engine.run()
    assert journal.states.count("active") == 1
    assert len(net.get_extra_state()["active"]) == 2
    assert net.active == journal.active.id if journal.active else False


# never worse


def worse(situation: Situation) -> Record:
    """A calibration that mixes up the means of all channels."""
    record = calibrate(situation.net, situation.calibration)
    spoilt = {
        name: {**values, "mean": values["mean"] + 5 * torch.arange(len(values["mean"]))}
        for name, values in record.corrections.items()
    }
    return Record(method="worse", corrections=spoilt, made_with=record.made_with)


def test_what_is_worse_is_never_activated_and_somebody_is_told() -> None:
    with on_gaussian(eta0=0.3) as net:
        engine, journal = engine_of(net)
        engine.run()
        engine.remedies = (Remedy("worse", worse), Remedy("worse still", worse))
        net.device.advance(1.0)
        before, active = in_force(net), engine.active
        run = engine.run()
        assert run.outcome in ("failed", "kept")
        assert [attempt.outcome for attempt in run.attempts] == ["rejected", "rejected"]
        assert_same(in_force(net), before)
        assert journal.active is active
        assert journal.states == ["active", "rejected", "rejected"]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1000), noise=st.sampled_from(["mul", "add"]), ages=st.lists(st.floats(0, 3), max_size=3))
def test_every_activation_passed_the_gate(seed: int, noise: str, ages: list[float]) -> None:
    eta0 = {"mul": 0.2, "add": 0.01}[noise]
    with on_gaussian(noise, seed=seed, eta0=eta0) as net:
        engine, journal = engine_of(net, remedies=(Remedy("worse", worse), Remedy("calibrate", recalibrate)))
        for age_s in (0.0, *ages):
            net.device.advance(age_s)
            for attempt in engine.run().attempts:
                if attempt.outcome == "activated":
                    assert attempt.before is not None
                    assert attempt.after is not None
                    assert attempt.after >= attempt.before
        assert net.active == (journal.active.id if journal.active else None)


# failures


class Interrupted(MemoryJournal):
    """Ctrl-C, or a full disk, while something is activated."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error: BaseException | None = error
        self.armed = False

    def activate(self, generation: str, verdict: Verdict) -> None:
        if self.armed and self.error:
            raise self.error
        super().activate(generation, verdict)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StorageError("disk full"), RuntimeError("a bug")])
def test_an_exception_during_activation_leaves_what_was_in_force(error: BaseException) -> None:
    with on_gaussian(eta0=0.2) as net:
        journal = Interrupted(error)
        engine, _ = engine_of(net, journal)
        engine.run()
        net.device.advance(1.5)
        journal.armed, before, active = True, in_force(net), net.active
        with pytest.raises(type(error)):
            engine.run()
        assert_same(in_force(net), before)
        assert net.active == active == journal.active.id if journal.active else False
        journal.armed = False
        assert engine.run().outcome == "activated"


@pytest.mark.parametrize("after_products", [0, 1, 7, 40, 90])
def test_a_device_that_is_lost_at_any_moment_leaves_what_was_in_force(after_products: int) -> None:
    net, backend = on_faulty()
    engine, journal = engine_of(net)
    engine.run()
    backend.factors = dict.fromkeys(range(3), 1.4)
    before, active, counted = in_force(net), net.active, itertools.count()
    multiply = backend.matmul

    def lost(tile: int, inputs: torch.Tensor) -> torch.Tensor:
        if next(counted) >= after_products:
            raise OSError("unplugged")
        return multiply(tile, inputs)

    backend.matmul = lost  # type: ignore[method-assign]
    with pytest.raises(DeviceUnavailableError, match="unplugged"):
        engine.run()
    assert_same(in_force(net), before)
    assert net.active == active
    assert journal.states[0] == "active"


def test_a_remedy_that_fails_gives_way_to_the_next() -> None:
    def fails(situation: Situation) -> Record:
        situation.net.push("half done", {})
        raise DataError("no images left")

    with on_gaussian(eta0=0.3) as net:
        engine, journal = engine_of(net)
        engine.run()
        engine.remedies = (Remedy("fails", fails), Remedy("calibrate", recalibrate))
        net.device.advance(2.0)
        run = engine.run()
        assert [attempt.outcome for attempt in run.attempts] == ["failed", "activated"]
        assert run.attempts[0].reason == "no images left"
        assert net.active == (journal.active.id if journal.active else None)
        names = [name for name, _ in net.get_extra_state()["active"]]
        assert "half done" not in names


def test_a_first_calibration_that_raises_is_no_calibration() -> None:
    def fails(situation: Situation) -> Record:
        raise DataError("no images left")

    net, _ = on_faulty()
    engine, journal = engine_of(net, remedies=(Remedy("calibrate", fails),))
    assert engine.run().outcome == "failed"
    assert alerts_of(journal, "no remedy")
    assert engine.accepted is None


def test_a_run_tries_each_remedy_once_and_tells_where_none_helped() -> None:
    tried = []

    def fails(situation: Situation) -> Record:
        tried.append(situation)
        raise DataError("no images left")

    net, backend = on_faulty()
    engine, journal = engine_of(net)
    engine.run()
    engine.remedies = (Remedy("fails", fails), Remedy("fails, too", fails))
    backend.factors = dict.fromkeys(range(3), 1.5)
    assert engine.run().outcome == "failed"
    assert len(tried) == 2
    assert alerts_of(journal, "no remedy")
    engine.remedies = (Remedy("refresh", refresh), Remedy("calibrate", recalibrate))
    assert engine.run().outcome == "activated"


@pytest.mark.parametrize("how", ["zeros", "refuses"])
def test_a_dead_tile_is_told_of_once_and_the_others_go_on(how: str) -> None:
    net, backend = on_faulty()
    engine, journal = engine_of(net)
    engine.run()
    if how == "zeros":
        backend.factors[2] = 0.0
    else:
        backend.failing[2] = REFUSED
    first = engine.run()
    assert first.tiles[0, 2] == "dead"
    if how == "refuses":  # nothing can be measured through it: on with what there is
        assert first.outcome == "failed"
        return
    backend.factors |= {0: 1.4, 1: 1.4}
    run = engine.run()
    assert run.attempts[0].remedy == "refresh"
    assert {spot: state for spot, state in run.tiles.items() if state == "dead"} == {(0, 2): "dead"}
    (alert,) = alerts_of(journal, "dead tiles")
    assert "tile 2" in alert
    assert engine.dead_tiles == {(0, 2)}
    backend.factors[2] = 1.0
    engine.run()
    assert not engine.dead_tiles


def test_tiles_that_never_answered_are_told_of() -> None:
    net, backend = on_faulty()
    backend.factors[1] = 0.0
    engine, journal = engine_of(net)
    engine.run()
    engine.run()
    assert engine.dead_tiles == {(0, 1)}
    assert len(alerts_of(journal, "dead tiles")) == 1


def test_a_device_whose_tiles_are_all_dead_has_no_remedy() -> None:
    net, backend = on_faulty()
    engine, journal = engine_of(net)
    engine.run()
    backend.factors = dict.fromkeys(range(3), 0.0)
    look = engine.look()
    assert look is not None
    assert look.statistic > 1
    assert engine.run().outcome == "failed"
    assert alerts_of(journal, "accuracy")


# what it is worth


def test_accuracy_far_below_the_best_is_told_once_however_it_came_to_be() -> None:
    net, backend = on_faulty()
    engine, journal = engine_of(net)
    engine.run()
    backend.factors = dict.fromkeys(range(3), 0.0)
    for _ in range(3):
        engine.recalibrate("it is due")  # no worse than a calibration of today, which is worth nothing
    assert len(alerts_of(journal, "accuracy")) == 1
    assert engine.worth.shortfall
    backend.factors = dict.fromkeys(range(3), 1.0)
    engine.recalibrate("it is due")
    assert not engine.worth.shortfall


def test_a_record_whose_answers_nobody_knows_is_kept_where_it_is_worth_what_it_was() -> None:
    net, _ = on_faulty()
    first, _ = engine_of(net)
    first.run()
    engine, journal = engine_of(net, active=first.active)
    run = engine.run()
    assert (run.outcome, run.attempts) == ("fine", ())
    assert engine.accepted is not None
    assert run.spent.gate_mvms > 0
    assert not journal.records


def test_a_record_whose_answers_nobody_knows_is_replaced_where_it_is_worth_less() -> None:
    net, backend = on_faulty()
    first, _ = engine_of(net)
    first.run()
    backend.factors = {0: 0.1, 1: 9.0, 2: 0.1}
    before = quality(net)
    engine, _ = engine_of(net, active=first.active)
    run = engine.run()
    assert run.outcome == "activated"
    assert quality(net) > before
    assert run.attempts[0].before == before  # measured once


def test_what_somebody_chose_is_taken_as_it_is_and_told_of() -> None:
    net, backend = on_faulty()
    first, _ = engine_of(net)
    first.run()
    backend.factors = {0: 0.1, 1: 9.0, 2: 0.1}
    engine, journal = engine_of(net, active=first.active)
    assert engine.adopt().outcome == "fine"
    assert alerts_of(journal, "accuracy")
    assert engine.run().outcome == "fine"  # drift counts from now on
    assert not journal.records


# state


def test_a_restart_goes_on_with_what_was_in_force() -> None:
    with on_gaussian(eta0=0.3) as net:
        old, _ = engine_of(net)
        old.run()
        before = in_force(net)
        net.revert()
        learned = Learned.from_state(old.learned.state_dict())
        new, _ = engine_of(net, active=old.active, learned=learned)
        assert (new.worth.level, new.worth.best) == (old.worth.level, old.worth.best)
        assert_same(in_force(net), before)
        assert new.run().outcome == "fine"


def test_a_record_of_another_model_is_not_put_in_force_but_replaced() -> None:
    with on_gaussian(eta0=0.3) as net, on_gaussian(eta0=0.3, seed=8) as other:
        elsewhere, _ = engine_of(other)
        elsewhere.run()
        engine, _ = engine_of(net, active=elsewhere.active)
        assert net.active is None
        run = engine.run()
        assert "device" in run.reason
        assert run.outcome == "activated"


def test_state_tells_age_and_needs_no_device_time() -> None:
    warming = {"kind": "temperature", "amplitude_c": 10.0, "period_s": 400.0, "eta0_per_c": 0.0}
    with on_gaussian(eta0=0.3, drift=warming) as net:
        engine, _ = engine_of(net)
        assert engine.check_state().age_s is None
        engine.run()
        net.device.advance(100.0)
        before = net.device.cost.copy()
        state = engine.check_state()
        assert state.age_s == 100.0
        assert state.temperature_change_c == pytest.approx(10.0)
        assert state.missing_tiles == 0
        assert net.device.cost == before


def test_a_change_found_to_cost_nothing_is_not_measured_again_and_still_adds_up() -> None:
    net, backend = on_faulty()
    engine, _ = engine_of(net, remedies=(Remedy("worse", worse),), settings=EngineSettings(good_enough=0.2))
    engine.remedies = (Remedy("calibrate", recalibrate),)
    engine.run()
    engine.remedies = (Remedy("worse", worse),)
    backend.factors = dict.fromkeys(range(3), 1.03)
    assert engine.run().outcome == "kept"
    again = engine.run()
    assert again.outcome == "fine"
    assert again.probes[0].effects["gain"] == pytest.approx(0.03, abs=1e-3)
    backend.factors = dict.fromkeys(range(3), 1.05)
    assert engine.run().outcome != "fine"
