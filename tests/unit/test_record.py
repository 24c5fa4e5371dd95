"""Records: saved, loaded, applied, undone, compared; and what is refused."""

import dataclasses
import json
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

import pimcal
from pimcal.errors import DataError, UsageError
from pimcal.record import FORMAT, Provenance, Record, differences

NOISE = {"device.noise": "mul", "device.eta0": 0.3, "device.sigma_temporal": 0.0}


def cnn():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    model(torch.randn(16, 2, 5, 5))
    return model.eval()


def images(count=8):
    return torch.randn(count, 2, 5, 5)


def made(**changes):
    about = Provenance(
        pimcal="0.1.0", torch="2.11", backend="ideal", profile="ideal", profile_hash="p", model_hash="m",
        device="ideal", firmware="", wall_time="2026-01-01T00:00:00+00:00", images=64, batches=1, mvms=10, seconds=0.5,
        telemetry={"temperature_c": 41.5},
    )  # fmt: skip
    corrections = {
        "body.1": {"mean": torch.randn(3), "var": torch.rand(3)},
        "head": {"gain": torch.rand(2), "offset": torch.randn(2)},
    }
    return dataclasses.replace(Record(method="affine", corrections=corrections, made_with=about), **changes)


def assert_equal(first, second):
    assert first.method == second.method
    assert first.made_with == second.made_with
    assert first.id == second.id
    assert differences(first, second) == {
        "fields": {},
        "tensors": dict.fromkeys(differences(first, second)["tensors"], 0.0),
    }


def test_a_saved_record_loads_as_it_was(tmp_path):
    record = made()

    path = record.save(tmp_path / "deep" / "record.safetensors")

    assert_equal(Record.load(path), record)
    assert [file.name for file in path.parent.iterdir()] == ["record.safetensors"]


def test_a_record_of_nothing_is_a_record(tmp_path):
    record = made(corrections={})

    assert_equal(Record.load(record.save(tmp_path / "record")), record)


@torch.no_grad()
def test_a_record_is_put_in_force_and_taken_back(open_backend, tmp_path):
    net, x = pimcal.deploy(cnn(), open_backend("gaussian", NOISE)), images()
    plain = net(x)

    record = pimcal.calibrate(net, [images(32)], "affine", seed=3)
    assert torch.equal(net(x), plain)  # a calibration only finds; applying is a second step

    assert net.apply(Record.load(record.save(tmp_path / "record"))) is net
    corrected = net(x)
    assert not torch.equal(corrected, plain)
    assert net.active == record.id

    net.revert()
    assert torch.equal(net(x), plain)
    assert net.active is None
    assert record.made_with.seed == 3


@torch.no_grad()
def test_records_stack_and_are_undone_one_by_one(open_backend):
    net, x = pimcal.deploy(cnn(), open_backend("gaussian", NOISE)), images()
    first, second = (pimcal.calibrate(net, [images(32)], method) for method in ("affine", "pooled"))
    outputs = [net(x)]
    for record in (first, second):
        outputs.append(net.apply(record)(x))

    for expected in outputs[1::-1]:
        net.revert()
        assert torch.equal(net(x), expected)
    with pytest.raises(UsageError, match="nothing to revert"):
        net.revert()


def test_apply_with_a_function_does_what_torchs_modules_do(open_backend):
    net, seen = pimcal.deploy(cnn(), open_backend("ideal")), []

    net.apply(lambda module: seen.append(type(module)))

    assert nn.Conv2d in seen


@torch.no_grad()
def test_a_record_of_another_model_is_refused_even_with_force(open_backend):
    net = pimcal.deploy(cnn(), open_backend("ideal"))
    foreign = pimcal.calibrate(pimcal.deploy(cnn(), open_backend("ideal")), [images()])
    before = net(images(2))

    with pytest.raises(DataError, match="was made for a model with hash") as caught:
        net.apply(foreign, force=True)

    assert caught.value.exit_code == 65
    assert net.active is None
    assert before.shape == (2, 3)


@torch.no_grad()
def test_a_record_of_another_device_or_profile_needs_force(open_backend):
    model = cnn()
    record = pimcal.calibrate(pimcal.deploy(model, open_backend("gaussian", NOISE)), [images()])
    elsewhere = pimcal.deploy(model, open_backend("gaussian", {**NOISE, "device.seed": 8}))

    with pytest.raises(
        DataError, match=r"made elsewhere \(device: gaussian-mul-0 there, gaussian-mul-8 here; device.seed: 0 there, 8"
    ):
        elsewhere.apply(record)
    assert elsewhere.active is None

    assert elsewhere.apply(record, force=True).active == record.id


