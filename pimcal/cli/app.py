"""`pimcal`: the command line's root. Errors become one message and an exit code here, and nowhere else."""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from typing import Annotated

import typer

import pimcal
from pimcal import registry
from pimcal.cli import backends as backends_command
from pimcal.cli import (
    calibrate,
    daemon,
    doctor,
    evaluate,
    history,
    placement,
    plan,
    profiles,
    records,
    sweep,
    timeline,
    why,
)
from pimcal.cli.output import LogFormatter, note
from pimcal.errors import PimcalError, PlacementWarning, StorageError

INTERRUPTED, INTERNAL = 130, 70
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ON_CTRL_C = "interrupted; no file was changed"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pimcal {pimcal.__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (works behind any command).")] = False,
) -> None:
    """Put a PyTorch network on an analog processing-in-memory device, measure what noise does to it, calibrate it."""


def build() -> typer.Typer:
    """The whole command line, plugins' commands included."""
    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback()(_root)
    registry.default().register_commands(app)
    app.command("doctor")(doctor.doctor)
    app.command("backends")(backends_command.backends)
    app.add_typer(profiles.app, name="profiles")
    app.command("placement")(placement.placement)
    app.command("evaluate")(evaluate.evaluate)
    app.command("calibrate")(calibrate.calibrate)
    app.command("sweep")(sweep.sweep)
    app.command("timeline")(timeline.timeline)
    app.command("plan")(plan.plan)
    app.add_typer(records.app, name="records")
    app.command("history")(history.history)
    app.add_typer(daemon.app, name="daemon")
    app.command("why")(why.why)
    return app


def main() -> None:
    """Run the command line and leave with its exit code."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    warnings.filterwarnings("ignore", category=PlacementWarning)  # commands print what it says as notes
    debug = "--debug" in sys.argv or bool(os.environ.get("PIMCAL_DEBUG"))
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        build()(arguments, prog_name="pimcal")
    except PimcalError as error:
        _fail(str(error), error.exit_code, debug)
    except KeyboardInterrupt:
        _fail(_ON_CTRL_C, INTERRUPTED, debug=False)
    except SystemExit as left:
        if _is_ctrl_c(left):
            typer.echo(f"error: {_ON_CTRL_C}", err=True)
        raise
    except BrokenPipeError:
        _discard_stdout()
        sys.exit(1)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:  # all other writers raise StorageError
            _discard_stdout()
            _fail(f"cannot write to standard output: {error.strerror}", StorageError.exit_code, debug)
        _fail(f"internal: {type(error).__name__}: {error} (run again with --debug and report it)", INTERNAL, debug)


def _is_ctrl_c(left: SystemExit) -> bool:
    """Whether typer turned Ctrl-C into this, which it does without a word; a daemon ends so by itself, and tells."""
    ended = left.__context__
    return left.code == INTERRUPTED and ended is not None and isinstance(ended.__cause__, KeyboardInterrupt)


def _discard_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again when it ends


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        import traceback

        note(traceback.format_exc())
    note(f"error: {message}")
    sys.exit(code)
