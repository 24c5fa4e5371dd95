"""YAML text to a tree of plain data in which every value knows where it was written.

PyYAML finds the structure; the values follow YAML 1.2's core schema (chapter 10.3 of the specification), so
that `1e6` is a number, `no` is text and `010` is ten. Profiles are data: tags are refused, and limits on
size, depth and number of values keep aliases from expanding without end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import yaml
from yaml.composer import Composer
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.scanner import Scanner

from pimcal.profile.problems import Position, Problem, ProfileError
from pimcal.profile.yaml_hints import explained, unused_marks

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_VALUES = 20_000

Scalar = str | int | float | bool | None

_PLAIN, _UNTAGGED = "plain", "untagged"
_CONSTANTS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(frozen=True, slots=True)
class Node:
    """A value, where it begins, and where its key begins (its own place where it has no key)."""

    value: Scalar | list[Node] | dict[str, Node]
    at: Position
    key_at: Position

    def plain(self) -> object:
        """The value as ordinary Python data."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def leaves(self, path: str = "") -> Iterator[tuple[str, Node]]:
        """Dotted path and node of everything that is no mapping with entries."""
        if not isinstance(self.value, dict) or not self.value:
            yield path, self
            return
        for key, node in self.value.items():
            yield from node.leaves(f"{path}.{key}" if path else key)


def core_value(text: str) -> Scalar:
    """The value of an unquoted YAML 1.2 scalar; ValueError where it is no finite or no 64-bit number."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text):
        return _whole_number(text)
    if _FLOAT.fullmatch(text):
        return _finite(text)
    return text


def _whole_number(text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    number = int(text, base) if len(text) < 100 else 1 << 64
    if not -(1 << 63) <= number < 1 << 64:
        raise ValueError("a whole number must fit in 64 bits")
    return number


def _finite(text: str) -> float:
    number = math.inf if text.lower().endswith(("inf", "nan")) else float(text)
    if not math.isfinite(number):
        raise ValueError("a number must be finite; leave the key out where there is no limit")
    if number == 0 and re.search("[1-9]", text.lower().partition("e")[0]):
        raise ValueError("a number so small is 0 to a computer; write 0")
    return number


def read_tree(data: bytes, file: str, problems: list[Problem]) -> Node:
    """Parse a profile's bytes; adds what is wrong but can be passed over to `problems`.

    Raises ProfileError where no tree can be made: bytes that are no UTF-8, broken syntax, several documents,
    endless aliases, or a value nested too deeply.
    """
    text = decoded(data, file)
    composer = _RawComposer(text)
    try:
        root = composer.get_single_node()
    except yaml.MarkedYAMLError as error:
        message, mark = explained(error, text)
        raise _syntax_error(message, mark or composer.get_mark(), file) from error
    except RecursionError as error:
        raise _syntax_error("nested too deeply", composer.get_mark(), file) from error
    except (ValueError, OverflowError) as error:  # PyYAML's scanner on impossible escapes and versions
        raise _syntax_error(f"broken YAML ({error})", composer.get_mark(), file) from error
    if root is None:
        raise ProfileError([Problem(Position(file, 1, 1), "", "there is nothing in it")])
    problems += [Problem(_position(mark, file), "", message) for mark, message in unused_marks(text)]
    return _Converter(file, problems).convert(root, "", ())


def decoded(data: bytes, file: str) -> str:
    """The text of a profile's bytes. Raises ProfileError where they are too many, or no printable UTF-8."""
    if len(data) > MAX_BYTES:
        message = f"larger than {MAX_BYTES // 1024} KiB, which no profile is"
        raise ProfileError([Problem(Position(file, 1, 1), "", message)])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before, message = data[: error.start].decode("utf-8", "replace"), "not UTF-8 text"
        raise ProfileError([Problem(_end_of(before, file), "", message)]) from error
    unprintable = Reader.NON_PRINTABLE.search(text)
    if unprintable:
        message = f"character {unprintable.group()!r} is not allowed in YAML"
        raise ProfileError([Problem(_end_of(text[: unprintable.start()], file), "", message)])
    return text


def _end_of(text: str, file: str) -> Position:
    return Position(file, text.count("\n") + 1, len(text) - text.rfind("\n"))


