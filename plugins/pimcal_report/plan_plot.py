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
    from matplotlib.figure import Figure

DAY_S = 86_400.0
_COLORS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2")
_MARKERS = "osD^vXP"
_MARKS = 8  # on a line, about
_NICE = (1, 2, 5, 10)  # what distances between ticks begin with

Lines = Mapping[str, Mapping[float, Sequence[float]]]


def write_plan_plot(table: dict[str, Any], out: Path) -> None:
    """Write `plan.png` to the folder `out`; `table` and errors as `plan_figure`.

    Raises StorageError where the file cannot be written.
    """
    write_atomically(out / "plan.png", png(plan_figure(table)))


def plan_figure(table: Mapping[str, Any]) -> Figure:
    """Above the metric, below the products taken so far, against time.

    `table`: `rows` of `{time_s, policy, seed, value, mvms}`, `clean`, and the `metric`'s name.
    Raises MissingExtraError without matplotlib.
    """
    rows, metric, clean = table["rows"], table["metric"], table["clean"]
    figure = empty_figure(8.5, 6.6)
    upper, lower = figure.subplots(2, 1, sharex=True)
    scale = percent_axis(upper, metric)
    upper.axhline(clean * scale, color="#555555", linestyle=(0, (4, 3)), linewidth=1.2, label="digital hardware")
    _draw(upper, plan_lines(rows, "value", scale))
    if scale != 1.0:  # a fraction: room for the differences between policies
        _share_axis(upper, scale * min(clean, *(row["value"] for row in rows)))
    _draw(lower, plan_lines(rows, "mvms", 1.0))
    _products_axis(lower, [row["mvms"] for row in rows])
    lower.set(ylabel="device time in MVMs", xlabel="time in days")
    legend_below(figure, upper, columns=5)
    return figure


def plan_lines(rows: Sequence[Mapping[str, Any]], key: str, scale: float) -> dict[str, dict[float, list[float]]]:
    """By policy, by time in days, each seed's value times `scale`."""
    lines: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        lines.setdefault(row["policy"], {}).setdefault(row["time_s"] / DAY_S, []).append(row[key] * scale)
    return lines


def _draw(axis: Axes, lines: Lines) -> None:
    """Means over seeds as lines, minimum to maximum as a band. The thick ones lie below: equal ones stay visible."""
    plain(axis)
    for i, (policy, points) in enumerate(lines.items()):
        color, behind = _COLORS[i % len(_COLORS)], 1 - i / len(lines)
        days, values = list(points), list(points.values())
        axis.plot(
            days, [fmean(each) for each in values], color=color, linewidth=1.2 + 2.6 * behind, label=policy,
            marker=_MARKERS[i % len(_MARKERS)], markersize=3.5 + 8 * behind, markevery=max(1, len(days) // _MARKS),
            markerfacecolor="white", markeredgewidth=1.4, zorder=2 + i / len(lines), clip_on=False,
        )  # fmt: skip
        axis.fill_between(days, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.2, linewidth=0)


def _share_axis(axis: Axes, lowest: float) -> None:
    """From below `lowest` to a little above 100 %."""
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(5, steps=_NICE, min_n_ticks=3).tick_values(min(lowest, 99.0), 100.0)
    axis.set_yticks([tick for tick in ticks if tick <= 100.0])
    axis.set_ylim(ticks[0], 100.0 + 0.05 * (100.0 - ticks[0]))


def _products_axis(axis: Axes, mvms: Sequence[float]) -> None:
    """From zero; logarithmic above that where some are ten times others."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    most = max(10.0, *mvms)
    least = 10.0 ** math.floor(math.log10(min((each for each in mvms if each), default=most)))
    if most < 10 * least:
        axis.yaxis.set_major_locator(MaxNLocator(5, steps=_NICE, min_n_ticks=3, integer=True))
    else:
        axis.set_yscale("symlog", linthresh=least)
        axis.set_yticks([0.0, *(least * 10.0**i for i in range(math.floor(math.log10(most / least)) + 1))])
    axis.yaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set_ylim(0, 1.1 * most)
