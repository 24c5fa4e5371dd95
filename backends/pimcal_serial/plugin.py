"""Adds `pimcal board` to the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pimcal import hookimpl

if TYPE_CHECKING:
    from typer import Typer


@hookimpl
def pimcal_register_commands(app: Typer) -> None:
    """Add `pimcal board`."""
    from pimcal_serial.commands import board

    app.add_typer(board, name="board")
