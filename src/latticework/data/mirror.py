"""Files of the catalogue: found under ``LATTICEWORK_DATA``, or fetched from ``LATTICEWORK_MIRROR``, always by SHA-256.

``LATTICEWORK_DATA`` is a folder with one sub-folder a data set; ``LATTICEWORK_MIRROR`` is the address of such a folder on
a web server. What is fetched is kept under ``LATTICEWORK_CACHE`` (left out: the user's cache folder).
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latticework.core.errors import Failure, UserError
from latticework.core.ledger import disk_errors

if TYPE_CHECKING:
    import scipy.sparse as sp

# three heterogeneous graphs, of which hypergraphs are made, too
HECO: Mapping[str, str] = {
    "acm": "816ecebf495b141a21d8a6681ced5174a4a6e3b23144fe71cfcfd70c14319f3f",
    "imdb": "514bc7063bbedc245269e09733b1aa638f5b3ef87af9995b6053891c4cebb846",
    "dblp": "3a5c5c714faec8ab1acdfd4096c0db6aaad02c73488e937179a9938cebea5117",
}


def locate(folder: str, file: str, sha256: str) -> Path:
    """The path of a catalogue file whose SHA-256 is `sha256`.

    Raises `UserError` where neither folder nor mirror is named or the bytes are other ones, `Failure` where the mirror
    does not answer.
    """
    root = os.environ.get("LATTICEWORK_DATA")
    if root:
        path = Path(root) / folder / file
        if path.is_file():
            _expect(path, sha256)
            return path
    mirror = os.environ.get("LATTICEWORK_MIRROR")
    if mirror:
        return _fetch(f"{mirror.rstrip('/')}/{folder}/{file}", folder, file, sha256)
    where = f"{root} has no {folder}/{file}" if root else "LATTICEWORK_DATA is not set"
    raise UserError(
        f"the data set {folder} is not here: {where}; set LATTICEWORK_DATA to a folder that holds {folder}/{file}, "
        "or LATTICEWORK_MIRROR to the address of one"
    )


def present(folder: str) -> bool:
    """Whether a folder of the catalogue lies under ``LATTICEWORK_DATA``."""
    root = os.environ.get("LATTICEWORK_DATA")
    return bool(root) and (Path(str(root)) / folder).is_dir()


def _fetch(url: str, folder: str, file: str, sha256: str) -> Path:
    import pooch
    import requests
    from filelock import FileLock

    cache = Path(os.environ.get("LATTICEWORK_CACHE") or pooch.os_cache("latticework")) / folder
    with disk_errors(cache):
        (cache / file).parent.mkdir(parents=True, exist_ok=True)
    pooch.get_logger().setLevel("WARNING")
    # a second process waits here and then finds the file
    with FileLock(f"{cache / file}.lock"):
        try:
            return Path(pooch.retrieve(url, f"sha256:{sha256}", fname=file, path=cache))
        except ValueError:
            raise UserError(
                f"{url} is not the file of the catalogue (its SHA-256 differs from {sha256[:12]}…); nothing was kept"
            ) from None
        except (requests.RequestException, OSError) as error:
            raise Failure(f"cannot fetch {url}: {error}; nothing was kept, try again") from None


def read_arrays(path: Path) -> dict[str, Any]:
    """All arrays of an ``.npz`` of the catalogue, by name; nothing in it is executed. `ValueError` where it is no such archive."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):  # numpy would take it for a pickle, and advise to load that
            raise ValueError("it is not an .npz archive, or it is cut short")
    with np.load(path, allow_pickle=False) as held:
        return {name: held[name] for name in held.files}


def csr_of(parts: Mapping[str, Any], name: str) -> sp.csr_array:
    """float32 CSR of ``NAME_indptr``, ``NAME_indices``, ``NAME_shape`` and ``NAME_data`` (left out: all ones)."""
    import scipy.sparse as sp

    indices = parts[f"{name}_indices"]
    values = parts.get(f"{name}_data", np.ones(len(indices), np.float32)).astype(np.float32)
    return sp.csr_array((values, indices, parts[f"{name}_indptr"]), shape=tuple(int(s) for s in parts[f"{name}_shape"]))


def _expect(path: Path, sha256: str) -> None:
    stat = path.stat()
    if digest_of_file(str(path), stat.st_mtime_ns, stat.st_size) != sha256:
        raise UserError(f"{path} is not the file of the catalogue (its SHA-256 differs from {sha256[:12]}…); get it again")


@lru_cache(maxsize=256)
def digest_of_file(path: str, mtime_ns: int, size: int) -> str:
    """SHA-256 of a file, read once while its time and size stay the same."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
