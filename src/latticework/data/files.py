"""What a user's files are: a stamp that tells whether they changed, and a digest of their bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple


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


@lru_cache(maxsize=128)
def bytes_digest(of: tuple[Stamp, ...]) -> str:
    """SHA-256 over names and bytes, read once while the files stay the same."""
    sha = hashlib.sha256()
    for item in of:
        with open(item.path, "rb") as stream:
            sha.update(item.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return sha.hexdigest()
