"""`pimcal doctor` and `pimcal backends`: what works here."""

import importlib.metadata
import sys
from types import ModuleType

import pytest

import pimcal.ideal
from pimcal import registry
from pimcal.cli import doctor
from pimcal.cli.output import print_table


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


def test_all_that_is_needed_works_here(pimcal_run, small_extras):
    done = pimcal_run("doctor", "--json")
    assert done.json["ok"]
    found = findings(done)
    assert all(each["ok"] for each in found.values())
    assert found["a network on the simulator"]["told"] == "works"
    assert found["pytest"]["told"] == importlib.metadata.version("pytest")
    assert "cpu" in found["torch device"]["told"]


def test_people_get_a_line_for_each_finding(pimcal_run, small_extras):
    done = pimcal_run("doctor")
    assert (done.code, done.err) == (0, "")
    lines = [line.split() for line in done.out.splitlines()[1:]]
    assert [line[0] for line in lines] == ["ok"] * 5


def test_absent_library_is_named_with_its_extra_and_is_no_failure(pimcal_run, monkeypatch):
    monkeypatch.setattr(doctor, "EXTRAS", {"pimcal_absent_library": "vision"})
    done = pimcal_run("doctor", "--json")
    found = findings(done)["pimcal_absent_library"]
    assert done.json["ok"]
    assert (found["ok"], found["needed"]) == (False, False)
    assert "pip install 'pimcal[vision]'" in found["told"]
    assert any(line.startswith("missing") for line in pimcal_run("doctor").out.splitlines())


def test_library_that_does_not_load_beside_this_torch_is_told_apart(pimcal_run, small_extras, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytest", None)
    found = findings(pimcal_run("doctor", "--json"))["pytest"]
    assert not found["ok"]
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


def test_backends_are_listed_with_where_they_come_from(pimcal_run):
    rows = {row["backend"]: row for row in pimcal_run("backends", "--json").json["backends"]}
    assert {"ideal", "plain", "gaussian"} <= rows.keys()
    assert all(rows[name]["usable"] == "yes" for name in ("ideal", "plain", "gaussian"))
    assert "module pimcal_gaussian" in rows["gaussian"]["from"]
    table = pimcal_run("backends").out.splitlines()
    assert table[0].split() == ["backend", "from", "usable"]
    assert len(table) == 1 + len(rows)


def test_a_broken_backend_is_listed_with_the_reason_and_the_others_still_work(pimcal_run, own_registry):
    from pimcal.hookspecs import hookimpl
    from pimcal.ideal import IdealSettings

    class Broken:
        @hookimpl
        def pimcal_register_backends(self, register):
            register(name="broken", backend="pimcal_absent_library:Chip", settings=IdealSettings)

    own_registry.register_plugin(Broken())
    rows = {row["backend"]: row["usable"] for row in pimcal_run("backends", "--json").json["backends"]}
    assert rows["broken"].startswith("no: ")
    assert "pimcal_absent_library" in rows["broken"]
    assert rows["ideal"] == "yes"


def test_brackets_of_an_extra_are_printed(capsys):
    print_table(("what", "found"), [("torchvision", "pip install 'pimcal[vision]'")])
    assert "pip install 'pimcal[vision]'" in capsys.readouterr().out
