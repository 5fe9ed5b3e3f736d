"""The ledger: what is finished, on disk, whole or not at all.

    runs/fits/<key>/    model.json, weights.safetensors, fit.json      one fitted model
    runs/cells/<key>/   result.json, findings.json                     one judged cell
    runs/work/<key>/    the newest checkpoint of a fit that is not finished
    runs/grids/<key>.json   which cells make a board
    runs/choices/<key>.json what a search found, where its fits are elsewhere
    runs/locks, runs/tmp

A folder is filled under ``tmp`` and renamed, so SIGKILL leaves either all of it or none. A cell in work is held by a
file lock, which the operating system frees when its process dies. What is damaged all the same (a disk, a copy cut
short) counts as not finished, with a warning that names it: it is made again when it is asked for.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .errors import Damaged, Failure, Held, UserError
from .result import Result


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn a full disk, a missing permission or a folder in a file's place into a sentence."""
    try:
        yield
    except PermissionError as error:
        raise UserError(f"cannot write in {where}: no permission ({error.strerror}); choose another folder") from None
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{error.filename or where} is a file where a folder is to be; choose another folder") from None
    except IsADirectoryError:
        raise UserError(f"{where} is a folder where a file is to be; name the file too, as {where / 'answers.csv'}") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Failure(
                f"the disk is full while writing {where}; nothing was left half-written; free room, then rerun"
            ) from None
        if error.errno == errno.EROFS:
            raise UserError(f"cannot write in {where}: it is read-only; choose another folder") from None
        raise


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that `write_json` or `write_whole` left; `Damaged` where it is that no more."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"{path} is cut short or no JSON ({error})") from None
    if not isinstance(found, dict):
        raise Damaged(f"{path} is not what was written (its JSON is {type(found).__name__}, not an object)")
    return found


def passed_over(error: Damaged, then: str) -> None:
    """Warn of damage that does not stop the work, with what happens instead."""
    warnings.warn(f"{error}; {then}", stacklevel=3)


