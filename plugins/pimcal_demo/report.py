"""The demo's report folder: `report.md`, `demo.json` and two pictures, all of them or none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pimcal.files import replace_together
from pimcal.sweep import Cell
from pimcal_demo.experiment import METHODS, SHOWN_ETA0, SHOWN_NOISE, Findings
from pimcal_demo.story import NOISE_NAMES, by_level, sentences, table
from pimcal_report.plots import Panel, divergence_figure, metric_figure, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = f"{NOISE_NAMES[SHOWN_NOISE]} {SHOWN_ETA0:g}"
_PANELS = {
    "mul": ("MUL: noise in proportion to each weight", "mean noise level eta0, as a share of each weight"),
    "add": ("ADD: noise of one size on every weight", "mean noise level eta0, in weight units"),
}


def write_report(findings: Findings, out: Path) -> None:
    """Write the report to the folder `out`; other files there stay, those of a former report are replaced together.

    Raises MissingExtraError without matplotlib, StorageError where the folder cannot be written.
    """
    shift = f"Shift of the activations at {_SHOWN}, before and after paired calibration"
    files = {
        "accuracy.png": png(accuracy_figure(findings)),
        "divergence.png": png(divergence_figure(findings.before, findings.after, shift)),
        "demo.json": json.dumps(_everything(findings), indent=2).encode(),
        "report.md": markdown(findings).encode(),
    }
    replace_together(out, files)


def accuracy_figure(findings: Findings) -> Figure:
    """Accuracy against noise for each method, a panel for each kind of noise."""
    panels = []
    for noise, cells in findings.cells.items():
        lines: dict[str, dict[float, list[float]]] = {method: {} for method in METHODS}
        for cell in cells:
            lines[cell.method][cell.setting["device.eta0"]] = [cell.value]
        panels.append(Panel(*_PANELS[noise], lines))
    return metric_figure(panels, findings.clean)


def as_json_object(findings: Findings) -> dict[str, Any]:
    """What `pimcal demo --json` prints: `clean`, and for each noise level each method's accuracy and cost."""
    levels = [
        _level(noise, eta0, cells) for noise, found in findings.cells.items() for eta0, cells in by_level(found).items()
    ]
    return {"clean": findings.clean, "levels": levels}


def _level(noise: str, eta0: float, cells: Mapping[str, Cell]) -> dict[str, Any]:
    return {
        "noise": noise,
        "eta0": eta0,
        **{method: cell.value for method, cell in cells.items()},
        "images": {method: cell.images for method, cell in cells.items()},
        "mvms": {method: cell.mvms for method, cell in cells.items()},
    }


def _everything(findings: Findings) -> dict[str, Any]:
    layers = {
        name: {"before": asdict(findings.before[name]), "after": asdict(findings.after[name])}
        for name in findings.before
    }
    about = {"seed": findings.seed, "test_images": findings.test_images}
    where = {"noise": SHOWN_NOISE, "eta0": SHOWN_ETA0, "unit": "nat"}
    return {**about, **as_json_object(findings), "divergence": {**where, "layers": layers}}


def markdown(findings: Findings) -> str:
    """The report as a page that embeds both pictures."""
    header, *rows = table(findings)
    lines = [header, ("---", *("---:" for _ in header[1:])), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    summary = "\n\n".join(sentences(findings))
    return f"""# pimcal demo: handwritten digits on a noisy analog device

{summary}

## Accuracy

![Accuracy against noise for each method](accuracy.png)

Accuracy on {findings.test_images} held-out digits; digital hardware: {100 * findings.clean:.1f} %.

{text}

`none`: no calibration. `references`: one column of zeros and one of a known constant in each tile. `ema`: moving
averages of BatchNorm's statistics (Tsai et al., Algorithm 1). `paired`: statistics moved by the difference between
the device and the digital network on the same images. Images and MVMs (matrix-vector products on the device) are
those that calibration used, the same at every level.

## Activations

![KL and JS divergence of each layer's activations](divergence.png)

How far the distribution of each layer's activations (behind BatchNorm, where one follows) is from that on digital
hardware, at {_SHOWN}, on the held-out digits: 0 is no difference, JS is at most ln 2 = 0.69 nats.
`paired` corrects BatchNorm, and none follows the last layer, `head`: its shift stays (`affine` would take it, too).

All figures are of one simulated device, seed {findings.seed}; `demo.json` has them unrounded.
"""
