"""Text of others reaches a terminal or a log with its control characters escaped."""

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimcal.cli.output import Lines, LogFormatter, note, print_table, say
from pimcal.daemon.logs import JsonFormatter, LineFormatter
from pimcal.profile import ProfileError, Tiles, load_profile
from pimcal.shown import one_line, shown
from pimcal_serial.backend import _capabilities
from pimcal_serial.messages import BoardInfo

FOREIGN = "\x1b]0;owned\x07 \x9b31m \u202egpj.exe \u2066 \u200b \r \x00 \udc80"
ESCAPED = r"\x1b]0;owned\x07 \x9b31m \u202egpj.exe \u2066 \u200b \r \x00 \udc80"


def test_control_characters_c1_and_marks_of_direction_are_escaped() -> None:
    assert one_line(FOREIGN) == shown(FOREIGN) == ESCAPED
    assert (one_line("a\nb\tc"), shown("a\nb\tc")) == (r"a\nb\tc", "a\nb\tc")
    assert shown("µ é 日本 😀 ≥") == "µ é 日本 😀 ≥"


@given(st.text())
def test_what_is_shown_can_be_printed_whatever_it_was(text: str) -> None:
    assert one_line(text).isprintable()
    one_line(text).encode()  # no half of a surrogate pair is left
    assert all(c.isprintable() or c in "\n\t" for c in shown(text))


def test_results_and_remarks_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"to {FOREIGN}")
    note(f"about {FOREIGN}")
    assert capsys.readouterr() == (f"to {ESCAPED}\n", f"about {ESCAPED}\n")


def test_tables_are_escaped_and_a_cell_of_others_stays_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("what", FOREIGN), [("x", f"{FOREIGN}\nid  active"), ("y", Lines(f"own\n{FOREIGN}"))], FOREIGN)
    assert [line.split("  ")[-1].strip() for line in capsys.readouterr().out.splitlines()] == [
        ESCAPED,
        ESCAPED,
        rf"{ESCAPED}\nid  active".split("  ")[-1],
        "own",
        ESCAPED,
    ]


def record(message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("pimcal", logging.WARNING, "x.py", 1, message, args, None)


def test_logs_are_escaped() -> None:
    told = record("board: %s", FOREIGN)
    assert LogFormatter().format(told) == f"WARNING: board: {ESCAPED}"
    assert LineFormatter().format(told).endswith(" WARNING board: " + ESCAPED.replace(r" \r ", "  |  "))
    assert JsonFormatter().format(told).isprintable()


def test_a_boards_name_and_firmware_are_of_one_line() -> None:
    board = BoardInfo(model="pim\x1b[2J\n", serial_number="S\u202e1", firmware="1.0\n\x07", tiles=1, rows=4, cols=4)
    found = _capabilities(board, Tiles())
    assert (found.identity, found.firmware) == (r"pim\x1b[2J\n S\u202e1", r"1.0\n\x07")


@pytest.mark.parametrize("key", ['"\\e[31m"', '"\\a"', '"\\x9b"', '"\\u202e"', '"a\\nb"'])
def test_a_profiles_keys_are_quoted_escaped_and_on_one_line(key: str, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(f"schema: pimcal/1\nbackend: ideal\n{key}: 1\n")
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    assert str(caught.value).isprintable()
    assert "unknown key" in str(caught.value)


def test_every_command_escapes_the_names_that_it_quotes(pimcal_run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "a\x1b]0;x\x07\u202e\x9b.yaml"
    Path(name).write_text("schema: pimcal/1\nbackend: ideal\n'\x85': 1\n'x\\e': {y\u202e: 1}\n")
    for words in (
        ("profiles", "check", name),
        ("profiles", "show", name, "--resolved"),
        ("records", "show", name),
        ("evaluate", "--profile", name, "--model", "x:y", "--data", name),
        ("daemon", "status", "--store", name),
        ("history", "--store", name),
    ):
        done = pimcal_run(*words)
        assert done.code not in (0, 1, 70)
        assert all(c.isprintable() or c in "\n\t" for c in done.out + done.err), words
