"""What recalibration policies are worth: accuracy over simulated weeks, against what each costs the device."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from random import Random
from statistics import fmean
from typing import Any

from torch import nn

from pimcal.calibration.methods import check_method, clean_for
from pimcal.deployment import Deployment, deploy
from pimcal.device import Cost, open_device
from pimcal.errors import UsageError
from pimcal.evaluation import evaluate, repeatable
from pimcal.metrics import Metric
from pimcal.profile import Profile
from pimcal.recalibration.engine import Engine, EngineSettings
from pimcal.recalibration.policy import Policy
from pimcal.recalibration.remedy import REMEDIES, Remedy, recalibrate
from pimcal.recalibration.simulate import Clock, Simulation, Tally
from pimcal.recalibration.triggers import BUILT_IN, Trigger
from pimcal.recalibration.upkeep import Turn, Upkeep
from pimcal.recipes import with_seed
from pimcal.timeline import check_clock


@dataclass(frozen=True, slots=True)
class Images:
    """Batches that calibrate, those that the gate judges by, and those that the plan measures on.

    All are walked again and again; what can be walked only once is kept in memory.
    """

    calibration: Sequence[Any]
    gate: Sequence[Any]
    evaluation: Sequence[Any]

    def __post_init__(self) -> None:
        for name in ("calibration", "gate", "evaluation"):
            object.__setattr__(self, name, repeatable(getattr(self, name)))


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a plan: the metric's value at a time under a policy, and what the policy had taken until then.

    `mvms`: products of calibrations, gates and probes; `programmed_cells`: cells that they had written. Neither holds
    the first programming of the network, nor what measuring `value` took. `looks`: probes, the longer ones that confirm
    them among these. `rejected`: candidates that the gate refused.
    """

    time_s: float
    policy: str
    seed: int
    value: float
    mvms: int
    programmed_cells: int
    recalibrations: int
    looks: int
    rejected: int

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Summary:
    """A policy over the whole horizon: mean and lowest value over all times and seeds; what it took, a device."""

    policy: str
    mean: float
    lowest: float
    mvms: float
    programmed_cells: float
    recalibrations: float
    looks: float
    rejected: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is simulated: so long, measured so often (s), with such images and such a metric.

    `engine`: settings as the daemon has them. `triggers`: those that a profile may name. `on_turn` is told every
    decision, `on_sample` every row, as soon as there is one.
    """

    horizon_s: float
    step_s: float
    images: Images
    metric: Metric
    engine: EngineSettings = field(default_factory=EngineSettings)
    triggers: Mapping[str, Trigger] = field(default_factory=lambda: BUILT_IN)
    on_turn: Callable[[Turn], None] = lambda turn: None
    on_sample: Callable[[Sample], None] = lambda sample: None

    @property
    def times_s(self) -> list[float]:
        """When the metric is measured: after each whole step."""
        return [i * self.step_s for i in range(1, math.floor(self.horizon_s / self.step_s + 1e-9) + 1)]


def check_plan(profile: Profile, horizon_s: float, step_s: float) -> None:
    """Raise ConfigError where no time can pass on the device, UsageError for times that make no plan."""
    check_clock(profile)
    if not 0 < step_s <= horizon_s < math.inf:
        raise UsageError(
            f"a plan of {horizon_s:g} s cannot be measured every {step_s:g} s; give a step above zero and not longer "
            "than the horizon"
        )


def plan(
    model: nn.Module, profile: Profile, policies: Sequence[Policy], seeds: Sequence[int], wanted: Plan
) -> list[Sample]:
    """Simulate each policy on a device of its own for each seed (put in `device.seed`), from its programming on.

    Time jumps from event to event. At a time at which both are due the metric comes first: it is measured on the
    calibration as old as it gets. Where the backend can save its state, measuring leaves no trace in the noise.

    Raises ConfigError for a device without a simulated clock and UsageError for impossible times, before anything is
    programmed; UsageError where the profile's method does not suit the model.
    """
    check_plan(profile, wanted.horizon_s, wanted.step_s)
    samples = []
    for policy, seed in itertools.product(policies, seeds):
        for sample in simulate(model, with_seed(profile, seed), policy, seed, wanted):
            samples.append(sample)
            wanted.on_sample(sample)
    return samples


def simulate(model: nn.Module, profile: Profile, policy: Policy, seed: int, wanted: Plan) -> Iterator[Sample]:
    """One policy on one device, sample by sample."""
    with open_device(profile) as device:
        net = deploy(model, device, next(iter(wanted.images.evaluation)))
        meter, clock, tally = _Meter(net, wanted), Clock(), Tally()
        operator = _operator(net, policy, seed, wanted, clock, tally)
        due_s = 0.0 if operator else math.inf
        for time_s in wanted.times_s:
            while operator and due_s < time_s:
                _advance(net, clock, due_s)
                due_s = clock.elapsed_s + operator.turn()
            _advance(net, clock, time_s)
            value, spent = meter.value(), meter.spent()
            yield Sample(
                time_s, policy.name, seed, value, spent.mvms, spent.programmed_cells,
                tally.recalibrations, tally.looks, tally.rejected,
            )  # fmt: skip


def summaries(samples: Sequence[Sample], *, higher_is_better: bool = True) -> list[Summary]:
    """A summary of each policy, in the order in which they come up. `lowest` is the worst value."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.policy, []).append(sample)
    return [_summary(policy, rows, min if higher_is_better else max) for policy, rows in groups.items()]


