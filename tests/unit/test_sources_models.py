"""Models and weights as `--model` and `--weights` name them."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from pimcal.batches import split_batch
from pimcal.errors import DataError, MissingExtraError, UsageError
from pimcal.metrics import resolve_metric
from pimcal.sources.data import load_batches
from pimcal.sources.models import check_input, load_model
from pimcal.sources.preprocess import load_preprocess

NET = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(5))

def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.layer = nn.Linear(2, width)

instance = Net()
nothing = 7

def with_argument(width):
    return Net(width)

def no_module():
    return "a model"

def tied():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    return net

def infinite():
    net = Net()
    net.layer.bias.data[1] = float("inf")
    return net

def masked():
    net = Net()
    net.register_buffer("mask", torch.full((2, 2), float("-inf")))
    return net
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path}/net.py"


@pytest.fixture
def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    fresh = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict()
    return {
        key: torch.rand(value.shape, generator=generator) if value.is_floating_point() else value
        for key, value in fresh.items()
    }


def assert_loaded(model: nn.Module, state: dict[str, Tensor]) -> None:
    for key, value in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("name", ["small", "Net", "instance", "masked"])
def test_function_class_and_instance_give_a_model_in_eval_mode(net: str, name: str) -> None:
    model = load_model(f"{net}:{name}")
    assert isinstance(model, nn.Module)
    assert not any(module.training for module in model.modules())


def test_instance_is_copied_so_that_weights_do_not_reach_its_next_user(net: str, tmp_path: Path) -> None:
    first = load_model(f"{net}:instance")
    save_file({"layer.weight": torch.ones(4, 2), "layer.bias": torch.ones(4)}, tmp_path / "w.safetensors")
    load_model(f"{net}:instance", tmp_path / "w.safetensors")
    again = load_model(f"{net}:instance")
    assert torch.equal(again.get_parameter("layer.weight"), first.get_parameter("layer.weight"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "is a int, not a model"),
        ("with_argument", r"needs arguments \(width\)"),
        ("no_module", "returned a str"),
        ("build", r"3\.weight has no shape yet"),
    ],
)
def test_what_is_no_model_is_refused(net: str, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_model(f"{net}:{name}")


def test_infinite_weights_of_the_models_own_are_named(net: str) -> None:
    with pytest.raises(DataError, match=r"layer\.bias has 1 NaN or infinite values of 4"):
        load_model(f"{net}:infinite")


def test_torchvision_model_is_built_without_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    assert not load_model("torchvision:resnet18").training
    load_model("torchvision:lraspp_mobilenet_v3_large")  # its backbone is fetched by default
    load_model("torchvision:googlenet")  # warns by default


def test_unknown_torchvision_model_is_refused_with_a_suggestion() -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(UsageError, match="no model 'resnet81'; did you mean 'resnet1"):
        load_model("torchvision:resnet81")


def test_missing_torchvision_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingExtraError, match=r"pimcal\[vision\]"):
        load_model("torchvision:resnet18")


def _plain(state: dict[str, Tensor], path: Path) -> Path:
    torch.save(state, path / "w.pt")
    return path / "w.pt"


def _legacy(state: dict[str, Tensor], path: Path) -> Path:
    torch.save(state, path / "w.pth", _use_new_zipfile_serialization=False)
    return path / "w.pth"


def _safetensors(state: dict[str, Tensor], path: Path) -> Path:
    save_file(state, path / "w.safetensors")
    return path / "w.safetensors"


def _wrapped(state: dict[str, Tensor], path: Path) -> Path:
    return _plain({"state_dict": state, "epoch": 3, "best": 0.7}, path)  # type: ignore[dict-item]


def _model(state: dict[str, Tensor], path: Path) -> Path:
    return _plain({"model": state, "optimizer": {"lr": 0.1}}, path)  # type: ignore[dict-item]


def _parallel(state: dict[str, Tensor], path: Path) -> Path:
    return _wrapped({f"module.{key}": value for key, value in state.items()}, path)


def _without_counters(state: dict[str, Tensor], path: Path) -> Path:
    return _safetensors({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, path)


@pytest.mark.parametrize(
    "write",
    [_plain, _legacy, _safetensors, _wrapped, _model, _parallel, _without_counters],
    ids=lambda f: f.__name__,
)
def test_weights_arrive_from_every_usual_file(
    net: str, state: dict[str, Tensor], tmp_path: Path, write: Callable[[dict[str, Tensor], Path], Path]
) -> None:
    assert_loaded(load_model(f"{net}:small", write(state, tmp_path)), state)


class _RunsACommand:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_that_runs_code_is_refused_by_name_and_does_not_run(
    net: str, tmp_path: Path, zipped: bool, protocol: int
) -> None:
    path, trace = tmp_path / "evil.pt", tmp_path / "ran"
    attack = {"weight": _RunsACommand(f"touch {trace}")}
    if zipped:
        torch.save(attack, path, pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps(attack, protocol=protocol))
    with pytest.raises(DataError, match=r"evil\.pt is refused: .*safetensors") as caught:
        load_model(f"{net}:small", path)
    if protocol == 2:
        assert f"{os.system.__module__}.system" in str(caught.value)
    assert not trace.exists()


def test_pickled_module_is_refused_by_the_name_of_its_class(net: str, tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(DataError, match=r"torch\.nn\.modules\.linear\.Linear"):
        load_model(f"{net}:small", tmp_path / "whole.pt")


@pytest.mark.parametrize("write", [_plain, _safetensors], ids=lambda f: f.__name__)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_cut_off_file_is_refused(
    net: str,
    state: dict[str, Tensor],
    tmp_path: Path,
    write: Callable[[dict[str, Tensor], Path], Path],
    share: float,
) -> None:
    path = write(state, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=path.name):
        load_model(f"{net}:small", path)


def test_absent_file_and_file_without_tensors_are_refused(net: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no weights file"):
        load_model(f"{net}:small", tmp_path / "absent.pt")
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    with pytest.raises(DataError, match="holds no state dict"):
        load_model(f"{net}:small", tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("not weights at all")
    with pytest.raises(DataError, match=r"text\.pt"):
        load_model(f"{net}:small", tmp_path / "text.pt")


def test_weights_that_do_not_fit_are_listed_with_their_shapes(
    net: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    del state["1.running_var"]
    state |= {f"extra{i}": torch.zeros(1) for i in range(5)}
    state["0.weight"] = torch.zeros(4, 1, 3, 3)
    with pytest.raises(DataError) as caught:
        load_model(f"{net}:small", _plain(state, tmp_path))
    message = str(caught.value)
    assert "missing in the file: 1.running_var" in message
    assert "unknown to the model: extra0, extra1, extra2 and 2 more" in message
    assert "0.weight is [4, 1, 3, 3] in the file, [4, 3, 3, 3] in the model" in message


@pytest.mark.parametrize("key", ["0.weight", "1.running_var"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_nan_or_infinite_weights_are_refused_by_tensor(
    net: str, state: dict[str, Tensor], tmp_path: Path, key: str, value: float
) -> None:
    state[key].view(-1)[2] = value
    with pytest.raises(DataError, match=rf"{key} has 1 NaN or infinite"):
        load_model(f"{net}:small", _plain(state, tmp_path))


def test_of_tied_tensors_one_in_the_file_is_enough(net: str, tmp_path: Path) -> None:
    tied = load_model(f"{net}:tied")
    save_model(tied, str(tmp_path / "tied.safetensors"))  # leaves the copy out
    again = load_model(f"{net}:tied", tmp_path / "tied.safetensors")
    assert_loaded(again, tied.state_dict())
    assert again.get_parameter("1.weight") is again.get_parameter("0.weight")


def test_images_of_the_wrong_shape_are_refused_with_what_the_first_layer_takes(net: str) -> None:
    model = load_model(f"{net}:small")
    assert check_input(model, torch.rand(2, 3, 8, 8)).shape == (2, 4, 6, 6)
    with pytest.raises(DataError, match=r"images of shape \[1, 8, 8\]: its first layer, 0, takes 3 channels"):
        check_input(model, torch.rand(2, 1, 8, 8))
    with pytest.raises(DataError, match="does not take a dict of pixels"):
        check_input(model, {"pixels": torch.rand(2, 3, 8, 8)})


def test_shared_resnet_shape_mismatch_is_reported(net: str, shared_data: Path) -> None:
    with pytest.raises(DataError, match=r"missing in the file: 0\.weight.*unknown to the model: "):
        load_model(f"{net}:small", shared_data / "cifar10" / "resnet20.safetensors")


RESNET20 = """
import torch.nn.functional as F
from torch import nn

class Block(nn.Module):
    def __init__(self, inside, outside, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.stride, self.added = stride, outside - inside

    def forward(self, x):
        half = self.added // 2
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)

class ResNet20(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*[Block(16, 16, 1) for _ in range(3)])
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))
"""


def test_shared_resnet20_reaches_its_known_accuracy_on_cifar10(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "resnet.py").write_text(RESNET20)
    cifar10 = shared_data / "cifar10"
    model = load_model(f"{tmp_path}/resnet.py:ResNet20", cifar10 / "resnet20.safetensors")
    accuracy = resolve_metric("accuracy").start()
    for batch in load_batches(f"npz:{cifar10}/test.npz", load_preprocess("cifar10"), batch_size=250):
        (images,), _, labels = split_batch(batch)
        accuracy.update(check_input(model, images), labels, len(labels))
    assert accuracy.compute() == pytest.approx(0.813, abs=0.0015)
