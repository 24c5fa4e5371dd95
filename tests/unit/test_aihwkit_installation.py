"""aihwkit beside torch: what works is told, what does not is recognised, and the pair to install is named.

Wrong pairs are packages named aihwkit in front of the installed one, which fail as the real ones do.
"""

from __future__ import annotations

import importlib.metadata
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from pimcal.errors import ConfigError, MissingExtraError
from pimcal_aihwkit.installation import PAIRS, check_pair, explained, import_aihwkit

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
TORCH = importlib.metadata.version("torch")

TILE = """
    class InferenceTile:
        def __init__(self, out_size, in_size, config):
            assert config.forward.is_perfect
            {init}

        def set_weights(self, weights):
            self.weights = weights

        def forward(self, inputs):
            return inputs @ self.weights.t() {error}
"""
# Exact, as the real ones are with `is_perfect`; each test breaks a part of it.
WORKING = {
    "__init__": "",
    "inference": "",
    "nn/__init__": "",
    "nn/conversion": "def convert_to_analog(layer, config): return layer",
    "simulator/__init__": "",
    "simulator/configs": """
        from types import SimpleNamespace

        def InferenceRPUConfig():
            return SimpleNamespace(forward=SimpleNamespace(is_perfect=False))
    """,
    "simulator/presets": "",
    "simulator/tiles/__init__": "",
    "simulator/tiles/inference": TILE.format(init="", error=""),
}

Install = Callable[..., None]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`installed({"module": source})`: aihwkit 9.9 is installed, with these modules in place of working ones."""

    def of_aihwkit() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] == "aihwkit"]

    def install(broken: dict[str, str] | None = None) -> None:
        for module, source in (WORKING | (broken or {})).items():
            path = tmp_path / "aihwkit" / f"{module}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(source))
        info = tmp_path / "aihwkit-9.9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: aihwkit\nVersion: 9.9\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    for name in of_aihwkit():
        monkeypatch.delitem(sys.modules, name)
    yield install
    for name in of_aihwkit():
        del sys.modules[name]


def requirements(python: tuple[int, int]) -> dict[str, SpecifierSet]:
    """What pimcal itself requires of torch and aihwkit on a Python version."""
    version = ".".join(map(str, python))
    listed = map(Requirement, PROJECT["dependencies"] + PROJECT["optional-dependencies"]["aihwkit"])
    here = [each for each in listed if each.marker is None or each.marker.evaluate({"python_version": version})]
    return {each.name: each.specifier for each in here if each.name in ("torch", "aihwkit")}


def refused() -> tuple[str, str, list[str]]:
    """The first line of what `check_pair` says, what was seen, and the words of the command."""
    with pytest.raises(ConfigError) as raised:
        check_pair()
    assert not isinstance(raised.value, MissingExtraError)
    first, seen, place, command = str(raised.value).splitlines()
    assert f"on Python {sys.version_info.major}.{sys.version_info.minor} " in place
    return first, seen, shlex.split(command)


def test_a_pair_that_works_is_told_with_its_versions(installed):
    installed()
    assert check_pair() == f"aihwkit 9.9 with torch {TORCH}"


SYMBOL = "/site/rpu_base.cpython-311-x86_64-linux-gnu.so: undefined symbol: _ZNK3c1010TensorImpl15decref_pyobjectEv"
NO_WEIGHTS = "weights must be a CPU tensor"
NO_DEVICE = "tensor does not have a device\nException raised from device_default at TensorImpl.h:1303\nframe #0: c10::"
NO_NMS = "operator torchvision::nms does not exist"
NO_LIBRARY = "libopenblas.so.0: cannot open shared object file: No such file or directory"


def failing_tile(said: str) -> dict[str, str]:
    return {"simulator/tiles/inference": TILE.format(init=f"raise RuntimeError({said!r})", error="")}


WRONG_PAIRS = {
    "undefined symbol": ({"simulator/configs": f"raise ImportError({SYMBOL!r})"}, SYMBOL),
    "weights of a tile": (failing_tile(NO_WEIGHTS), NO_WEIGHTS),
    "weights of a layer": (
        {"nn/conversion": f"def convert_to_analog(layer, config): raise RuntimeError({NO_WEIGHTS!r})"},
        NO_WEIGHTS,
    ),
    "device of a tensor": (failing_tile(NO_DEVICE), "tensor does not have a device"),
}


@pytest.mark.parametrize("name", WRONG_PAIRS)
def test_wrong_pair_is_recognised_and_the_pair_to_install_is_named(installed, name):
    broken, said = WRONG_PAIRS[name]
    installed(broken)
    first, seen, command = refused()
    assert first == f"aihwkit 9.9 does not work with torch {TORCH}: aihwkit was compiled for another torch"
    assert seen.endswith(f"Error: {said})")
    assert command[:2] == ["pip", "install"]
    named = [Requirement(word) for word in command[2:]]
    assert {each.name: each.specifier for each in named} == requirements(sys.version_info[:2])


# What pip takes for fitting: it must be told to install it all the same.
BROKEN_INSTALLATIONS = {
    "torch and torchvision": (
        {"inference": f"raise RuntimeError({NO_NMS!r})"},
        "torch and torchvision come from different places",
        NO_NMS,
    ),
    "another Python's": (
        {"simulator/configs": "from aihwkit.simulator import rpu_base"},
        "no compiled part for this Python",
        "cannot import name 'rpu_base'",
    ),
    "a library": ({"simulator/configs": f"raise OSError({NO_LIBRARY!r})"}, "the trial failed", NO_LIBRARY),
    "a dependency": ({"inference": "import absent_dependency"}, "the trial failed", "No module named 'absent_depend"),
    "a silent one": ({"inference": "raise RuntimeError"}, "the trial failed", "RuntimeError: no reason given"),
    "products of a tile": (
        {"simulator/tiles/inference": TILE.format(init="", error="* 1.01")},
        "the trial failed",
        "differ from torch's",
    ),
    "products of a layer": (
        {"nn/conversion": "def convert_to_analog(layer, config): layer.bias += 0.01; return layer"},
        "the trial failed",
        "differ from torch's",
    ),
}


@pytest.mark.parametrize("name", BROKEN_INSTALLATIONS)
def test_broken_installation_is_told_with_what_failed_and_installed_anew(installed, name):
    broken, reason, said = BROKEN_INSTALLATIONS[name]
    installed(broken)
    first, seen, command = refused()
    assert first.startswith(f"aihwkit 9.9 does not work with torch {TORCH}: ")
    assert reason in first
    assert said in seen
    assert command[:3] == ["pip", "install", "--force-reinstall"]
    named = {each.name: each.specifier for each in map(Requirement, command[3:])}
    assert ("torchvision" in named) == (said == NO_NMS)
    assert named.items() >= requirements(sys.version_info[:2]).items()


def shadowed_by(folder: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What `check_pair` says beside a file of the user's."""
    path = folder / file
    path.parent.mkdir(parents=True)
    path.write_text("")
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(ConfigError) as raised:
        check_pair()
    assert not isinstance(raised.value, MissingExtraError)
    return str(raised.value)


