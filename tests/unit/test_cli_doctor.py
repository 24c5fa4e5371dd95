"""`pimcal doctor` and `pimcal backends`: what works here."""

import importlib.metadata
import json
import os
import subprocess
import sys
from types import ModuleType

import pytest

import pimcal.ideal
from pimcal import registry
from pimcal.cli import doctor
from pimcal.cli.output import print_table
from pimcal.errors import ConfigError, MissingExtraError
from pimcal.hookspecs import hookimpl
from pimcal.ideal import Ideal, IdealSettings

CORE = {"backend gaussian", "backend ideal", "backend plain"}


@pytest.fixture
def small_extras(monkeypatch):
    """One optional library that is quick to import."""
    monkeypatch.setattr(doctor, "EXTRAS", {"pytest": "test"})


@pytest.fixture
def own_registry():
    """What a test registers is forgotten after it."""
    registry.default.cache_clear()
    yield registry.default()
    registry.default.cache_clear()


def findings(done):
    return {found["what"]: found for found in done.json["findings"]}


def offer(own_registry, name, backend):
    """Register a backend for this test."""

    class Plugin:
        @hookimpl
        def pimcal_register_backends(self, register):
            register(name=name, backend=backend, settings=IdealSettings)

    own_registry.register_plugin(Plugin(), name)


def offer_checked(own_registry, name, check):
    """Register a backend whose `check_installation` is `check`."""
    offer(own_registry, name, type(name, (Ideal,), {"check_installation": classmethod(lambda cls: check())}))


def test_all_that_is_needed_works_here(pimcal_run, small_extras):
    done = pimcal_run("doctor", "--json")
    assert done.json["ok"]
    found = findings(done)
    assert all(each["ok"] for each in found.values() if each["needed"])
    assert all(found[name]["told"] == "loads" for name in CORE)
    assert found["a network on the simulator"]["told"] == "works"
    assert found["pytest"]["told"] == importlib.metadata.version("pytest")
    assert "cpu" in found["torch device"]["told"]


def test_people_get_a_line_for_each_finding(pimcal_run, small_extras, monkeypatch):
    monkeypatch.setattr(registry.Registry, "backend_names", lambda self: ["gaussian", "ideal", "plain"])
    done = pimcal_run("doctor")
    assert (done.code, done.err) == (0, "")
    lines = [line.split() for line in done.out.splitlines()[1:]]
    assert [line[0] for line in lines] == ["ok"] * 8
    assert [line[-2] for line in lines[-3:]] == ["gaussian", "ideal", "plain"]


def test_absent_library_is_named_with_its_extra_and_is_no_failure(pimcal_run, monkeypatch):
    monkeypatch.setattr(doctor, "EXTRAS", {"pimcal_absent_library": "vision"})
    done = pimcal_run("doctor", "--json")
    found = findings(done)["pimcal_absent_library"]
    assert done.json["ok"]
    assert (found["ok"], found["needed"], found["missing"]) == (False, False, True)
    assert "pip install 'pimcal[vision]'" in found["told"]
    assert any(line.startswith("missing") for line in pimcal_run("doctor").out.splitlines())


def test_library_that_does_not_load_beside_this_torch_is_told_apart(pimcal_run, small_extras, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytest", None)
    found = findings(pimcal_run("doctor", "--json"))["pytest"]
    assert (found["ok"], found["needed"], found["missing"]) == (False, False, False)
    assert "is installed but does not load beside this torch" in found["told"]
    assert "reinstall both from one place" in found["told"]


def test_broken_core_exits_with_78_and_says_what_failed(pimcal_run, small_extras, own_registry):
    other = ModuleType("other_ideal")
    other.pimcal_register_backends = pimcal.ideal.pimcal_register_backends
    own_registry.register_plugin(other)  # the installed backend comes second and is refused
    done = pimcal_run("doctor")
    assert done.code == 78
    line = next(line for line in done.out.splitlines() if line.startswith("FAILED"))
    assert "two plugins claim backend 'ideal'" in line


def test_each_backend_tells_what_its_own_check_found(pimcal_run, small_extras, own_registry):
    offer_checked(own_registry, "chip", lambda: "driver 1.2, board on its port")
    found = findings(pimcal_run("doctor", "--json"))["backend chip"]
    assert found == {
        "what": "backend chip", "ok": True, "told": "driver 1.2, board on its port", "needed": False, "missing": False,
    }  # fmt: skip


def raising(error):
    def check():
        raise error

    return check


def test_broken_backends_are_told_apart_and_stop_neither_the_others_nor_pimcal(pimcal_run, small_extras, own_registry):
    offer(own_registry, "absent", "pimcal_absent_library:Chip")
    offer_checked(own_registry, "bare", raising(MissingExtraError("the chip", "chiplib", "chip")))
    offer_checked(own_registry, "crashing", raising(ZeroDivisionError()))
    offer_checked(
        own_registry, "wrong", raising(ConfigError("the driver is too old\nupdate it:\n    update-chip  --now"))
    )
    done = pimcal_run("doctor", "--json")
    found = findings(done)
    assert done.json["ok"]
    broken = {"absent", "bare", "crashing", "wrong"}
    assert {name for name in broken if not found[f"backend {name}"]["ok"]} == broken
    assert {name for name in broken if found[f"backend {name}"]["missing"]} == {"bare"}
    assert "pimcal_absent_library" in found["backend absent"]["told"]
    assert "pip install 'pimcal[chip]'" in found["backend bare"]["told"]
    assert found["backend crashing"]["told"] == "ZeroDivisionError: no reason given"
    assert all(found[name]["ok"] for name in CORE)


def test_people_see_what_to_do_about_a_backend_whole_below_the_table(pimcal_run, small_extras, own_registry):
    command = f"    pip install {'x' * 300}"
    offer_checked(own_registry, "wrong", raising(ConfigError(f"the driver is too old\nupdate it:\n{command}")))
    offer_checked(own_registry, "bare", raising(MissingExtraError("the chip", "chiplib", "chip")))
    done = pimcal_run("doctor")
    assert done.code == 0
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines if "backend bare" in line] == ["missing"]
    assert [line.split() for line in lines if "too old" in line] == [
        ["FAILED", "backend", "wrong", "the", "driver", "is", "too", "old"]
    ]
    assert lines[-4:] == ["", "backend wrong:", "update it:", command]


