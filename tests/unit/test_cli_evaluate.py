"""`pimcal evaluate`, from options to what is printed."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import pimcal
from pimcal.sources.objects import resolve

NOISE = ("-O", "device.eta0=0.3")


def images_and_labels(lab):
    with np.load(lab.folder / "images.npz") as archive:
        return torch.from_numpy(archive["images"]), torch.from_numpy(archive["labels"])


def test_json_has_the_promised_keys_and_the_true_cost(lab, pimcal_run):
    found = pimcal_run("evaluate", *lab.on("ideal"), "--json").json
    assert {"metric", "value", "images", "mvms", "seconds"} <= found.keys()
    each = 3 * 36 + 1  # three convolutions on 6 x 6 positions, and one linear layer
    assert (found["metric"], found["value"], found["images"], found["mvms"]) == ("accuracy", 1.0, 400, 400 * each)
    assert found["seconds"] > 0


def test_value_is_the_accuracy_that_the_python_interface_gives(lab, pimcal_run):
    value = pimcal_run("evaluate", *lab.on(), *NOISE, "--batch-size", "100", "--json").json["value"]

    model = resolve(f"{lab.network}:net").make()
    model.load_state_dict(load_file(lab.weights))
    images, labels = images_and_labels(lab)
    with pimcal.open_device("gaussian_mul", {"device.eta0": 0.3}) as device, torch.no_grad():
        net = pimcal.deploy(model.eval(), device)
        batches = zip(images.split(100), labels.split(100), strict=True)
        right = sum(int((net(x).argmax(1) == y).sum()) for x, y in batches)
    assert value == right / 400 < 0.7


def test_json_goes_to_stdout_alone_and_the_rest_to_stderr_and_another_process_finds_the_same(lab, pimcal_run):
    command = [sys.executable, "-m", "pimcal", "calibrate", *lab.on(), *NOISE, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout[0], done.stdout[-2:]) == (0, "{", "}\n")
    assert done.stderr.startswith("calibrating with 64 images")
    theirs, ours = json.loads(done.stdout), pimcal_run("calibrate", *lab.on(), *NOISE, "--json").json
    assert theirs | {"seconds": 0} == ours | {"seconds": 0}


def test_people_get_the_value_in_percent_and_the_cost(lab, pimcal_run):
    done = pimcal_run("evaluate", *lab.on("ideal"), "--images", "100")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[0] == "accuracy 100.00 % on ideal (100 images)"
    assert done.out.splitlines()[1].startswith("10,900 MVMs in ")


def test_one_seed_gives_one_value_and_another_seed_another(lab, pimcal_run):
    def value(*more):
        return pimcal_run("evaluate", *lab.on(), *NOISE, "--metric", "mse", "--json", *more).json["value"]

    assert value("--seed", "3") == value("--seed", "3") == value("-O", "device.seed=3")
    assert len({value("--seed", str(seed)) for seed in range(4)}) == 4


def test_seed_is_taken_by_devices_that_draw_nothing(lab, pimcal_run):
    assert pimcal_run("evaluate", *lab.on("ideal"), "--seed", "5", "--json").json["value"] == 1.0


def test_overrides_reach_the_device_and_the_last_of_one_key_counts(lab, pimcal_run):
    def value(*overrides):
        options = [part for override in overrides for part in ("-O", override)]
        return pimcal_run("evaluate", *lab.on(), *options, "--json").json["value"]

    assert value("device.eta0=0") == 1.0
    assert value("device.eta0=0", "device.eta0=0.3") == value("device.eta0=0.3") < 0.7
    assert value("device.eta0=0.3", 'host=["0", "3", "6"]') > value("device.eta0=0.3")


def test_images_limits_how_many_are_used(lab, pimcal_run):
    found = pimcal_run("evaluate", *lab.on("ideal"), "--images", "70", "--json").json
    assert (found["images"], found["mvms"]) == (70, 70 * 109)


def test_without_labels_the_metric_is_agreement_with_the_digital_model(lab, pimcal_run, tmp_path):
    images, _ = images_and_labels(lab)
    np.savez(tmp_path / "bare.npz", images=images.numpy())
    bare = ["evaluate", *lab.on(data=False), "--data", f"npz:{tmp_path / 'bare.npz'}"]
    found = pimcal_run(*bare, *NOISE, "--json").json
    assert found["metric"] == "agreement"
    assert found["value"] == pimcal_run("evaluate", *lab.on(), *NOISE, "--json").json["value"]  # labels are the model's
    refused = pimcal_run(*bare, "--metric", "accuracy")
    assert refused.code == 65
    assert "needs labels and the data has none; use metric 'agreement'" in refused.err


def test_a_metric_of_ones_own_is_used(lab, pimcal_run):
    found = pimcal_run("evaluate", *lab.on("ideal"), "--metric", f"{lab.network}:minus_accuracy", "--json").json
    assert (found["metric"], found["value"]) == (f"{lab.network}:minus_accuracy", -1.0)


def test_record_is_applied_and_reported(lab, pimcal_run):
    plain = pimcal_run("evaluate", *lab.on(), *NOISE, "--json").json
    pimcal_run("calibrate", *lab.on(), *NOISE, "--out", "made.safetensors")
    found = pimcal_run("evaluate", *lab.on(), *NOISE, "--record", "made.safetensors", "--json").json
    assert (plain["record"], found["record"]) == (None, "made.safetensors")
    assert found["value"] > plain["value"] + 0.1


@pytest.mark.parametrize("changed", ["weights", "profile", "seed"])
def test_record_of_another_model_or_device_is_refused(lab, pimcal_run, changed):
    pimcal_run("calibrate", *lab.on(), *NOISE, "--out", "made.safetensors")
    options, said = {
        "weights": ([*lab.on(data=False)[:4], "--data", lab.data, *NOISE], "was made for a model with hash"),
        "profile": (lab.on(), "made elsewhere (device."),
        "seed": ([*lab.on(), *NOISE, "--seed", "1"], "device: gaussian-mul-7 there, gaussian-mul-1 here"),
    }[changed]
    done = pimcal_run("evaluate", *options, "--record", "made.safetensors")
    assert (done.code, done.out) == (65, "")
    assert said in done.err
    assert "calibrate again" in done.err


def test_network_larger_than_the_device_gives_what_one_that_fits_does(lab, pimcal_run):
    small = [*lab.on("ideal"), "-O", "tiles.rows=20", "-O", "tiles.cols=4", "--images", "100", "--batch-size", "50"]
    fits = pimcal_run("evaluate", *small, "--json").json
    streamed = pimcal_run("evaluate", *small, "-O", "tiles.count=2", "--json").json
    assert streamed["value"] == fits["value"] == 1.0
    assert streamed["mvms"] == fits["mvms"]


SILENT = """
import torch
from torch import nn


