"""Plots: a metric against a setting or time for each method, and divergence layer by layer.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; markers differ in shape and size, so that
methods with equal values stay visible inside one another. With drift compensation a method keeps its colour; its
line is dotted, its marker hollow.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pimcal.errors import MissingExtraError
from pimcal.profile.duration import format_duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pimcal.calibration.divergence import Divergence

_FRACTIONS = ("accuracy", "agreement")  # metrics in 0..1, shown in %
_COLUMNS = 3
_MAX_TICKS = 8  # up to so many values, each is a tick of its own
_CHARACTERS = 50  # as many fit side by side below a time axis
_DPI = 150


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram: by method, by value of the setting on the x axis, the metric's value for each seed.

    `x_is_time`: the values are seconds, on a logarithmic axis that is labelled in durations.
    """

    title: str
    x_label: str
    lines: Mapping[str, Mapping[float, Sequence[float]]]
    x_is_time: bool = False


@dataclass(frozen=True, slots=True)
class _Style:
    color: str
    marker: str
    size: float
    width: float
    filled: bool = False
    dotted: bool = False


_STYLES = {
    "none": _Style("#000000", "X", 8, 1.5, filled=True),
    "gdc": _Style("#000000", "D", 6.5, 1.8, dotted=True),
    "references": _Style("#009E73", "o", 12.5, 3.6),
    "references+paired": _Style("#CC79A7", "s", 8.5, 2.6),
    "ema": _Style("#E69F00", "D", 6, 1.9),
    "paired": _Style("#0072B2", "o", 4, 1.2, filled=True),
    "pooled": _Style("#56B4E9", "^", 8, 2),
    "affine": _Style("#D55E00", "v", 8, 1.5),
}
_DOTS = (0, (1, 1.2))
_OTHER = _Style("#7F7F7F", "P", 7, 1.5)


def metric_figure(panels: Sequence[Panel], clean: float, metric: str = "accuracy") -> Figure:
    """A diagram for each panel: means over seeds as lines, minimum to maximum as a band.

    `clean`: the metric on digital hardware, a dashed line. The x axis is logarithmic where positive values span a
    decade. Raises MissingExtraError without matplotlib.
    """
    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns)
    width_in = 6.0 if any(panel.x_is_time for panel in panels) else 4.0
    figure = empty_figure(1.5 + width_in * columns, 0.9 + 3.3 * rows)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    scale = 1.0
    for axis in axes[:, 0]:
        scale = percent_axis(axis, metric)
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw(axis, panel, clean * scale, scale)
    for axis in list(axes.flat)[len(panels) :]:
        axis.remove()
    legend_below(figure, axes.flat[0], columns=3 if len(panels) == 1 else 6)
    return figure


def lines_of(rows: Sequence[Mapping[str, Any]], x: str) -> dict[str, dict[float, list[float]]]:
    """The rows of a table as lines of a panel: by `method`, by the row's value of `x`, each seed's `value`."""
    lines: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        lines.setdefault(row["method"], {}).setdefault(row[x], []).append(row["value"])
    return lines


def divergence_figure(before: Mapping[str, Divergence], after: Mapping[str, Divergence], title: str) -> Figure:
    """Each layer's KL and JS divergence (nats) from the digital activations, before and after calibration.

    `before` and `after` name the same layers, in the model's order. Raises MissingExtraError without matplotlib.
    """
    figure = empty_figure(max(6.0, 1.5 + 0.27 * len(before)), 6.2)
    upper, lower = figure.subplots(2, 1, sharex=True)
    _pairs(upper, [(before[name].kl, after[name].kl) for name in before])
    _pairs(lower, [(before[name].js, after[name].js) for name in before])
    upper.set(ylabel="KL divergence in nats")
    upper.set_title(title, loc="left", fontsize=11)
    legend_below(figure, upper, columns=2)
    lower.set(ylabel="JS divergence in nats", xlabel="layer, from input to output")
    lower.set_xticks(range(len(before)), list(before), rotation=90, fontsize=8)
    for axis in (upper, lower):
        axis.set_xlim(-0.7, len(before) - 0.3)
    return figure


def png(figure: Figure) -> bytes:
    """The picture as a PNG file's content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def require_matplotlib(extra: str = "report") -> type[Figure]:
    """Matplotlib's figure class; call it before long work.

    Raises MissingExtraError where matplotlib is not installed; `extra` is the extra of pimcal to name.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot, which keeps global state and may want a display
    except ImportError as error:
        raise MissingExtraError("plots", "matplotlib", extra) from error
    return Figure


def empty_figure(width_in: float, height_in: float) -> Figure:
    """A figure to draw on. Raises MissingExtraError without matplotlib."""
    return require_matplotlib()(figsize=(width_in, height_in), dpi=_DPI, layout="constrained")


