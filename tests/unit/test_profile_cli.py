"""`pimcal profiles`, run in process on real files."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import pimcal_gaussian
from pimcal import ideal, registry
from pimcal.cli.profiles import app
from pimcal.profile import ProfileError, load_profile
from pimcal.profile.find import shipped


@pytest.fixture(autouse=True)
def _backends() -> None:
    """Without an installed distribution there are no entry points; registering has the same effect."""
    for name, plugin in (("ideal", ideal), ("gaussian", pimcal_gaussian)):
        if name not in registry.backend_names():
            registry.register_plugin(plugin)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("schema: pimcal/1\nbackend: ideal\ntiles: {rows: 0}\nhosts: []\n")
    (tmp_path / "good.yaml").write_text("extends: gaussian_mul  # ours\ndevice: {eta0: 0.3}\n")
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def json_of(*arguments: str) -> Any:
    return json.loads(run(*arguments).stdout)


def test_list_names_every_shipped_profile_with_its_backend() -> None:
    rows = [line.split() for line in run("list").stdout.splitlines()]
    assert {"gaussian_8bit", "gaussian"} <= {word for row in rows for word in row[:2]}
    assert {profile["name"] for profile in json_of("list", "--json")["profiles"]} == set(shipped())


def test_check_says_ok(folder: Path) -> None:
    result = run("check", "good.yaml", "ideal")
    assert (result.exit_code, result.stdout) == (0, "good.yaml: ok\nideal: ok\n")


def test_check_raises_every_mistake_of_every_profile(folder: Path) -> None:
    result = run("check", "bad.yaml", "good.yaml", "nothing.yaml")
    assert result.stdout == "good.yaml: ok\n"
    assert isinstance(result.exception, ProfileError)
    lines = str(result.exception).splitlines()
    assert [line.partition(": ")[0] for line in lines[:2]] == ["bad.yaml:3:15", "bad.yaml:4:1"]
    assert "nothing.yaml does not exist" in lines[2]


def test_check_as_json_is_one_object_and_exits_with_78(folder: Path) -> None:
    result = run("check", "bad.yaml", "good.yaml", "--json")
    bad, good = json.loads(result.stdout)["profiles"]
    assert result.exit_code == 78
    assert good == {"profile": "good.yaml", "ok": True, "problems": []}
    assert [(each["line"], each["column"], each["key"]) for each in bad["problems"]] == [
        (3, 15, "tiles.rows"),
        (4, 1, "hosts"),
    ]


def test_show_prints_the_file_as_it_is_written(folder: Path) -> None:
    assert run("show", "good.yaml").stdout == (folder / "good.yaml").read_text()


def test_show_resolved_prints_a_profile_that_is_equal(folder: Path) -> None:
    text = run("show", "good.yaml", "--resolved", "-O", "tiles.rows=64").stdout
    (folder / "again.yaml").write_text(text)
    assert load_profile("again.yaml").hash == load_profile("good.yaml", {"tiles.rows": 64}).hash


def test_show_origin_says_where_each_value_was_written(folder: Path) -> None:
    text = run("show", "good.yaml", "--origin", "-O", "device.seed=3").stdout
    origin = dict(line.split("  # ") for line in text.splitlines() if "#" in line)
    notes = {key.strip(): note.rpartition("/")[2] for key, note in origin.items()}
    assert notes["eta0: 0.3"] == "good.yaml:2:16"
    assert notes["seed: 3"] == "-O device.seed=3"
    assert notes["noise: mul"].startswith("gaussian_mul.yaml:")
    assert notes["images: 64"] == "default"


def test_show_as_json_gives_values_hash_and_origin(folder: Path) -> None:
    shown = json_of("show", "good.yaml", "--json", "--origin")
    profile = load_profile("good.yaml")
    assert (shown["name"], shown["hash"]) == ("good", profile.hash)
    assert (shown["profile"], shown["origin"]) == (profile.resolved(), profile.origin)


def test_schema_includes_the_device_section_of_a_backend() -> None:
    assert "eta0" in json_of("schema", "--backend", "gaussian")["properties"]["device"]["anyOf"][0]["properties"]
    assert json_of("schema", "--json") == json_of("schema")


def test_neither_the_commands_nor_a_profile_import_torch() -> None:
    commands = "import sys, pimcal.cli.profiles; assert not {'torch', 'pydantic', 'yaml'} & set(sys.modules)"
    profile = "; import pimcal.profile; pimcal.profile.list_profiles(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", commands + profile], check=True)
