"""docs/how-to/own-model.md: its files run, and every spec in its commands loads and fits the others."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pimcal.batches import batch_size, split_batch
from pimcal.metrics import resolve_metric
from pimcal.sources.data import load_batches
from pimcal.sources.models import check_input, load_model
from pimcal.sources.preprocess import load_preprocess

REPOSITORY = Path(__file__).parents[2]
GUIDE = (REPOSITORY / "docs" / "how-to" / "own-model.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in _blocks("sh") for line in block.splitlines() if re.search(r" --data ", line)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("PIL")
    folder = tmp_path_factory.mktemp("guide")
    for block in _blocks("python"):
        if name := re.match(r"# (\w+\.py)\n", block):
            (folder / name[1]).write_text(block)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "prepare.py"], cwd=folder, env=environment, check=True, timeout=120)
    return folder


def test_guide_has_commands() -> None:
    assert {shlex.split(command)[1] for command in COMMANDS} == {"evaluate", "calibrate", "sweep"}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_specs_load_and_fit_each_other(prepared: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(prepared)
    words = shlex.split(command)[2:]
    options = dict(zip(words[::2], words[1::2], strict=True))
    model = load_model(options["--model"], Path(options["--weights"]))
    preprocess = load_preprocess(options["--preprocess"])
    limit = options.get("--held-out", options.get("--images"))
    images = None if limit is None else int(limit)
    running = resolve_metric(options.get("--metric", "accuracy")).start()
    for batch in load_batches(options["--data"], preprocess, images):
        running.update(check_input(model, batch), split_batch(batch)[2], batch_size(batch))
    assert running.compute() > 0.9
    if "--calibration-data" in options:
        calibration = int(options["--images"])
        assert load_batches(options["--calibration-data"], preprocess, calibration).images == calibration


def test_metric_that_needs_no_labels_is_as_the_guide_says(tmp_path: Path) -> None:
    (block,) = (block for block in _blocks("python") if "per_batch" in block)
    (tmp_path / "metric.py").write_text(block)
    metric = resolve_metric(f"{tmp_path}/metric.py:largest_error")
    assert not metric.needs_labels
    assert not metric.higher_is_better


def test_every_command_of_the_guide_runs(prepared: Path) -> None:
    pytest.importorskip("torchvision")
    commands = [line for block in _blocks("sh") for line in block.splitlines() if line.startswith("pimcal ")]
    assert len(commands) >= 5
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for command in commands:
        arguments = [sys.executable, "-m", *shlex.split(command)]
        done = subprocess.run(
            arguments, cwd=prepared, env=environment, timeout=120, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout, command
