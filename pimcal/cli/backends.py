"""`pimcal backends`: which devices this installation can drive."""

from __future__ import annotations

from pimcal import registry
from pimcal.cli.options import Json
from pimcal.cli.output import print_json, print_table
from pimcal.errors import ConfigError


def backends(as_json: Json = False) -> None:
    """List the backends that a profile can name, and whether each can be used here."""
    rows = [_row(name) for name in registry.backend_names()]
    if as_json:
        print_json({"backends": rows})
    else:
        print_table(("backend", "from", "usable"), [tuple(row.values()) for row in rows])


def _row(name: str) -> dict[str, str]:
    try:
        origin = str(registry.default().registration(name).origin)
        registry.backend_class(name)
    except ConfigError as error:
        return {"backend": name, "from": "", "usable": f"no: {error}"}
    return {"backend": name, "from": origin, "usable": "yes"}
