"""`pimcal sweep`: every setting, method and seed, in three files."""

import csv
import json
from pathlib import Path

import pytest

SETTING = ("--set", "device.eta0=0.1,0.3")


def test_json_has_a_row_for_each_setting_method_and_seed(lab, pimcal_run):
    found = pimcal_run("sweep", *lab.on(), *SETTING, "--methods", "none,references,paired", "--seeds", "2", "--json")
    table = found.json
    assert table["clean"] == 1.0
    wanted = [(e, m, s) for e in (0.1, 0.3) for s in (0, 1) for m in ("none", "references", "paired")]
    assert [(row["device.eta0"], row["method"], row["seed"]) for row in table["rows"]] == wanted
    for row in table["rows"]:
        assert 0 <= row["value"] <= 1
        assert (row["images"], row["mvms"]) == ((64, 64 * 109) if row["method"] == "paired" else (0, 0))
    values = {(row["device.eta0"], row["method"], row["seed"]): row["value"] for row in table["rows"]}
    assert all(values[0.3, "none", seed] < values[0.3, "paired", seed] for seed in (0, 1))
    assert len(set(values.values())) > 6


def test_a_row_is_what_evaluate_measures(lab, pimcal_run):
    rows = pimcal_run("sweep", *lab.on(), *SETTING, "--methods", "none", "--seed", "5", "--json").json["rows"]
    for row in rows:
        options = ("-O", f"device.eta0={row['device.eta0']}", "--seed", "5", "--json")
        assert pimcal_run("evaluate", *lab.on(), *options).json["value"] == row["value"]


