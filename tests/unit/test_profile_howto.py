"""docs/how-to/own-profile.md: its files are loaded, its commands and its Python are run."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import pimcal_gaussian
from pimcal import ideal, registry
from pimcal.cli.profiles import app
from pimcal.profile import load_profile
from pimcal.profile.model import Profile

TEXT = (Path(__file__).parents[2] / "docs/how-to/own-profile.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, plugin in (("ideal", ideal), ("gaussian", pimcal_gaussian)):
        if name not in registry.backend_names():
            registry.register_plugin(plugin)
    monkeypatch.chdir(tmp_path)
    for text in blocks("yaml"):
        Path(text.split()[1]).write_text(text)


COMMANDS = [
    tuple(block.partition("\n")[::2]) for block in re.split(r"^\$ ", "".join(blocks("console")), flags=re.MULTILINE)[1:]
]


@pytest.mark.parametrize(("command", "output"), COMMANDS)
def test_a_command_gives_what_the_page_shows(command: str, output: str) -> None:
    program, group, *arguments = shlex.split(command)
    result = CliRunner().invoke(app, arguments)
    assert (program, group) == ("pimcal", "profiles")
    assert str(result.exception or "") == output.rstrip("\n")
    assert output or result.stdout


def test_every_section_of_a_profile_is_on_the_page() -> None:
    profile = load_profile("everything.yaml")
    sections = {info.alias or name for name, info in Profile.model_fields.items()}
    assert {path.partition(".")[0] for path in profile.origin} == sections
    written = {path for path in profile.origin if not path.startswith("device.")}
    inner = {
        f"{name}.{key}"
        for name, info in Profile.model_fields.items()
        if hasattr(info.annotation, "model_fields")
        for key in info.annotation.model_fields  # type: ignore[union-attr]
    }
    assert inner <= written


def test_the_python_on_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = blocks("python")
    exec(compile(source, "own-profile.md", "exec"), {})
    assert capsys.readouterr().out.startswith("0.2 -O device.eta0=0.2 ")
