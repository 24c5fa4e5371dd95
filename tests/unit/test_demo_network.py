"""The demo's network, its data and the script that trains it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from pimcal.errors import MissingExtraError
from pimcal_demo.digits import load_digits
from pimcal_demo.network import WEIGHTS, DigitsNetwork, load_network
from pimcal_demo.train import train

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def run_training(out: Path, *options: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-m", "pimcal_demo.train", "--out", str(out), *options]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def test_shipped_weights_are_small():
    assert WEIGHTS.stat().st_size < 1_500_000


def test_shipped_weights_reach_the_accuracy_that_their_file_states():
    pytest.importorskip("sklearn")
    _, (images, labels) = load_digits()
    with safe_open(WEIGHTS, "pt") as file:
        stated = json.loads(file.metadata()["training"])
    with torch.no_grad():
        correct = (load_network()(images).argmax(dim=1) == labels).sum().item()
    assert stated["images"] == len(labels) >= 500
    assert stated["accuracy"] >= 0.98
    # Another processor rounds sums otherwise, which may turn an image that lies on the border.
    assert correct >= round(stated["accuracy"] * len(labels)) - 1


@torch.no_grad()
def test_a_common_gain_of_all_weights_collapses_the_network():
    """What multiplicative noise is on average; were the network immune, the demo would show nothing."""
    pytest.importorskip("sklearn")
    _, (images, labels) = load_digits()
    network = load_network()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight *= 1.5
    assert (network(images).argmax(dim=1) == labels).double().mean() < 0.5


def test_longest_path_has_at_least_twenty_convolutions_each_followed_by_batchnorm():
    path = [name for name, m in DigitsNetwork().named_modules() if isinstance(m, nn.Conv2d) and "shortcut" not in name]
    norms = [name for name, m in DigitsNetwork().named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(path) >= 20
    assert len(norms) == sum(isinstance(m, nn.Conv2d) for m in DigitsNetwork().modules())


def test_every_digit_is_in_exactly_one_of_the_two_sets():
    datasets = pytest.importorskip("sklearn.datasets")
    (train_x, train_y), (test_x, test_y) = load_digits()
    pixels, labels = datasets.load_digits(return_X_y=True)
    both = torch.cat([train_x, test_x]).flatten(1)
    ours = torch.cat([both * 6 + 5, torch.cat([train_y, test_y])[:, None]], dim=1).round().tolist()
    originals = torch.cat([torch.from_numpy(pixels), torch.from_numpy(labels)[:, None]], dim=1).tolist()
    assert sorted(ours) == sorted(originals)


def test_digits_without_scikit_learn_name_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"scikit-learn.*pimcal\[demo\]"):
        load_digits()


def test_same_seed_trains_the_same_network_and_another_seed_another():
    pytest.importorskip("sklearn")
    (images, labels), _ = load_digits()
    few = images[:128], labels[:128]
    first, again, other = (train(few, 1, torch.Generator().manual_seed(seed)).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_training_script_writes_weights_that_fit_and_prints_one_json_object(tmp_path: Path):
    pytest.importorskip("sklearn")
    out = tmp_path / "digits.safetensors"
    done = run_training(out, "--epochs", "1")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["epochs"], result["images"]) == (1, 600)
    assert result["accuracy"] > 0.15  # guessing gives a tenth
    DigitsNetwork().load_state_dict(load_file(out))
    assert list(tmp_path.iterdir()) == [out]


def test_training_script_that_cannot_write_leaves_the_former_file_and_nothing_else(tmp_path: Path):
    pytest.importorskip("sklearn")
    out = tmp_path / "digits.safetensors"
    out.write_bytes(b"former")
    tight = ("sh", "-c", 'ulimit -f 200; exec "$@"', "sh")  # a limit on file size stands in for a full disk
    done = run_training(out, "--epochs", "1", prefix=tight)
    assert done.returncode == 65
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert out.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(("options", "hint"), [(("--epochs", "0"), "at least 1"), ((), "there is no folder")])
def test_training_script_refuses_bad_options_before_it_trains(tmp_path: Path, options: tuple[str, ...], hint: str):
    done = run_training(tmp_path / "absent" / "digits.safetensors", *options)
    assert done.returncode == 2
    assert hint in done.stderr
