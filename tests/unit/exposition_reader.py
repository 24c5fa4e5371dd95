"""A strict reader of Prometheus's text format, by its specification and independent of the writer."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\\\|\\"|\\n)*"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? (NaN|[+-]Inf|[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)")
UNITS = ("seconds", "bytes", "celsius", "volts")


@dataclass
class Family:
    kind: str
    samples: dict = field(default_factory=dict)


def parse(text: str) -> dict[str, Family]:
    """Families by name; a sample is known by its name and its labels, sorted."""
    assert text.endswith("\n")
    found: dict[str, Family] = {}
    lines = iter(text.splitlines())
    current = ""
    for line in lines:
        if line.startswith("# HELP "):
            current = re.fullmatch(rf"# HELP ({NAME}) (?:[^\\]|\\\\|\\n)+", line)[1]
            assert current not in found, f"{current} comes twice"
            kind = re.fullmatch(rf"# TYPE {current} (counter|gauge|histogram)", next(lines))[1]
            found[current] = Family(kind)
            continue
        name, labels, value = SAMPLE.fullmatch(line).groups()
        assert name.removesuffix("_bucket") == current or name in _names(current, found[current].kind)
        pairs = re.findall(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"', labels or "")
        key = name, tuple(sorted((k, re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), v)) for k, v in pairs))
        assert key not in found[current].samples, f"{key} comes twice"
        found[current].samples[key] = float(value)
    for name, family in found.items():
        _check(name, family)
    return found


def _names(name, kind):
    return (f"{name}_sum", f"{name}_count") if kind == "histogram" else (name,)


def _check(name, family):
    assert family.samples, name
    assert (family.kind == "counter") == name.endswith("_total"), name
    if family.kind == "counter":
        assert all(value >= 0 for value in family.samples.values())
    if family.kind == "histogram":
        assert name.endswith(UNITS)
        buckets = [(float(dict(labels)["le"]), n) for (each, labels), n in family.samples.items() if "bucket" in each]
        assert buckets == sorted(buckets)
        assert [n for _, n in buckets] == sorted(n for _, n in buckets)
        assert buckets[-1] == (math.inf, family.samples[f"{name}_count", ()])
