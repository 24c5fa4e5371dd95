"""`pimcal board`: look at a board, measure its link, use its tiles by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pimcal.cli.options import MOST, Json, Overrides, finite
from pimcal.cli.output import note, print_json, print_table
from pimcal.errors import ConfigError, DataError, UsageError
from pimcal_serial.firmware_commands import firmware
from pimcal_serial.trace_commands import trace as show_trace

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from pimcal_serial.connection import Connection
    from pimcal_serial.driver import Driver
    from pimcal_serial.settings import SerialSettings

board = typer.Typer(no_args_is_help=True, help="Look at a board on a serial port, measure its link, use its tiles.")

Port = Annotated[
    str | None,
    typer.Option(
        "--port", metavar="PORT", help="/dev/..., usb:SERIAL, socket://host:port, rfc2217://..., sim:, replay:FILE"
    ),
]
Baud = Annotated[int | None, typer.Option("--baud", min=1, max=2**63 - 1, help="Line rate in bit/s; left out: 115200.")]
ProfileName = Annotated[
    str | None, typer.Option("--profile", metavar="NAME|FILE", help="Take port and rate from a hardware profile.")
]
TraceFile = Annotated[
    Path | None, typer.Option("--trace", metavar="FILE", help="Record every byte to this file, which must be new.")
]
Tile = Annotated[int, typer.Option("--tile", min=0, max=0xFFFE, help="Which tile.")]
Out = Annotated[Path, typer.Option("--out", metavar="FILE.npy", help="Where to write the result.")]


@board.command("list")
def list_(as_json: Json = False) -> None:
    """List this machine's serial ports, with what to write into a profile."""
    from pimcal_serial.transport import list_ports

    ports = list_ports()
    if as_json:
        print_json({"ports": ports})
    elif ports:
        print_table(("port", "device", "description"), [(p["port"], p["device"], p["description"]) for p in ports])
    else:
        note("no serial port was found; is the board plugged in?")


@board.command()
def info(
    port: Port = None,
    baud: Baud = None,
    profile: ProfileName = None,
    trace: TraceFile = None,
    as_json: Json = False,
) -> None:
    """Tell what the board says of itself, its readings and its counters."""
    from pimcal_serial.report import board_report

    with _opened(port, baud, profile, trace) as connection:
        found = board_report(connection.session)
    if as_json:
        print_json(found)
    else:
        print_table(("what", "value"), [(name, _shown(value)) for name, value in found.items() if value is not None])


@board.command()
def echo(
    port: Port = None,
    baud: Baud = None,
    profile: ProfileName = None,
    count: Annotated[int, typer.Option("--count", min=1, max=MOST, help="How many frames.")] = 100,
    size: Annotated[int, typer.Option("--size", min=0, max=2**20, help="Bytes in each.")] = 64,
    trace: TraceFile = None,
    as_json: Json = False,
) -> None:
    """Send frames of random bytes to the board and compare what comes back."""
    from pimcal_serial.report import echo_report

    with _opened(port, baud, profile, trace) as connection:
        if size > connection.session.info.max_payload:
            raise UsageError(f"--size {size}: the board takes at most {connection.session.info.max_payload} bytes")
        _print(echo_report(connection.session, count, size), as_json)


@board.command()
def bench(
    port: Port = None,
    baud: Baud = None,
    profile: ProfileName = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.01, max=3600, callback=finite, help="How long to measure each figure.")
    ] = 1.0,
    trace: TraceFile = None,
    as_json: Json = False,
) -> None:
    """Measure round-trip times, and the goodput each way as a share of the line rate."""
    from pimcal_serial.report import bench_report

    settings = _settings(port, baud, profile, trace)
    with _connected(settings) as connection:
        rate = settings.baud if settings.port.startswith(("/", "usb:", "rfc2217:")) else None
        _print(bench_report(connection.session, rate, seconds), as_json)


@board.command()
def program(
    weights: Annotated[Path, typer.Option("--weights", metavar="FILE.npy", help="Whole numbers [rows, cols].")],
    port: Port = None,
    baud: Baud = None,
    profile: ProfileName = None,
    tile: Tile = 0,
    trace: TraceFile = None,
) -> None:
    """Write weights to a tile, and read them back to compare; fails where they differ."""
    from pimcal_serial.codes import check_fit, check_same, read_codes

    with _driver(port, baud, profile, trace, tile) as driver:
        values = read_codes(weights)
        check_fit(weights, values, driver.session.info)
        driver.program(tile, values)
        check_same(tile, values, driver.readback(tile))
    note(f"tile {tile} holds {values.shape[0]} x {values.shape[1]} weights, as written")


@board.command()
def readback(
    out: Out,
    port: Port = None,
    baud: Baud = None,
    profile: ProfileName = None,
    tile: Tile = 0,
    trace: TraceFile = None,
) -> None:
    """Write the weights that a tile holds to a file."""
    from pimcal_serial.codes import write_array

    with _driver(port, baud, profile, trace, tile) as driver:
        values = driver.readback(tile)
    write_array(out, values)
    note(f"{out}: {values.shape[0]} x {values.shape[1]} weights of tile {tile}")


