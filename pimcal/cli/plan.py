"""`pimcal plan`: what recalibration policies are worth, simulated: a table, CSV, JSON and a plot."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pimcal import registry
from pimcal.cli import comparison as c
from pimcal.cli import options as o
from pimcal.cli.durations import seconds
from pimcal.cli.output import print_json, progress_bar, say, stdout_for_json
from pimcal.cli.plan_tables import print_plan
from pimcal.files import check_writable

if TYPE_CHECKING:
    from torch import nn

    from pimcal.plan import Images, Sample
    from pimcal.profile import Profile

SMALL = 1_000_000  # weights, up to which one thread is faster than several

SAMPLES = 100  # of the metric, unless a step is given: no divisor of a day, so that all hours of it come up


def plan(
    profile: o.ProfileOption,
    model: o.ModelOption,
    data: o.Data,
    horizon: Annotated[str, typer.Option("--horizon", metavar="DURATION", help="How long to simulate.")] = "30d",
    policies: Annotated[
        str,
        typer.Option(
            "--policies", metavar="P1,P2,...", help="never, once, every:1h, cron:..., probe:1h:0.035, profile."
        ),
    ] = "never,every:1h,every:1d,probe",
    step: Annotated[
        str | None,
        typer.Option(
            "--step", metavar="DURATION", help="Time between measurements; left out: a hundredth of --horizon."
        ),
    ] = None,
    seeds: c.Seeds = 1,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for plan.csv, .json, .png.")] = None,
    calibration_data: o.CalibrationData = None,
    held_out: o.HeldOut = None,
    images: c.Images = None,
    weights: o.Weights = None,
    preprocess: o.Preprocess = "none",
    classes: o.Classes = None,
    calling: o.CallingOption = None,
    metric: o.MetricOption = None,
    batch_size: o.BatchSize = 64,
    seed: c.FirstSeed = 0,
    torch_device: o.TorchDevice = "cpu",
    override: o.Overrides = None,
    as_json: o.Json = False,
) -> None:
    """Simulate weeks under each recalibration policy: accuracy against device time, before a board is used.

    The first gate.images of --data, as the profile says, judge calibrations, and the others measure the plan; all do
    both where the profile does not say.
    """
    from pimcal.recalibration.policy import parse_policies

    horizon_s = seconds("--horizon", horizon)
    step_s = horizon_s / SAMPLES if step is None else seconds("--step", step)
    compared = parse_policies(policies, o.read_profile(profile, override).recalibration)
    if out is not None:
        check_writable(out)
    from pimcal.events import PlanFinished
    from pimcal.plan import Plan, check_plan, summaries
    from pimcal.plan import plan as run
    from pimcal.recipes import parse_recipe

    with stdout_for_json(as_json):
        subject = o.load_subject(profile, override, model, weights, None, torch_device)
        _use_threads(subject.model)
        recipe = parse_recipe(subject.profile.calibration.method)
        check_plan(subject.profile, horizon_s, step_s)
        reading = o.Reading(preprocess, batch_size, classes, calling)
        same = c.load_comparison(subject, [recipe], data, calibration_data, held_out, images, reading, metric, seed)
        found = _images(subject.profile, same, same.calibration(recipe))
        done: list[Sample] = []
        with progress_bar("plan", round(horizon_s / step_s) * seeds * len(compared)) as progress:

            def on_sample(sample: Sample) -> None:
                done.append(sample)
                progress(len(done))

            samples = run(
                subject.model, subject.profile, compared, range(seed, seed + seeds),
                Plan(
                    horizon_s=horizon_s, step_s=step_s, images=found, metric=same.metric,
                    triggers=registry.triggers(), on_sample=on_sample,
                ),
            )  # fmt: skip
        totals = summaries(samples, higher_is_better=same.metric.higher_is_better)
        table = {
            "metric": same.metric.name, "clean": same.clean, "horizon_s": horizon_s, "step_s": step_s,
            "policies": [asdict(each) for each in totals], "rows": [sample.as_row() for sample in samples],
        }  # fmt: skip
        if out is not None:
            c.write_results("plan", PlanFinished(table, out))
    if as_json:
        print_json(table)
        return
    print_plan(table)
    if out is not None:
        say(f"written to {out}")


def _use_threads(model: nn.Module) -> None:
    """Thousands of runs of a small network take several times as long on many threads, on a busy machine tenfold."""
    import torch

    if sum(parameter.numel() for parameter in model.parameters()) < SMALL:
        torch.set_num_threads(1)


def _images(profile: Profile, same: c.Comparison, calibration: Any) -> Images:
    from pimcal.plan import Images

    judged, count = same.held_out, profile.gate.images
    gate, rest = judged.split(count) if count is not None and count < judged.count() else (judged, judged)
    return Images(calibration, list(gate), list(rest))
