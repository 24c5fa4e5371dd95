"""Text of others - names of files, boards and keys, what exceptions say - as it may go to a terminal or a log.

A terminal obeys escape sequences, and marks that turn the direction of writing make a text look like another one.
"""

from __future__ import annotations


def shown(text: str) -> str:
    """The text with every character that is not printable escaped, but for line breaks and tabs."""
    return "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in text)


def one_line(text: str) -> str:
    """The same with line breaks and tabs escaped, too: for a name within a sentence or a table."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
