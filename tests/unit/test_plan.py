"""A plan: the engine and the decisions of the daemon on a simulated clock, and what they cost."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pimcal
from pimcal.errors import ConfigError, UsageError
from pimcal.metrics import resolve_metric
from pimcal.plan import Images, Plan, Sample, plan, summaries
from pimcal.profile import Profile
from pimcal.profile.sections import Recalibration
from pimcal.recalibration.decide import decide
from pimcal.recalibration.engine import EngineSettings
from pimcal.recalibration.policy import parse_policies, parse_policy
from pimcal.recalibration.probe import ACCEPTED_DRAWS, ProbeSettings, products_of
from pimcal.recalibration.upkeep import Turn

from .recalibration_devices import batches, network

HOUR_S, DAY_S = 3600.0, 86_400.0
AGREEMENT = resolve_metric("agreement")
IMAGES = Images(batches(32, seed=1), batches(32, seed=2), batches(64, seed=3))
NONE = Recalibration()


def aging(rate_per_day: float = 4.0, **overrides: Any) -> Profile:
    """Noise of a mean that grows by so many times its initial value a day."""
    drift = {"kind": "linear", "rate_per_s": rate_per_day / DAY_S}
    return pimcal.load_profile("gaussian_mul", {"device.drift": drift, "device.eta0": 0.1, **overrides})


def wanted(horizon_s: float = DAY_S, step_s: float = DAY_S / 4, **options: Any) -> Plan:
    return Plan(horizon_s=horizon_s, step_s=step_s, images=IMAGES, metric=AGREEMENT, **options)


def planned(policies: str, what: Plan, profile: Profile | None = None, seeds: range = range(1)) -> list[Sample]:
    profile = profile or aging()
    return plan(network(), profile, parse_policies(policies, profile.recalibration), seeds, what)


def turns_of(policy: str, what: Plan, profile: Profile | None = None) -> tuple[list[Turn], list[Sample]]:
    turns: list[Turn] = []
    return turns, planned(policy, replace(what, on_turn=turns.append), profile)


def per_image() -> int:
    with pimcal.open_device("ideal") as device:
        net = pimcal.deploy(network(), device)
        net(batches(1, seed=0)[0])
        return device.cost.mvms


def kinds(turns: list[Turn]) -> list[tuple[float, str]]:
    return [(turn.readings.at.monotonic_s, turn.decision.kind) for turn in turns if turn.decision.kind != "nothing"]


def test_never_costs_nothing() -> None:
    turns, samples = turns_of("never", wanted())
    assert not turns
    assert len(samples) == 4
    for sample in samples:
        assert (sample.mvms, sample.programmed_cells, sample.recalibrations, sample.looks, sample.rejected) == (0,) * 5


def test_more_drift_never_helps_where_nothing_is_recalibrated() -> None:
    values = [[s.value for s in planned("never", wanted(), aging(rate), range(2))] for rate in (0.0, 4.0, 40.0)]
    means = [sum(each) / len(each) for each in values]
    assert means[0] > means[1] > means[2]


def test_a_schedule_calibrates_at_the_start_and_at_each_of_its_times() -> None:
    lenient = wanted(engine=EngineSettings(alarming=math.inf))
    turns, samples = turns_of("every:6h", lenient, aging(**{"gate.max_drop": 1.0}))
    assert kinds(turns) == [(hours * HOUR_S, "calibrate") for hours in (0, 6, 12, 18)]
    each = per_image() * (32 + 2 * 32)  # calibration, and both sides of the gate
    assert [sample.mvms for sample in samples] == [each, 2 * each, 3 * each, 4 * each]
    assert [sample.recalibrations for sample in samples] == [1, 2, 3, 4]


def test_once_calibrates_at_the_start_only() -> None:
    turns, _ = turns_of("once", wanted())
    assert kinds(turns) == [(0.0, "calibrate")]


def test_cron_follows_the_clock_that_begins_at_midnight() -> None:
    turns, _ = turns_of("cron:30 3 * * *", wanted(2 * DAY_S, DAY_S), aging(**{"gate.max_drop": 1.0}))
    assert kinds(turns) == [(0.0, "calibrate"), (3.5 * HOUR_S, "calibrate"), (27.5 * HOUR_S, "calibrate")]


def test_a_probe_that_finds_nothing_takes_its_products_and_no_more() -> None:
    profile = aging(0.0, **{"gate.max_drop": 1.0})
    turns, samples = turns_of("probe:6h", wanted(), profile)
    assert [kind for _, kind in kinds(turns)] == ["calibrate", "probe", "probe", "probe"]
    with pimcal.open_device(profile) as device:
        net = pimcal.deploy(network(), device)
        accepting, probing = (products_of(net, draws) for draws in (ACCEPTED_DRAWS, ProbeSettings().draws))
    start = per_image() * (32 + 2 * 32) + accepting
    assert [sample.mvms for sample in samples] == [start + i * probing for i in range(4)]
    assert [sample.looks for sample in samples] == [0, 1, 2, 3]


def test_a_probe_that_finds_drift_has_it_undone() -> None:
    turns, samples = turns_of("probe:6h", wanted(3 * DAY_S, DAY_S), aging(8.0))
    assert samples[-1].recalibrations > 1
    never = planned("never", wanted(3 * DAY_S, DAY_S), aging(8.0))
    assert samples[-1].value > never[-1].value
    after_probe = [later.decision.kind for turn, later in pairwise(turns) if turn.decision.kind == "probe"]
    assert "calibrate" in after_probe


@pytest.mark.parametrize("policy", ["every:7h", "cron:0 */5 * * *", "probe:5h", "profile", "once"])
def test_every_decision_is_the_one_that_decide_gives(policy: str) -> None:
    section = {"every": "4h", "when": [{"probe_error": 0.05}, {"age_h": 10}], "cooldown": "3h", "jitter": "20m"}
    turns, _ = turns_of(policy, wanted(), aging(recalibration=section))
    assert len(turns) > 1
    for turn in turns:
        assert decide(turn.settings, turn.schedule, turn.history, turn.readings) == turn.decision


def test_jumping_from_event_to_event_misses_no_look() -> None:
    """The same as looking every minute, as a daemon does."""
    profile = aging(recalibration={"every": "4h", "when": [{"probe_error": 0.05}]})
    minutely = profile.with_overrides({"recalibration.when": [{"probe_error": 0.05}, {"temperature_change_c": 5}]})
    jumping, first = turns_of("profile", wanted(), profile)
    watching, second = turns_of("profile", wanted(), minutely)
    assert kinds(jumping) == kinds(watching)
    assert first == second
    assert len(watching) > 1000 > len(jumping)


def test_measuring_more_often_changes_nothing_that_is_done() -> None:
    seldom, often = (planned("probe:6h", wanted(DAY_S, DAY_S / parts)) for parts in (2, 12))
    assert [sample for sample in often if sample.time_s in {other.time_s for other in seldom}] == seldom


def test_a_seed_gives_the_same_plan_again_and_another_one_another() -> None:
    first, second = (planned("probe:6h", wanted(), seeds=range(2)) for _ in range(2))
    assert first == second
    assert [s.value for s in first if s.seed == 0] != [s.value for s in first if s.seed == 1]


def test_a_first_calibration_that_the_gate_refuses_is_not_tried_for_ever() -> None:
    exact = pimcal.load_profile("gaussian_mul", {"device.eta0": 0.0, "gate.max_drop": 0.0})
    turns, _ = turns_of("every:12h", replace(wanted(), metric=_WORSE_EVERY_TIME), exact)
    assert sum(turn.decision.kind == "calibrate" for turn in turns) == 2


class _Falling:
    """A metric that is worse at each measurement, so that every candidate is."""

    def __init__(self) -> None:
        self.value = 0.0

    def __call__(self, outputs: Any, targets: Any) -> float:
        self.value -= 1.0
        return self.value


_WORSE_EVERY_TIME = pimcal.metrics.per_batch("falling", _Falling(), needs_labels=False)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.floats(0, 1)), min_size=1, max_size=30))
def test_summaries_are_means_and_the_worst_of_what_was_sampled(found: list[tuple[str, int, float]]) -> None:
    samples = [Sample(i, p, seed, value, i, 0, i, 0, 0) for i, (p, seed, value) in enumerate(found)]
    for summary in summaries(samples):
        rows = [sample for sample in samples if sample.policy == summary.policy]
        ends = [max(r.mvms for r in rows if r.seed == seed) for seed in {r.seed for r in rows}]
        assert summary.mean == pytest.approx(math.fsum(r.value for r in rows) / len(rows))
        assert summary.lowest == min(r.value for r in rows)
        assert summary.mvms == pytest.approx(sum(ends) / len(ends))
    assert [s.policy for s in summaries(samples)] == list(dict.fromkeys(p for p, _, _ in found))


def test_of_a_metric_of_which_less_is_better_the_highest_value_is_the_worst() -> None:
    samples = [Sample(i, "never", 0, float(i), 0, 0, 0, 0, 0) for i in range(3)]
    assert summaries(samples, higher_is_better=False)[0].lowest == 2.0


def test_policies_are_what_a_profile_could_say() -> None:
    said = {
        "once": {},
        "every:1h30m": {"every": "1h30m"},
        "cron:0 3 * * *": {"cron": "0 3 * * *"},
        "probe": {"every": "1h", "when": [{"probe_error": 0.035}]},
        "probe:2h": {"every": "2h", "when": [{"probe_error": 0.035}]},
        "probe:2h:0.1": {"every": "2h", "when": [{"probe_error": 0.1}]},
    }
    for name, section in said.items():
        profile = pimcal.load_profile("gaussian_mul", {"recalibration": section})
        assert parse_policy(name, NONE).settings == profile.recalibration
    own = Recalibration.model_validate({"max_per_hour": 3})
    assert parse_policy("profile", own).settings is own
    assert [policy.name for policy in parse_policies("never, once,never", NONE)] == ["never", "once"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "unknown policy ''"),
        ("nevr", "did you mean 'never'?"),
        ("never:1h", "policy 'never:1h' in --policies is written otherwise"),
        ("every", "policy 'every' in --policies is written otherwise"),
        ("every:1", "policy 'every:1' in --policies: a duration is written with units"),
        ("every:0s", "above zero"),
        ("probe:1h:none", "is written otherwise"),
        ("probe:1h:-1", "is written otherwise"),
        ("probe:1h:nan", "is written otherwise"),
        ("probe:1h:inf", "policy 'probe:1h:inf' in --policies"),
        ("cron:0 0,12 * * *", "commas separate policies"),
        ("profile:1h", "is written otherwise"),
    ],
)
def test_policy_that_does_not_exist_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=r"write never|commas separate") as refused:
        parse_policies(text, NONE)
    assert said in str(refused.value)


@pytest.mark.parametrize("times_s", [(0.0, 1.0), (10.0, 11.0), (10.0, 0.0), (math.inf, 1.0), (math.nan, 1.0)])
def test_times_that_make_no_plan_are_refused(times_s: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="cannot be measured every"):
        planned("never", wanted(*times_s))


def test_device_without_a_simulated_clock_is_refused() -> None:
    with pytest.raises(ConfigError, match="no simulated clock"):
        planned("never", wanted(), pimcal.load_profile("ideal"))
