"""Bad input at the command line: one clear message, the right exit code, no traceback, and nothing lost."""

import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pimcal import registry
from pimcal.errors import DeviceBusyError, DeviceUnavailableError
from pimcal.hookspecs import hookimpl
from pimcal.ideal import Ideal, IdealSettings

NOISE = ("-O", "device.eta0=0.3")


def refused(done, code):
    """The message of a command that was refused as it should be."""
    assert (done.code, done.out) == (code, ""), done
    assert done.err.startswith("error: ") or "Usage: " in done.err
    assert "Traceback" not in done.err
    assert "internal" not in done.err
    return done.err


def without(options, *names):
    """Options without those of these names and their values."""
    pairs = zip(options[::2], options[1::2], strict=True)
    return [part for name, value in pairs if name not in names for part in (name, value)]


@pytest.fixture
def own_registry():
    """What a test registers is forgotten after it."""
    registry.default.cache_clear()
    yield registry.default()
    registry.default.cache_clear()


@pytest.fixture
def distribution(tmp_path, monkeypatch, own_registry):
    """`distribution(name, module, source, requires)`: an installed package that offers a backend of that name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def install(name, backend, module, source, requires=""):
        (tmp_path / f"{module}.py").write_text(dedent(source))
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requires}")
        (info / "entry_points.txt").write_text(f"[pimcal]\n{backend} = {module}\n")

    yield install
    for module in set(sys.modules) - before:
        if module.startswith("chip_"):
            del sys.modules[module]


OFFER = """
from pimcal.hookspecs import hookimpl
from pimcal.ideal import IdealSettings

@hookimpl
def pimcal_register_backends(register):
    register(name="chip", backend="pimcal.ideal:Ideal", settings=IdealSettings)
