"""`pimcal demo`, run as people run it, and its report folder."""

from __future__ import annotations

import json
import math
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPORT = ["accuracy.png", "demo.json", "divergence.png", "report.md"]
DEMO = (sys.executable, "-m", "pimcal", "demo")
METHODS = ("none", "references", "ema", "paired", "references+paired")


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DEMO, *arguments], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("demo")
    return run("--json", "--out", "reports/first", cwd=folder), folder


@pytest.fixture(scope="module")
def printed(finished: tuple[subprocess.CompletedProcess[str], Path]) -> dict[str, Any]:
    done, _ = finished
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def report(finished: tuple[subprocess.CompletedProcess[str], Path], printed: dict[str, Any]) -> Path:
    return finished[1] / str(printed["report"])


def test_json_has_each_methods_accuracy_and_cost_at_each_level(printed: dict[str, Any]) -> None:
    assert list(printed) == ["clean", "levels", "report"]
    assert {level["noise"] for level in printed["levels"]} == {"mul", "add"}
    for level in printed["levels"]:
        assert set(level) == {"noise", "eta0", *METHODS, "images", "mvms"}
        assert all(0 <= level[method] <= 1 for method in METHODS)
        used = {"none": 0, "references": 0, "ema": 1197, "paired": 64, "references+paired": 64}
        assert level["images"] == used
        each = level["mvms"]["paired"] // 64
        assert level["mvms"] == {method: images * each for method, images in used.items()}


def test_network_collapses_with_noise_and_comes_back(printed: dict[str, Any]) -> None:
    clean, levels = printed["clean"], printed["levels"]
    assert clean >= 0.98
    assert min(level["none"] for level in levels) < 0.3
    for level in levels:
        assert level["references"] > clean - 0.02
        assert level["references+paired"] > clean - 0.02
        if level["noise"] == "mul":
            assert min(level["paired"], level["ema"]) > clean - 0.02


def test_report_folder_holds_the_page_the_figures_and_two_pictures(report: Path) -> None:
    assert sorted(path.name for path in report.iterdir()) == REPORT
    assert [path.name for path in report.parent.iterdir()] == ["first"]
    page = (report / "report.md").read_text()
    assert "](accuracy.png)" in page
    assert "](divergence.png)" in page
    assert all(len(line) < 400 for line in page.splitlines())


@pytest.mark.parametrize("name", ["accuracy.png", "divergence.png"])
def test_pictures_are_pngs_with_something_to_see(report: Path, name: str) -> None:
    from matplotlib.image import imread

    content = (report / name).read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    pixels = imread(report / name)
    assert pixels.shape[:2] == (height, width)
    assert min(width, height) >= 600
    assert 0.01 < (pixels[..., :3].min(axis=2) < 0.9).mean() < 0.5  # neither blank nor black


def test_demo_json_agrees_with_what_was_printed_and_adds_the_divergences(printed: dict[str, Any], report: Path) -> None:
    stored = json.loads((report / "demo.json").read_text())
    assert {key: stored[key] for key in ("clean", "levels")} == {key: printed[key] for key in ("clean", "levels")}
    layers = stored["divergence"]["layers"]
    assert len(layers) >= 20
    for shift in layers.values():
        assert shift["after"]["js"] < shift["before"]["js"] <= math.log(2)
        assert shift["after"]["kl"] < shift["before"]["kl"]


def test_page_states_the_measured_figures(printed: dict[str, Any], report: Path) -> None:
    rows = [line.split(" | ") for line in (report / "report.md").read_text().splitlines() if line.startswith("| ")]
    assert rows[0] == ["| noise", *METHODS[:-1], f"{METHODS[-1]} |"]
    stated = {row[0].removeprefix("| "): [cell.removesuffix(" |") for cell in row[1:]] for row in rows[2:]}
    for level in printed["levels"]:
        name = f"{level['noise'].upper()} {level['eta0']:g}"
        assert stated[name] == [f"{100 * level[method]:.1f} %" for method in METHODS]
    assert stated["images used"] == ["0", "0", "1,197", "64", "64"]


def test_without_json_a_table_and_an_explanation_come_to_stdout_only(report: Path, tmp_path: Path) -> None:
    """And the same seed gives the same report, which replaces the former one and leaves other files alone."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("report.md", "own.txt"):
        (out / name).write_text("former")
    done = run("--out", str(out), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "references+paired" in done.stdout
    assert "On digital hardware the network reads" in done.stdout
    assert str(out / "report.md") in done.stdout
    assert contents(out).pop("own.txt") == b"former"
    assert (out / "demo.json").read_bytes() == (report / "demo.json").read_bytes()
    assert (out / "report.md").read_bytes() == (report / "report.md").read_bytes()


def test_ctrl_c_leaves_the_former_report_and_exits_with_130(report: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(report, out)
    before = contents(out)
    terminal, stderr = pty.openpty()  # the progress bar, which tells that the work goes on, wants a terminal
    with subprocess.Popen([*DEMO, "--seed", "5", "--out", str(out)], stdout=subprocess.PIPE, stderr=stderr) as demo:
        os.close(stderr)
        seen = _read(terminal, until=b"noise levels")
        demo.send_signal(signal.SIGINT)
        seen += _read(terminal)
        assert demo.wait(60) == 130
        assert demo.stdout is not None
        assert demo.stdout.read() == b""
    os.close(terminal)
    assert b"Traceback" not in seen
    assert contents(out) == before
    assert list(tmp_path.iterdir()) == [out]


def _read(terminal: int, until: bytes | None = None) -> bytes:
    """What comes until `until` was seen, or until the other side has closed."""
    seen = b""
    while until is None or until not in seen:
        assert select.select([terminal], [], [], 120)[0], f"nothing came after {seen!r}"
        try:
            seen += os.read(terminal, 4096)
        except OSError:  # Linux's way to say that nobody holds the other side any more
            return seen
    return seen


def test_out_that_is_a_file_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = run("--out", "file", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "file is a file" in done.stderr
    assert contents(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize(("library", "named"), [("matplotlib", "matplotlib"), ("sklearn", "scikit-learn")])
def test_missing_library_is_named_with_its_extra_before_the_work(tmp_path: Path, library: str, named: str) -> None:
    (tmp_path / f"{library}.py").write_text(f"raise ImportError('No module named {library}')\n")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    done = run("--out", "out", cwd=tmp_path, PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (78, "")
    assert f"{named}, which is not installed; install it with: pip install 'pimcal[demo]'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_plugin_is_imported_and_adds_its_command_without_heavy_libraries() -> None:
    script = (
        "import sys, typer, pimcal_demo, pimcal_report\n"
        "app = typer.Typer()\n"
        "pimcal_demo.pimcal_register_commands(app)\n"
        "assert [command.name for command in app.registered_commands] == ['demo']\n"
        "assert not {'torch', 'numpy', 'sklearn', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