def _summary(policy: str, rows: Sequence[Sample], worst: Callable[[list[float]], float]) -> Summary:
    values = [row.value for row in rows]
    last = list({row.seed: row for row in rows}.values())
    taken = {name: fmean(getattr(row, name) for row in last) for name in _TAKEN}
    return Summary(policy, fmean(values), worst(values), **taken)


_TAKEN = ("mvms", "programmed_cells", "recalibrations", "looks", "rejected")


def _operator(
    net: Deployment, policy: Policy, seed: int, wanted: Plan, clock: Clock, tally: Tally
) -> Simulation | None:
    if policy.settings is None:
        return None
    images = wanted.images
    check_method(net, net.device.profile.calibration.method)
    probes = any(wanted.triggers[name].needs_probe for one in policy.settings.when for name in one)
    engine = Engine(
        net, images.calibration, images.gate, wanted.metric, tally, clock=clock.wall_s,
        settings=replace(wanted.engine, accepts=probes), remedies=_remedies(net, images.calibration),
    )  # fmt: skip
    upkeep = Upkeep(engine, policy.settings, clock.now, wanted.triggers, Random(seed))
    return Simulation(upkeep, wanted.on_turn)


def _remedies(net: Deployment, calibration: Sequence[Any]) -> tuple[Remedy, ...]:
    """The engine's own; but the digital model runs on the calibration images once, not for every calibration."""
    clean = clean_for(net, calibration, net.device.profile.calibration.method)
    return (*REMEDIES[:-1], replace(REMEDIES[-1], propose=partial(recalibrate, clean=clean)))


def _advance(net: Deployment, clock: Clock, until_s: float) -> None:
    if until_s > clock.elapsed_s:
        net.device.advance(until_s - clock.elapsed_s)
        clock.elapsed_s = until_s


class _Meter:
    """Measures the metric at no cost, and tells what everything else did cost."""

    def __init__(self, net: Deployment, wanted: Plan) -> None:
        self._net, self._wanted = net, wanted
        self._free = net.device.cost.copy()  # the first programming

    def value(self) -> float:
        device = self._net.device
        before, moment = device.cost.copy(), device.state_dict()
        value = evaluate(self._net, self._wanted.images.evaluation, self._wanted.metric).value
        if moment:
            device.load_state_dict(moment)
        self._free = self._free.plus(device.cost.since(before))
        return value

    def spent(self) -> Cost:
        return self._net.device.cost.since(self._free)