@torch.no_grad()
@pytest.mark.parametrize(
    ("corrections", "message"),
    [
        ({"9": {"gain": torch.ones(3), "offset": torch.ones(3)}}, "names 9, which is neither"),
        ({"1": {"mean": torch.ones(3), "var": torch.ones(3)}}, r"expected \['mean', 'var'\] of shape \(4,\)"),
        ({"1": {"mean": torch.ones(4)}}, r"expected \['mean', 'var'\]"),
        ({"4": {"gain": torch.ones(4), "offset": torch.ones(4)}}, r"expected \['gain', 'offset'\] of shape \(3,\)"),
    ],
)
def test_corrections_that_do_not_fit_are_refused_before_anything_changes(open_backend, corrections, message):
    net, x = pimcal.deploy(cnn(), open_backend("ideal")), images()
    before = net(x)
    fitting = {"1": {"mean": torch.zeros(4), "var": torch.ones(4)}}

    with pytest.raises(DataError, match=message):
        net.push("wrong", {**fitting, **corrections})

    assert torch.equal(net(x), before)
    assert net.active is None


def test_the_id_tells_records_apart_by_what_they_do():
    record = made()

    assert record.id == made(corrections=record.corrections).id
    assert record.id == record.judged("accuracy", 0.5, 0.9).id
    assert record.id != made(method="paired", corrections=record.corrections).id
    assert record.id != made(corrections={"head": record.corrections["head"]}).id


def test_a_judged_record_holds_the_metric_before_and_after(tmp_path):
    record = made().judged("accuracy", 0.41, 0.81)

    loaded = Record.load(record.save(tmp_path / "record")).made_with

    assert (loaded.metric, loaded.before, loaded.after) == ("accuracy", 0.41, 0.81)


def test_differences_name_fields_and_the_largest_change_of_each_tensor():
    first = made()
    changed = {
        **first.corrections["body.1"],
        "mean": first.corrections["body.1"]["mean"] + torch.tensor([0.0, -0.5, 0.25]),
    }
    second = made(
        method="paired",
        corrections={"body.1": changed, "tail": {"gain": torch.ones(1), "offset": torch.ones(1)}},
        made_with=dataclasses.replace(first.made_with, images=32),
    )

    found = differences(first, second)

    assert found["fields"] == {"method": ["affine", "paired"], "images": [64, 32]}
    assert found["tensors"]["body.1:mean"] == pytest.approx(0.5)
    assert found["tensors"]["body.1:var"] == 0.0
    assert found["tensors"]["head:gain"] == "only in the first"
    assert found["tensors"]["tail:gain"] == "only in the second"


def header(**about):
    return {"pimcal": json.dumps({"format": FORMAT, "method": "paired", "made_with": {}, **about})}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a record",
        save({"a:mean": torch.ones(1)}),
        save({"a:mean": torch.ones(1)}, {"pimcal": "{"}),
        save({"a:mean": torch.ones(1)}, {"pimcal": "[]"}),
        save({"a:mean": torch.ones(1)}, header()),
        save({"a:mean": torch.ones(1)}, header(made_with=3)),
        save({"a:mean": torch.ones(1)}, header(made_with={"colour": "red"})),
        save({"a:mean": torch.ones(1)}, header(format="pimcal-record/99")),
        save({"a:mean": torch.ones(1)}, {"pimcal": "[" * 100_000}),
    ],
)
def test_what_is_no_record_is_refused_by_its_name(tmp_path, content):
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)

    with pytest.raises(DataError, match=r"file\.safetensors: "):
        Record.load(path)


@pytest.mark.parametrize(("name", "said"), [("absent", "there is no file .*absent"), (".", "not a calibration record")])
def test_a_missing_file_or_a_folder_is_refused(tmp_path, name, said):
    with pytest.raises(DataError, match=said):
        Record.load(tmp_path / name)


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_record_is_refused_or_read_but_nothing_else(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    content = bytearray(made().save(path).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])

    with suppress(DataError):
        Record.load(path)