"""


# profiles and backends


def test_several_profile_errors_come_at_once_each_with_its_place(lab, pimcal_run):
    Path("mine.yaml").write_text("schema: pimcal/1\nbackend: gausian\ntiles: {rows: 0, rows: 4}\nhosts: [a]\nio: 8\n")
    lines = refused(pimcal_run("evaluate", *lab.on("mine.yaml")), 78).removeprefix("error: ").splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        "mine.yaml:2:10", "mine.yaml:3:18", "mine.yaml:4:1", "mine.yaml:5:5",
    ]  # fmt: skip
    assert "unknown backend 'gausian'; did you mean 'gaussian'?" in lines[0]
    assert "did you mean 'host'?" in lines[2]


def test_unknown_profile_gets_a_suggestion(lab, pimcal_run):
    said = refused(pimcal_run("evaluate", *lab.on("gausian_mul")), 78)
    assert "no profile is called 'gausian_mul'; did you mean 'gaussian_mul'?" in said


def test_two_backends_of_one_name_are_both_named(lab, pimcal_run, distribution):
    for name in ("first", "second"):
        distribution(name, "chip", f"chip_{name}", OFFER)
    Path("mine.yaml").write_text("schema: pimcal/1\nbackend: chip\n")
    said = refused(pimcal_run("evaluate", *lab.on("mine.yaml")), 78)
    assert "mine.yaml:2:10: backend: two plugins claim backend 'chip'" in said
    assert "chip_first of first 1.0" in said
    assert "chip_second of second 1.0" in said


def test_backend_without_its_library_names_the_extra(lab, pimcal_run, distribution):
    requires = "Requires-Dist: chip_driver>=1; extra == 'usb'\n"
    distribution("vendor", "chip", "chip_vendor", "import chip_driver", requires)
    Path("mine.yaml").write_text("schema: pimcal/1\nbackend: chip\n")
    said = refused(pimcal_run("evaluate", *lab.on("mine.yaml")), 78)
    assert "needs the library chip_driver, which is not installed" in said
    assert "pip install 'vendor[usb]'" in said


def test_model_from_a_library_that_is_missing_names_the_extra(lab, pimcal_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    options = ["--profile", "ideal", "--model", "torchvision:resnet18", "--data", lab.data]
    said = refused(pimcal_run("evaluate", *options), 78)
    assert "a model from torchvision needs torchvision, which is not installed" in said
    assert "pip install 'pimcal[vision]'" in said


@pytest.mark.parametrize(
    ("error", "code"),
    [(DeviceUnavailableError("no chip at the other end"), 69), (DeviceBusyError("session 7 owns the chip"), 75)],
)
def test_device_that_is_absent_or_busy_has_an_exit_code_of_its_own(lab, pimcal_run, own_registry, error, code):
    class Chip(Ideal):
        def __init__(self, settings, tiles):
            raise error

    class Vendor:
        @hookimpl
        def pimcal_register_backends(self, register):
            register(name="chip", backend=Chip, settings=IdealSettings)

    own_registry.register_plugin(Vendor())
    Path("mine.yaml").write_text("schema: pimcal/1\nbackend: chip\n")
    assert str(error) in refused(pimcal_run("evaluate", *lab.on("mine.yaml")), code)


def test_device_that_is_lost_on_the_way_leaves_no_record(lab, pimcal_run, own_registry):
    batches = []

    class Chip(Ideal):
        def new_batch(self):
            batches.append(1)
            if len(batches) == 8:
                raise DeviceUnavailableError("the chip was unplugged")

    class Vendor:
        @hookimpl
        def pimcal_register_backends(self, register):
            register(name="chip", backend=Chip, settings=IdealSettings)

    own_registry.register_plugin(Vendor())
    Path("mine.yaml").write_text("schema: pimcal/1\nbackend: chip\n")
    done = pimcal_run("calibrate", *lab.on("mine.yaml"))
    assert (done.code, done.out) == (69, "")
    assert "error: the chip was unplugged" in done.err
    assert [path.name for path in Path().iterdir()] == ["mine.yaml"]


# models and weights


class _RunsACommand:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_pickle_that_runs_code_is_refused_by_name_and_does_not_run(lab, pimcal_run):
    torch.save({"a": _RunsACommand("touch ran")}, "evil.pt")
    Path("bare.pt").write_bytes(pickle.dumps({"a": _RunsACommand("touch ran")}))
    Path("old.pt").write_bytes(pickle.dumps({"a": _RunsACommand("touch ran")}, protocol=2))
    for name in ("evil.pt", "bare.pt", "old.pt"):
        said = refused(pimcal_run("evaluate", *without(lab.on(), "--weights"), "--weights", name), 65)
        assert f"{name} is refused: its pickle asks for posix.system" in said
        assert "safetensors" in said
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pt", "text.pt", "empty.safetensors"])
def test_unreadable_checkpoint_is_refused_by_name(lab, pimcal_run, name):
    state = load_file(lab.weights)
    torch.save(state, "whole.pt")
    contents = {
        "cut.safetensors": Path(lab.weights).read_bytes()[:-100],
        "cut.pt": Path("whole.pt").read_bytes()[:-100],
        "text.pt": b"no weights at all",
        "empty.safetensors": b"",
    }
    Path(name).write_bytes(contents[name])
    said = refused(pimcal_run("evaluate", *without(lab.on(), "--weights"), "--weights", name), 65)
    assert said.startswith(f"error: {name} is ")
    assert ("neither a torch file" in said) == (name == "text.pt")


def test_weights_that_do_not_fit_are_listed(lab, pimcal_run):
    state = load_file(lab.weights)
    state["0.weight"] = state["0.weight"][:4]
    state["extra"] = state.pop("11.bias")
    save_file(state, "other.safetensors")
    said = refused(pimcal_run("evaluate", *without(lab.on(), "--weights"), "--weights", "other.safetensors"), 65)
    assert "the weights in other.safetensors do not fit the model" in said
    assert "missing in the file: 11.bias" in said
    assert "unknown to the model: extra" in said
    assert "0.weight is [4, 1, 3, 3] in the file, [8, 1, 3, 3] in the model" in said


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tensor", ["3.weight", "4.running_var"])
def test_nan_and_infinite_weights_are_refused_by_tensor(lab, pimcal_run, tensor, value):
    state = load_file(lab.weights)
    state[tensor].flatten()[3] = value
    save_file(state, "bad.safetensors")
    said = refused(pimcal_run("evaluate", *without(lab.on(), "--weights"), "--weights", "bad.safetensors"), 65)
    assert f"bad.safetensors: {tensor} has 1 NaN or infinite values" in said


def test_model_without_a_matrix_product_is_refused(lab, pimcal_run):
    options = ["--profile", "ideal", "--model", f"{lab.network}:without_product", "--data", lab.data]
    for command in ("evaluate", "calibrate", "placement"):
        assert "no layer with a matrix product" in refused(pimcal_run(command, *options), 65)


@pytest.mark.parametrize("method", ["ema", "pooled", "paired"])
def test_method_for_batchnorm_on_a_model_without_it_says_affine(lab, pimcal_run, method):
    options = ["--profile", "ideal", "--model", f"{lab.network}:without_norm", "--data", lab.data]
    done = pimcal_run("calibrate", *options, "--method", method)
    assert (done.code, done.out) == (2, "")
    assert f"method '{method}' corrects BatchNorm statistics, and this model has no BatchNorm" in done.err
    assert "use method 'affine'" in done.err
    assert list(Path().iterdir()) == []
    assert pimcal_run("calibrate", *options, "--method", "affine").code == 0


def test_mistake_in_the_users_own_code_is_named_with_its_line(lab, pimcal_run):
    Path("mine.py").write_text("def net():\n    return 1 / 0\n")
    options = ["--profile", "ideal", "--model", "mine.py:net", "--data", lab.data]
    said = refused(pimcal_run("evaluate", *options), 2)
    assert "ZeroDivisionError: division by zero" in said
    assert "mine.py:2" in said


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_record_is_not_written_over_what_is_no_file(lab, pimcal_run, kind):
    os.mkfifo("there") if kind == "pipe" else Path("there").mkdir()
    done = pimcal_run("calibrate", *lab.on(), "--out", "there")
    assert (done.code, done.out) == ({"pipe": 74, "folder": 2}[kind], "")
    assert "calibrating" not in done.err
    assert not Path("there").is_file()


# images


def data_of(lab, name, change):
    with np.load(lab.folder / "images.npz") as archive:
        np.savez(name, **change(dict(archive)))
    return [*lab.on(data=False), "--data", f"npz:{name}"]


@pytest.mark.parametrize("command", ["evaluate", "calibrate", "sweep", "placement"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: np.repeat(x, 3, axis=1), "images of shape [3, 6, 6]: its first layer, 0, takes 1 channels"),
        (lambda x: x[:, :, :4], "images of shape [1, 4, 6]"),
    ],
)
def test_images_of_the_wrong_shape_are_refused_before_any_device_is_touched(lab, pimcal_run, command, change, said):
    options = data_of(lab, "wrong.npz", lambda a: {"images": change(a["images"]), "labels": a["labels"]})
    assert said in refused(pimcal_run(command, *options), 65)


@pytest.mark.parametrize("command", [("calibrate",), ("sweep", "--methods", "paired"), ("timeline", "--at", "1s")])
def test_calibration_images_of_the_wrong_shape_are_refused_as_those(lab, pimcal_run, command):
    with np.load(lab.folder / "images.npz") as archive:
        np.savez("wrong.npz", images=np.repeat(archive["images"], 3, axis=1))
    said = refused(pimcal_run(*command, *lab.on(), "--calibration-data", "npz:wrong.npz"), 65)
    assert "the images to calibrate on: the model does not take images of shape [3, 6, 6]" in said


def test_outputs_that_are_no_numbers_are_told(lab, pimcal_run):
    state = load_file(lab.weights)
    for layer in ("0", "3", "6"):
        state[f"{layer}.weight"] *= 1e30
    save_file(state, "huge.safetensors")
    options = [*without(lab.on(), "--weights"), "--weights", "huge.safetensors"]
    done = pimcal_run("evaluate", *options, "--json")
    assert (done.json["value"], done.json["not_finite"]) == (0.0, 400)
    assert "for 400 of 400 images the network gave NaN or infinity" in done.err


def test_no_images_at_all_are_refused(lab, pimcal_run):
    options = data_of(lab, "none.npz", lambda a: {"images": a["images"][:0], "labels": a["labels"][:0]})
    for command in ("evaluate", "calibrate", "sweep"):
        assert "none.npz: 'images' is empty" in refused(pimcal_run(command, *options), 65)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--images", "400"), "images are too few to set 400 apart and have some left to judge by; give at least 401"),
        (("--images", "1"), "calibration needs at least 2 images to measure a spread, got 1"),
        (("--images", "401", "--calibration-data", "DATA"), "it holds 400 images, 401 were asked for"),
    ],
)
def test_calibration_set_that_is_too_small_is_refused(lab, pimcal_run, more, said):
    more = [lab.data if option == "DATA" else option for option in more]
    done = pimcal_run("calibrate", *lab.on(), *more)
    assert (done.code, done.out) == (65, "")
    assert said in done.err
    assert list(Path().iterdir()) == []


def test_label_that_is_no_class_is_refused(lab, pimcal_run):
    options = data_of(lab, "classes.npz", lambda a: {"images": a["images"], "labels": a["labels"] + 1})
    done = pimcal_run("evaluate", *options)
    assert "label 4 is no class of a model with 4 outputs" in refused(done, 65)


# options


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (
            ("--method", "pairde"),
            2,
            "unknown calibration method 'pairde'; did you mean 'paired'? (known: ema, pooled, ",
        ),
        (("--metric", "acuracy"), 2, "there is no metric 'acuracy'; did you mean 'accuracy'?"),
        (("--torch-device", "cudo"), 2, "--torch-device cudo: "),
        (("--torch-device", "meta"), 2, "--torch-device meta: "),
        (("--preprocess", "cifar"), 2, "there is no preprocess 'cifar'; did you mean 'cifar10'?"),
        (("--preprocess", "cifar10"), 65, "expects colour images [N, 3, H, W]; these are [64, 1, 6, 6]"),
        (("-O", "device.eta=0.1"), 78, "-O device.eta=0.1: unknown key; did you mean 'device.eta0'?"),
        (("-O", "device.eta0"), 2, "-O device.eta0: write KEY=VALUE"),
        (("--seed", str(2**70)), 2, "--seed"),
        (("--seed", "-1"), 2, "--seed"),
        (("--images", "0"), 2, "--images"),
        (("--images", "many"), 2, "--images"),
        (("--max-drop", "-1"), 2, "--max-drop"),
        (("--active", "absent.safetensors"), 65, "there is no file absent.safetensors"),
        (("--out", "."), 2, "--out . is a folder"),
        (("--no-such-option",), 2, "No such option"),
    ],
)
def test_options_that_do_not_fit_are_refused_and_nothing_is_written(lab, pimcal_run, more, code, said):
    done = pimcal_run("calibrate", *lab.on(), *more)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert "Traceback" not in done.err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("calibrate", ("--method", "pairde")),
        ("calibrate", ("--images", "1")),
        ("calibrate", ("--metric", "acuracy")),
        ("calibrate", ("--metric", "accuracy", "--data", "npz:bare.npz")),
        ("calibrate", ("--active", "bare.npz")),
        ("evaluate", ("--metric", "acuracy")),
        ("evaluate", ("--metric", "accuracy", "--data", "npz:bare.npz")),
        ("evaluate", ("--record", "bare.npz")),
    ],
)
def test_arguments_are_checked_before_the_device_is_opened(lab, pimcal_run, own_registry, command, more):
    class Chip(Ideal):
        def __init__(self, settings, tiles):
            raise DeviceUnavailableError("opened")

    class Vendor:
        @hookimpl
        def pimcal_register_backends(self, register):
            register(name="chip", backend=Chip, settings=IdealSettings)

    own_registry.register_plugin(Vendor())
    Path("mine.yaml").write_text("schema: pimcal/1\nbackend: chip\n")
    data_of(lab, "bare.npz", lambda arrays: {"images": arrays["images"]})
    assert pimcal_run(command, *lab.on("mine.yaml")).code == DeviceUnavailableError.exit_code
    assert pimcal_run(command, *lab.on("mine.yaml"), *more).code in (2, 65)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_torch_device_that_is_absent_is_refused(lab, pimcal_run):
    said = refused(pimcal_run("evaluate", *lab.on(), "--torch-device", "cuda"), 2)
    assert "--torch-device cuda: " in said
    assert "leave it out to use the CPU" in said


@pytest.mark.parametrize("command", ["evaluate", "calibrate", "sweep", "placement"])
@pytest.mark.parametrize("missing", ["--profile", "--model"])
def test_missing_required_option_is_a_usage_error_that_names_it(lab, pimcal_run, command, missing):
    assert missing in refused(pimcal_run(command, *without(lab.on(), missing)), 2)


@pytest.mark.parametrize("command", ["evaluate", "sweep", "calibrate"])
def test_missing_data_is_a_usage_error_that_names_it(lab, pimcal_run, command):
    assert "--data" in refused(pimcal_run(command, *lab.on(data=False)), 2)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--calibration-data", "synthetic"), "synthetic images need a shape: give --data, or --input-shape C,H,W"),
        (("--calibration-data", "synthetic", "--input-shape", "6,6"), "a shape of channels, height, width"),
        (("--calibration-data", "npz:x.npz", "--preprocess", "cifar"), "there is no preprocess 'cifar'"),
        (("--calibration-data", "DATA"), "the gate needs held-out images: give --data"),
    ],
)
def test_calibration_without_held_out_images_says_what_is_missing(lab, pimcal_run, more, said):
    more = [lab.data if option == "DATA" else option for option in more]
    assert said in refused(pimcal_run("calibrate", *lab.on(data=False), *more), 2)


@pytest.mark.parametrize("command", [("evaluat",), ("records", "sho")])
def test_unknown_command_is_a_usage_error(pimcal_run, command):
    assert "No such command" in refused(pimcal_run(*command), 2)


# faults inside, and tracebacks


def test_traceback_is_shown_only_with_debug(lab, pimcal_run, monkeypatch):
    command = ("evaluate", *lab.on("absent"))
    assert "Traceback" not in pimcal_run(*command).err
    debugged = [pimcal_run(*command, "--debug"), pimcal_run("--debug", *command)]
    monkeypatch.setenv("PIMCAL_DEBUG", "1")
    for done in (*debugged, pimcal_run(*command)):
        assert done.code == 78
        assert "Traceback" in done.err
        assert done.err.splitlines()[-1].startswith("error: no profile is called 'absent'")


def test_fault_of_a_plugin_is_called_internal_and_asks_for_a_report(lab, pimcal_run, own_registry):
    class Chip(Ideal):
        def program(self, tile, weights):
            raise ZeroDivisionError("in the driver")

    class Vendor:
        @hookimpl
        def pimcal_register_backends(self, register):
            register(name="chip", backend=Chip, settings=IdealSettings)

    own_registry.register_plugin(Vendor())
    Path("mine.yaml").write_text("schema: pimcal/1\nbackend: chip\n")
    done = pimcal_run("evaluate", *lab.on("mine.yaml"))
    assert (done.code, done.out) == (70, "")
    wanted = "error: internal: ZeroDivisionError: in the driver (run again with --debug and report it)\n"
    assert done.err == wanted


# files


def test_place_that_cannot_be_written_is_refused_before_the_work(lab, pimcal_run):
    Path("file").write_text("mine")
    done = pimcal_run("calibrate", *lab.on(), "--out", "file/made.safetensors")
    assert "cannot write to file: " in refused(done, 74)
    assert [path.name for path in Path().iterdir()] == ["file"]
    assert Path("file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission_is_refused_before_the_work(lab, pimcal_run):
    Path("locked").mkdir(mode=0o500)
    for command in (("calibrate", "--out", "locked/made.safetensors"), ("sweep", "--out", "locked/deep")):
        said = refused(pimcal_run(command[0], *lab.on(), *command[1:]), 74)
        assert "no file can be made in" in said


def limited():
    """No file of this process may exceed 512 bytes, which a record does: a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))


