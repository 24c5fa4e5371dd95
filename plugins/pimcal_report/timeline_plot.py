"""A timeline's table as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pimcal.files import write_atomically
from pimcal_report.plots import Panel, lines_of, metric_figure, png


def write_timeline_plot(table: dict[str, Any], out: Path) -> None:
    """Write `timeline.png` to the folder `out`: the metric against time since programming, a line a method.

    `table`: `rows` of `{time_s, method, seed, value}`, `clean`, and the `metric`'s name.
    Raises MissingExtraError without matplotlib, StorageError where the file cannot be written.
    """
    panel = Panel("", "time since programming", lines_of(table["rows"], "time_s"), x_is_time=True)
    write_atomically(out / "timeline.png", png(metric_figure([panel], table["clean"], table["metric"])))
