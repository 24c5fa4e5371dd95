"""The demonstration on handwritten digits, as a plugin that adds the command `pimcal demo`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pimcal import hookimpl

if TYPE_CHECKING:
    from typer import Typer


@hookimpl
def pimcal_register_commands(app: Typer) -> None:
    """Add `pimcal demo`."""
    from pimcal_demo.command import demo

    app.command("demo")(demo)