def _syntax_error(message: str, mark: yaml.Mark, file: str) -> ProfileError:
    return ProfileError([Problem(_position(mark, file), "", message)])


def _position(mark: yaml.Mark, file: str) -> Position:
    return Position(file, mark.line + 1, mark.column + 1)


class _RawComposer(Reader, Scanner, Parser, Composer):
    """PyYAML's composer without its YAML 1.1 resolver: it only tells plain scalars from all others."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)

    def descend_resolver(self, *_: object) -> None: ...

    def ascend_resolver(self) -> None: ...

    def resolve(self, kind: type[yaml.Node], value: object, implicit: object) -> str:
        plain = kind is yaml.ScalarNode and isinstance(implicit, tuple) and implicit[0]
        return _PLAIN if plain else _UNTAGGED


class _Converter:
    """Turns PyYAML's nodes into ours, collecting what is wrong."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self._file = file
        self._problems = problems
        self._values = 0

    def convert(self, raw: yaml.Node, path: str, parents: tuple[yaml.Node, ...], key: yaml.Node | None = None) -> Node:
        at = _position(raw.start_mark, self._file)
        key_at = _position(key.start_mark, self._file) if key else at
        self._check_limits(raw, path, parents, at)
        if raw.tag not in (_PLAIN, _UNTAGGED):
            self._report(at, path, f"tag {raw.tag} refused: a profile is plain data; put text in quotes")
        inside = (*parents, raw)
        if isinstance(raw, yaml.MappingNode):
            return Node(self._mapping(raw, path, inside), at, key_at)
        if isinstance(raw, yaml.SequenceNode):
            items = enumerate(raw.value)
            return Node([self.convert(item, _join(path, i), inside) for i, item in items], at, key_at)
        return Node(self._scalar(raw, path, at), at, key_at)

    def _check_limits(self, raw: yaml.Node, path: str, parents: tuple[yaml.Node, ...], at: Position) -> None:
        self._values += 1
        if any(raw is parent for parent in parents):
            raise ProfileError([Problem(at, path, "an alias stands inside what it refers to")])
        if len(parents) > MAX_DEPTH:
            raise ProfileError([Problem(at, path, f"nested deeper than {MAX_DEPTH} levels")])
        if self._values > MAX_VALUES:
            raise ProfileError([Problem(at, path, f"more than {MAX_VALUES} values, aliases expanded")])

    def _mapping(self, raw: yaml.MappingNode, path: str, inside: tuple[yaml.Node, ...]) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for key, value in raw.value:
            name = self._key(key, path)
            if name is None:
                continue
            node = self.convert(value, _join(path, name), inside, key)
            if name in entries:
                first = entries[name].key_at
                self._report(node.key_at, _join(path, name), f"key given twice, first in line {first.line}")
            else:
                entries[name] = node
        return entries

    def _key(self, raw: yaml.Node, path: str) -> str | None:
        """A key as written: keys are names, never numbers or truth values."""
        at = _position(raw.start_mark, self._file)
        if not isinstance(raw, yaml.ScalarNode) or raw.tag not in (_PLAIN, _UNTAGGED):
            self._report(at, path, "a key must be a plain name")
            return None
        name = str(raw.value)
        if raw.tag == _PLAIN and name == "<<":
            self._report(at, path, "'<<' is not part of YAML 1.2; use 'extends:' to build on another profile")
            return None
        return name if self._encodable(name, path, at) else None

    def _scalar(self, raw: yaml.Node, path: str, at: Position) -> Scalar:
        text = str(raw.value)
        if not self._encodable(text, path, at):
            return None
        if raw.tag != _PLAIN:
            return text
        try:
            return core_value(text)
        except ValueError as error:
            self._report(at, path, f"{error} (got {text[:40]})")
            return None

    def _encodable(self, text: str, path: str, at: Position) -> bool:
        lone = any("\ud800" <= character <= "\udfff" for character in text)
        if lone:
            self._report(at, path, "half of a surrogate pair is no character")
        return not lone

    def _report(self, at: Position, path: str, message: str) -> None:
        self._problems.append(Problem(at, path, message))


def _join(path: str, part: object) -> str:
    return f"{path}.{part}" if path else str(part)
