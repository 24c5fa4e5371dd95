"""Chains, circles and depth without end, and what is no regular file: told soon, by name."""

import os
import socket
from pathlib import Path

import pytest

from pimcal.profile import ProfileError, load_profile
from pimcal.profile.load import MAX_PARENTS

HEAD = "schema: pimcal/1\nbackend: ideal\n"


def chain(folder: Path, length: int, last: str) -> Path:
    """p0 builds on p1, and so on; the last one is `last`."""
    for number in range(length):
        (folder / f"p{number}.yaml").write_text(f"extends: p{number + 1}.yaml\n")
    (folder / f"p{length}.yaml").write_text(last)
    return folder / "p0.yaml"


def told(path: Path, overrides: dict[str, object] | None = None) -> str:
    with pytest.raises(ProfileError) as caught:
        load_profile(path, overrides)
    assert len(str(caught.value)) < 10_000
    return str(caught.value)


def test_a_chain_of_as_many_profiles_as_are_allowed_is_read(tmp_path: Path) -> None:
    assert load_profile(chain(tmp_path, MAX_PARENTS, HEAD)).backend == "ideal"


@pytest.mark.parametrize("last", [HEAD, "extends: nowhere.yaml\n", "extends: p0.yaml\n"])
@pytest.mark.parametrize("length", [MAX_PARENTS + 1, 1500])
def test_a_longer_chain_is_told_with_its_files_wherever_it_leads(tmp_path: Path, length: int, last: str) -> None:
    found = told(chain(tmp_path, length, last))
    assert f"p{MAX_PARENTS}.yaml:1:10: extends: a profile may build on {MAX_PARENTS} others in a row" in found
    assert " -> ".join(f"{tmp_path}/p{number}.yaml" for number in range(MAX_PARENTS + 2)) in found


def test_no_more_files_of_a_chain_are_read_than_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pimcal.profile import load

    opened: list[object] = []
    whole = load.open_regular
    monkeypatch.setattr(load, "open_regular", lambda path: opened.append(path) or whole(path))
    told(chain(tmp_path, 1500, HEAD))
    assert len(opened) == MAX_PARENTS + 1


def test_a_chain_that_leads_nowhere_names_the_file_that_is_missing(tmp_path: Path) -> None:
    assert "p3.yaml:1:10: extends: " in told(chain(tmp_path, 3, "extends: nowhere.yaml\n"))


@pytest.mark.parametrize("levels", [33, 1000, 100_000])
def test_an_override_of_any_depth_is_refused(levels: int, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(HEAD)
    assert told(path, {"a." * (levels - 1) + "a": 1}).endswith(f"{levels} levels, and no key has more than 32")
    value: object = 1
    for _ in range(min(levels, 5000)):
        value = {"a": value}
    assert "deep" in told(path, {"device": value})


def test_an_override_that_holds_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(HEAD)
    circle: list[object] = []
    circle.append(circle)
    assert "nested too deeply" in told(path, {"host": circle})


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 50_000, "- " * 50_000, "? " * 50_000])
def test_yaml_of_any_depth_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    assert told(path)


@pytest.mark.parametrize("levels", [40, 3000])
def test_the_command_line_refuses_any_depth(levels: int, pimcal_run) -> None:
    for override in (f"{'a.' * levels}b=1", f"a={'[' * levels}{']' * levels}", f"a={'{b: ' * levels}1{'}' * levels}"):
        done = pimcal_run("profiles", "show", "ideal", "-O", override)
        assert done.code in (2, 78)
        assert "deep" in done.err or "levels" in done.err


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "link to a pipe"])
def test_only_regular_files_are_read(kind: str, tmp_path: Path, pimcal_run, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("there.yaml")
    listener = socket.socket(socket.AF_UNIX)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "socket":
            listener.bind(str(path))
        case _:
            os.mkfifo("pipe")
            path.symlink_to("pipe")
    child = Path("child.yaml")
    child.write_text("extends: there.yaml\n")
    assert "is no regular file" in told(path)
    assert "child.yaml:1:10: extends: there.yaml is no regular file" in told(child)
    for words in (
        ("records", "show", path),
        ("records", "diff", path, path),
        ("records", "import", path, "--store", "store"),
        ("evaluate", "--profile", "ideal", "--model", "x:y", "--data", f"npz:{path}"),
        ("board", "trace", path),
        ("profiles", "show", path),
        ("evaluate", "--profile", path, "--model", "x:y", "--data", "npz:x"),
    ):
        done = pimcal_run(*words)
        assert (done.code in (2, 65, 78), done.out) == (True, ""), words
    listener.close()
