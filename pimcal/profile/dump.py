"""Plain data to YAML text that YAML 1.1 and 1.2 readers understand alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import yaml

from pimcal.profile.yaml_tree import Scalar, core_value


class _Dumper(yaml.SafeDumper):
    """PyYAML's dumper that also quotes text which YAML 1.2, but not 1.1, would read as a number."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    plain = text.isprintable() and _core(text) == text
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


def _core(text: str) -> Scalar:
    try:
        return core_value(text)
    except ValueError:
        return None


_Dumper.add_representer(str, _represent_text)


def flow(value: object) -> str:
    """A value on one line, in YAML's flow style."""
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, width=math.inf, sort_keys=False, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")


def block(data: Mapping[str, object], origin: Mapping[str, str] | None = None) -> str:
    """Nested mappings in block style, lists in flow style; with `origin`, where each value was written."""
    lines = list(_lines(data, "", "", origin))
    width = max((len(text) for text, _ in lines), default=0)
    return "".join(f"{text:<{width}}  # {note}\n" if note else f"{text}\n" for text, note in lines)


def _lines(
    data: Mapping[str, object], path: str, indent: str, origin: Mapping[str, str] | None
) -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        here = f"{path}.{key}" if path else key
        if isinstance(value, dict) and value:
            yield f"{indent}{flow(key)}:", ""
            yield from _lines(value, here, indent + "  ", origin)
        else:
            yield f"{indent}{flow(key)}: {flow(value)}", "" if origin is None else origin.get(here, "default")
