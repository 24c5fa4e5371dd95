"""`pimcal calibrate`: what it measures, what the gate lets through, and which file is left."""

import json
from pathlib import Path

import pytest

from pimcal.record import Record

NOISE = ("-O", "device.eta0=0.3")


def test_json_has_the_promised_keys_and_names_the_record(lab, pimcal_run):
    found = pimcal_run("calibrate", *lab.on(), *NOISE, "--out", "made.safetensors", "--json").json
    assert {"method", "images", "mvms", "before", "after", "activated", "record"} <= found.keys()
    assert (found["method"], found["images"], found["mvms"]) == ("paired", 64, 64 * 109)
    assert (found["activated"], found["record"]) == (True, "made.safetensors")
    assert found["gate"] == {"images": 400 - 64, "mvms": 2 * (400 - 64) * 109}
    assert found["after"] > found["before"] + 0.1

    record = Record.load("made.safetensors")
    made = record.made_with
    assert (record.id, record.method) == (found["id"], "paired")
    assert (made.metric, made.before, made.after) == ("accuracy", found["before"], found["after"])


def test_people_get_before_after_and_the_file(lab, pimcal_run):
    done = pimcal_run("calibrate", *lab.on(), *NOISE)
    record = Record.load("calibration.safetensors")
    cost, metric, told = done.out.splitlines()
    assert cost.startswith("paired: 64 images, 6,976 MVMs, ")
    assert metric == f"accuracy before {record.made_with.before:.2%}, after {record.made_with.after:.2%}".replace(
        "%", " %"
    )
    assert told == f"record {record.id} written to calibration.safetensors"
    assert done.err.startswith("calibrating with 64 images: 6,976 MVMs, about ")


def test_one_seed_gives_one_record_and_another_seed_another(lab, pimcal_run):
    def made(seed):
        found = pimcal_run("calibrate", *lab.on(), *NOISE, "--seed", seed, "--json").json
        assert Record.load(found["record"]).made_with.seed == int(seed)
        return found["id"], found["before"], found["after"]

    assert made("3") == made("3")
    assert made("3")[0] != made("4")[0]


@pytest.mark.parametrize("method", ["paired", "affine", "pooled", "ema"])
def test_each_method_can_be_chosen(lab, pimcal_run, method):
    options = ("--method", method, "--images", "100", "--json")
    found = pimcal_run("calibrate", *lab.on(), *NOISE, *options).json
    assert (found["method"], found["images"], found["mvms"]) == (method, 100, 100 * 109)
    assert found["after"] > found["before"]


def test_profile_chooses_method_and_images_where_no_option_does(lab, pimcal_run):
    changes = ("-O", "calibration.method=pooled", "-O", "calibration.images=48", "-O", "gate.images=50")
    found = pimcal_run("calibrate", *lab.on(), *NOISE, *changes, "--json").json
    assert (found["method"], found["images"], found["gate"]["images"]) == ("pooled", 48, 50)


def test_without_noise_nothing_is_lost(lab, pimcal_run):
    found = pimcal_run("calibrate", *lab.on("ideal"), "--json").json
    assert (found["before"], found["after"], found["activated"]) == (1.0, 1.0, True)


def test_calibration_data_of_its_own_leaves_all_images_to_the_gate(lab, pimcal_run):
    found = pimcal_run("calibrate", *lab.on(), *NOISE, "--calibration-data", lab.data, "--json").json
    assert (found["images"], found["gate"]["images"]) == (64, 400)


def test_synthetic_images_calibrate_and_real_ones_judge(lab, pimcal_run):
    found = pimcal_run("calibrate", *lab.on(), *NOISE, "--calibration-data", "synthetic", "--json").json
    assert (found["metric"], found["images"], found["gate"]["images"]) == ("accuracy", 64, 400)
    assert found["after"] > found["before"] + 0.1


def test_no_real_image_is_needed_at_all(lab, pimcal_run):
    options = ["calibrate", *lab.on(data=False), *NOISE, "--calibration-data", "synthetic", "--input-shape", "1,6,6"]
    found = pimcal_run(*options, "--seed", "1", "--json").json
    assert (found["metric"], found["images"], found["gate"]["images"]) == ("agreement", 64, 256)
    assert found["activated"]
    assert pimcal_run(*options, "--seed", "1", "--json").json["id"] == found["id"]