def _draw(axis: Axes, panel: Panel, clean: float, scale: float) -> None:
    plain(axis)
    axis.axhline(clean, color="#555555", linestyle=(0, (4, 3)), linewidth=1.2, label="digital hardware", zorder=1)
    for method, values in panel.lines.items():
        xs = sorted(values)
        points = [[scale * value for value in values[x]] for x in xs]
        _line(axis, method, xs, points)
    xs = sorted({x for values in panel.lines.values() for x in values})
    (_time_axis if panel.x_is_time else _x_axis)(axis, xs)
    axis.set_xlabel(panel.x_label)
    axis.set_title(panel.title, loc="left", fontsize=11)


def _style(method: str) -> _Style:
    """A method's look; with drift compensation that of the method without it, dotted and hollow."""
    parts = method.split("+")
    if method in _STYLES or "gdc" not in parts:
        return _STYLES.get(method, _OTHER)
    plain = _style("+".join(part for part in parts if part != "gdc"))
    return replace(plain, size=plain.size + 2, width=1.8, filled=False, dotted=True)


def _line(axis: Axes, method: str, xs: Sequence[float], points: Sequence[Sequence[float]]) -> None:
    style = _style(method)
    depth = 10 - style.width  # the thick ones lie below
    axis.plot(
        xs,
        [fmean(values) for values in points],
        color=style.color,
        linewidth=style.width,
        linestyle=_DOTS if style.dotted else "-",
        marker=style.marker,
        markersize=style.size,
        markerfacecolor=style.color if style.filled else "white",
        markeredgecolor="white" if method == "none" else style.color,
        markeredgewidth=0.6 if method == "none" else 1.6,
        label=method,
        zorder=depth,
    )
    lows, highs = [min(values) for values in points], [max(values) for values in points]
    axis.fill_between(xs, lows, highs, color=style.color, alpha=0.2, linewidth=0, zorder=1)


def _x_axis(axis: Axes, values: Sequence[float]) -> None:
    from matplotlib.ticker import NullLocator

    if values[0] > 0 and values[-1] >= 9.99 * values[0]:  # 0.3 / 0.03 is a little less than 10
        axis.set_xscale("log")
        axis.xaxis.set_minor_locator(NullLocator())
    if len(values) <= _MAX_TICKS:
        axis.set_xticks(values, [f"{value:g}" for value in values])


def _time_axis(axis: Axes, times_s: Sequence[float]) -> None:
    """Ticks at the times themselves, labelled where there is room. Zero stands a decade before the first other."""
    from matplotlib.ticker import NullLocator

    first = next((time_s for time_s in times_s if time_s > 0), 1.0)
    axis.set_xscale("symlog", linthresh=first)
    axis.xaxis.set_minor_locator(NullLocator())
    positions = [math.log10(time_s / first) if time_s else -1.0 for time_s in times_s]
    axis.set_xticks(times_s, _where_room(positions, [format_duration(timedelta(seconds=t)) for t in times_s]))


def _where_room(positions: Sequence[float], labels: Sequence[str]) -> list[str]:
    """The labels, but empty ones where they would run into the one before, or into the last."""
    room = (positions[-1] - positions[0]) * (max(map(len, labels)) + 1) / _CHARACTERS
    shown = {len(labels) - 1}
    end = -math.inf
    for i, position in enumerate(positions):
        if end <= position <= positions[-1] - room:
            shown.add(i)
            end = position + room
    return [label if i in shown else "" for i, label in enumerate(labels)]


def _pairs(axis: Axes, values: Sequence[tuple[float, float]]) -> None:
    """For each layer a point before and a point after, joined."""
    plain(axis)
    xs = range(len(values))
    before, after = [pair[0] for pair in values], [pair[1] for pair in values]
    axis.vlines(xs, before, after, color="#BBBBBB", linewidth=2, zorder=2)
    axis.plot(xs, before, "X", color="#D55E00", markersize=7, label="before calibration", zorder=3)
    axis.plot(xs, after, "o", color="#0072B2", markersize=6, label="after", zorder=3, clip_on=False)
    axis.set_ylim(bottom=0)
    axis.margins(y=0.18)


def percent_axis(axis: Axes, metric: str) -> float:
    """Label the y axis with the metric, in % where that is a fraction; returns what its values are to be times."""
    if metric not in _FRACTIONS:
        axis.set_ylabel(metric)
        return 1.0
    axis.set(ylabel=f"{metric} in %", ylim=(0, 105), yticks=range(0, 101, 20))
    return 100.0


def plain(axis: Axes) -> None:
    """No frame above and to the right; thin lines across."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axis.set_axisbelow(True)


def legend_below(figure: Figure, axis: Axes, columns: int) -> None:
    """What the axis shows, below the whole figure."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, handlelength=2.6)
