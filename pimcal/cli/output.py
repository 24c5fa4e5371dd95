"""What commands print: results to stdout, everything that comes and goes to stderr."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

import typer

from pimcal.shown import one_line
from pimcal.shown import shown as shown_safely

_WIDE = 10_000  # columns: where output is piped, lines stay whole


def print_json(value: Any) -> None:
    """The one JSON object of a command that was called with --json."""
    typer.echo(json.dumps(value, indent=2))


@contextmanager
def stdout_for_json(as_json: bool) -> Iterator[None]:
    """With --json, what a block prints goes to stderr: models, data and metrics are code of the user's, and may print.

    The object itself is printed behind the block.
    """
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        yield


def say(text: str, *, nl: bool = True) -> None:
    """A line of a result, to stdout."""
    typer.echo(shown_safely(text), nl=nl)


def note(text: str) -> None:
    """A remark on the way, to stderr."""
    typer.echo(shown_safely(text), err=True)


class Lines(str):
    """A table's cell whose line breaks are meant."""


class LogFormatter(logging.Formatter):
    """`WARNING: message`, as it may go to a terminal."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return shown_safely(super().format(record))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    headers = (
        Column(Text(shown_safely(column))) for column in columns
    )  # as it is: rich would take "[vision]" for a style
    table = Table(*headers, title=title and shown_safely(title), box=None, title_justify="left", pad_edge=False)
    for row in rows:
        table.add_row(*(Text(shown_safely(cell) if isinstance(cell, Lines) else one_line(str(cell))) for cell in row))
    if sys.stdout.isatty():
        Console().print(table)
        return
    console = Console(width=_WIDE)
    with console.capture() as printed:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in printed.get().splitlines()))


@contextmanager
def progress_bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal; the block gets a function that takes how much is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def mvm_bar(label: str, total: int | None, done: Callable[[], int]) -> Iterator[None]:
    """A bar over `total` matrix-vector products, with how many there are in a second and how long the rest will take;
    without an end where `total` is None.

    `done` tells how many the device has made since it was opened; it is asked while a batch runs, since on a slow link
    one takes long.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Counting(Progress):
        def get_renderables(self) -> Iterable[Any]:
            for task in self.tasks:
                self.update(task.id, completed=done() - before if total is None else min(total, done() - before))
            return super().get_renderables()

    class Rate(TextColumn):
        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:,.0f} MVM/s")  # as the time that is left has it

    before = done()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}" + ("" if total is None else f"/{total:,}")),
        Rate(""),
        TimeRemainingColumn(),
    )
    with Counting(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        bar.add_task(label, total=total)
        yield


def percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def shown(metric: str, value: float) -> str:
    """A metric's value as people read it."""
    return percent(value) if metric in ("accuracy", "agreement") else f"{value:.6g}"