@pytest.mark.parametrize(("file", "named"), [("aihwkit.py", "aihwkit.py"), ("aihwkit/__init__.py", "aihwkit")])
def test_what_hides_the_library_because_it_has_its_name_is_named(installed, tmp_path, monkeypatch, file, named):
    installed()
    said = shadowed_by(tmp_path / "lab", file, monkeypatch)
    assert said.startswith(f"{tmp_path / 'lab' / named} has the name of the library aihwkit")
    assert "rename it" in said
    assert "pip install" not in said


def test_a_file_of_that_name_is_named_without_the_library_too(installed, tmp_path, monkeypatch):
    said = shadowed_by(tmp_path / "lab", "aihwkit.py", monkeypatch)
    assert said.startswith(f"{tmp_path / 'lab' / 'aihwkit.py'} has the name of the library aihwkit")


def test_ctrl_c_while_a_compiled_module_loads_is_no_fault_of_the_installation(installed):
    """The module raises ImportError then, from KeyboardInterrupt."""
    compiled = """
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:
            raise ImportError("initialization failed") from interrupt
    """
    installed({"simulator/configs": compiled})
    with pytest.raises(KeyboardInterrupt):
        check_pair()


def test_absent_aihwkit_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "aihwkit", None)
    for needing in (import_aihwkit, check_pair):
        with pytest.raises(MissingExtraError, match=r"needs aihwkit, .* pip install 'pimcal\[aihwkit\]'"):
            needing()


def test_what_aihwkit_prints_goes_to_stderr_and_its_warnings_stop_nobody(installed, capsys):
    warns = "import warnings; warnings.warn('old', DeprecationWarning); warnings.warn('bad', UserWarning)"
    tile = TILE.format(init=f"print('a tile is made'); {warns}", error="")
    installed({"__init__": f"print('aihwkit is here'); {warns}", "simulator/tiles/inference": tile})
    check_pair()  # warnings are errors in these tests
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "aihwkit is here\na tile is made\n"


def test_a_check_draws_no_random_numbers_from_the_program(installed):
    installed()
    before = torch.get_rng_state()
    check_pair()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("minor", range(9, 16))
def test_pairs_are_those_that_the_project_requires(minor):
    python = (3, minor)
    assert (python in PAIRS) == SpecifierSet(PROJECT["requires-python"]).contains(f"3.{minor}")
    if python in PAIRS:
        named = map(Requirement, PAIRS[python])
        assert {each.name: each.specifier for each in named} == requirements(python)


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'aihwkit'", name="aihwkit"), OSError("bad")])
def test_python_without_a_wheel_is_told_which_ones_have_one(error):
    said = explained(error, (3, 14))
    assert not isinstance(said, MissingExtraError), "there is nothing to install"
    assert "no wheel for Python 3.14" in str(said)
    assert all(f"{major}.{minor}" in str(said) for major, minor in PAIRS)


def test_the_installed_pair_works_and_prints_nothing_in_a_new_process():
    pytest.importorskip("aihwkit", reason="needs the extra 'aihwkit'")
    script = """
        import warnings
        from pimcal_aihwkit.installation import check_pair, import_aihwkit

        warnings.simplefilter("error")
        print(check_pair())
        print(import_aihwkit().simulator.configs.InferenceRPUConfig.__name__)
    """
    done = subprocess.run([sys.executable, "-c", dedent(script)], capture_output=True, text=True, check=True)
    told = f"aihwkit {importlib.metadata.version('aihwkit')} with torch {TORCH}"
    assert done.stdout == f"{told}\nInferenceRPUConfig\n"
