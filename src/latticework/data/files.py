"""What a user's files are: a stamp that tells whether they changed, and a digest of their bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .mirror import digest_of_file


class Stamp(NamedTuple):
    """One file as it stands: where, when it was written, how long it is."""

    path: str
    name: str  # below the folder that the user named: moving the folder changes no digest
    written: int
    size: int


def stamps(files: Sequence[Path], root: Path) -> tuple[Stamp, ...]:
    """Stamps of files in a folder `root`, or of the one file `root`."""
    found = []
    for file in files:
        name = file.name if file == root else file.relative_to(root).as_posix()
        state = file.stat()
        found.append(Stamp(str(file), name, state.st_mtime_ns, state.st_size))
    return tuple(found)


def bytes_digest(of: Sequence[Stamp]) -> str:
    """SHA-256 over names and bytes; a file is read once while it stays the same."""
    sha = hashlib.sha256()
    for item in of:
        sha.update(item.name.encode() + bytes.fromhex(digest_of_file(item.path, item.written, item.size)))
    return sha.hexdigest()


def arrays_digest(arrays: Iterable[np.ndarray[Any, Any] | None], words: Any) -> str:
    """SHA-256 of arrays, with their types and shapes, and of all else that tells two contents apart (by its ``repr``)."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(b"none" if array is None else repr((array.dtype.str, array.shape)).encode() + array.tobytes())
    sha.update(repr(words).encode())
    return sha.hexdigest()
