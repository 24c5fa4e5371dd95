"""Plots: what is in them, and when a sweep gets one."""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pimcal_report
from pimcal.calibration.divergence import Divergence
from pimcal.errors import MissingExtraError, StorageError
from pimcal.events import RecordActivated, SweepFinished, TimelineFinished
from pimcal.registry import Registry
from pimcal_report.plan_plot import plan_figure
from pimcal_report.plots import Panel, divergence_figure, lines_of, metric_figure, png
from pimcal_report.sweep_plot import sweep_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis, Tick
    from matplotlib.figure import Figure
    from matplotlib.text import Text

pytest.importorskip("matplotlib")


def row(value: float, method: str = "none", seed: int = 0, **settings: Any) -> dict[str, Any]:
    return {**settings, "method": method, "seed": seed, "value": value, "images": 0, "mvms": 0}


def table(*rows: dict[str, Any], metric: str = "accuracy") -> dict[str, Any]:
    return {"metric": metric, "clean": 0.9, "rows": list(rows)}


def line(axis: Axes, label: str) -> tuple[list[float], list[float]]:
    (found,) = [each for each in axis.lines if each.get_label() == label]
    return list(np.asarray(found.get_xdata())), list(np.asarray(found.get_ydata()))


def panel(**lines: dict[float, list[float]]) -> Panel:
    return Panel("title", "eta0", lines)


def only_axis(figure: Figure) -> Axes:
    (axis,) = figure.axes
    return axis


VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=4)


@given(st.dictionaries(st.floats(1e-6, 10), VALUES, min_size=1, max_size=6))
def test_line_is_the_mean_over_seeds_and_the_band_reaches_from_minimum_to_maximum(
    values: dict[float, list[float]],
) -> None:
    axis = only_axis(metric_figure([panel(paired=values)], clean=0.5))
    xs, ys = line(axis, "paired")
    assert xs == sorted(values)
    assert ys == pytest.approx([100 * fmean(values[x]) for x in xs])
    band = np.asarray(axis.collections[0].get_paths()[0].vertices)
    for x in xs:
        at_x = band[band[:, 0] == x, 1]
        assert (at_x.min(), at_x.max()) == pytest.approx((100 * min(values[x]), 100 * max(values[x])))


@pytest.mark.parametrize(
    ("xs", "scale"),
    [
        ((0.05, 0.1, 0.5), "log"),
        ((0.03, 0.3), "log"),  # 0.3 / 0.03 is 9.999...
        ((0.1, 0.2, 0.5), "linear"),
        ((0.0, 0.1, 10.0), "linear"),
        ((-1.0, 100.0), "linear"),
    ],
)
def test_x_axis_is_logarithmic_where_positive_values_span_a_decade(xs: tuple[float, ...], scale: str) -> None:
    axis = only_axis(metric_figure([panel(none={x: [0.5] for x in xs})], clean=0.9))
    assert axis.get_xscale() == scale
    assert [label.get_text() for label in axis.get_xticklabels()] == [f"{x:g}" for x in xs]


def test_digital_hardware_is_a_dashed_line_at_its_accuracy() -> None:
    axis = only_axis(metric_figure([panel(none={0.1: [0.5]})], clean=0.875))
    assert line(axis, "digital hardware")[1] == [87.5, 87.5]
    assert axis.lines[0].is_dashed()


def test_other_metrics_keep_their_own_unit() -> None:
    axis = only_axis(metric_figure([panel(none={0.1: [3.5]})], clean=0.0, metric="mse"))
    assert line(axis, "none")[1] == [3.5]
    assert axis.get_ylabel() == "mse"


def test_methods_differ_in_colour_and_marker() -> None:
    methods = ("none", "references", "references+paired", "ema", "paired", "pooled", "affine")
    axis = only_axis(metric_figure([panel(**{method: {0.1: [0.5]} for method in methods})], clean=0.9))
    lines = [each for each in axis.lines if each.get_label() in methods]
    assert len({str(each.get_color()) for each in lines}) == len(methods)
    looks = {(str(each.get_marker()), each.get_markersize(), str(each.get_markerfacecolor())) for each in lines}
    assert len(looks) == len(methods)