class Silent(nn.Sequential):
    def train(self, mode=True):
        super().train(mode)

    def eval(self):
        super().eval()

    def to(self, *args, **kwargs):
        super().to(*args, **kwargs)


def model():
    return Silent(nn.Linear(4, 3), Silent(nn.BatchNorm1d(3)))


def data():
    return [torch.rand(8, 4, generator=torch.Generator().manual_seed(i)) for i in range(4)]
"""


def test_a_model_whose_methods_return_nothing_is_evaluated_and_calibrated(pimcal_run, tmp_path):
    (tmp_path / "silent.py").write_text(SILENT)
    on = [
        "--profile",
        "ideal",
        "--model",
        f"{tmp_path}/silent.py:model",
        "--data",
        f"{tmp_path}/silent.py:data",
        "--json",
    ]

    assert pimcal_run("evaluate", *on, "--metric", "agreement").json["value"] == 1
    assert pimcal_run("calibrate", *on, "--images", "16").json["after"] == 1


BEHIND = """
import torch.nn.functional as F
from torch import nn


class Behind(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.idle = nn.Linear(4, 3), nn.Linear(4, 4)

    def forward(self, x):
        return F.linear(x, self.first.weight, self.first.bias)
"""


def test_weights_used_behind_a_layers_forward_are_on_the_device_and_idle_layers_are_named(pimcal_run, tmp_path):
    (tmp_path / "own.py").write_text(SILENT + BEHIND)
    on = ["--model", f"{tmp_path}/own.py:Behind", "--data", f"{tmp_path}/own.py:data"]

    for command in ("evaluate", "calibrate"):
        more = ["--images", "16", "--method", "affine"] if command == "calibrate" else []
        done = pimcal_run(command, "--profile", "gaussian_mul", *on, *more)
        assert "the model did not call idle, which the device could compute" in done.err
        assert "the device makes 100 % of the multiplications by weights" in done.out
        assert "UserWarning" not in done.err
        assert "PlacementWarning" not in done.err
    noisy = pimcal_run("evaluate", "--profile", "gaussian_mul", *on, "--metric", "mse", "--json").json
    assert (noisy["device_share"], noisy["mvms"], noisy["value"] > 1e-4) == (1.0, 32, True)
