"""Plots of results, as a plugin: a finished sweep, timeline or plan gets its picture.

Other programs use `pimcal_report.plots`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pimcal import hookimpl

if TYPE_CHECKING:
    from pimcal.events import Event


@hookimpl
def pimcal_on_event(event: Event) -> None:
    """Draw `sweep.png`, `timeline.png` or `plan.png` beside its tables.

    Raises MissingExtraError without matplotlib, StorageError where the file cannot be written.
    """
    from pimcal.events import PlanFinished, SweepFinished, TimelineFinished

    if isinstance(event, SweepFinished):
        from pimcal_report.sweep_plot import write_sweep_plot

        write_sweep_plot(event.table, event.out)
    if isinstance(event, TimelineFinished):
        from pimcal_report.timeline_plot import write_timeline_plot

        write_timeline_plot(event.table, event.out)
    if isinstance(event, PlanFinished):
        from pimcal_report.plan_plot import write_plan_plot

        write_plan_plot(event.table, event.out)