def test_with_drift_compensation_a_method_keeps_its_colour_and_its_line_is_dotted() -> None:
    methods = ("none", "references", "references+paired", "paired", "affine")
    pairs = {method: "gdc" if method == "none" else method.replace("paired", "gdc+paired") for method in methods}
    pairs |= {"references": "references+gdc", "affine": "gdc+affine"}
    axis = only_axis(metric_figure([panel(**{m: {0.1: [0.5]} for m in (*pairs, *pairs.values())})], clean=0.9))
    lines = {str(each.get_label()): each for each in axis.lines}
    for plain, compensated in pairs.items():
        assert lines[compensated].get_color() == lines[plain].get_color()
        assert (lines[plain].is_dashed(), lines[compensated].is_dashed()) == (False, True)
        assert lines[compensated].get_markerfacecolor() == "white"
        assert lines[compensated].get_markersize() != lines[plain].get_markersize()


def timeline_figure(*times_s: float, metric: str = "accuracy") -> Figure:
    lines = {method: {time_s: [0.4, 0.6] for time_s in times_s} for method in ("none", "references+gdc+paired")}
    return metric_figure([Panel("", "time", lines, x_is_time=True)], clean=0.9, metric=metric)


DAY_S = 86_400.0
YEAR = (0.0, 1.0, 3600.0, DAY_S, 30 * DAY_S, 365 * DAY_S)


@pytest.mark.parametrize("times_s", [YEAR, YEAR[1:], YEAR[2:4], YEAR[:1], YEAR[2:3]])
def test_time_axis_is_logarithmic_with_the_times_as_ticks(times_s: tuple[float, ...]) -> None:
    axis = only_axis(timeline_figure(*times_s))
    labels = dict(zip(YEAR, ("0s", "1s", "1h", "1d", "30d", "365d"), strict=True))
    assert list(axis.get_xticks()) == list(times_s)
    assert [label.get_text() for label in axis.get_xticklabels()] == [labels[time_s] for time_s in times_s]
    transformed = [float(axis.transData.transform((time_s, 0))[0]) for time_s in times_s if time_s]
    decades = np.log10([time_s for time_s in times_s if time_s])
    if len(transformed) > 2:  # equal distances for equal ratios
        assert np.diff(transformed) / np.diff(decades) == pytest.approx(
            [(transformed[-1] - transformed[0]) / (decades[-1] - decades[0])] * (len(decades) - 1)
        )
    assert all(x == sorted(x) for x in (line(axis, "none")[0], transformed))


@settings(max_examples=25)
@given(st.lists(st.one_of(st.integers(0, 100), st.integers(0, 10**9)), min_size=1, max_size=12, unique=True))
def test_labels_of_a_time_axis_do_not_touch(times_s: list[int]) -> None:
    figure = timeline_figure(*sorted(map(float, times_s)))
    figure.draw_without_rendering()
    axis = only_axis(figure)
    boxes = [label.get_window_extent() for label in axis.get_xticklabels() if label.get_text()]
    assert boxes
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_no_text_of_a_timeline_lies_on_another_or_outside() -> None:
    methods = ("none", "gdc", "paired", "gdc+paired", "references", "references+gdc+paired", "references+gdc+affine")
    rows = [{"time_s": t, "method": method, "value": 0.5} for t in YEAR for method in methods]
    figure = metric_figure([Panel("", "time since programming", lines_of(rows, "time_s"), x_is_time=True)], clean=0.9)
    figure.draw_without_rendering()
    boxes = {text: text.get_window_extent() for text in visible_texts(figure)}
    assert len(boxes) == 6 + 6 + 2 + 8  # ticks of both axes, their names, the legend
    pairs = itertools.combinations(boxes.values(), 2)
    assert not any(here.overlaps(there) for here, there in pairs)
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes.values())


