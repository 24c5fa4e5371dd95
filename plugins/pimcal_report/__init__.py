"""Plots of results, as a plugin: a finished sweep gets its picture. Other programs use `pimcal_report.plots`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pimcal import hookimpl

if TYPE_CHECKING:
    from pimcal.events import Event


@hookimpl
def pimcal_on_event(event: Event) -> None:
    """Draw `sweep.png` beside a sweep's tables. Raises MissingExtraError without matplotlib, StorageError."""
    from pimcal.events import SweepFinished

    if isinstance(event, SweepFinished):
        from pimcal_report.sweep_plot import write_sweep_plot

        write_sweep_plot(event.table, event.out)