def test_json_is_one_object_whatever_the_libraries_print(pimcal_run, monkeypatch, own_registry, tmp_path):
    def noisy():
        sys.stdout.write("a banner\n")
        return "works"

    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "noisy_library.py").write_text("print('another banner')")
    info = tmp_path / "noisy_library-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: noisy_library\nVersion: 1.0\n")
    monkeypatch.setattr(doctor, "EXTRAS", {"noisy_library": "noise"})
    offer_checked(own_registry, "chip", noisy)
    try:
        done = pimcal_run("doctor", "--json")
    finally:
        sys.modules.pop("noisy_library", None)
    assert done.json["ok"]  # all of stdout is the object
    assert "another banner\na banner\n" in done.err


def doctor_in_a_new_process(folder, *options):
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pimcal", "doctor", *options]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})


def test_wrong_pair_of_aihwkit_and_torch_is_told_with_the_pair_to_install(tmp_path):
    package, info = tmp_path / "aihwkit", tmp_path / "aihwkit-9.9.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text(
        "print('Welcome!')\nraise ImportError('rpu_base.so: undefined symbol: _ZN3c10')"
    )
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: aihwkit\nVersion: 9.9\n")
    done = doctor_in_a_new_process(tmp_path, "--json")
    assert done.returncode == 0
    assert "Welcome!" in done.stderr
    told = json.loads(done.stdout)
    found = {each["what"]: each for each in told["findings"]}["backend aihwkit"]
    assert told["ok"]
    assert (found["ok"], found["needed"], found["missing"]) == (False, False, False)
    first, *_, command = found["told"].splitlines()
    assert first.startswith(f"aihwkit 9.9 does not work with torch {importlib.metadata.version('torch')}")
    assert command.startswith("    pip install 'torch")


def test_absent_aihwkit_is_missing_and_no_failure(pimcal_run, small_extras, monkeypatch):
    monkeypatch.setitem(sys.modules, "aihwkit", None)
    done = pimcal_run("doctor")
    assert done.code == 0
    line = next(line for line in done.out.splitlines() if "backend aihwkit" in line)
    assert line.startswith("missing")
    assert "pip install 'pimcal[aihwkit]'" in line


def test_backends_are_listed_with_where_they_come_from(pimcal_run):
    rows = {row["backend"]: row for row in pimcal_run("backends", "--json").json["backends"]}
    assert {"ideal", "plain", "gaussian"} <= rows.keys()
    assert all(rows[name]["usable"] == "yes" for name in ("ideal", "plain", "gaussian"))
    assert "module pimcal_gaussian" in rows["gaussian"]["from"]
    table = pimcal_run("backends").out.splitlines()
    assert table[0].split() == ["backend", "from", "usable"]
    assert len(table) == 1 + len(rows)


def test_a_broken_backend_is_listed_with_the_reason_and_the_others_still_work(pimcal_run, own_registry):
    offer(own_registry, "broken", "pimcal_absent_library:Chip")
    rows = {row["backend"]: row["usable"] for row in pimcal_run("backends", "--json").json["backends"]}
    assert rows["broken"].startswith("no: ")
    assert "pimcal_absent_library" in rows["broken"]
    assert rows["ideal"] == "yes"


def test_brackets_of_an_extra_are_printed(capsys):
    print_table(("what", "found"), [("torchvision", "pip install 'pimcal[vision]'")])
    assert "pip install 'pimcal[vision]'" in capsys.readouterr().out
