"""`pimcal profiles`: list, check, show, and the JSON Schema."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from pimcal.cli.output import say

if TYPE_CHECKING:
    from pimcal.profile.problems import Problem

app = typer.Typer(help="Hardware profiles: list, check, show.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME|FILE", help="A shipped profile's name, or a YAML file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--override", "-O", metavar="KEY=VALUE", help="Replace a value, e.g. device.eta0=0.1."),
]


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the shipped profiles."""
    from pimcal.profile import list_profiles

    profiles = list_profiles()
    if as_json:
        _echo_json({"profiles": [profile._asdict() for profile in profiles]})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "backend", "description", box=None)
    for profile in profiles:
        table.add_row(*profile)
    Console().print(table)


@app.command()
def check(
    profiles: Annotated[list[str], typer.Argument(metavar="NAME|FILE...", help="Names or YAML files.")],
    as_json: Json = False,
) -> None:
    """Check profiles; prints every mistake, and exits with 78 if there is one."""
    from pimcal.profile import ProfileError

    problems = {profile: _problems(profile) for profile in profiles}
    if as_json:
        _echo_json({"profiles": [_verdict(*item) for item in problems.items()]})
    else:
        for profile in (name for name, found in problems.items() if not found):
            say(f"{profile}: ok")
    found = [problem for each in problems.values() for problem in each]
    if found and as_json:
        raise typer.Exit(ProfileError.exit_code)
    if found:
        raise ProfileError(found)


def _problems(profile: str) -> tuple[Problem, ...]:
    from pimcal.profile import ProfileError, load_profile

    try:
        load_profile(profile)
    except ProfileError as error:
        return error.problems
    return ()


def _verdict(profile: str, problems: tuple[Problem, ...]) -> dict[str, object]:
    found = [{**each.at._asdict(), "key": each.path, "message": each.message} for each in problems]
    return {"profile": profile, "ok": not found, "problems": found}


@app.command()
def show(
    profile: Name,
    resolved: Annotated[bool, typer.Option("--resolved", help="All values, with defaults.")] = False,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value was written.")] = False,
    override: Overrides = None,
    as_json: Json = False,
) -> None:
    """Show a profile as written; with --resolved, --origin or -O, as it is used."""
    from pimcal.profile import load_profile, parse_override, source_text
    from pimcal.profile.dump import block

    if not (resolved or origin or override or as_json):
        typer.echo(source_text(profile), nl=False)
        return
    loaded = load_profile(profile, dict(map(parse_override, override or [])))
    if as_json:
        facts = {"name": loaded.name, "hash": loaded.hash, "profile": loaded.resolved()}
        _echo_json({**facts, "origin": loaded.origin} if origin else facts)
    else:
        say(block(loaded.resolved(), loaded.origin if origin else None), nl=False)


@app.command()
def schema(
    backend: Annotated[str | None, typer.Option(help="Include this backend's device section.")] = None,
    _as_json: Json = False,
) -> None:
    """Print the JSON Schema of profiles, for an editor or another program."""
    from pimcal.profile import profile_schema

    _echo_json(profile_schema(backend))


def _echo_json(data: object) -> None:
    typer.echo(json.dumps(data, indent=2))
