"""`pimcal records`: show and diff."""

import re
import time
from pathlib import Path

import pytest
import torch

from pimcal.record import Record
from pimcal.store import Key, Store
from pimcal.store.schema import VERSION

NOISE = ("-O", "device.eta0=0.3")


@pytest.fixture
def made(lab, pimcal_run):
    """Two records of one network, in the folder of the run."""
    for name, method in (("paired", "paired"), ("affine", "affine")):
        pimcal_run("calibrate", *lab.on(), *NOISE, "--seed", "1", "--method", method, "--out", f"{name}.safetensors")
    return Record.load("paired.safetensors"), Record.load("affine.safetensors")


def test_show_as_json_tells_the_provenance_and_the_range_of_each_correction(made, pimcal_run):
    record = made[1]
    found = pimcal_run("records", "show", "affine.safetensors", "--json").json
    about = {key: found[key] for key in ("id", "method", "images", "seed", "profile", "before", "after")}
    with_ = record.made_with
    assert about == {
        "id": record.id, "method": "affine", "images": 64, "seed": 1, "profile": "gaussian_mul",
        "before": with_.before, "after": with_.after,
    }  # fmt: skip
    assert set(found["corrections"]) == {"1", "4", "7", "11"}
    gain = record.corrections["11"]["gain"]
    assert found["corrections"]["11"]["gain"] == {"channels": 4, "min": float(gain.min()), "max": float(gain.max())}


def test_show_prints_two_tables(made, pimcal_run):
    done = pimcal_run("records", "show", "paired.safetensors")
    about, layers = done.out.split("\n\n")
    assert dict(line.split()[:2] for line in about.splitlines() if line.split()[1:])["id"] == made[0].id
    head, *rows = layers.splitlines()
    assert head.split() == ["layer", "corrected", "channels", "min", "max"]
    assert [row.split()[:3] for row in rows] == [[n, part, "8"] for n in ("1", "4", "7") for part in ("mean", "var")]


def test_diff_as_json_gives_the_fields_and_largest_differences(made, pimcal_run):
    first, second = made
    found = pimcal_run("records", "diff", "paired.safetensors", "affine.safetensors", "--json").json
    assert found["fields"]["method"] == ["paired", "affine"]
    assert "model_hash" not in found["fields"]
    assert found["tensors"]["11:gain"] == "only in the second"
    ours, theirs = first.corrections["4"]["var"], second.corrections["4"]["var"]
    assert found["tensors"]["4:var"] == pytest.approx(float(torch.max(torch.abs(ours - theirs))))


def test_diff_of_a_record_with_itself_is_empty(made, pimcal_run):
    same = ("records", "diff", "paired.safetensors", "paired.safetensors")
    found = pimcal_run(*same, "--json").json
    assert found["fields"] == {}
    assert set(found["tensors"].values()) == {0.0}
    assert pimcal_run(*same).out.splitlines() == ["all fields are equal", "6 of 6 tensors are equal"]


def test_diff_prints_what_differs(made, pimcal_run):
    done = pimcal_run("records", "diff", "paired.safetensors", "affine.safetensors")
    assert done.code == 0
    assert any(line.split() == ["method", "paired", "affine"] for line in done.out.splitlines())
    assert any(line.split() == ["11:gain", "only", "in", "the", "second"] for line in done.out.splitlines())


@pytest.mark.parametrize("command", [("show",), ("diff", "paired.safetensors")])
def test_what_is_no_record_is_refused_by_name(lab, made, pimcal_run, command):
    for path in (lab.weights, lab.network, "."):
        done = pimcal_run("records", *command, path)
        assert (done.code, done.out) == (65, "")
        assert f"error: {path}: not a calibration record" in done.err
    done = pimcal_run("records", *command, "absent.safetensors")
    assert (done.code, done.out, done.err) == (65, "", "error: there is no file absent.safetensors\n")


# records in a store


@pytest.fixture
def kept(lab, pimcal_run):
    """The ids of a retired and an active generation, in the store `store` in the folder of the run."""
    run = ("calibrate", *lab.on(), *NOISE, "--store", "store", "--max-drop", "1", "--json")
    return [pimcal_run(*run, "--method", method).json["generation"] for method in ("paired", "affine")]