def write_json(path: Path, plain: Any) -> None:
    """Canonical JSON on disk, flushed."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(plain, file, indent=1, sort_keys=True, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, data: bytes | str) -> None:
    """A file that appears whole: written beside its place, then renamed over it."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            os.fchmod(handle, 0o666 & ~_umask())  # a temporary file is private by default; this one is the user's
            with os.fdopen(handle, "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def write_folder(final: Path, fill: Callable[[Path], None], scratch: Path | None = None) -> None:
    """A folder that appears whole; one of its kind that stood there before is replaced.

    `UserError` for a file in its place, and for a folder of which it would hold nothing by name: that is somebody's own.
    """
    with disk_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        draft = scratch or final.with_name(f".{final.name}.draft-{os.getpid()}")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            fill(draft)
            if final.exists():
                _own(final, draft)
                old = draft.with_name(draft.name + ".old")
                shutil.rmtree(old, ignore_errors=True)
                os.rename(final, old)
                os.rename(draft, final)
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.rename(draft, final)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise


def _own(final: Path, draft: Path) -> None:
    if not final.is_dir():
        raise UserError(f"{final} is a file, and a folder is to be written; choose another name")
    there = sorted(os.listdir(final))
    if there and not set(there) & set(os.listdir(draft)):
        raise UserError(f"{final} holds something else ({there[0]!r}, {len(there)} in all), which is kept; choose another name")


class Ledger:
    """A folder of finished fits and cells; without a folder it lives as long as the process."""

    def __init__(self, root: Path | str | None = None) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="latticework-") if root is None else None
        self.root = Path(self._temporary.name if self._temporary else root)  # type: ignore[arg-type]
        with disk_errors(self.root):
            for name in ("fits", "cells", "locks", "tmp", "work", "grids", "choices"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            if not os.access(self.root / "tmp", os.W_OK):
                raise PermissionError(errno.EACCES, "not writable")

    # -- locks -----------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def hold(self, key: str, wait: bool) -> Iterator[None]:
        """Hold a key; `Held` at once when another process does and `wait` is false."""
        lock = FileLock(str(self.root / "locks" / f"{key}.lock"))
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            raise Held(key) from None
        try:
            yield
        finally:
            lock.release()

    # -- cells -----------------------------------------------------------------------------------------------
    def result(self, key: str) -> Result | None:
        path = self.root / "cells" / key / "result.json"
        if not path.exists():
            return None
        try:
            try:
                return Result.from_plain(read_json(path))
            except (AttributeError, KeyError, TypeError) as error:
                raise Damaged(f"{path} is no cell's result ({type(error).__name__}: {error})") from None
        except Damaged as error:
            passed_over(error, "the cell counts as not finished")
            return None

    def findings(self, key: str) -> dict[str, Any]:
        path = self.root / "cells" / key / "findings.json"
        try:
            return read_json(path) if path.exists() else {}
        except Damaged as error:
            passed_over(error, "the findings of this cell are left out")
            return {}

    def put_result(self, result: Result, findings: Mapping[str, Any] | None = None) -> None:
        def fill(folder: Path) -> None:
            write_json(folder / "result.json", result.plain())
            if findings:
                write_json(folder / "findings.json", findings)

        write_folder(self.root / "cells" / result.cell, fill, self.root / "tmp" / f"cell-{result.cell}")

    def results(self) -> Iterator[Result]:
        for folder in sorted((self.root / "cells").iterdir()):
            found = self.result(folder.name)
            if found is not None:
                yield found

    # -- grids -----------------------------------------------------------------------------------------------
    def put_grid(self, plain: Mapping[str, Any], command: str) -> None:
        """Remember which cells make a board, for `report`."""
        from .value import digest_of

        text = json.dumps({"grid": dict(plain), "command": command}, indent=1, sort_keys=True)
        write_whole(self.root / "grids" / f"{digest_of(dict(plain))[:16]}.json", text)

    def last_grid(self) -> dict[str, Any] | None:
        """The grid that was asked for last."""
        for path in sorted((self.root / "grids").glob("*.json"), key=lambda p: p.stat().st_mtime_ns, reverse=True):
            try:
                return read_json(path)
            except Damaged as error:
                passed_over(error, "the grid before it is taken")
        return None

    # -- fits ------------------------------------------------------------------------------------------------
    def fit_folder(self, key: str) -> Path | None:
        folder = self.root / "fits" / key
        return folder if (folder / "fit.json").exists() else None

    def fit_facts(self, key: str) -> dict[str, Any]:
        """What is recorded of a fit; `Damaged` where its file is."""
        return read_json(self.root / "fits" / key / "fit.json")

    def put_fit(self, key: str, fill: Callable[[Path], None], facts: Mapping[str, Any]) -> None:
        def both(folder: Path) -> None:
            fill(folder)
            write_json(folder / "fit.json", facts)

        write_folder(self.root / "fits" / key, both, self.root / "tmp" / f"fit-{key}")
        shutil.rmtree(self.root / "work" / key, ignore_errors=True)

    def choice(self, key: str) -> dict[str, Any] | None:
        """The method that a fit ended with and what it cost, where the fit is here or was recorded elsewhere."""
        path = self.root / "choices" / f"{key}.json"
        try:
            if self.fit_folder(key) is not None:
                facts = self.fit_facts(key)
                return {name: facts[name] for name in ("chosen", "fit_s", "refs_s")}
            return read_json(path) if path.exists() else None
        except Damaged as error:
            passed_over(error, "the search is made again")
            return None

    def put_choice(self, key: str, facts: Mapping[str, Any]) -> None:
        """Take over what a search found elsewhere."""
        write_whole(self.root / "choices" / f"{key}.json", json.dumps(dict(facts), indent=1, sort_keys=True))

    def work_folder(self, key: str) -> Path:
        return self.root / "work" / key
