"""`pimcal timeline`: accuracy against time since programming, as a table, CSV, JSON and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pimcal.cli import comparison as c
from pimcal.cli import options as o
from pimcal.cli.output import print_json, print_table, progress_bar, say, shown, stdout_for_json
from pimcal.files import check_writable

if TYPE_CHECKING:
    from datetime import timedelta

    from pimcal.timeline import Reading


def timeline(
    profile: o.ProfileOption,
    model: o.ModelOption,
    data: o.Data,
    at: Annotated[
        str, typer.Option("--at", metavar="T1,T2,...", help="Times since programming, each later than the one before.")
    ] = "1s,1h,1d,30d,365d",
    methods: Annotated[
        str,
        typer.Option(
            "--methods", help="none, gdc (drift compensation), paired, gdc+paired, references+gdc+paired, ..."
        ),
    ] = "none,gdc,paired,gdc+paired",
    seeds: c.Seeds = 1,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder for timeline.csv, .json, .png.")
    ] = None,
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
    """Let a programmed network age, and evaluate it at each time with every method; write a table and a plot."""
    from pimcal.events import TimelineFinished
    from pimcal.timeline import check_clock, parse_times
    from pimcal.timeline import timeline as run

    recipes, times = c.parse_recipes(methods, gdc=True), parse_times(at)
    if out is not None:
        check_writable(out)
    with stdout_for_json(as_json):
        subject = o.load_subject(profile, override, model, weights, None, torch_device)
        check_clock(subject.profile)
        reading = o.Reading(preprocess, batch_size, classes, calling)
        same = c.load_comparison(subject, recipes, data, calibration_data, held_out, images, reading, metric, seed)
        done: list[Reading] = []
        with progress_bar("timeline", len(times) * seeds * len(recipes)) as progress:

            def on_reading(reading: Reading) -> None:
                done.append(reading)
                progress(len(done))

            readings = run(
                subject.model, subject.profile, [time.total_seconds() for time in times], recipes,
                range(seed, seed + seeds), same.held_out, same.calibration, same.metric, on_reading,
            )  # fmt: skip
        c.note_once([remark for reading in readings for remark in reading.notes])
        table = {"metric": same.metric.name, "clean": same.clean, "rows": [reading.as_row() for reading in readings]}
        if out is not None:
            c.write_results("timeline", TimelineFinished(table, out))
    if as_json:
        print_json(table)
        return
    _print(table, times)
    if out is not None:
        say(f"written to {out}")


def _print(table: dict[str, Any], times: Sequence[timedelta]) -> None:
    """A row a time, a column a method: the mean over seeds and, where there are several, minimum to maximum."""
    from pimcal.profile.duration import format_duration

    metric, rows = table["metric"], table["rows"]
    typer.echo(f"clean {metric} (digital hardware): {shown(metric, table['clean'])}")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    cells: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["time_s"], row["method"]), []).append(row)
    lines = [
        (format_duration(time), *(_cell(metric, cells[time.total_seconds(), method]) for method in methods))
        for time in times
    ]
    print_table(("time", *methods), lines)


def _cell(metric: str, rows: Sequence[dict[str, Any]]) -> str:
    mean, low, high = c.spread(metric, rows)
    return mean if len(rows) == 1 else f"{mean} ({low.removesuffix(' %')} .. {high.removesuffix(' %')})"