def listed(pimcal_run, *options):
    found = pimcal_run("records", "list", "--store", "store", "--json", *options).json["generations"]
    return {each["id"]: each["state"] for each in found}


def test_list_shows_the_generations_of_a_store(kept, pimcal_run):
    assert listed(pimcal_run) == dict(zip(kept, ("retired", "active"), strict=True))
    assert listed(pimcal_run, "--device", "another") == listed(pimcal_run, "--model-hash", "xyz") == {}
    head, *rows = pimcal_run("records", "list", "--store", "store").out.splitlines()
    assert head.split()[:3] == ["id", "state", "method"]
    assert [row.split()[:4] for row in rows] == [
        [kept[0], "retired", "paired", "accuracy"],
        [kept[1], "active", "affine", "accuracy"],
    ]
    for row in rows:  # what the gate measured is the same in both columns
        assert re.search(r"accuracy (0|1)\.\d{4} -> (0|1)\.\d{4}  ", row)
        assert "%" not in row
        assert row == row.rstrip()


def test_a_generation_stands_where_a_file_could(kept, pimcal_run):
    pimcal_run("records", "export", kept[0][:6], "first.safetensors", "--store", "store")
    shown = pimcal_run("records", "show", kept[0][:6], "--store", "store", "--json").json
    generation = shown.pop("generation")
    assert (generation["id"], generation["state"], generation["record_id"]) == (kept[0], "retired", shown["id"])
    assert shown == pimcal_run("records", "show", "first.safetensors", "--json").json
    assert shown == pimcal_run("records", "show", "first.safetensors", "--store", "store", "--json").json
    told = pimcal_run("records", "show", "active", "--store", "store").out
    assert [line.split()[1:] for line in told.splitlines()[1:3]] == [["id", kept[1]], ["state", "active"]]
    found = pimcal_run("records", "diff", "first.safetensors", "active", "--store", "store", "--json").json
    assert found["fields"]["method"] == ["paired", "affine"]


def test_rollback_activate_and_history_go_together(kept, pimcal_run):
    done = pimcal_run("records", "rollback", "--store", "store", "--reason", "worse in the field")
    assert done.out == f"generation {kept[0]} (gaussian-mul-7) is active again\n"
    assert listed(pimcal_run) == dict(zip(kept, ("active", "retired"), strict=True))
    again = pimcal_run("records", "rollback", "--store", "store")
    assert (again.code, again.out) == (65, "")
    assert "there is nothing to go back to for device gaussian-mul-7 with model" in again.err
    assert pimcal_run("records", "activate", kept[1][:8], "--store", "store", "--json").json["state"] == "active"

    events = pimcal_run("history", "--store", "store", "--limit", "4", "--json").json["events"]
    assert [(event["kind"], event["generation"]) for event in events] == [
        ("retired", kept[1]), ("rolled_back", kept[0]), ("retired", kept[0]), ("activated", kept[1]),
    ]  # fmt: skip
    assert events[1]["reason"] == "worse in the field"
    lines = pimcal_run("history", "--store", "store").out.splitlines()
    assert [line.split()[1] for line in lines[1:]][:3] == ["created", "candidate", "activated"]
    only = pimcal_run("history", "--store", "store", "--generation", kept[0], "--json").json["events"]
    assert {event["generation"] for event in only} == {kept[0]}


def test_pin_keeps_what_gc_would_remove(lab, kept, pimcal_run):
    for method in ("pooled", "ema"):
        pimcal_run("calibrate", *lab.on(), *NOISE, "--store", "store", "--max-drop", "1", "--method", method)
    assert pimcal_run("records", "pin", kept[0], "--store", "store", "--json").json["pinned"] is True
    found = pimcal_run("records", "gc", "--store", "store", "--keep", "0", "--json").json
    assert (found["generations"], found["files"]) == ([kept[1]], 1)
    assert kept[1] not in listed(pimcal_run)
    assert listed(pimcal_run, "--all")[kept[1]] == "retired"
    pimcal_run("records", "unpin", kept[0], "--store", "store")
    done = pimcal_run("records", "gc", "--store", "store", "--keep", "0")
    assert done.out.startswith("1 generations and 1 files removed, ")
    gone = pimcal_run("records", "show", kept[0], "--store", "store")
    assert (gone.code, gone.out) == (74, "")
    assert "was removed by gc; its history is all there is" in gone.err