def test_out_gets_csv_json_and_a_plot(lab, pimcal_run):
    pytest.importorskip("matplotlib")
    done = pimcal_run("sweep", *lab.on(), *SETTING, "--methods", "none,paired", "--out", "new/folder", "--json")
    folder = Path("new/folder")
    assert sorted(path.name for path in folder.iterdir()) == ["sweep.csv", "sweep.json", "sweep.png"]
    assert json.loads((folder / "sweep.json").read_text()) == done.json
    with (folder / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{key: str(value) for key, value in row.items()} for row in done.json["rows"]]
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_same_seed_gives_the_same_files(lab, pimcal_run):
    for name in ("one", "two"):
        pimcal_run("sweep", *lab.on(), *SETTING, "--methods", "none,ema", "--seeds", "2", "--out", name)
    for name in ("sweep.csv", "sweep.json"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_people_get_a_table_of_means_over_seeds(lab, pimcal_run):
    options = ("--set", "device.eta0=0.3", "--methods", "none", "--seeds", "2")
    rows = pimcal_run("sweep", *lab.on(), *options, "--json").json["rows"]
    done = pimcal_run("sweep", *lab.on(), *options)
    first, head, row = done.out.splitlines()
    assert first == "clean accuracy (digital hardware): 100.00 %"
    assert head.split() == ["device.eta0", "method", "accuracy", "min", "max", "images", "MVMs", "on", "device"]
    values = [row["value"] for row in rows]
    told = [f"{100 * value:.2f}" for value in (sum(values) / 2, min(values), max(values))]
    assert row.replace("%", "").split() == ["0.3", "none", *told, "0", "0", "100"]


def test_several_settings_make_a_grid(lab, pimcal_run):
    options = (*SETTING, "--set", "device.noise=mul,add", "--methods", "none", "--json")
    rows = pimcal_run("sweep", *lab.on(), *options).json["rows"]
    combinations = [(row["device.eta0"], row["device.noise"]) for row in rows]
    assert combinations == [(0.1, "mul"), (0.1, "add"), (0.3, "mul"), (0.3, "add")]


def test_ema_uses_all_calibration_images_and_paired_those_of_the_profile(lab, pimcal_run):
    options = ("--methods", "ema,pooled,paired", "--calibration-data", lab.data, "--json")
    rows = pimcal_run("sweep", *lab.on(), *options).json["rows"]
    assert {row["method"]: row["images"] for row in rows} == {"ema": 400, "pooled": 400, "paired": 64}
    limited = pimcal_run("sweep", *lab.on(), *options, "--images", "100").json["rows"]
    assert {row["images"] for row in limited} == {100}


def test_synthetic_images_calibrate(lab, pimcal_run):
    options = ("-O", "device.eta0=0.3", "--methods", "none,paired", "--calibration-data", "synthetic", "--json")
    none, paired = pimcal_run("sweep", *lab.on(), *options).json["rows"]
    assert paired["images"] == 64
    assert paired["value"] > none["value"] + 0.1


def test_without_a_numeric_setting_there_is_no_plot_and_it_says_so(lab, pimcal_run, caplog):
    done = pimcal_run("sweep", *lab.on(), "--methods", "none", "--out", "out")
    assert done.code == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["sweep.csv", "sweep.json"]
    assert "no plot: the sweep varies no numeric setting" in caplog.text


def test_without_matplotlib_the_tables_are_written_and_the_extra_is_named(lab, pimcal_run, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = pimcal_run("sweep", *lab.on(), *SETTING, "--methods", "none", "--out", "out")
    assert done.code == 0
    assert "no plot: plots needs matplotlib, which is not installed" in done.err
    assert "pip install 'pimcal[report]'" in done.err
    assert sorted(path.name for path in Path("out").iterdir()) == ["sweep.csv", "sweep.json"]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (
            ("--methods", "pairde"),
            2,
            "unknown method 'pairde' in --methods; did you mean 'paired'? (known: none, references, ema",
        ),
        (("--methods", "paired+references"), 2, "unknown method 'paired+references'"),
        (("--set", "device.eta0"), 2, "--set 'device.eta0': write KEY=VALUE,VALUE,..."),
        (("--set", "device.eta0="), 2, "--set 'device.eta0='"),
        (("--set", "device.eta0=0.1,,0.2"), 2, "--set 'device.eta0=0.1,,0.2': "),
        (("--set", "device.eta0= "), 2, "--set 'device.eta0= ': write KEY=VALUE,VALUE,..."),
        (("--set", "=0.1"), 2, "--set '=0.1': write KEY=VALUE,VALUE,..."),
        (("--set", 'host=["0"'), 2, "write values as in a YAML list"),
        (("--set", "device.seed=1,2"), 2, "--set device.seed: a sweep's seeds set it; use --seed and --seeds"),
        (("--set", "references.offset=1,2"), 2, "name references in --methods"),
        ((*SETTING, "--set", "device.eta0=0.5"), 2, "--set device.eta0 is given twice"),
        (("--set", "device.eta=0.1"), 78, "--set device.eta=0.1: unknown key; did you mean 'device.eta0'?"),
        (("--set", "device.eta0=0.1,high"), 78, "--set device.eta0=high: must be a valid number"),
        (("--seeds", "0"), 2, "--seeds"),
        (("--images", "400", "--methods", "paired"), 65, "400 images are too few to set 400 apart"),
        (("--images", "1", "--methods", "paired"), 65, "at least 2 images"),
        (("--metric", "acuracy"), 2, "did you mean 'accuracy'?"),
    ],
)
def test_options_that_do_not_fit_are_refused_and_nothing_is_written(lab, pimcal_run, options, code, said):
    done = pimcal_run("sweep", *lab.on(), *options, "--out", "out")
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert list(Path().iterdir()) == []


def test_folder_that_cannot_be_written_is_refused_before_the_work(lab, pimcal_run):
    Path("file").write_text("mine")
    done = pimcal_run("sweep", *lab.on(), "--out", "file/deeper")
    assert (done.code, done.out) == (74, "")
    assert "cannot write to file/deeper: " in done.err
    assert Path("file").read_text() == "mine"


def test_values_may_be_lists(lab, pimcal_run):
    options = ("--set", 'host=["0"],["0", "3"]', "--methods", "none")
    rows = pimcal_run("sweep", *lab.on("ideal"), *options, "--out", "out", "--json").json["rows"]
    assert [row["host"] for row in rows] == [["0"], ["0", "3"]]
    table = pimcal_run("sweep", *lab.on("ideal"), *options, "--seeds", "2").out.splitlines()[2:]
    assert [line.partition("]")[0] for line in table] == ["['0'", "['0', '3'"]


def test_methods_may_have_spaces_between_them_and_count_once(lab, pimcal_run):
    rows = pimcal_run("sweep", *lab.on("ideal"), "--methods", "none, paired,none", "--json").json["rows"]
    assert [row["method"] for row in rows] == ["none", "paired"]


def test_host_pattern_without_a_layer_is_told_once(lab, pimcal_run):
    done = pimcal_run("sweep", *lab.on("ideal"), "-O", 'host=["tail"]', "--methods", "none,paired", "--json")
    assert done.json["rows"]
    assert done.err.count("host pattern 'tail' matches no layer of this model") == 1
