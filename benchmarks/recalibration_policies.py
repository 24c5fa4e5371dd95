"""30 simulated days of recalibrating every hour, and of probing every hour and recalibrating on drift.

Both calibrate on 64 digits and have the gate judge by 100 held-out ones; accuracy is measured on the 500 others, 100
times, on calibrations as old as they get. Device time is products, those of gates and probes included on both sides.
"""

from __future__ import annotations

import resource
import statistics
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recalibration_probe import Case, Subject, chosen, gaussian

import pimcal
from pimcal.plan import Images, Plan, Summary, plan, summaries
from pimcal.recalibration.policy import parse_policies

HORIZON_S = 30 * 86_400.0
HOURLY, PROBING = "every:1h", "probe:1h:0.035"
GATE_BATCHES = 2  # of BATCH digits


def drifting() -> dict[str, Case]:
    """Kinds of drift that cost an uncalibrated network much of its accuracy within 30 days."""
    growing = {"kind": "logarithmic", "amplitude": 0.5, "time_constant_s": 3600.0}
    steady = {"kind": "linear", "rate_per_s": 2 / HORIZON_S}  # beyond that nothing saves this network
    daily = {"kind": "temperature", "amplitude_c": 10.0, "period_s": 86_400.0, "eta0_per_c": 0.08}
    walking = {"kind": "random_walk", "step_s": 3600.0, "std": 0.05}
    found = {
        "mul, logarithmic": gaussian("mul", drift=growing, eta0=0.05),
        "mul, daily temperature": gaussian("mul", drift=daily, eta0=0.1),
        "mul, random walk, device": gaussian("mul", drift=walking, eta0=0.1, granularity="device"),
        "add, linear": gaussian("add", drift=steady, eta0=0.003),
    }
    if find_spec("aihwkit") is not None:
        found["aihwkit_pcm"] = Case("aihwkit_pcm", slow=True)
    return found


def planned(subject: Subject, step_s: float, **options: Any) -> Plan:
    calibration, gate, others = subject.calibration, subject.held_out[:GATE_BATCHES], subject.held_out[GATE_BATCHES:]
    images = Images(calibration, gate, others)
    return Plan(horizon_s=HORIZON_S, step_s=step_s, images=images, metric=subject.metric, **options)


def measure_policy(subject: Subject, case: Case, policies: str, seeds: range) -> dict[str, Any]:
    profile = pimcal.load_profile(case.profile, case.overrides)
    wanted = planned(subject, HORIZON_S / (25 if case.slow else 100))
    samples = plan(subject.model, profile, parse_policies(policies, profile.recalibration), seeds, wanted)
    never, hourly, probing = summaries(samples)
    means = {
        name: [statistics.fmean(s.value for s in samples if (s.policy, s.seed) == (name, seed)) for seed in seeds]
        for name in (HOURLY, PROBING)
    }
    behind = [each - other for each, other in zip(means[HOURLY], means[PROBING], strict=True)]
    return {
        "never": round(never.mean, 4),
        "hourly": shown(hourly),
        "probing": shown(probing),
        "points_behind": round(100 * statistics.fmean(behind), 3),
        "points_behind_by_seed": [round(100 * each, 3) for each in behind],
        "share_of_device_time": round(probing.mvms / hourly.mvms, 4),
    }


def shown(summary: Summary) -> dict[str, Any]:
    return {
        "mean": round(summary.mean, 4),
        "lowest": round(summary.lowest, 4),
        "mvms": round(summary.mvms),
        **{key: getattr(summary, key) for key in ("recalibrations", "looks", "rejected")},
    }


def measure_policies(seeds: int, kinds: str | None) -> dict[str, Any]:
    subject, result = Subject(), dict[str, Any](policies=[HOURLY, PROBING], days=30, seeds=seeds)
    for name, case in chosen(drifting(), kinds).items():
        result[name] = measure_policy(subject, case, f"never,{HOURLY},{PROBING}", range(seeds))
        print(name, result[name], file=sys.stderr, flush=True)
    rows = [row for row in result.values() if isinstance(row, dict)]
    for key in ("points_behind", "share_of_device_time"):
        result[f"largest_{key}"] = max(row[key] for row in rows)
    return result


def measure_memory() -> dict[str, Any]:
    """Resident memory at each sample; the samples measure it, too."""
    subject, resident_mb = Subject(), list[float]()
    case = drifting()["mul, random walk, device"]
    profile = pimcal.load_profile(case.profile, case.overrides)
    wanted = planned(subject, HORIZON_S / 100, on_sample=lambda sample: resident_mb.append(rss_mb()))
    samples = plan(subject.model, profile, parse_policies(PROBING, profile.recalibration), range(1), wanted)
    settled = resident_mb[len(resident_mb) // 10 :]
    return {
        "days": 30,
        "recalibrations": samples[-1].recalibrations,
        "looks": samples[-1].looks,
        "mb_after_first_tenth": round(settled[0], 1),
        "growth_mb": round(max(settled) - settled[0], 2),
        "spread_mb": round(max(settled) - min(settled), 2),
    }


def rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
