"""`pimcal records`: show and diff."""

import pytest
import torch

from pimcal.record import Record

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
    assert pimcal_run(*same).out.splitlines()[-1] == "6 of 6 tensors are equal"


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
