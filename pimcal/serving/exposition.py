"""Prometheus's text format, version 0.0.4: what a scrape reads."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Kind = Literal["counter", "gauge"]
Labels = Mapping[str, str]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


def sample(name: str, value: float, labels: Labels | None = None) -> str:
    """One line."""
    told = ",".join(f'{key}="{_escaped(text)}"' for key, text in (labels or {}).items())
    return f"{name}{{{told}}} {_number(value)}" if told else f"{name} {_number(value)}"


def family(name: str, kind: Kind, about: str, values: Iterable[tuple[Labels, float]]) -> list[str]:
    """All lines of a metric; none where it has no values."""
    lines = [sample(name, value, labels) for labels, value in values]
    return [*_header(name, kind, about), *lines] if lines else []


@dataclass(slots=True)
class Histogram:
    """How many observations were at most so large, in `bounds`, and their sum."""

    name: str
    about: str
    bounds: tuple[float, ...] = SECONDS
    total: float = 0.0
    counts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self) -> list[str]:
        found, below = _header(self.name, "histogram", self.about), 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            below += count
            found.append(sample(f"{self.name}_bucket", below, {"le": _number(bound)}))
        return [*found, sample(f"{self.name}_sum", self.total), sample(f"{self.name}_count", below)]


def _header(name: str, kind: str, about: str) -> list[str]:
    escaped = about.replace("\\", "\\\\").replace("\n", "\\n")
    return [f"# HELP {name} {escaped}", f"# TYPE {name} {kind}"]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    """As Go's ParseFloat reads it."""
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))