@board.command()
def mvm(
    inputs: Annotated[Path, typer.Option("--inputs", metavar="FILE.npy", help="Whole numbers [n, rows].")],
    out: Out,
    port: Port = None,
    baud: Baud = None,
    profile: ProfileName = None,
    tile: Tile = 0,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FILE.npy", help="Program these first; else what the tile holds."),
    ] = None,
    trace: TraceFile = None,
) -> None:
    """Multiply vectors by a tile, and write the products to a file."""
    from pimcal_serial.codes import check_fit, read_codes, write_array

    with _driver(port, baud, profile, trace, tile) as driver:
        values = read_codes(inputs)
        if weights is None:
            driver.adopt(tile)
        else:
            matrix = read_codes(weights)
            check_fit(weights, matrix, driver.session.info)
            driver.program(tile, matrix)
        rows = (driver.shape(tile) or (0, 0))[0]
        if values.shape[1] != rows:
            raise DataError(f"{inputs}: vectors of {values.shape[1]} values, tile {tile} has {rows} rows")
        products = driver.multiply(tile, values)
    write_array(out, products)
    note(f"{out}: {products.shape[0]} vectors of {products.shape[1]} products")


@board.command()
def reset(port: Port = None, baud: Baud = None, profile: ProfileName = None, trace: TraceFile = None) -> None:
    """Restart the board; its weights are gone then."""
    from pimcal_serial.report import restart

    with _opened(port, baud, profile, trace) as connection:
        boot_id = restart(connection.session)
    note(f"the board has restarted (boot id {boot_id}); its tiles are empty")


@board.command()
def simulate(
    profile: Annotated[
        str, typer.Option("--profile", metavar="NAME|FILE", help="Its `device.simulator` describes the board.")
    ] = "board_virtual",
    overrides: Overrides = None,
    pty: Annotated[
        Path | None, typer.Option("--pty", metavar="PATH", help="Appear as a terminal at this path.")
    ] = None,
    tcp: Annotated[int | None, typer.Option("--tcp", min=0, max=65535, help="Listen at this TCP port instead.")] = None,
    pace: Annotated[
        int | None, typer.Option("--pace", min=1, max=2**32 - 1, help="Be as slow as a line of so many bit/s.")
    ] = None,
) -> None:
    """Be a virtual board, until Ctrl-C; prints the port that others use to reach it."""
    from pimcal_serial.simulator.serve import simulate as serve
    from pimcal_serial.simulator.settings import BoardSettings

    settings = _of_profile(profile, overrides)
    if settings.port != "sim:":
        raise ConfigError(f'profile {profile} is for a real board (port {settings.port}); use one with port: "sim:"')
    serve(settings.simulator or BoardSettings(), pty, tcp, pace, typer.echo)


board.command()(firmware)
board.command("trace")(show_trace)


# what the commands share


def _settings(port: str | None, baud: int | None, profile: str | None, trace: Path | None = None) -> SerialSettings:
    from pydantic import ValidationError

    from pimcal_serial.settings import SerialSettings

    if (port is None) == (profile is None):
        raise UsageError("name the board by --port or by --profile, by one of them")
    options = {"baud": baud, "trace": None if trace is None else str(trace)}
    given = {name: value for name, value in options.items() if value is not None}
    if port is None:
        return _of_profile(profile or "", [f"device.{name}={json.dumps(value)}" for name, value in given.items()])
    try:
        return SerialSettings.model_validate({"port": port} | given)
    except ValidationError as error:
        raise ConfigError("; ".join(map(_told, error.errors()))) from error


def _told(details: ErrorDetails) -> str:
    """pydantic's error in a line, named by its option."""
    message = details["msg"].removeprefix("Value error, ")
    return f"--{details['loc'][0]}: {message}" if details["loc"] else message


def _of_profile(name: str, overrides: list[str] | None) -> SerialSettings:
    from pimcal.cli.options import read_profile
    from pimcal_serial.settings import SerialSettings

    settings = read_profile(name, overrides).settings
    if not isinstance(settings, SerialSettings):
        raise ConfigError(f"profile {name} is for no board on a serial port; name one with `backend: serial`")
    return settings


@contextmanager
def _connected(settings: SerialSettings) -> Iterator[Connection]:
    from pimcal_serial.connection import Connection

    with Connection(settings) as connection:
        yield connection


@contextmanager
def _opened(port: str | None, baud: int | None, profile: str | None, trace: Path | None = None) -> Iterator[Connection]:
    with _connected(_settings(port, baud, profile, trace)) as connection:
        yield connection


@contextmanager
def _driver(port: str | None, baud: int | None, profile: str | None, trace: Path | None, tile: int) -> Iterator[Driver]:
    """A driver for a board that has this tile."""
    from pimcal_serial.driver import Driver

    with _opened(port, baud, profile, trace) as connection:
        tiles = connection.session.info.tiles
        if tile >= tiles:
            raise UsageError(f"--tile {tile}: the board's tiles are 0 to {tiles - 1}")
        yield Driver(connection.session)


def _print(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        print_table(("what", "value"), [(name, _shown(value)) for name, value in found.items() if value is not None])


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
