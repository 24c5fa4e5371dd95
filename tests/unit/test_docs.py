"""Every command and every program in README.md and the how-tos on using pimcal runs as it is printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "docs/how-to/aihwkit.md",
    "docs/how-to/calibrate.md",
    "docs/how-to/plan.md",
    "docs/how-to/store.md",
    "docs/how-to/timeline.md",
    "docs/how-to/trace.md",
)
NOT_HERE = ("make",)  # what CI runs itself, in environments of its own


def blocks(page: str, language: str) -> list[str]:
    text = (REPOSITORY / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )


def write_profiles(page: str, folder: Path) -> None:
    """The page's profiles that begin with the name of their file, as a comment."""
    for text in blocks(page, "yaml"):
        name = re.match(r"# (\S+\.yaml)\n", text)
        if name:
            (folder / name[1]).write_text(text)


def _need_libraries(page: str) -> None:
    pytest.importorskip("sklearn", reason="the pages' network classifies scikit-learn's digits")
    if "aihwkit" in page:
        pytest.importorskip("aihwkit", reason="the page is about it")


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_the_page_run_in_order(page: str, tmp_path: Path) -> None:
    _need_libraries(page)
    write_profiles(page, tmp_path)
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    commands = [line for line in lines if not line.startswith(NOT_HERE)]
    assert commands
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "pimcal"
        done = run(["-m", "pimcal", *arguments], tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES)
def test_program_of_the_page_runs(page: str, tmp_path: Path) -> None:
    _need_libraries(page)
    programs = blocks(page, "python")
    assert programs
    for program in programs:
        done = run(["-c", program], tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_profile_of_the_readme_is_valid(tmp_path: Path) -> None:
    for text in blocks("README.md", "yaml"):
        (tmp_path / "readme.yaml").write_text(text)
        done = run(["-m", "pimcal", "profiles", "check", "readme.yaml"], tmp_path)
        assert done.returncode == 0, done.stderr


def test_links_of_all_pages_lead_somewhere() -> None:
    for page in [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
