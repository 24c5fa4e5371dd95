"""A plan's table as a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pimcal.files import write_atomically
from pimcal_report.plots import empty_figure, legend_below, percent_axis, plain, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DAY_S = 86_400.0
_COLORS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2")
_LINES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1, 1, 1)))

Lines = Mapping[str, Mapping[float, Sequence[float]]]


def write_plan_plot(table: dict[str, Any], out: Path) -> None:
    """Write `plan.png` to the folder `out`: above the metric, below the products taken so far, against time.

    `table`: `rows` of `{time_s, policy, seed, value, mvms}`, `clean`, and the `metric`'s name.
    Raises MissingExtraError without matplotlib, StorageError where the file cannot be written.
    """
    rows, metric = table["rows"], table["metric"]
    figure = empty_figure(8.5, 6.6)
    upper, lower = figure.subplots(2, 1, sharex=True)
    scale = percent_axis(upper, metric)
    upper.axhline(
        table["clean"] * scale, color="#555555", linestyle=(0, (4, 3)), linewidth=1.2, label="digital hardware"
    )
    _draw(upper, plan_lines(rows, "value", scale))
    if scale != 1.0:  # a fraction: room for the differences between policies
        upper.set_ylim(bottom=10 * math.floor(scale / 10 * min(row["value"] for row in rows)))
    _draw(lower, plan_lines(rows, "mvms", 1.0))
    lower.set_yscale("symlog", linthresh=_least(rows))
    lower.set(ylim=(0, None), ylabel="device time in MVMs", xlabel="time in days")
    legend_below(figure, upper, columns=5)
    write_atomically(out / "plan.png", png(figure))


def plan_lines(rows: Sequence[Mapping[str, Any]], key: str, scale: float) -> dict[str, dict[float, list[float]]]:
    """By policy, by time in days, each seed's value times `scale`."""
    lines: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        lines.setdefault(row["policy"], {}).setdefault(row["time_s"] / DAY_S, []).append(row[key] * scale)
    return lines


def _draw(axis: Axes, lines: Lines) -> None:
    """Means over seeds as lines, minimum to maximum as a band."""
    plain(axis)
    for i, (policy, points) in enumerate(lines.items()):
        color = _COLORS[i % len(_COLORS)]
        days, values = list(points), list(points.values())
        style = _LINES[i % len(_LINES)]
        axis.plot(days, [fmean(each) for each in values], color=color, linestyle=style, linewidth=1.8, label=policy)
        axis.fill_between(days, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.2, linewidth=0)


def _least(rows: Sequence[Mapping[str, Any]]) -> float:
    """The smallest device time above zero, from which on the axis is logarithmic."""
    return float(min((row["mvms"] for row in rows if row["mvms"]), default=1))
