"""What `pimcal plan` prints: accuracy over time against device time, and a summary of each policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from statistics import fmean
from typing import Any

import typer

from pimcal.cli.output import print_table, shown

_FEW, _MANY = 5, 8  # rows of the table over time
_WIDE = 12  # characters of a column's head: five policies fit into 80 columns


def print_plan(table: Mapping[str, Any]) -> None:
    """Both tables of a plan, as `--json` has it."""
    metric, rows = table["metric"], table["rows"]
    told = f"{metric} (%)" if _is_share(metric) else metric
    typer.echo(f"clean {metric} (digital hardware): {shown(metric, table['clean'])}")
    typer.echo(f"\n{told}, and the device MVMs spent until then:")
    _print_course(metric, rows)
    typer.echo(f"\n{told} over all {len({row['time_s'] for row in rows})} times, and what it took:")
    _print_summaries(metric, table["policies"])


def _print_course(metric: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A row a time, a column a policy; means over the seeds."""
    from pimcal.profile.duration import format_duration

    cells: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["time_s"], row["policy"]), []).append(row)
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    lines = [
        (format_duration(timedelta(seconds=time_s)), *(_cell(metric, cells[time_s, policy]) for policy in policies))
        for time_s in spaced(list(dict.fromkeys(row["time_s"] for row in rows)))
    ]
    print_table(("time", *map(_broken, policies)), lines)


def _cell(metric: str, rows: Sequence[Mapping[str, Any]]) -> str:
    value, mvms = (fmean(row[name] for row in rows) for name in ("value", "mvms"))
    return f"{_number(metric, value, 3):>6} {short(mvms):>4}"


def spaced(times_s: Sequence[float]) -> list[float]:
    """All times where they are few, else a few at even distances; the last is always there."""
    count = len(times_s)
    if count <= _MANY:
        return list(times_s)
    chosen = next((n for n in range(_MANY, _FEW, -1) if count % n == 0), _FEW)
    return [times_s[round(i * count / chosen) - 1] for i in range(1, chosen + 1)]


def short(number: float) -> str:
    """A count from zero on in at most four characters: 0, 980, 1.2k, 104M, 2.0G."""
    units = iter(("", "k", "M", "G"))
    unit = next(units)
    while number >= 999.5 and unit != "T":
        number, unit = number / 1000, next(units, "T")
    return f"{number:.1f}{unit}" if unit and number < 9.95 else f"{number:.0f}{unit}"


def _print_summaries(metric: str, policies: Sequence[Mapping[str, Any]]) -> None:
    head = ("policy", "mean", "lowest", "device\nMVMs", "cells", "recali-\nbrations", "looks", "re-\njected")
    lines = [
        (
            row["policy"], *(_number(metric, row[key], 4) for key in ("mean", "lowest")),
            f"{row['mvms']:,.0f}", short(row["programmed_cells"]),
            *(f"{row[key]:g}" for key in ("recalibrations", "looks", "rejected")),
        )
        for row in policies
    ]  # fmt: skip
    print_table(head, lines)


def _broken(policy: str) -> str:
    """A policy's name, in two lines where it is long."""
    kind, colon, rest = policy.rpartition(":")
    return f"{kind}{colon}\n{rest}" if len(policy) > _WIDE and kind else policy


def _is_share(metric: str) -> bool:
    return shown(metric, 0.0).endswith("%")


def _number(metric: str, value: float, digits: int) -> str:
    """As `shown`, but without a unit; so many digits of what is no share."""
    return shown(metric, value).removesuffix(" %") if _is_share(metric) else f"{value:.{digits}g}"
