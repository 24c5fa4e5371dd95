"""The demo's findings in words and as a table."""

from __future__ import annotations

from pimcal.sweep import Cell
from pimcal_demo.experiment import METHODS, Findings

NOISE_NAMES = {"mul": "MUL", "add": "ADD"}  # as in Tsai et al.


def by_level(cells: list[Cell]) -> dict[float, dict[str, Cell]]:
    """The cells of one noise by eta0 and method."""
    levels: dict[float, dict[str, Cell]] = {}
    for cell in cells:
        levels.setdefault(cell.setting["device.eta0"], {})[cell.method] = cell
    return levels


def table(findings: Findings) -> list[tuple[str, ...]]:
    """A header, a row for each noise level, and what each method used (it is the same at every level)."""
    levels = [(noise, *level) for noise, found in findings.cells.items() for level in by_level(found).items()]
    rows: list[tuple[str, ...]] = [("noise", *METHODS)]
    for noise, eta0, cells in levels:
        rows.append((f"{NOISE_NAMES[noise]} {eta0:g}", *(percent(cells[method].value) for method in METHODS)))
    used = levels[-1][2]
    rows.append(("images used", *(f"{used[method].images:,}" for method in METHODS)))
    rows.append(("MVMs used", *(f"{used[method].mvms:,}" for method in METHODS)))
    return rows


def sentences(findings: Findings) -> list[str]:
    """What the reader sees: the collapse, the recovery, and what it cost."""
    mul_eta0, mul = list(by_level(findings.cells["mul"]).items())[-1]
    add_eta0, add = list(by_level(findings.cells["add"]).items())[-1]
    share = mul["ema"].mvms / mul["paired"].mvms
    return [
        f"On digital hardware the network reads {percent(findings.clean)} of {findings.test_images} held-out digits. "
        f"On the analog device, uncalibrated (none), that falls to {percent(mul['none'].value)} at MUL {mul_eta0:g} "
        f"and {percent(add['none'].value)} at ADD {add_eta0:g}: noise shifts each layer's activations away from what "
        "BatchNorm recorded in training.",
        f"Correcting BatchNorm on the host, without retraining, brings MUL {mul_eta0:g} back to "
        f"{percent(mul['paired'].value)} (paired, {mul['paired'].images} unlabelled images) and "
        f"{percent(mul['ema'].value)} (ema, the published baseline, {mul['ema'].images:,} images: {share:.0f} times "
        "the matrix-vector products, MVMs).",
        "ADD noise adds to every output in proportion to the sum of its inputs, which changes from image to image: no "
        f"fixed correction follows that, and at ADD {add_eta0:g} paired ends at {percent(add['paired'].value)}. "
        "Reference columns on the device measure it in every batch, need no image, and end at "
        f"{percent(add['references'].value)}.",
    ]


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
