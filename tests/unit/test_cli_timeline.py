"""`pimcal timeline`: a programmed network ages; every method at every time, in three files."""

import csv
import json
from pathlib import Path

import pytest

DRIFT = ("-O", "device.eta0=0.1", "-O", "device.drift={kind: logarithmic, amplitude: 0.5, time_constant_s: 1}")
AT = ("--at", "0s,1h,30d")
TIMES_S = (0.0, 3600.0, 2_592_000.0)
ROWS = 9 + 72 + 72 + 72  # of the network's four matrices


def test_json_has_a_row_for_each_time_seed_and_method(lab, pimcal_run):
    methods = ("--methods", "none,gdc,paired,gdc+paired,references+gdc+paired")
    table = pimcal_run("timeline", *lab.on(), *DRIFT, *AT, *methods, "--seeds", "2", "--json").json
    assert (table["metric"], table["clean"]) == ("accuracy", 1.0)
    names = methods[1].split(",")
    wanted = [(time_s, seed, name) for time_s in TIMES_S for seed in (0, 1) for name in names]
    assert [(row["time_s"], row["seed"], row["method"]) for row in table["rows"]] == wanted
    mvms = {name: 64 * 109 * ("paired" in name) + ROWS * ("gdc" in name) for name in names}
    assert all(row["mvms"] == mvms[row["method"]] for row in table["rows"])
    assert all(row["images"] == (64 if "paired" in row["method"] else 0) for row in table["rows"])
    values = {(row["time_s"], row["method"], row["seed"]): row["value"] for row in table["rows"]}
    for seed in (0, 1):
        aged = values[TIMES_S[-1], "none", seed]
        assert aged < values[0.0, "none", seed]
        assert all(values[TIMES_S[-1], name, seed] > aged for name in names[1:])


def test_at_the_start_it_is_what_evaluate_measures(lab, pimcal_run):
    options = ("--methods", "none,gdc", "--at", "0s", "--seed", "5", "--json")
    none, gdc = pimcal_run("timeline", *lab.on(), *DRIFT, *options).json["rows"]
    assert pimcal_run("evaluate", *lab.on(), *DRIFT, "--seed", "5", "--json").json["value"] == none["value"]
    assert none["value"] == gdc["value"]  # nothing has drifted yet


