"""`pimcal demo`: what analog noise does to a network, and what each calibration brings back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pimcal.errors import UsageError

if TYPE_CHECKING:
    from pimcal_demo.experiment import Findings


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the report.")] = Path("pimcal-demo"),
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of the simulated device.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print exactly one JSON object.")] = False,
) -> None:
    """Put a trained network on a noisy simulated device, calibrate it, and write a report with two pictures."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a folder")
    from pimcal.cli.output import print_json
    from pimcal_demo.report import as_json_object, write_report

    findings = _run(seed)
    write_report(findings, out)
    if as_json:
        print_json({**as_json_object(findings), "report": str(out)})
    else:
        _tell(findings, out)


def _run(seed: int) -> Findings:
    import torch

    from pimcal.cli.output import progress_bar
    from pimcal_demo.experiment import CELLS, run
    from pimcal_report.plots import require_matplotlib

    require_matplotlib(extra="demo")  # before the work, not after it
    torch.set_num_threads(1)  # so small a network gains nothing from more, and on a busy machine they cost tenfold
    with progress_bar("noise levels x methods", CELLS) as progress:
        return run(seed, progress)


def _tell(findings: Findings, out: Path) -> None:
    from pimcal.cli.output import print_table
    from pimcal_demo.story import sentences, table

    columns, *rows = table(findings)
    typer.echo("Accuracy on held-out digits, by noise on the weights and by method")
    print_table(columns, rows)
    typer.echo()
    for sentence in sentences(findings):
        typer.echo(sentence)
    typer.echo(f"\nThe report with both pictures: {out / 'report.md'}")
