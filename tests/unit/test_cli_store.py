"""`pimcal calibrate --store` and `pimcal evaluate --store`."""

from __future__ import annotations

from pathlib import Path

import pytest

from pimcal.record import Record
from pimcal.store import Store

NOISE = ("-O", "device.eta0=0.3")


@pytest.fixture
def calibrate(lab, pimcal_run):
    def run(*options):
        return pimcal_run("calibrate", *lab.on(), *NOISE, "--store", "store", *options)

    return run


def test_an_accepted_record_is_active_in_the_store_and_no_file_is_written(calibrate):
    found = calibrate("--json").json
    assert (found["activated"], found["record"]) == (True, None)
    assert [path.name for path in Path().iterdir()] == ["store"]
    store = Store.open("store", read_only=True)
    (generation,) = store.generations()
    assert (generation.id, generation.state, generation.reason) == (found["generation"], "active", found["reason"])
    assert (generation.record_id, generation.metric_before) == (found["id"], found["before"])
    assert [event.kind for event in store.journal.history()] == ["created", "candidate", "activated"]
    (run,) = store.journal.runs()
    assert (run.outcome, run.generation, run.images) == ("active", generation.id, 64)
    assert run.mvms == found["mvms"] + found["gate"]["mvms"]


def test_people_get_the_generation_and_a_file_where_they_ask_for_one(calibrate):
    done = calibrate("--out", "file.safetensors")
    (generation,) = Store.open("store", read_only=True).generations()
    assert f"generation {generation.id} is active in the store" in done.out.splitlines()
    assert Record.load("file.safetensors").id == generation.record_id


def test_the_gate_compares_with_what_is_active_and_a_rejected_record_is_kept_as_such(calibrate):
    first = calibrate("--json").json
    second = calibrate("--json", "--method", "ema", "--images", "2").json
    assert second["before"] > first["before"] + 0.1
    assert second["activated"] is False
    store = Store.open("store", read_only=True)
    good, bad = store.generations()
    assert (good.id, good.state) == (first["generation"], "active")
    assert (bad.id, bad.state, bad.reason) == (second["generation"], "rejected", second["reason"])
    assert bad.parent == good.id
    assert [run.outcome for run in store.journal.runs()] == ["active", "rejected"]
    told = calibrate("--method", "ema", "--images", "2").out.splitlines()[-1]
    assert told.startswith("not activated: ")
    assert told.endswith("what was in force still is (--max-drop allows more)")


def test_what_cannot_be_in_force_is_told_and_a_calibration_mends_it(calibrate):
    calibrate()
    elsewhere = calibrate("-O", "device.sigma_spatial=0.2", "--json")
    assert "the gate compares with no record in force: record" in elsewhere.err
    assert elsewhere.json["activated"] is True
    (active,) = (each for each in Store.open("store", read_only=True).generations() if each.state == "active")
    Path(f"store/tensors/{active.sha256}.safetensors").write_bytes(b"")
    mended = calibrate("--json")
    assert f"the tensors of generation {active.id} (active), cannot be used" in mended.err
    assert mended.json["activated"] is True


def test_evaluate_applies_what_is_active_and_says_which(lab, calibrate, pimcal_run):
    evaluate = ("evaluate", *lab.on(), *NOISE, "--store", "store", "--json")
    found = calibrate("--json", "--out", "file.safetensors").json
    with_store = pimcal_run(*evaluate)
    with_file = pimcal_run("evaluate", *lab.on(), *NOISE, "--record", "file.safetensors", "--json").json
    assert with_store.json["value"] == with_file["value"]
    assert (with_store.json["generation"], with_store.json["record"]) == (found["generation"], None)
    assert f"generation {found['generation']} of store store is applied: accuracy" in with_store.err

    none = pimcal_run(*evaluate, "--seed", "5")
    assert none.json["generation"] is None
    assert "no generation is active for device gaussian-mul-5 with model" in none.err


def test_mistakes_with_a_store_are_told_before_anything_runs(lab, calibrate, pimcal_run):
    Path("taken").write_text("mine")
    for command, code, told in (
        (("calibrate", "--store", "taken"), 74, "cannot write to taken: "),
        (("calibrate", "--store", "store", "--active", "x"), 2, "--active and --store both name"),
        (("evaluate", "--store", "absent"), 74, "there is no store in absent"),
        (("evaluate", "--store", "store", "--record", "x"), 2, "--record and --store both name"),
    ):
        done = pimcal_run(command[0], *lab.on(), *command[1:])
        assert (done.code, done.out) == (code, "")
        assert told in done.err
    assert [path.name for path in Path().iterdir()] == ["taken"]