def test_export_and_import_carry_a_record_to_another_store(kept, pimcal_run):
    pimcal_run("records", "export", "active", "out/record.safetensors", "--store", "store")
    done = pimcal_run("records", "import", "out/record.safetensors", "--store", "other", "--json").json
    assert (done["state"], done["method"]) == ("candidate", "affine")
    twice = pimcal_run("records", "import", "out/record.safetensors", "--store", "other")
    assert (twice.code, twice.out) == (65, "")
    assert "already, as generation" in twice.err
    assert pimcal_run("records", "activate", done["id"], "--store", "other").code == 0


def test_gc_removes_old_probes_and_telemetry(kept, pimcal_run):
    key = Key("board", "ab" * 32)
    for days_ago in (100, 50, 0):
        with Store.open("store", clock=lambda days=days_ago: time.time() - days * 86_400) as store:
            store.journal.add_probe(key, statistic=0.1, threshold=1.0, tiles={}, mvms=8)
            store.journal.add_telemetry("board", {"temperature_c": 40.0})
    run = ("records", "gc", "--store", "store")
    told = pimcal_run(*run).out.splitlines()
    assert told[-1] == "1 probes and 1 readings of telemetry older than 90d removed"
    found = pimcal_run(*run, "--older-than", "30d", "--json").json
    assert (found["generations"], found["probes"], found["readings"]) == ([], 1, 1)
    assert len(Store.open("store", read_only=True).journal.probes(key)) == 1
    refused = pimcal_run(*run, "--older-than", "30")
    assert (refused.code, refused.out) == (2, "")
    assert "--older-than '30': a duration is written with units" in refused.err


def test_no_command_makes_a_store_for_nothing(lab, made, pimcal_run):
    """`import` makes a store where there is none; what it is asked to import must be there."""
    before = sorted(path.name for path in Path().iterdir())
    bad = Path("bad.safetensors")
    for command in (
        ("import", "absent"), ("import", lab.weights), ("list",), ("show", "active"), ("diff", "active", "active"),
        ("activate", "active"), ("rollback",), ("pin", "active"), ("unpin", "active"), ("export", "active", bad),
        ("gc",), ("migrate",),
    ):  # fmt: skip
        done = pimcal_run("records", *command, "--store", "typo")
        assert done.code in (65, 74)
        assert done.out == ""
        assert sorted(path.name for path in Path().iterdir()) == before
    assert pimcal_run("records", "import", "paired.safetensors", "--store", "typo").code == 0


def test_mistakes_are_told_without_a_traceback(lab, kept, pimcal_run):
    for command, code, told in (
        (("records", "list", "--store", "absent"), 74, "there is no store in absent"),
        (("history", "--store", lab.network), 74, "is a file, and a store is a folder"),
        (
            ("records", "activate", "zzz", "--store", "store"),
            2,
            "no generation's id starts with 'zzz'; `pimcal records list --store store` shows all",
        ),
        (("records", "show", "0" * 12, "--store", "store"), 2, "no generation's id starts with"),
        (("records", "show", "active"), 65, "there is no file active"),
        (("records", "rollback", "--store", "store", "--device", "another"), 2, "it has: device gaussian-mul-7"),
        (("records", "import", "absent", "--store", "store"), 65, "there is no file absent"),
    ):
        done = pimcal_run(*command)
        assert (done.code, done.out) == (code, "")
        assert done.err.startswith("error: ")
        assert told in done.err


def test_an_old_store_is_migrated_on_request(pimcal_run, tmp_path):
    from .store_records import old_store

    old_store(tmp_path / "old")
    refused = pimcal_run("history", "--store", tmp_path / "old")
    assert (refused.code, refused.out) == (74, "")
    assert f"`pimcal records migrate --store {tmp_path / 'old'}`" in refused.err
    assert pimcal_run("records", "migrate", "--store", tmp_path / "old").out == f"schema {VERSION}, from 1\n"
    again = pimcal_run("records", "migrate", "--store", tmp_path / "old", "--json").json
    assert again == {"from": VERSION, "to": VERSION}
    assert pimcal_run("history", "--store", tmp_path / "old").code == 0
