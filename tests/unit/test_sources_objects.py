"""`pkg.mod:name` and `file.py:name`, and what becomes of the exceptions of user code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pimcal.errors import DataError, UsageError
from pimcal.sources.objects import resolve


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_module_and_dotted_name_are_resolved() -> None:
    assert resolve("json:JSONDecoder.decode").value is json.JSONDecoder.decode


def test_file_is_resolved_and_may_import_its_neighbours_also_when_called(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "pimcal_test_neighbour.py").write_text("value = 3\n")
    (folder / "sub" / "late.py").write_text(
        "def now():\n    from pimcal_test_neighbour import value\n    return value\n"
    )
    before = list(sys.path)
    assert resolve("sub/late.py:now").call() == 3
    assert sys.path == before


def test_module_in_the_working_directory_is_found(folder: Path) -> None:
    (folder / "pimcal_test_here.py").write_text("answer = 42\n")
    assert resolve("pimcal_test_here:answer").value == 42


def test_one_file_named_twice_runs_once(folder: Path) -> None:
    (folder / "once.py").write_text("first = object()\n")
    assert resolve("once.py:first").value is resolve(f"{folder}/once.py:first").value


def test_dataclass_in_a_file_works(folder: Path) -> None:
    (folder / "dc.py").write_text(
        "from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass Point:\n    x: int = 1\n"
    )
    assert resolve("dc.py:Point").call().x == 1


@pytest.mark.parametrize("spec", ["", "json", "json:", ":loads"])
def test_spec_without_both_parts_says_how_to_write_one(spec: str) -> None:
    with pytest.raises(UsageError, match=r"pkg\.mod:name or file\.py:name"):
        resolve(spec)


def test_absent_name_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="no 'lods' in it; did you mean 'loads'"):
        resolve("json:lods")


def test_absent_module_and_file_are_told_apart_from_broken_ones(folder: Path) -> None:
    (folder / "needs.py").write_text("import pimcal_test_not_installed\n")
    with pytest.raises(UsageError, match=r"there is no module 'pimcal_test_absent'.*pimcal_test_absent/net\.py"):
        resolve("pimcal_test_absent.net:build")
    with pytest.raises(UsageError, match=r"there is no file .*absent\.py"):
        resolve("absent.py:build")
    with pytest.raises(
        UsageError,
        match=r"ModuleNotFoundError: No module named 'pimcal_test_not_installed' \(.*needs\.py:1\)",
    ):
        resolve("needs.py:build")


def test_exception_of_user_code_names_type_message_and_line(folder: Path) -> None:
    (folder / "fails.py").write_text("import json\n\ndef build():\n    return json.loads('{')\n")
    with pytest.raises(UsageError, match=r"fails\.py:build failed with JSONDecodeError: .*fails\.py:4\)") as caught:
        resolve("fails.py:build").call()
    assert isinstance(caught.value.__cause__, json.JSONDecodeError)


def test_syntax_error_names_its_line(folder: Path) -> None:
    (folder / "bad.py").write_text("x = 1\ndef (:\n")
    with pytest.raises(UsageError, match=r"SyntaxError.*bad\.py:2\)"):
        resolve("bad.py:x")


def test_script_that_exits_is_an_error_and_not_the_end(folder: Path) -> None:
    (folder / "script.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(UsageError, match=r"SystemExit: 3 \(.*script\.py:2\)"):
        resolve("script.py:x")


def test_broken_file_can_be_mended_and_resolved_again(folder: Path) -> None:
    (folder / "mend.py").write_text("1 / 0\n")
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        resolve("mend.py:x")
    (folder / "mend.py").write_text("x = 'this is another length'\n")
    assert resolve("mend.py:x").value == "this is another length"


def test_pimcal_errors_and_interrupts_of_user_code_pass_unchanged(folder: Path) -> None:
    (folder / "own.py").write_text(
        "from pimcal.errors import DataError\n"
        "def data():\n    raise DataError('bad')\n"
        "def stop():\n    raise KeyboardInterrupt\n"
    )
    with pytest.raises(DataError, match=r"^bad$"):
        resolve("own.py:data").call()
    with pytest.raises(KeyboardInterrupt):
        resolve("own.py:stop").call()
