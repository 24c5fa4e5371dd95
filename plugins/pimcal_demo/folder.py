"""Several files of a folder, replaced together."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pimcal.errors import StorageError
from pimcal.files import write_atomically


def replace_together(out: Path, files: Mapping[str, bytes]) -> None:
    """Put `files` into the folder `out`, all of them or none, even where Ctrl-C or a full disk comes between.

    Raises StorageError; the folder is as it was then.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
            staged = [Path(folder) / name for name in files]
            for path in staged:
                write_atomically(path, files[path.name])
            with ThreadPoolExecutor(max_workers=1) as mover:  # Ctrl-C interrupts the main thread only
                mover.submit(_move, staged, out).result()
    except (OSError, StorageError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        reason = getattr(cause, "strerror", None) or error
        raise StorageError(f"cannot write the report to {out}: {reason}; nothing was changed there") from error


def _move(files: list[Path], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for file in files:
        file.replace(folder / file.name)
