"""YAML text to a tree: values follow YAML 1.2, everything knows its place, and nothing is executed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimcal.profile.dump import block, flow
from pimcal.profile.problems import Problem, ProfileError
from pimcal.profile.yaml_tree import MAX_BYTES, read_tree


def read(text: str | bytes) -> object:
    problems: list[Problem] = []
    tree = read_tree(text.encode() if isinstance(text, str) else text, "p.yaml", problems)
    if problems:
        raise ProfileError(problems)
    return tree.plain()


def refusal(text: str | bytes) -> str:
    with pytest.raises(ProfileError) as caught:
        read(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e6", 1e6),
        ("1e-5", 1e-5),
        (".5", 0.5),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("-7", -7),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("'12'", "12"),
        ('"null"', "null"),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    found = read(f"key: {text}\n")
    assert found == {"key": value}
    assert type(found["key"]) is type(value)


def test_keys_are_names_whatever_they_look_like() -> None:
    assert read("{1: a, on: b, null: c, 1e3: d}") == {"1": "a", "on": "b", "null": "c", "1e3": "d"}


def test_every_value_knows_its_line_and_column() -> None:
    tree = read_tree(b"# comment\ndevice:\n  eta0: 0.1\nhost: [a, b]\n", "p.yaml", [])
    assert {path: str(node.at) for path, node in tree.leaves()} == {
        "device.eta0": "p.yaml:3:9",
        "host": "p.yaml:4:7",
    }


def test_a_byte_order_mark_is_passed_over() -> None:
    assert read(b"\xef\xbb\xbfa: 1") == {"a": 1}


def test_aliases_give_the_value_they_refer_to() -> None:
    assert read("a: &x {b: 1}\nc: *x\n") == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "p.yaml:3:1: a: key given twice, first in line 1"),
        ("d:\n  x: 1\n  x: 2\n", "p.yaml:3:3: d.x: key given twice, first in line 2"),
        (
            "a: !!python/object/apply:os.system [ls]",
            "tag tag:yaml.org,2002:python/object/apply:os.system refused",
        ),
        ("a: !!int '3'", "p.yaml:1:4: a: tag"),
        ("!mine {a: 1}", "tag !mine refused"),
        ("a: &x [*x]", "p.yaml:1:4: a.0: an alias stands inside what it refers to"),
        ("&x {a: *x}", "an alias stands inside what it refers to"),
        ("a: *unknown", "p.yaml:1:4: found undefined alias"),
        ("<<: {a: 1}", "p.yaml:1:1: '<<' is not part of YAML 1.2; use 'extends:'"),
        ("? [1, 2]\n: 3", "a key must be a plain name"),
        ("a: 1\n--- \nb: 2\n", "expected a single document"),
        ("a: [1, 2", "p.yaml:1:9: while parsing a flow sequence, expected ',' or ']'"),
        ("a:\n\t- 1", "p.yaml:2:1: while scanning for the next token, found character"),
        ("", "p.yaml:1:1: there is nothing in it"),
        ("# only a comment\n", "there is nothing in it"),
        (b"a: 1\nb: \xff\n", "p.yaml:2:4: not UTF-8 text"),
        (b"\x80\x05\x95\x00", "p.yaml:1:1: not UTF-8 text"),
        ("a: 1\nb: x\0y\n", r"p.yaml:2:5: character '\x00' is not allowed in YAML"),
        ("a: .inf", "p.yaml:1:4: a: a number must be finite"),
        ("a: .nan", "a number must be finite"),
        ("a: 1e999", "a number must be finite"),
        ("a: 18446744073709551616", "a whole number must fit in 64 bits"),
        ("a: " + "9" * 5000, "a whole number must fit in 64 bits"),
        ('a: "\\ud800"', "p.yaml:1:4: a: half of a surrogate pair is no character"),
        ('a: "\\U99999999"', "p.yaml:1:"),
        ("%YAML 3.0\n---\na: 1", "found incompatible YAML document"),
        ("[" * 40 + "]" * 40, "nested deeper than 32 levels"),
        ("[" * 5000, "nested too deeply"),
        (b"a: " + b"x" * MAX_BYTES, "larger than 256 KiB"),
    ],
)
def test_what_is_no_plain_data_is_refused_where_it_stands(text: str | bytes, message: str) -> None:
    assert message in refusal(text)


def test_aliases_that_multiply_are_stopped() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
    assert "more than 20000 values" in refusal(bomb)


def test_all_mistakes_are_found_at_once() -> None:
    with pytest.raises(ProfileError) as caught:
        read("a: 1\na: 2\nb: !x 3\nc: .inf\n")
    assert [problem.at.line for problem in caught.value.problems] == [2, 3, 4]


finite = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | finite | st.text()
names = st.text(min_size=1, max_size=40).filter(lambda name: name != "<<")
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_what_is_dumped_on_one_line_reads_back_the_same(value: object) -> None:
    text = flow(value)
    assert "\n" not in text
    assert read(text) == value


@given(st.dictionaries(names, values, min_size=1, max_size=4))
def test_what_is_dumped_as_a_block_reads_back_the_same(data: dict[str, object]) -> None:
    assert read(block(data)) == data
    assert read(block(data, {})) == data


@given(st.binary(max_size=200) | st.text(alphabet="ab:-?[]{}&*!|>%@\"'#,\\ \n\t01.~U", max_size=80).map(str.encode))
def test_any_bytes_end_in_a_tree_or_a_profile_error(data: bytes) -> None:
    problems: list[Problem] = []
    try:
        read_tree(data, "p.yaml", problems)
    except ProfileError as error:
        problems += error.problems
    assert all(problem.at.line > 0 and problem.message for problem in problems)


# --- text without quotes


@pytest.mark.parametrize(
    ("text", "column", "begins"),
    [
        ("cron: */5 * * * *", 7, "*"),
        ("host: [*.fc]", 8, "*"),
        ("host: [fc, *head]", 12, "*"),
        ("host: [*]", 8, "*"),
        ("a: &5 x", 4, "&"),
        ("a: & b", 4, "&"),
        ("a: &", 4, "&"),
        ("a: ! x", 4, "!"),
        ("a: !<", 4, "!"),
        ("a: %5", 4, "%"),
        ("a: @x", 4, "@"),
        ("a: `x`", 4, "`"),
    ],
)
def test_text_that_begins_with_a_character_of_yaml_is_to_be_put_in_quotes(text: str, column: int, begins: str) -> None:
    told = refusal(text)
    assert told.startswith(f"p.yaml:1:{column}: ")
    assert f"text that begins with {begins} has a meaning of its own in YAML; put the text in quotes" in told
    assert "\0" not in told


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a: b: c", "if ': ' belongs to the value, put the text in quotes"),
        ("a: [b, #c]", "put the text in quotes"),
        ("a: [0-9]*x", "put the text in quotes"),
        ("a: {x}y", "put the text in quotes"),
        ("a: 'b' c", "put the text in quotes"),
        ("a: , b", "put the text in quotes"),
        ("a: ] b", "put the text in quotes"),
        ("a: - b", "put the text in quotes"),
        ("a: ? b", "put the text in quotes"),
        ("a: | b", "put the text in quotes"),
        ("a: >5x", "put the text in quotes"),
        ("a: !x y", "put text in quotes"),
        ('a: "b', "a quote that was opened is not closed"),
        ('a: "C:\\q"', "use single quotes"),
        ("a:\n\tb: 1", "indented with spaces, never with tabs"),
        ("a: [1, 2", "close every [ and {"),
    ],
)
def test_a_syntax_error_says_what_to_do(text: str, hint: str) -> None:
    assert hint in refusal(text)


def test_anchors_that_are_used_and_marks_within_text_are_no_mistake() -> None:
    assert read("a: &x [fc*, 'x & y', b!, 50%, me@lab]\nb: *x") == {
        "a": ["fc*", "x & y", "b!", "50%", "me@lab"],
        "b": ["fc*", "x & y", "b!", "50%", "me@lab"],
    }