def plan_table(lowest: float, **most: float) -> dict[str, Any]:
    """Each policy's products grow to `most`; the accuracy falls from 1 to `lowest`."""
    shares = [i / 10 for i in range(11)]
    rows = [
        {"policy": policy, "seed": 0, "time_s": 2 * DAY_S * share, "mvms": last * max(share, 0.3),
         "value": 1 - (1 - lowest) * share}
        for policy, last in most.items() for share in shares
    ]  # fmt: skip
    return {"metric": "accuracy", "clean": 0.99, "rows": rows}


@settings(max_examples=25)
@given(st.floats(0, 1), st.lists(st.one_of(st.just(0.0), st.floats(10, 1e9)), min_size=1, max_size=4))
def test_each_axis_of_a_plan_has_three_labels_or_more_and_room_for_all_that_is_drawn(
    lowest: float, most: list[float]
) -> None:
    figure = plan_figure(plan_table(lowest, **{f"every:{i}h": each for i, each in enumerate(most)}))
    figure.draw_without_rendering()
    upper, lower = figure.axes
    for side in (upper.yaxis, lower.yaxis, lower.xaxis):
        labels = [tick.label1.get_text() for tick in side.get_major_ticks() if is_drawn(tick, side)]
        assert len(set(labels)) == len(labels) >= 3, labels
    assert upper.get_ylim()[0] <= 100 * lowest
    assert 100 < upper.get_ylim()[1] <= 105
    assert lower.get_ylim()[0] == 0
    assert lower.get_ylim()[1] > max(most)


def test_policies_that_coincide_in_a_plan_differ_in_colour_marker_and_width() -> None:
    policies = ("once", "every:1h", "every:1d", "probe", "profile")
    upper = plan_figure(plan_table(0.9, **dict.fromkeys(policies, 1e5))).axes[0]
    lines = {str(each.get_label()): each for each in upper.lines if each.get_label() in policies}
    for look in ("get_color", "get_marker", "get_markersize", "get_linewidth"):
        assert len({getattr(each, look)() for each in lines.values()}) == len(policies)
    widths = [lines[policy].get_linewidth() for policy in policies]
    assert widths == sorted(widths, reverse=True), "the one that is drawn last would hide those before"


def test_no_text_lies_on_another() -> None:
    layers = {f"stages.{i}.first.1": Divergence(0.1 * i, 0.02 * i) for i in range(30)}
    few = {method: {0.003: [0.5], 0.01: [0.4], 0.03: [0.3]} for method in ("none", "ema", "references+paired")}
    for figure in (metric_figure([panel(**few)] * 2, clean=0.9), divergence_figure(layers, layers, "title")):
        figure.draw_without_rendering()
        boxes = {text: text.get_window_extent() for text in visible_texts(figure)}
        assert len(boxes) > 20
        pairs = itertools.combinations(boxes.items(), 2)
        assert not [(a.get_text(), b.get_text()) for (a, here), (b, there) in pairs if here.overlaps(there)]


def visible_texts(figure: Figure) -> list[Text]:
    from matplotlib.text import Text

    sides = [side for axes in figure.axes for side in (axes.xaxis, axes.yaxis)]
    beyond = {tick.label1 for side in sides for tick in side.get_major_ticks() if not is_drawn(tick, side)}
    texts = figure.findobj(match=Text)
    return [text for text in texts if text.get_visible() and text.get_text().strip() and text not in beyond]


def is_drawn(tick: Tick, side: Axis) -> bool:
    """Ticks beyond the ends of their axis exist, but are not drawn."""
    low, high = side.get_view_interval()
    return bool(low <= tick.get_loc() <= high)


def test_divergence_figure_shows_each_layer_before_and_after_in_the_models_order() -> None:
    before = {"stem": Divergence(0.5, 0.2), "head": Divergence(0.3, 0.1)}
    after = {"head": Divergence(0.03, 0.01), "stem": Divergence(0.05, 0.02)}
    upper, lower = divergence_figure(before, after, "title").axes
    assert line(upper, "before calibration") == ([0, 1], [0.5, 0.3])
    assert line(upper, "after") == ([0, 1], [0.05, 0.03])
    assert line(lower, "before calibration") == ([0, 1], [0.2, 0.1])
    assert line(lower, "after") == ([0, 1], [0.02, 0.01])
    assert [label.get_text() for label in lower.get_xticklabels()] == ["stem", "head"]


