"""Weights as people save them: whatever wraps them, they arrive, and what was stripped or ignored is said."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pimcal.errors import DataError
from pimcal.sources.models import load_model

NET = """
import torch
from torch import nn


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 2)))


def compiled_inside():
    made = net()
    made[2] = torch.compile(made[2])
    return made


class Held(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = net()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(3, 3), nn.Linear(3, 3)
        self.down.weight = self.up.weight


class Own(nn.Module):
    '''A buffer that is not kept, and an extra state that is.'''

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(2, 2), 1
        self.register_buffer("index", torch.arange(4.0), persistent=False)

    def get_extra_state(self):
        return {"scale": self.scale}

    def set_extra_state(self, state):
        self.scale = state["scale"]
"""


@pytest.fixture
def spec(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path}/net.py"


@pytest.fixture
def state() -> dict[str, Tensor]:
    made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 2)))
    return {k: torch.rand(v.shape) if v.is_floating_point() else v for k, v in made.state_dict().items()}


def _prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {f"{prefix}{key}": value for key, value in state.items()}


def _loaded(spec: str, content: Any, path: Path) -> tuple[nn.Module, str]:
    torch.save(content, path)
    told: list[str] = []
    return load_model(spec, path, told.append), "; ".join(told)


def _assert_holds(model: nn.Module, state: dict[str, Tensor]) -> None:
    found = {k.replace("_orig_mod.", "").removeprefix("model."): v for k, v in model.state_dict().items()}
    assert {k for k in found if "num_batches" not in k} == {k for k in state if "num_batches" not in k}
    for key, value in found.items():
        assert "num_batches" in key or torch.equal(value, state[key]), key


Wrap = Callable[[dict[str, Tensor]], Any]
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
WAYS: dict[str, tuple[Wrap, str]] = {
    "as it is": (lambda s: s, ""),
    "net": (lambda s: {"net": s, "acc": 93.1, "epoch": 7}, "under: net.; ignored, beside the weights: acc, epoch"),
    "parallel": (lambda s: _prefixed(s, "module."), "stripped from names: module."),
    "compiled, parallel": (lambda s: _prefixed(s, "_orig_mod.module."), "from names: _orig_mod., module."),
    "parallel, compiled, parallel": (lambda s: _prefixed(s, "module._orig_mod.module."), "_orig_mod., module."),
    "compiled inside": (lambda s: {k.replace("2.0.", "2._orig_mod.0."): v for k, v in s.items()}, "_orig_mod."),
    "checkpointed inside": (
        lambda s: {k.replace("2.0.", "2._checkpoint_wrapped_module.0."): v for k, v in s.items()},
        "stripped from names: _checkpoint_wrapped_module.",
    ),
    "lightning": (
        lambda s: {
            "epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.5", "optimizer_states": [OPTIMIZER],
            "state_dict": {**_prefixed(s, "model."), "loss.weight": torch.ones(5)},
            "hyper_parameters": argparse.Namespace(lr=0.1),
        },
        "those under: state_dict.model.; ignored, beside the weights: state_dict.loss.weight, epoch, global_step and 3",
    ),
    "any prefix": (lambda s: _prefixed(s, "student.backbone._orig_mod."), "those under: student.backbone."),
    "averaged": (lambda s: _prefixed(s, "ema_model.module."), "those under: ema_model."),
    "in a list": (lambda s: ({"model": s}, {"optimizer": OPTIMIZER}), "those under: 0.model."),
    "fsdp": (lambda s: {"app": {"model": s, "optim": {"exp_avg": s}}}, "those under: app.model."),
    "profiled": (
        lambda s: {**s, "total_ops": torch.zeros(1), "2.total_params": torch.zeros(1), "n_averaged": torch.tensor(3)},
        "ignored, as they are no parameters: total_ops, 2.total_params, n_averaged",
    ),
    "flat with an epoch": (lambda s: {**s, "epoch": 3, "optimizer": OPTIMIZER}, "beside the weights: epoch, optimizer"),
    "numbers of numpy": (lambda s: {"net": s, "best": np.float64(0.9), "seen": np.int64(4)}, "best, seen"),
    "an extra state of none": (lambda s: {**s, "0._extra_state": None}, "no such extra state: 0._extra_state"),
    "an extra state of bytes": (lambda s: {**s, "0._extra_state": torch.zeros(9, dtype=torch.uint8)}, "no such extra"),
    "the same twice": (lambda s: {"model": s, "state_dict": s}, "those under: model."),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["net", "compiled_inside", "Held"])
def test_weights_arrive_however_they_were_saved(
    spec: str, state: dict[str, Tensor], tmp_path: Path, way: str, name: str
) -> None:
    wrap, remark = WAYS[way]
    model, told = _loaded(f"{spec}:{name}", wrap(state), tmp_path / "w.pt")
    _assert_holds(model, state)
    if name == "net":
        assert remark in told
        assert bool(told) == bool(remark)
    if name == "Held" and way in ("as it is", "net"):
        assert "the model's names begin with: model." in told


def test_a_whole_averaged_model_arrives(spec: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    inner = load_model(f"{spec}:net")
    inner.load_state_dict(state)
    model, told = _loaded(f"{spec}:net", AveragedModel(inner).state_dict(), tmp_path / "w.pt")
    _assert_holds(model, state)
    assert "ignored, as they are no parameters: n_averaged" in told


@pytest.mark.parametrize(
    ("both", "places"),
    [
        (lambda s, t: {"state_dict": s, "state_dict_ema": t}, "'state_dict.' and 'state_dict_ema.'"),
        (
            lambda s, t: {**_prefixed(s, "module."), **_prefixed(t, "ema_model.module.")},
            "'the names as they are' and 'ema_model.'",
        ),
        (lambda s, t: {**_prefixed(s, "teacher."), **_prefixed(t, "student.")}, "'teacher.' and 'student.'"),
    ],
)  # fmt: skip
def test_several_sets_that_fit_are_named_and_none_is_taken(
    spec: str, state: dict[str, Tensor], tmp_path: Path, both: Any, places: str
) -> None:
    other = {key: value + 1 for key, value in state.items()}
    with pytest.raises(DataError, match="holds several sets of weights that fit the model") as caught:
        _loaded(f"{spec}:net", both(state, other), tmp_path / "w.pt")
    first, second = places.split(" and ")
    assert first in str(caught.value)
    assert second in str(caught.value)


def test_one_name_twice_with_other_values_is_refused(spec: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    twice = {**state, "module.0.weight": state["0.weight"] + 1}
    with pytest.raises(DataError, match=r"several in the file: 0\.weight and module\.0\.weight"):
        _loaded(f"{spec}:net", twice, tmp_path / "w.pt")


def test_an_extra_state_that_the_model_has_is_loaded(spec: str, tmp_path: Path) -> None:
    content = {"net": {"layer.weight": torch.ones(2, 2), "layer.bias": torch.ones(2), "_extra_state": {"scale": 5}}}
    model, _ = _loaded(f"{spec}:Own", content, tmp_path / "w.pt")
    assert model.scale == 5
    del content["net"]["_extra_state"]
    model, told = _loaded(f"{spec}:Own", content, tmp_path / "w.pt")
    assert model.scale == 1
    assert "not in the file and left as the model made it: _extra_state" in told


@pytest.mark.parametrize(
    ("value", "told"),
    [(torch.arange(4.0), "buffers itself: index"), (torch.zeros(4), "though with other values: index")],
)
def test_a_buffer_that_is_no_longer_kept_is_ignored(spec: str, tmp_path: Path, value: Tensor, told: str) -> None:
    content = {
        "layer.weight": torch.ones(2, 2),
        "layer.bias": torch.ones(2),
        "_extra_state": {"scale": 2},
        "index": value,
    }
    model, found = _loaded(f"{spec}:Own", content, tmp_path / "w.pt")
    assert told in found
    assert torch.equal(model.get_buffer("index"), torch.arange(4.0))


def test_more_layers_than_the_model_has_are_no_leftovers(spec: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    for prefix in ("", "model."):
        deeper = _prefixed({**state, "2.1.weight": torch.ones(2, 2)}, prefix)
        with pytest.raises(DataError, match=r"unknown to the model: 2\.1\.weight"):
            _loaded(f"{spec}:net", deeper, tmp_path / "w.pt")


def test_codes_of_quantised_weights_are_no_weights(spec: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    state["0.weight"] = (state["0.weight"] * 127).to(torch.int8)
    with pytest.raises(
        DataError, match=r"another kind: 0\.weight is torch\.int8 in the file, torch\.float32 in the model"
    ):
        _loaded(f"{spec}:net", state, tmp_path / "w.pt")


def test_tied_weights_that_differ_in_the_file_are_refused(spec: str, tmp_path: Path) -> None:
    state = {"up.weight": torch.ones(3, 3), "up.bias": torch.ones(3), "down.bias": torch.ones(3)}
    assert torch.equal(_loaded(f"{spec}:Tied", state, tmp_path / "w.pt")[0].down.weight, torch.ones(3, 3))  # type: ignore[union-attr, arg-type]
    with pytest.raises(DataError, match=r"tied in the model but not in the file: up\.weight and down\.weight"):
        _loaded(f"{spec}:Tied", {**state, "down.weight": torch.zeros(3, 3)}, tmp_path / "w.pt")


def test_names_that_do_not_fit_are_listed_with_what_was_tried(spec: str, tmp_path: Path) -> None:
    content = {"state_dict": {"encoder.w1": torch.ones(4, 3), "encoder.b1": torch.ones(4)}}
    with pytest.raises(DataError) as caught:
        _loaded(f"{spec}:net", content, tmp_path / "w.pt")
    message = str(caught.value)
    assert "missing in the file: 0.weight, 0.bias, 1.weight and 5 more" in message
    assert "The file has state_dict.encoder.w1, state_dict.encoder.b1" in message
    assert "Tried were its names as they are, without wrappers (_checkpoint_wrapped_module, " in message
    renamed = {"model": _prefixed({"0.weight": torch.ones(4, 3), "0.bias": torch.ones(4)}, "trunk.")}
    with pytest.raises(DataError, match=r"without the prefix 'model\.trunk\.'"):
        _loaded(f"{spec}:net", renamed, tmp_path / "w.pt")


def test_torchscript_and_exported_programs_are_told_from_weights(spec: str, tmp_path: Path) -> None:
    program = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))
    program.save(str(tmp_path / "script.pt"))
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / "program.pt2")
    for name, remedy in (("script.pt", "torch.jit.load"), ("program.pt2", "torch.export.load")):
        with pytest.raises(DataError, match="no file of weights") as caught:
            load_model(f"{spec}:net", tmp_path / name)
        assert "weights_only" not in str(caught.value)
        assert remedy in str(caught.value)
    torch.save(torch.jit.load(tmp_path / "script.pt").state_dict(), tmp_path / "weights.pt")  # the remedy
    (tmp_path / "linear.py").write_text("from torch import nn\n\ndef net():\n    return nn.Linear(2, 2)\n")
    model = load_model(f"{tmp_path}/linear.py:net", tmp_path / "weights.pt")
    assert torch.equal(model.weight, program.weight)  # type: ignore[arg-type]


# ---- several files with an index


def _shards(state: dict[str, Tensor], folder: Path, ending: str) -> Path:
    folder.mkdir(exist_ok=True)
    names, written = list(state), {}
    stem = "model" if ending == "safetensors" else "pytorch_model"
    for number, part in enumerate((names[:3], names[3:]), start=1):
        shard = f"{stem}-0000{number}-of-00002.{ending}"
        tensors = {name: state[name].clone() for name in part}
        save_file(tensors, folder / shard) if ending == "safetensors" else torch.save(tensors, folder / shard)
        written |= dict.fromkeys(part, shard)
    index = folder / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": written}))
    return index


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_are_read_by_their_index_or_folder(
    spec: str, state: dict[str, Tensor], tmp_path: Path, ending: str
) -> None:
    index = _shards(_prefixed(state, "backbone."), tmp_path / "sharded", ending)
    for path in (index, index.parent):
        _assert_holds(load_model(f"{spec}:net", path), state)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_what_is_wrong_with_shards_is_said_by_file(
    spec: str, state: dict[str, Tensor], tmp_path: Path, ending: str
) -> None:
    index = _shards(state, tmp_path / "sharded", ending)
    first, second = sorted(path for path in index.parent.iterdir() if "-of-" in path.name)
    with pytest.raises(DataError, match=r"It is one of 2 files: name the index .*\.index\.json"):
        load_model(f"{spec}:net", first)
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"{second.name} is no readable"):
        load_model(f"{spec}:net", index)
    second.write_bytes(first.read_bytes())
    with pytest.raises(DataError, match=rf"{second.name} lacks 1\.bias, which \S*index\.json says it has"):
        load_model(f"{spec}:net", index)
    second.unlink()
    with pytest.raises(DataError, match=rf"names 2 files, of which {second.name} is not there"):
        load_model(f"{spec}:net", index)


@pytest.mark.parametrize(
    "weights", ["3", '{"a": 3}', '{"a": "../b.bin"}', '{"a": "/b.bin"}', '{"a": null}', "[" * 9999, '{"a": "b.bin"']
)
def test_what_is_no_index_is_refused(spec: str, tmp_path: Path, weights: str) -> None:
    (tmp_path / "a.json").write_text(f'{{"weight_map": {weights}}}')
    with pytest.raises(DataError, match=r"a\.json is no index of weights"):
        load_model(f"{spec}:net", tmp_path / "a.json")


def test_safetensors_are_known_by_what_they_are(spec: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "w.bin")
    _assert_holds(load_model(f"{spec}:net", tmp_path / "w.bin"), state)
    with pytest.raises(DataError, match="no weights file in the folder"):
        load_model(f"{spec}:net", tmp_path)


def test_the_command_line_says_what_was_stripped(lab: Any, pimcal_run: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    torch.save({"net": _prefixed(load_file(lab.weights), "module."), "epoch": 3}, tmp_path / "w.pt")
    options = lab.on("ideal")
    options[options.index(lab.weights)] = str(tmp_path / "w.pt")
    done = pimcal_run("evaluate", *options, "--json")
    assert done.json["value"] == 1.0
    expected = (
        "w.pt: the weights are those under: net.; stripped from names: module.; ignored, beside the weights: epoch"
    )
    assert expected in done.err
