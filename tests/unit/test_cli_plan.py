"""`pimcal plan`: each policy on a simulated device, in a table and three files."""

import csv
import json
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimcal.cli.plan_tables import short, spaced

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
    assert (hourly["recalibrations"] + hourly["rejected"], hourly["mvms"]) == (4, 4 * 109 * (64 + 2 * 32))
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


def paragraphs(text):
    """The words of each line of each paragraph."""
    return [[" ".join(line.split()) for line in part.splitlines()] for part in text.split("\n\n")]


def test_people_get_accuracy_over_time_against_device_time_and_a_summary(lab, pimcal_run):
    options = (*AGING, *SHORT, "--policies", "never,every:6h", "--seeds", "2")
    table = pimcal_run("plan", *lab.on(), *options, "--json").json
    first, course, summary = paragraphs(pimcal_run("plan", *lab.on(), *options).out)
    assert first == ["clean accuracy (digital hardware): 100.00 %"]

    def mean(policy, time_s, key):
        return fmean(row[key] for row in table["rows"] if (row["policy"], row["time_s"]) == (policy, time_s))

    def told(time_s):
        return " ".join(
            f"{100 * mean(policy, time_s, 'value'):.2f} {short(mean(policy, time_s, 'mvms'))}"
            for policy in ("never", "every:6h")
        )

    assert 0 < mean("every:6h", 43_200, "mvms") < mean("every:6h", 86_400, "mvms")
    assert course == [
        "accuracy (%), and the device MVMs spent until then:",
        "time never every:6h",
        f"12h {told(43_200)}",
        f"1d {told(86_400)}",
    ]
    counts = ("programmed_cells", "recalibrations", "looks", "rejected")
    totals = [
        f"{each['policy']} {100 * each['mean']:.2f} {100 * each['lowest']:.2f} {each['mvms']:,.0f} "
        + " ".join(f"{each[key]:g}" for key in counts)
        for each in table["policies"]
    ]
    assert summary == [
        "accuracy (%) over all 2 times, and what it took:",
        "device recali- re-",
        "policy mean lowest MVMs cells brations looks jected",
        *totals,
    ]


@pytest.mark.parametrize("metric", ["accuracy", "mse"])
def test_five_policies_fit_into_80_columns(lab, pimcal_run, metric):
    policies = "never,once,every:12h,probe:12h:0.05,cron:0 */12 * * *"
    done = pimcal_run("plan", *lab.on(), *AGING, *SHORT, "--policies", policies, "--metric", metric)
    assert done.code == 0
    assert max(map(len, map(str.rstrip, done.out.splitlines()))) <= 80
    assert "…" not in done.out


@given(st.integers(1, 400))
def test_few_times_are_shown_at_even_distances_up_to_the_last(count):
    found = spaced(range(1, count + 1))
    assert len(found) == count if count <= 8 else 5 <= len(found) <= 8
    assert found[-1] == count
    distances = {b - a for a, b in pairwise([0, *found])}
    assert max(distances) - min(distances) <= 1
    assert len(distances) == 1 or not any(count % n == 0 for n in (5, 6, 7, 8))


@given(st.floats(0, 9e14))
def test_a_count_in_four_characters_is_as_good_as_two_digits(number):
    units = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    told = short(number)
    assert len(told) <= 4
    read = float(told[:-1]) * units[told[-1]] if told[-1] in units else float(told)
    assert read == pytest.approx(number, rel=0.051, abs=0.51)


def test_profile_policy_follows_the_profile(lab, pimcal_run):
    section = ("-O", "recalibration.every=8h")
    options = (*AGING, *SHORT, *section, "--policies", "profile,every:8h", "--json")
    own, same = pimcal_run("plan", *lab.on(), *options).json["policies"]
    assert {**own, "policy": "every:8h"} == same
    assert own["recalibrations"] + own["rejected"] == 3


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