def test_png_holds_the_colours_of_what_is_drawn(tmp_path: Path) -> None:
    from matplotlib.image import imread

    path = tmp_path / "picture.png"
    path.write_bytes(png(metric_figure([panel(paired={0.1: [0.2], 0.5: [0.9]})], clean=0.9)))
    pixels = (imread(path)[..., :3] * 255).round().reshape(-1, 3)
    blue = np.array([0x00, 0x72, 0xB2])
    assert (pixels == blue).all(axis=1).sum() > 500


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from(["none", "ema"]), st.integers(0, 2), st.sampled_from([1, 2])),
        min_size=1,
    )
)
def test_every_row_of_a_sweep_is_in_exactly_one_place(cells: list[tuple[float, str, int, int]]) -> None:
    rows = [row(value, method, seed, eta0=x, noise=f"kind{x}") for value, method, seed, x in cells]
    drawn = [
        (value, method, x)
        for each in sweep_panels(rows)
        for method, points in each.lines.items()
        for x, values in points.items()
        for value in values
    ]
    assert sorted(drawn) == sorted((value, method, x) for value, method, _, x in cells)


def test_first_numeric_setting_is_the_x_axis_and_the_others_make_panels() -> None:
    rows = [row(0.5, noise=noise, eta0=eta0, bits=8, on=True) for noise in ("mul", "add") for eta0 in (0.1, 0.2)]
    panels = sweep_panels(rows)
    assert [(each.title, each.x_label) for each in panels] == [
        ("noise = mul, bits = 8, on = True", "eta0"),
        ("noise = add, bits = 8, on = True", "eta0"),
    ]
    assert panels[0].lines == {"none": {0.1: [0.5], 0.2: [0.5]}}


@pytest.fixture
def registry() -> Registry:
    found = Registry()
    found.register_plugin(pimcal_report)
    return found


def test_finished_sweep_gets_its_plot_and_other_events_do_not(registry: Registry, tmp_path: Path) -> None:
    registry.notify(RecordActivated("abc"))
    assert not list(tmp_path.iterdir())
    registry.notify(SweepFinished(table(row(0.5, eta0=0.1), row(0.4, eta0=0.2)), tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.png"]
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_finished_timeline_gets_its_plot(registry: Registry, tmp_path: Path) -> None:
    registry.notify(TimelineFinished(table(row(0.5, time_s=0.0), row(0.4, "gdc", time_s=3600.0)), tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["timeline.png"]
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("settings", [{}, {"noise": "mul"}, {"on": True}])
def test_sweep_without_a_numeric_setting_has_no_plot_and_says_why(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, Any]
) -> None:
    with caplog.at_level(logging.WARNING):
        registry.notify(SweepFinished(table(row(0.5, **settings)), tmp_path))
    assert "no numeric setting" in caplog.text
    assert not list(tmp_path.iterdir())


def test_plot_without_matplotlib_names_the_extra(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib.*pimcal\[report\]"):
        registry.notify(SweepFinished(table(row(0.5, eta0=0.1)), tmp_path))


def test_plot_that_cannot_be_written_is_an_error_that_names_the_file(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match=r"file/sweep\.png"):
        registry.notify(SweepFinished(table(row(0.5, eta0=0.1)), tmp_path / "file"))


def test_sweep_command_writes_the_plot_beside_its_tables(tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((8, 1, 8, 8)).astype("float32")
    np.savez(tmp_path / "data.npz", images=images)
    where = ("--profile", "gaussian_mul", "--model", "pimcal_demo.network:load_network", "--data", "npz:data.npz")
    what = ("--set", "device.eta0=0.1,0.5", "--methods", "none,references", "--out", "out")
    subprocess.run(
        [sys.executable, "-m", "pimcal", "sweep", *where, *what], cwd=tmp_path, check=True, capture_output=True
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["sweep.csv", "sweep.json", "sweep.png"]
