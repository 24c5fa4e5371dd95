"""The files of records, named by the SHA-256 of their content: what is there is complete, or found out."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pimcal.errors import DataError, StorageError
from pimcal.files import read_regular, write_atomically
from pimcal.record import LARGEST, Record
from pimcal.store.generations import Generation

SUFFIX = ".safetensors"


def file_of(folder: Path, sha256: str) -> Path:
    return folder / "tensors" / f"{sha256}{SUFFIX}"


def hash_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def put(folder: Path, content: bytes) -> str:
    """Write a record's file and sync it to disk; returns its name. What stood there is replaced: it may be damaged."""
    sha256 = hash_of(content)
    write_atomically(file_of(folder, sha256), content, follow=False)
    return sha256


def content_of(folder: Path, generation: Generation) -> bytes:
    """A generation's file. Raises StorageError where gc has removed it, it is missing or is not what was written."""
    if generation.collected_at is not None:  # its file may be there still, for another generation
        raise StorageError(
            f"generation {generation.id} of store {folder} was removed by gc; its history is all there is"
        )
    path = file_of(folder, generation.sha256)
    try:
        content = read_regular(path, LARGEST)
    except OSError as error:
        raise _damaged(folder, generation, path, error.strerror or str(error)) from error
    if hash_of(content) != generation.sha256:
        raise _damaged(folder, generation, path, "its content is not what was written")
    return content


def load(folder: Path, generation: Generation) -> Record:
    """A generation's record. Raises StorageError where its file is missing or damaged."""
    content, path = content_of(folder, generation), file_of(folder, generation.sha256)
    try:
        return Record.from_bytes(content, path)
    except DataError as error:  # another pimcal's format
        raise _damaged(folder, generation, path, str(error)) from error


def _damaged(folder: Path, generation: Generation, path: Path, what: str) -> StorageError:
    return StorageError(
        f"{path}, the tensors of generation {generation.id} ({generation.state}), cannot be used: {what}; "
        f"go back to another one (pimcal records rollback --store {folder}) or calibrate again"
    )
