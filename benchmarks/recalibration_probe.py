"""False alarms of the probe where nothing drifts, and how often it notices a drift that costs one point of accuracy.

On the digits network of the demo, right after a paired calibration. Each device (seed) accepts its answers once and is
checked many times. The drift that costs one point is looked for on the same devices: mean accuracy over all held-out
digits, several noise draws and devices, interpolated between the two ages around it.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import pimcal
from pimcal.deployment import Deployment
from pimcal.evaluation import evaluate
from pimcal.metrics import resolve_metric
from pimcal.recalibration.probe import Accepted, ProbeSettings, accept, probe
from pimcal_demo.digits import load_digits
from pimcal_demo.network import load_network

LOSS = 0.01  # one point of accuracy
EVALUATIONS = 2  # of all held-out digits, on each device and at each age
BATCH = 50  # held-out digits that share a draw of the noise


@dataclass(frozen=True)
class Case:
    """A device and how it ages: seconds since it was calibrated, at `start_s` after programming."""

    profile: str
    overrides: dict[str, Any] = field(default_factory=dict)
    start_s: float = 0.0
    ages_s: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5)
    slow: bool = False


def gaussian(noise: str, **settings: Any) -> Case:
    """A device whose eta0 grows by its initial value each second."""
    drift = {"kind": "linear", "rate_per_s": 1.0}
    return Case(f"gaussian_{noise}", {f"device.{key}": value for key, value in {"drift": drift, **settings}.items()})


def cases() -> dict[str, Case]:
    found = {
        f"{noise}, {granularity}": gaussian(noise, granularity=granularity)
        for noise in ("mul", "add")
        for granularity in ("element", "tile", "device")
    }
    found |= {f"awgn, {redraw}": gaussian("awgn", redraw=redraw) for redraw in ("batch", "program")}
    if find_spec("aihwkit") is not None:
        hours = tuple(3600.0 * factor for factor in (1, 3, 5, 10))
        found["aihwkit_pcm"] = Case("aihwkit_pcm", start_s=3600.0, ages_s=hours, slow=True)
    return found


class Subject:
    """The digits network and its data."""

    def __init__(self) -> None:
        train, test = load_digits()
        self.model = load_network()
        self.metric = resolve_metric("accuracy")
        self.calibration = list(zip(*(part[:64].split(16) for part in train), strict=True))
        self.held_out = list(zip(*(part.split(BATCH) for part in test), strict=True))

    @contextmanager
    def calibrated(self, case: Case, seed: int) -> Iterator[tuple[Deployment, int]]:
        """A device at the age of `start_s`, the network on it calibrated; and the products that this took."""
        with pimcal.open_device(case.profile, {**case.overrides, "device.seed": seed}) as device:
            net = pimcal.deploy(self.model, device)
            device.advance(case.start_s)
            record = pimcal.calibrate(net, self.calibration, "paired")
            yield net.apply(record), record.made_with.mvms

    def accuracy(self, net: Deployment) -> float:
        return statistics.fmean(evaluate(net, self.held_out, self.metric).value for _ in range(EVALUATIONS))


def age_of_loss(subject: Subject, case: Case, seeds: range) -> float:
    """The age (s) at which drift has cost `LOSS`."""
    losses = {0.0: 0.0}
    curves = [curve(subject, case, seed) for seed in seeds]
    for i, age_s in enumerate(case.ages_s, start=1):
        earlier_s, before = [*losses.items()][-1]
        losses[age_s] = statistics.fmean(values[0] - values[i] for values in curves)
        if losses[age_s] >= LOSS:
            return earlier_s + (age_s - earlier_s) * (LOSS - before) / (losses[age_s] - before)
    raise SystemExit(f"no age costs {LOSS:.0%}: {losses}")


def curve(subject: Subject, case: Case, seed: int) -> list[float]:
    """Accuracy at age 0 and at each of the case's ages."""
    with subject.calibrated(case, seed) as (net, _):
        values, now_s = [subject.accuracy(net)], 0.0
        for age_s in case.ages_s:
            net.device.advance(age_s - now_s)
            values.append(subject.accuracy(net))
            now_s = age_s
        return values


def checks(net: Deployment, accepted: Accepted, count: int) -> tuple[int, float]:
    """How many of so many checks find drift; and the largest statistic, 1 being drift."""
    found = [probe(net, accepted) for _ in range(count)]
    return sum(look.drifted for look in found), max(look.statistic for look in found)


def measure_probe(subject: Subject, case: Case, seeds: range, count: int) -> dict[str, Any]:
    age_s = age_of_loss(subject, case, seeds)
    alarms = noticed = 0
    largest = 0.0
    smallest = float("inf")
    for seed in seeds:
        with subject.calibrated(case, seed) as (net, calibration_mvms):
            accepted = accept(net)
            before = net.device.cost.mvms
            found, highest = checks(net, accepted, count)
            mvms = (net.device.cost.mvms - before) // count
            alarms, largest = alarms + found, max(largest, highest)
            net.device.advance(age_s)
            looks = [probe(net, accepted) for _ in range(count // 4)]
            noticed += sum(look.drifted for look in looks)
            smallest = min(smallest, *(look.statistic for look in looks))
    return {
        "false_alarms": alarms,
        "checks": count * len(seeds),
        "largest_statistic": round(largest, 2),
        "age_of_one_point_s": round(age_s, 3),
        "noticed": noticed,
        "checks_after_drift": count // 4 * len(seeds),
        "smallest_statistic": round(smallest, 2),
        "mvms": mvms,
        "share_of_calibration": round(mvms / calibration_mvms, 5),
    }


def chosen(found: dict[str, Case], kinds: str | None) -> dict[str, Case]:
    """Those of the names that `kinds` joins by semicolons; all without it."""
    return {name: case for name, case in found.items() if kinds is None or name in kinds.split(";")}


def measure_probes(devices: int, count: int, kinds: str | None) -> dict[str, Any]:
    subject, settings = Subject(), ProbeSettings()
    result: dict[str, Any] = {"draws": settings.draws, "false_alarms_allowed": settings.false_alarms}
    for name, case in chosen(cases(), kinds).items():
        slower = 10 if case.slow else 1
        result[name] = measure_probe(subject, case, range(devices), max(4, count // slower))
        print(name, result[name], file=sys.stderr)
    rows = [row for row in result.values() if isinstance(row, dict)]
    for key in ("false_alarms", "checks", "noticed", "checks_after_drift"):
        result[f"all_{key}"] = sum(row[key] for row in rows)
    return result