def test_out_gets_csv_json_and_a_plot(lab, pimcal_run):
    pytest.importorskip("matplotlib")
    done = pimcal_run("timeline", *lab.on(), *DRIFT, *AT, "--methods", "none,gdc", "--out", "new/folder", "--json")
    folder = Path("new/folder")
    assert sorted(path.name for path in folder.iterdir()) == ["timeline.csv", "timeline.json", "timeline.png"]
    assert json.loads((folder / "timeline.json").read_text()) == done.json
    with (folder / "timeline.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["time_s", "method", "seed", "value", "images", "mvms", "device_share"]
    assert rows == [{key: str(value) for key, value in row.items()} for row in done.json["rows"]]
    assert (folder / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_same_seed_gives_the_same_files(lab, pimcal_run):
    for name in ("one", "two"):
        pimcal_run("timeline", *lab.on(), *DRIFT, *AT, "--methods", "none,gdc+ema", "--seeds", "2", "--out", name)
    for name in ("timeline.csv", "timeline.json"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_people_get_a_table_of_times_and_methods(lab, pimcal_run):
    options = (*DRIFT, *AT, "--methods", "none,references")
    rows = pimcal_run("timeline", *lab.on(), *options, "--json").json["rows"]
    first, head, *lines = pimcal_run("timeline", *lab.on(), *options).out.splitlines()
    assert first == "clean accuracy (digital hardware): 100.00 %"
    assert head.split() == ["time", "none", "references"]
    told = [f"{100 * row['value']:.2f} %" for row in rows]
    assert [line.split() for line in lines] == [
        [time, *told[2 * i].split(), *told[2 * i + 1].split()] for i, time in enumerate(("0s", "1h", "30d"))
    ]


def test_with_several_seeds_the_table_has_means_minima_and_maxima(lab, pimcal_run):
    options = (*DRIFT, "--at", "1h", "--methods", "none", "--seeds", "3")
    values = [row["value"] for row in pimcal_run("timeline", *lab.on(), *options, "--json").json["rows"]]
    line = pimcal_run("timeline", *lab.on(), *options).out.splitlines()[2]
    mean, low, high = (f"{100 * value:.2f}" for value in (sum(values) / 3, min(values), max(values)))
    assert low != high
    assert line.split(maxsplit=1)[1].rstrip() == f"{mean} % ({low} .. {high})"


def test_other_metrics_keep_their_own_unit(lab, pimcal_run):
    options = (*DRIFT, "--at", "1h", "--methods", "none", "--metric", "mse")
    (row,) = pimcal_run("timeline", *lab.on(), *options, "--json").json["rows"]
    done = pimcal_run("timeline", *lab.on(), *options).out.splitlines()
    assert (done[0], done[2].split()) == ("clean mse (digital hardware): 0", ["1h", f"{row['value']:.6g}"])


def test_methods_may_have_spaces_between_them_and_count_once(lab, pimcal_run):
    options = (*DRIFT, "--at", "1h", "--methods", "gdc, none,gdc", "--json")
    assert [row["method"] for row in pimcal_run("timeline", *lab.on(), *options).json["rows"]] == ["gdc", "none"]


def test_images_to_calibrate_on_may_be_synthetic_or_limited(lab, pimcal_run):
    options = (*DRIFT, "--at", "30d", "--methods", "none,paired", "--calibration-data", "synthetic", "--images", "32")
    none, paired = pimcal_run("timeline", *lab.on(), *options, "--json").json["rows"]
    assert paired["images"] == 32
    assert paired["value"] > none["value"]


def test_without_matplotlib_the_tables_are_written_and_the_extra_is_named(lab, pimcal_run, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = pimcal_run("timeline", *lab.on(), *DRIFT, "--at", "1h", "--methods", "none", "--out", "out")
    assert done.code == 0
    assert done.out.endswith("written to out\n")
    assert "no plot: plots needs matplotlib" in done.err
    assert sorted(path.name for path in Path("out").iterdir()) == ["timeline.csv", "timeline.json"]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--at", "1h,1s"), 2, "time cannot run backwards or stand still: 1 s comes after 3600 s"),
        (("--at", "1h,60m"), 2, "time cannot run backwards or stand still"),
        (("--at", "1"), 2, "--at '1': a duration is written with units"),
        (("--at", ""), 2, "--at '': a duration is written with units"),
        (("--at=-1s",), 2, "--at '-1s': a duration is written with units"),
        (("--methods", "gdc+pairde"), 2, "unknown method 'gdc+pairde' in --methods; did you mean 'gdc+paired'?"),
        (("--methods", "paired+gdc"), 2, "unknown method 'paired+gdc' in --methods; did you mean 'gdc+paired'?"),
        (("--methods", "paired+affine"), 2, "at most one of ema, pooled, paired, affine: references+gdc+paired"),
        (("--seeds", "0"), 2, "--seeds"),
        (("--metric", "acuracy"), 2, "did you mean 'accuracy'?"),
        (("--images", "400"), 65, "400 images are too few to set 400 apart"),
        (("-O", "device.drift={kind: lineal}"), 78, "-O device.drift"),
        (("-O", "tiles.count=1", "-O", "tiles.rows=72", "-O", "tiles.cols=8"), 78, "every pass programs it anew"),
    ],
)
def test_options_that_do_not_fit_are_refused_and_nothing_is_written(lab, pimcal_run, options, code, said):
    done = pimcal_run("timeline", *lab.on(), *DRIFT, *options, "--out", "out")
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert list(Path().iterdir()) == []


def test_device_without_a_clock_is_refused_before_the_images_are_read(lab, pimcal_run):
    options = ("--profile", "ideal", "--model", f"{lab.network}:net", "--data", "npz:absent.npz")
    done = pimcal_run("timeline", *options)
    assert (done.code, done.out) == (78, "")
    assert "backend 'ideal' of profile ideal has no simulated clock, so no time can pass on it" in done.err


def test_folder_that_cannot_be_written_is_refused_before_the_work(lab, pimcal_run):
    Path("file").write_text("mine")
    done = pimcal_run("timeline", *lab.on(), "--out", "file/deeper")
    assert (done.code, done.out) == (74, "")
    assert "cannot write to file/deeper: " in done.err


def test_host_pattern_without_a_layer_is_told_once(lab, pimcal_run):
    done = pimcal_run("timeline", *lab.on(), "-O", 'host=["tail"]', *AT, "--methods", "none,gdc", "--json")
    assert done.json["rows"]
    assert done.err.count("host pattern 'tail' matches no layer of this model") == 1