def test_divergence_is_shown_for_every_layer_and_falls(lab, pimcal_run):
    found = pimcal_run("calibrate", *lab.on(), *NOISE, "--divergence", "--json").json["divergence"]
    assert list(found) == ["1", "4", "7", "11"]  # behind each BatchNorm, and the last layer
    for layer in found.values():
        assert layer["after"]["js"] < layer["before"]["js"]
        assert layer["after"]["kl"] < layer["before"]["kl"]
    table = pimcal_run("calibrate", *lab.on(), *NOISE, "--divergence").out.splitlines()[3:]
    assert table[0].split() == ["behind", "layer", "KL", "before", "KL", "after", "JS", "before", "JS", "after"]
    assert [line.split()[0] for line in table[1:]] == list(found)


def rejected(lab):
    """Calibration helps, and this metric falls where accuracy rises."""
    return ["calibrate", *lab.on(), *NOISE, "--metric", f"{lab.network}:minus_accuracy"]


def test_gate_rejects_what_is_worse_and_nothing_is_written(lab, pimcal_run):
    found = pimcal_run(*rejected(lab), "--out", "deep/made.safetensors", "--json").json
    assert (found["activated"], found["record"]) == (False, None)
    assert found["after"] < found["before"]
    assert "a drop of" in found["reason"]
    assert list(Path().iterdir()) == []


def test_rejection_is_told_and_leaves_the_former_record(lab, pimcal_run):
    pimcal_run("calibrate", *lab.on(), *NOISE)
    former = Path("calibration.safetensors").read_bytes()
    done = pimcal_run(*rejected(lab), "--divergence")
    assert done.code == 0
    assert "not activated: " in done.out
    assert "nothing was written (--max-drop allows more)" in done.out
    assert Path("calibration.safetensors").read_bytes() == former


@pytest.mark.parametrize("allow", [("--max-drop", "1"), ("-O", "gate.max_drop=1")])
def test_a_drop_can_be_allowed(lab, pimcal_run, allow):
    found = pimcal_run(*rejected(lab), *allow, "--json").json
    assert found["activated"]
    assert found["after"] < found["before"]


def test_active_record_is_what_the_gate_compares_with(lab, pimcal_run):
    first = pimcal_run("calibrate", *lab.on(), *NOISE, "--json").json
    options = ("--active", first["record"], "--out", "second.safetensors", "--method", "affine", "--json")
    second = pimcal_run("calibrate", *lab.on(), *NOISE, *options).json
    assert first["before"] + 0.1 < second["before"] == pytest.approx(first["after"], abs=0.05)
    assert Record.load("second.safetensors").made_with.before == second["before"]


def test_calibration_with_an_active_record_measures_the_network_without_it(lab, pimcal_run):
    quiet = ("-O", "device.sigma_temporal=0", *NOISE)
    first = pimcal_run("calibrate", *lab.on(), *quiet, "--json").json
    options = ("--active", first["record"], "--out", "second.safetensors", "--json")
    assert pimcal_run("calibrate", *lab.on(), *quiet, *options).json["id"] == first["id"]


def test_active_record_of_another_model_is_refused(lab, pimcal_run):
    pimcal_run("calibrate", *lab.on(), *NOISE)
    strange = [option for option in lab.on() if option not in ("--weights", lab.weights)]
    done = pimcal_run("calibrate", *strange, *NOISE, "--active", "calibration.safetensors", "--out", "x.safetensors")
    assert (done.code, done.out) == (65, "")
    assert "was made for a model with hash" in done.err
    assert [path.name for path in Path().iterdir()] == ["calibration.safetensors"]


def test_record_file_is_safetensors_with_its_provenance_as_json(lab, pimcal_run):
    from safetensors import safe_open

    pimcal_run("calibrate", *lab.on(), *NOISE)
    with safe_open("calibration.safetensors", framework="np") as file:
        about = json.loads(file.metadata()["pimcal"])
        assert sorted(file.keys()) == [f"{norm}:{part}" for norm in (1, 4, 7) for part in ("mean", "var")]
    assert about["made_with"]["profile"] == "gaussian_mul"


def test_few_held_out_images_are_remarked_upon(lab, pimcal_run):
    few = pimcal_run("calibrate", *lab.on("ideal"), "--images", "360", "--json")
    assert few.json["gate"]["images"] == 40
    assert "the gate's judgement is coarse: of 40 held-out images each counts 2.5 %" in few.err
    assert "coarse" not in pimcal_run("calibrate", *lab.on("ideal"), "--images", "350").err
