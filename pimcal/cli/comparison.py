"""What `sweep`, `timeline` and `plan` share: what is compared sees the same images; the files and figures of it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pimcal import registry
from pimcal.cli import options as o
from pimcal.cli.output import note, shown
from pimcal.errors import MissingExtraError
from pimcal.files import replace_together

if TYPE_CHECKING:
    from pimcal.events import PlanFinished, SweepFinished, TimelineFinished
    from pimcal.metrics import Metric
    from pimcal.recipes import Recipe
    from pimcal.sources.batches import Batches

USES_ALL_IMAGES = ("ema", "pooled")  # methods that estimate moments anew, and need all images that there are

Seeds = Annotated[
    int, typer.Option("--seeds", min=1, max=10_000, help="How many device seeds; they count up from --seed.")
]
FirstSeed = Annotated[
    int, typer.Option("--seed", min=0, max=o.MAX_SEED, help="First seed of the simulated device; seeds torch, too.")
]
Images = Annotated[
    int | None,
    typer.Option(
        "--images", min=1, max=o.MOST, help="Calibration images; left out: all for ema and pooled, else the profile's."
    ),
]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What all methods of a run have in common: images to judge by, batches to calibrate on, the metric, and its value
    on digital hardware."""

    held_out: Batches
    calibration: Callable[[Recipe], Sequence[Any]]
    metric: Metric
    clean: float


def parse_recipes(methods: str, *, gdc: bool = False) -> list[Recipe]:
    """The methods of `--methods`, each once. Raises UsageError for one that does not exist."""
    from pimcal.recipes import parse_recipe

    names = dict.fromkeys(part.strip() for part in methods.split(","))
    return [parse_recipe(name, gdc=gdc) for name in names]


def load_comparison(
    subject: o.Subject,
    recipes: Sequence[Recipe],
    data: str,
    calibration_data: str | None,
    held_out: int | None,
    images: int | None,
    reading: o.Reading,
    metric: str | None,
    seed: int,
) -> Comparison:
    """Read the images, and evaluate the digital model on them."""
    from pimcal.evaluation import evaluate

    needed = images or subject.profile.calibration.images if any(recipe.method for recipe in recipes) else 0
    apart = 0 if calibration_data else needed
    judged = reading.load_held_out(data, held_out, apart).in_memory()
    judged, calibration = _calibration(subject, recipes, judged, calibration_data, images, reading, seed)
    o.check_input(subject.model, judged.first)
    chosen = o.choose_metric(metric, judged.has_labels)
    return Comparison(judged, calibration, chosen, evaluate(subject.model, judged, chosen).value)


def _calibration(
    subject: o.Subject,
    recipes: Sequence[Recipe],
    held_out: Batches,
    spec: str | None,
    images: int | None,
    reading: o.Reading,
    seed: int,
) -> tuple[Batches, Callable[[Recipe], Sequence[Any]]]:
    """The images to judge by, and for each recipe those to calibrate on."""
    settings = subject.profile.calibration
    count = images or settings.images
    if not any(recipe.method for recipe in recipes):
        return held_out, lambda recipe: []
    if spec == "synthetic":
        from pimcal.cli.calibrate import synthetic_like

        found = synthetic_like(held_out, count, seed)
    elif spec is not None:
        found = reading.load_calibration(spec, images)
    else:
        found, held_out = held_out.split(count)
    o.check_calibration_images(subject.model, found)
    found = found.in_memory()

    def batches(recipe: Recipe) -> Sequence[Any]:
        few = recipe.method not in USES_ALL_IMAGES and images is None and count < found.count()
        return list(found.split(count)[0] if few else found)

    return held_out, batches


def note_once(remarks: Sequence[str]) -> None:
    """Remarks to stderr, equal ones once."""
    for remark in dict.fromkeys(remarks):
        note(remark)


def write_results(name: str, finished: PlanFinished | SweepFinished | TimelineFinished) -> None:
    """`NAME.csv` and `NAME.json` in the folder of the event, which then tells the plugins that draw."""
    table = finished.table
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(table["rows"][0]))
    writer.writeheader()
    writer.writerows(table["rows"])
    files = {f"{name}.csv": buffer.getvalue(), f"{name}.json": json.dumps(table, indent=2)}
    replace_together(finished.out, {name: text.encode() for name, text in files.items()})
    try:
        registry.emit(finished)
    except MissingExtraError as error:
        note(f"no plot: {error}")


def spread(metric: str, rows: Sequence[dict[str, Any]]) -> tuple[str, str, str]:
    """Mean, minimum and maximum of the rows' values, as people read them."""
    values = [row["value"] for row in rows]
    return shown(metric, fmean(values)), shown(metric, min(values)), shown(metric, max(values))
