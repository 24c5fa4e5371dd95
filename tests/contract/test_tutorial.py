"""The tutorial in docs/how-to/own-backend.md, followed to the letter."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/how-to/own-backend.md").read_text()
EXAMPLE = ROOT / "docs/examples/pimcal_tutorial.py"


def snippet(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert len(found) == 1
    return found[0]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder as `pip install` leaves it: the module, and the entry points of the page's pyproject.toml."""
    project = tomllib.loads(snippet("toml"))["project"]
    info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"{name} = {target}" for name, target in project["entry-points"]["pimcal"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[pimcal]", *lines]) + "\n")
    shutil.copy(EXAMPLE, tmp_path)
    return tmp_path


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    start = f"import sys; sys.path[:0] = {[str(folder), *sys.path]!r}\n"
    return subprocess.run(
        [sys.executable, "-c", start + arguments[0], *arguments[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_example_is_short():
    code = [line for line in EXAMPLE.read_text().splitlines() if line.strip()]
    assert len(code) < 60


def test_the_profile_of_the_page_opens_the_backend(installed):
    (installed / "tutorial.yaml").write_text(snippet("yaml"))
    script = """
import torch, pimcal
with pimcal.open_device(pimcal.load_profile("tutorial.yaml")) as device:
    device.program(0, torch.eye(4))
    gains = device.matmul(0, torch.ones(1, 4))
    print(device.capabilities.identity, device.capabilities.rows, bool((gains != 1).all()))
"""
    done = python(installed, script)
    assert done.stdout.split() == ["tutorial-3", "256", "True"], done.stderr


def test_the_contract_tests_of_the_page_pass(installed):
    (installed / "test_tutorial.py").write_text(snippet("python"))
    (installed / "pytest.ini").write_text("[pytest]\n")
    done = python(
        installed,
        "import pytest; sys.exit(pytest.main())",
        "-q",
        "-p",
        "no:cacheprovider",
        "test_tutorial.py",
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d\d passed", done.stdout)
