"""Files appear whole or not at all: also on a full disk, without permission, and at Ctrl-C."""

import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pimcal.errors import StorageError
from pimcal.files import check_writable, replace_together, write_atomically


def only(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file"

    write_atomically(path, b"content")

    assert path.read_bytes() == b"content"
    assert only(path.parent) == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_file_that_was_there_is_replaced(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"a longer old content")

    write_atomically(path, b"new")

    assert path.read_bytes() == b"new"
    assert only(tmp_path) == ["file"]


@pytest.mark.parametrize("there", [b"old", None])
def test_a_link_stays_and_its_file_is_replaced(tmp_path, there):
    path, target = tmp_path / "link", tmp_path / "target"
    path.symlink_to(target)
    if there is not None:
        target.write_bytes(there)

    write_atomically(path, b"new")

    assert path.is_symlink()
    assert target.read_bytes() == b"new"
    assert only(tmp_path) == ["link", "target"]


def test_a_pipe_is_left_alone(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)

    for write in (lambda: write_atomically(path, b"new"), lambda: replace_together(tmp_path, {"a": b"", "pipe": b""})):
        with pytest.raises(StorageError, match="pipe: it is a device, pipe or socket; name a file"):
            write()

    assert path.is_fifo()
    assert only(tmp_path) == ["pipe"]


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
def test_a_full_disk_leaves_the_old_record(tmp_path):
    """A process that may write 4 KiB a file stands for a disk with as much room: the write itself fails."""
    program = """
        import resource, signal, sys, torch
        from pimcal.errors import StorageError
        from pimcal.record import Provenance, Record
        about = Provenance(pimcal="", torch="", backend="", profile="", profile_hash="", model_hash="", device="",
                           firmware="", wall_time="", images=2, batches=1, mvms=0, seconds=0.0)
        def record(channels):
            values = {"mean": torch.ones(channels), "var": torch.ones(channels)}
            return Record(method="paired", corrections={"norm": values}, made_with=about)
        record(8).save(sys.argv[1])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            record(4096).save(sys.argv[1])
        except StorageError as error:
            print(error.exit_code, error)
    """
    path = tmp_path / "record.safetensors"

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(path)], capture_output=True, text=True, check=True
    )

    from pimcal.record import Record

    assert done.stdout.startswith(f"74 cannot write {path}: ")
    assert "nothing was changed there" in done.stdout
    assert Record.load(path).corrections["norm"]["mean"].numel() == 8
    assert only(tmp_path) == ["record.safetensors"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device that is always full")  # noqa: PTH110
def test_a_disk_without_space_is_told_with_its_own_words(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(**where):
        name = where["dir"] / "temporary"
        name.symlink_to("/dev/full")
        return os.open(name, os.O_WRONLY), str(name)

    monkeypatch.setattr("tempfile.mkstemp", full)
    monkeypatch.setattr("os.fchmod", lambda *_: None)  # the modes of the device are not ours to change

    with pytest.raises(StorageError, match=r"cannot write .*file: No space left on device; nothing was changed there"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert only(tmp_path) == ["file"]


@pytest.mark.parametrize("failing", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interruption_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, failing, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted(*args):
        raise error

    monkeypatch.setattr(failing, interrupted)

    with pytest.raises(StorageError if isinstance(error, OSError) else error):
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert only(tmp_path) == ["file"]


def test_a_folder_in_the_way_is_an_error_that_names_it(tmp_path):
    (tmp_path / "taken").mkdir()

    with pytest.raises(StorageError, match=r"cannot write .*taken: it is a folder; name a file"):
        write_atomically(tmp_path / "taken", b"content")
    assert only(tmp_path) == ["taken"]


def test_a_file_where_a_folder_is_wanted_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(StorageError, match=r"cannot write .*record"):
        write_atomically(tmp_path / "file" / "record", b"content")


def test_files_that_do_not_fit_on_the_disk_together_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("former")
    script = (
        "from pathlib import Path; from pimcal.files import replace_together\n"
        "replace_together(Path('out'), {'a': b'small', 'b': bytes(1_000_000)})"
    )
    tight = ("sh", "-c", 'ulimit -f 200; exec "$@"', "sh")  # a limit on file size stands in for a full disk
    done = subprocess.run(
        [*tight, sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "StorageError: cannot write to out: File too large; nothing was changed there" in done.stderr
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {"a": b"former"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_place_that_is_no_folder_for_several_files_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(StorageError, match="cannot write to"):
            replace_together(out, {"a": b"new"})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"file": b"mine"}


def test_files_replaced_together_need_nothing_beside_their_folder(tmp_path: Path) -> None:
    """The folder may be a mount point, or stand where nothing else may be made."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("former")
    os.utime(tmp_path, (0, 0))
    check_writable(out)
    replace_together(out, {"a": b"new", "b": b"more"})
    assert tmp_path.stat().st_mtime == 0
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {"a": b"new", "b": b"more"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_new_folders_go_again_where_their_files_cannot_be_written(tmp_path, monkeypatch, error):
    (tmp_path / "old").mkdir()

    def interrupted(*args):
        raise error

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(StorageError if isinstance(error, OSError) else error):
        replace_together(tmp_path / "old" / "new" / "deep", {"a": b"content"})
    monkeypatch.undo()
    assert only(tmp_path) == ["old"]
    assert only(tmp_path / "old") == []


def test_whether_a_folder_can_be_written_is_tried_and_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "deep")
    assert only(tmp_path) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder in which not even root makes files")  # noqa: PTH112
def test_a_folder_that_takes_no_file_is_refused_whatever_its_mode_says() -> None:
    with pytest.raises(StorageError, match="cannot write to /proc/self: no file can be made in /proc/self"):
        check_writable(Path("/proc/self"))
