"""What a YAML parser's complaint means for somebody who wrote a glob, a schedule or a path without quotes."""

from __future__ import annotations

import re

import yaml

_QUOTE = "put the text in quotes"
_SPECIAL = re.compile("scanning an? (?:alias|anchor|tag)|parsing a tag|undefined alias|that cannot start any token")
_HINTS = (
    (r"found character '\\t'", "YAML is indented with spaces, never with tabs"),
    ("mapping values are", f"if ': ' belongs to the value, {_QUOTE}; keys of one mapping begin in one column"),
    ("sequence entries are not allowed", f"write a list as [a, b], or each '- ' in a line of its own; else {_QUOTE}"),
    ("mapping keys are not allowed", f"'? ' has a meaning in YAML: {_QUOTE}"),
    ("scanning a block scalar", f"'|' and '>' begin a block of lines: {_QUOTE} if this is none"),
    ("unexpected end of stream", "a quote that was opened is not closed"),
    ("unknown escape|expected escape", "in double quotes a backslash has a meaning; use single quotes"),
    ("flow (sequence|mapping)", f"close every [ and {{; if one belongs to the text, or a ',' or '#', {_QUOTE}"),
    ("node content|<block end>", f"what begins with a quote, or with one of [ ] {{ }} , ends with it: {_QUOTE}"),
    ("expected ':'", "a line of a mapping is `key: value`"),
)  # fmt: skip


def explained(error: yaml.MarkedYAMLError, text: str) -> tuple[str, yaml.Mark | None]:
    """What is wrong and what to do, and where; None where YAML does not say."""
    said = ", ".join(filter(None, [error.context, error.problem])).replace("'\\x00'", "the end")
    mark = error.problem_mark or error.context_mark
    if _SPECIAL.search(said) and r"'\t'" not in said:
        mark = error.context_mark if "cannot start" not in said and error.context_mark else mark
        return f"{said}; {_special(text, mark)}", mark
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, said)), None)
    return f"{said}; {hint}" if hint else said, mark


def _special(text: str, mark: yaml.Mark | None) -> str:
    """`text`: all of the file."""
    begins = text[mark.index : mark.index + 1] if mark else ""
    return f"text that begins with {begins or 'such a character'} has a meaning of its own in YAML; {_QUOTE}"


def unused_marks(text: str) -> list[tuple[yaml.Mark, str]]:
    """Where text would be lost in silence: anchors that nothing refers to, and a '!' that tags nothing."""
    if not re.search("[&!]", text):
        return []
    tokens = list(yaml.scan(text, Loader=yaml.BaseLoader))
    used = {token.value for token in tokens if isinstance(token, yaml.AliasToken)}
    lost = [
        *(token for token in tokens if isinstance(token, yaml.AnchorToken) and token.value not in used),
        *(token for token in tokens if isinstance(token, yaml.TagToken) and token.value == (None, "!")),
    ]
    return [(token.start_mark, f"{_special(text, token.start_mark)} (nothing refers to it)") for token in lost]