def started(folder, *arguments, **options):
    command = [sys.executable, "-m", "pimcal", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=-1, stderr=-1, text=True, **options)


def test_full_disk_keeps_the_former_record_and_leaves_no_rest(lab, tmp_path):
    former = tmp_path / "made.safetensors"
    former.write_bytes(b"former")
    running = started(tmp_path, "calibrate", *lab.on(), *NOISE, "--out", former.name, preexec_fn=limited)
    told, said = running.communicate(timeout=120)
    assert (running.returncode, told) == (74, "")
    assert said.splitlines()[-1] == "error: cannot write made.safetensors: File too large; nothing was changed there"
    assert "Traceback" not in said
    assert former.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [former]


BLOCKING = """
import time
from pathlib import Path
import torch
from network import net as quick


class Blocking(torch.nn.Module):
    calls = 0

    def __init__(self):
        super().__init__()
        self.net = quick()

    def forward(self, x):
        Blocking.calls += 1
        if Blocking.calls >= CALLS:
            Path("MARK").touch()
            time.sleep(100)
        return self.net(x)
"""


@pytest.mark.parametrize(
    ("command", "calls"),
    [(("calibrate", "--out", "out/made.safetensors"), calls) for calls in (9, 20)]
    + [(("sweep", "--methods", "none,paired", "--seeds", "9", "--out", "out"), 40)],
    ids=["calibrate, measuring", "calibrate, gate", "sweep"],
)
def test_ctrl_c_in_the_middle_leaves_everything_as_it_was(lab, tmp_path, command, calls):
    mark, here = tmp_path / "mark", tmp_path / "here"
    (here / "out").mkdir(parents=True)
    for name in ("made.safetensors", "sweep.csv"):
        (here / "out" / name).write_bytes(b"former")
    source = BLOCKING.replace("CALLS", str(calls)).replace("MARK", str(mark))
    (lab.folder / f"blocking_{calls}.py").write_text(source)
    options = [*without(lab.on(), "--model", "--weights"), "--model", f"{lab.folder}/blocking_{calls}.py:Blocking"]

    running = started(here, command[0], *options, *NOISE, *command[1:])
    try:
        while not mark.exists():
            assert running.poll() is None, running.communicate()
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        told, said = running.communicate(timeout=60)
    finally:
        running.kill()

    assert (running.returncode, told) == (130, "")
    assert said.splitlines()[-1] == "error: interrupted; no file was changed"
    assert "Traceback" not in said
    files = {path.name: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert files == {"made.safetensors": b"former", "sweep.csv": b"former"}


def test_reader_that_goes_away_is_no_error_to_shout_about(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "pimcal", "profiles", "list"]
    done = subprocess.run(command, cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
@pytest.mark.parametrize("arguments", [("backends",), ("backends", "--json"), ("profiles", "list"), ("--version",)])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_told_as_such(tmp_path, monkeypatch, arguments, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    command = [sys.executable, "-m", "pimcal", *arguments]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (74, "error: cannot write to standard output: No space left on device\n")


TALKATIVE = """
from network import minus_accuracy, net as quiet
import numpy as np

def net():
    print("the model talks")
    made = quiet()
    made.register_forward_hook(lambda *_: print("a layer talks"))
    return made

def quality(outputs, labels):
    print("the metric talks")
    return 1.0

def images():
    print("the data talk")
    with np.load("DATA") as archive:
        return [(torch.from_numpy(archive["images"]), torch.from_numpy(archive["labels"]))]

import torch
"""


@pytest.mark.parametrize("command", ["evaluate", "calibrate", "sweep", "placement"])
def test_json_is_alone_on_stdout_where_the_users_own_code_prints(lab, pimcal_run, command):
    own = lab.folder / "talkative.py"
    own.write_text(TALKATIVE.replace("DATA", str(lab.folder / "images.npz")))
    options = ["--profile", "ideal", "--model", f"{own}:net", "--data", f"{own}:images"]
    if command != "placement":
        options += ["--metric", f"{own}:quality"]
    done = pimcal_run(command, *options, "--json")
    assert done.json
    for said in ("the model talks", "a layer talks", "the data talk"):
        assert said in done.err
    assert ("the metric talks" in done.err) == (command != "placement")
    assert "the model talks" in pimcal_run(command, *options).out


@pytest.mark.parametrize("command", ["evaluate", "calibrate"])
def test_host_pattern_without_a_layer_is_told_on_stderr(lab, pimcal_run, command):
    done = pimcal_run(command, *lab.on("ideal"), "-O", 'host=["tail"]', "--json")
    assert done.json
    assert done.err.count("host pattern 'tail' matches no layer of this model") == 1


# starting


@pytest.mark.parametrize("arguments", [["--help"], ["calibrate", "--help"], ["profiles", "list"], ["--version"]])
def test_help_and_profiles_need_no_torch(arguments):
    script = f"""
        import sys
        from pimcal.cli.app import main
        sys.argv = ["pimcal", *{arguments!r}]
        try:
            main()
        finally:
            print("torch" in sys.modules, file=sys.stderr)
    """
    done = subprocess.run([sys.executable, "-c", dedent(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "False\n")
    assert done.stdout


def test_help_names_every_command(pimcal_run):
    words = pimcal_run("--help").out.split()
    commands = {"backends", "calibrate", "demo", "doctor", "evaluate", "placement", "profiles", "records", "sweep"}
    assert commands <= set(words)
