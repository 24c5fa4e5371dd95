"""A sweep's table as a plot."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pimcal.files import write_atomically
from pimcal_report.plots import Panel, lines_of, metric_figure, png

logger = logging.getLogger(__name__)


def write_sweep_plot(table: dict[str, Any], out: Path) -> None:
    """Write `sweep.png` to the folder `out`; where no setting is numeric there is nothing to draw, and it says so.

    `table`: `rows` of `{setting.., method, seed, value}`, `clean`, and the `metric`'s name.
    Raises MissingExtraError without matplotlib, StorageError where the file cannot be written.
    """
    panels = sweep_panels(table["rows"])
    if not panels:
        logger.warning("no plot: the sweep varies no numeric setting; add one, for example --set device.eta0=0.1,0.2")
        return
    figure = metric_figure(panels, table["clean"], table["metric"])
    write_atomically(out / "sweep.png", png(figure))


def sweep_panels(rows: Sequence[dict[str, Any]]) -> list[Panel]:
    """The first numeric setting becomes the x axis; each combination of the others' values has its own panel."""
    from pimcal.sweep import MEASURED

    settings = [key for key in (rows[0] if rows else {}) if key not in MEASURED]
    x = next((key for key in settings if all(_is_number(row[key]) for row in rows)), None)
    if x is None:
        return []
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        title = ", ".join(f"{key} = {row[key]}" for key in settings if key != x)
        groups.setdefault(title, []).append(row)
    return [Panel(title, x, lines_of(found, x)) for title, found in groups.items()]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
