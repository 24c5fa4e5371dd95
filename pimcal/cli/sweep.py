"""`pimcal sweep`: accuracy over settings, methods and seeds, as CSV, JSON and a plot."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pimcal.cli import comparison as c
from pimcal.cli import options as o
from pimcal.cli.output import print_json, print_table, progress_bar, say, shown, stdout_for_json
from pimcal.errors import ConfigError, UsageError
from pimcal.files import check_writable

if TYPE_CHECKING:
    from pimcal.sweep import Cell


def sweep(
    profile: o.ProfileOption,
    model: o.ModelOption,
    data: o.Data,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=V1,V2,...", help="A profile value and what to set it to; may be repeated."),
    ] = None,
    methods: Annotated[
        str, typer.Option("--methods", help="none, references, paired, affine, pooled, ema, references+paired, ...")
    ] = "none,references,paired",
    seeds: c.Seeds = 1,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for sweep.csv, .json, .png.")] = None,
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
    """Evaluate a network for every setting, method and seed; write a table and a plot."""
    from pimcal.events import SweepFinished
    from pimcal.sweep import check_settings, grid
    from pimcal.sweep import sweep as run

    recipes = c.parse_recipes(methods)
    varied = _parse_settings(settings or [])
    check_settings(varied)
    if out is not None:
        check_writable(out)
    with stdout_for_json(as_json):
        subject = o.load_subject(profile, override, model, weights, None, torch_device)
        reading = o.Reading(preprocess, batch_size, classes, calling)
        same = c.load_comparison(subject, recipes, data, calibration_data, held_out, images, reading, metric, seed)
        cells: list[Cell] = []
        total = len(grid(varied)) * seeds * len(recipes)
        with _settings_named(varied), progress_bar("sweep", total) as progress:

            def on_cell(cell: Cell) -> None:
                cells.append(cell)
                progress(len(cells))

            run(
                subject.model, subject.profile, varied, recipes, range(seed, seed + seeds), same.held_out,
                same.calibration, same.metric, on_cell,
            )  # fmt: skip
        c.note_once([remark for cell in cells for remark in cell.notes])
        table = {"metric": same.metric.name, "clean": same.clean, "rows": [cell.as_row() for cell in cells]}
        if out is not None:
            c.write_results("sweep", SweepFinished(table, out))
    if as_json:
        print_json(table)
        return
    _print(table)
    if out is not None:
        say(f"written to {out}")


def _parse_settings(texts: Sequence[str]) -> dict[str, list[Any]]:
    parsed = [_parse_setting(text) for text in texts]
    twice = next((key for key, count in Counter(key for key, _ in parsed).items() if count > 1), None)
    if twice is not None:
        raise UsageError(f"--set {twice} is given twice; put all its values into one: --set {twice}=VALUE,VALUE,...")
    return dict(parsed)


def _parse_setting(text: str) -> tuple[str, list[Any]]:
    """`device.eta0=0.1,0.2` as a key and its values. Raises UsageError for anything else."""
    from pimcal.profile.problems import Problem, ProfileError
    from pimcal.profile.yaml_tree import read_tree

    key, _, values = text.partition("=")
    if not key.strip() or not values.strip():
        raise UsageError(f"--set {text!r}: write KEY=VALUE,VALUE,... for example device.eta0=0.02,0.06,0.1")
    problems: list[Problem] = []
    found: Any = None
    try:
        found = read_tree(f"[{values}]".encode("utf-8", "surrogateescape"), "", problems).plain()
    except ProfileError as error:
        problems = list(error.problems)
    if problems or not found:
        told = "; ".join(problem.message for problem in problems) or "no value"
        raise UsageError(f"--set {text!r}: {told}; write values as in a YAML list, without its brackets")
    return key.strip(), found


@contextmanager
def _settings_named(keys: Iterable[str]) -> Iterator[None]:
    """Profile errors of the block name `--set` for values that came from there: they are laid over as by `-O`."""
    from pimcal.profile import ProfileError

    try:
        yield
    except ProfileError as error:
        starts = tuple(f"-O {key}" for key in keys)
        told = (str(problem) for problem in error.problems)
        lines = [f"--set{line.removeprefix('-O')}" if line.startswith(starts) else line for line in told]
        raise ConfigError("\n".join(lines)) from error


def _print(table: dict[str, Any]) -> None:
    from pimcal.placement_report import percent
    from pimcal.sweep import MEASURED

    metric = table["metric"]
    typer.echo(f"clean {metric} (digital hardware): {shown(metric, table['clean'])}")
    keys = [key for key in table["rows"][0] if key not in MEASURED]
    keys.append("method")
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in table["rows"]:
        groups.setdefault(json.dumps([row[key] for key in keys]), []).append(row)  # values may be lists
    rows = [
        (
            *(found[0][key] for key in keys),
            *c.spread(metric, found),
            found[0]["images"],
            f"{found[0]['mvms']:,}",
            percent(found[0]["device_share"]),
        )
        for found in groups.values()
    ]
    print_table((*keys, metric, "min", "max", "images", "MVMs", "on device"), rows)
