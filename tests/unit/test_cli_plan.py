"""`pimcal plan`: each policy on a simulated device, in a table and three files."""

import csv
import json
from pathlib import Path

import pytest

AGING = ("-O", "device.eta0=0.1", "-O", "device.drift={kind: logarithmic, amplitude: 0.5, time_constant_s: 3600}")
SHORT = ("--horizon", "1d", "--step", "12h", "-O", "gate.images=32", "-O", "gate.max_drop=1.0")
TAKEN = ["mvms", "programmed_cells", "recalibrations", "looks", "rejected"]


def test_json_has_a_summary_and_rows_of_each_policy(lab, pimcal_run):
    options = (*SHORT, "--policies", "never,every:6h,probe:6h", "--seeds", "2", "--json")
    table = pimcal_run("plan", *lab.on(), *AGING, *options).json
    assert (table["metric"], table["clean"], table["horizon_s"], table["step_s"]) == ("accuracy", 1.0, 86_400, 43_200)
    names = ["never", "every:6h", "probe:6h"]
    wanted = [(name, seed, time_s) for name in names for seed in (0, 1) for time_s in (43_200, 86_400)]
    assert [(row["policy"], row["seed"], row["time_s"]) for row in table["rows"]] == wanted
    assert [each["policy"] for each in table["policies"]] == names
    for each in table["policies"]:
        rows = [row for row in table["rows"] if row["policy"] == each["policy"]]
        assert each["mean"] == pytest.approx(sum(row["value"] for row in rows) / len(rows))
        assert each["lowest"] == min(row["value"] for row in rows)
        ends = [row for row in rows if row["time_s"] == 86_400]
        assert [each[key] for key in TAKEN] == [sum(row[key] for row in ends) / 2 for key in TAKEN]
    never, hourly, probing = table["policies"]
    assert [never[key] for key in TAKEN] == [0] * 5
    assert (hourly["recalibrations"], hourly["mvms"]) == (4, 4 * 109 * (64 + 2 * 32))
    assert never["mean"] < min(hourly["mean"], probing["mean"])


def test_out_gets_csv_json_and_a_plot(lab, pimcal_run):
    pytest.importorskip("matplotlib")
    options = (*SHORT, "--policies", "never,once", "--out", "new/folder", "--json")
    done = pimcal_run("plan", *lab.on(), *AGING, *options)
    folder = Path("new/folder")
    assert sorted(path.name for path in folder.iterdir()) == ["plan.csv", "plan.json", "plan.png"]
    assert json.loads((folder / "plan.json").read_text()) == done.json
    with (folder / "plan.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["time_s", "policy", "seed", "value", *TAKEN]
    assert rows == [{key: str(value) for key, value in row.items()} for row in done.json["rows"]]
    assert (folder / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_people_get_a_table_of_policies(lab, pimcal_run):
    options = (*AGING, *SHORT, "--policies", "never,every:6h")
    totals = pimcal_run("plan", *lab.on(), *options, "--json").json["policies"]
    first, head, *lines = pimcal_run("plan", *lab.on(), *options).out.splitlines()
    assert first == "clean accuracy (digital hardware): 100.00 %"
    assert " ".join(head.split()) == "policy mean accuracy lowest device MVMs cells recalibrations looks rejected"
    shown = [(f"{100 * each['mean']:.2f} % {100 * each['lowest']:.2f} % {each['mvms']:,.0f}") for each in totals]
    assert [" ".join(line.split()) for line in lines] == [
        f"never {shown[0]} 0 0 0 0",
        f"every:6h {shown[1]} 0 4 0 0",
    ]


def test_profile_policy_follows_the_profile(lab, pimcal_run):
    section = ("-O", "recalibration.every=8h")
    options = (*AGING, *SHORT, *section, "--policies", "profile,every:8h", "--json")
    own, same = pimcal_run("plan", *lab.on(), *options).json["policies"]
    assert {**own, "policy": "every:8h"} == same
    assert own["recalibrations"] == 3


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--policies", "nevr"), 2, "unknown policy 'nevr' in --policies; did you mean 'never'?"),
        (("--policies", "every:1"), 2, "policy 'every:1' in --policies: a duration is written with units"),
        (("--horizon", "30"), 2, "--horizon '30': a duration is written with units"),
        (("--horizon", "0s"), 2, "cannot be measured every"),
        (("--step", "2d"), 2, "a plan of 86400 s cannot be measured every 172800 s"),
        (("--step", "0s"), 2, "cannot be measured every 0 s"),
        (("--seeds", "0"), 2, "--seeds"),
        (("--metric", "acuracy"), 2, "did you mean 'accuracy'?"),
        (("-O", "device.drift={kind: lineal}"), 78, "-O device.drift"),
        (("-O", "recalibration.every=1"), 78, "a duration is written with units"),
        (("--profile", "ideal"), 78, "backend 'ideal' of profile ideal has no simulated clock"),
    ],
)
def test_options_that_do_not_fit_are_refused_and_nothing_is_written(lab, pimcal_run, options, code, said):
    drift = () if "ideal" in options else AGING
    done = pimcal_run("plan", *lab.on(), *drift, *SHORT, *options, "--out", "out")
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert list(Path().iterdir()) == []


def test_device_without_a_clock_is_refused_before_the_images_are_read(lab, pimcal_run):
    options = ("--profile", "ideal", "--model", f"{lab.network}:net", "--data", "npz:absent.npz")
    done = pimcal_run("plan", *options)
    assert (done.code, done.out) == (78, "")
    assert "no simulated clock" in done.err


def test_network_that_the_method_does_not_suit_is_refused(lab, pimcal_run):
    options = ("--profile", "gaussian_mul", "--model", f"{lab.network}:without_norm", "--data", lab.data)
    done = pimcal_run("plan", *options, *SHORT, "--policies", "once")
    assert (done.code, done.out) == (2, "")
    assert "this model has no BatchNorm" in done.err


def test_folder_that_cannot_be_written_is_refused_before_the_work(lab, pimcal_run):
    Path("file").write_text("mine")
    done = pimcal_run("plan", *lab.on(), "--out", "file/deeper")
    assert (done.code, done.out) == (74, "")
    assert "cannot write to file/deeper: " in done.err
