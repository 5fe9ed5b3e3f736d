"""The kind *sets*: unordered sets of numbers or of vectors, each with a target. Container, readers, check, writer, generators.

A user's file is ``sets.npz`` (values [n] or [n, F], one set after another, and sizes [B]; also target [B], ids, split, features) or
``sets.csv`` (set,value…[,target][,split]: a line an element, lines of a set anywhere), alone or in a folder; parquet is read as the
table. A set of the table is named by its column `set`; its target and split stand on each of its lines. A set without elements can
be written in the ``.npz`` alone. Nothing is sorted, merged or left out.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from latticework.core.dataset import Dataset, Given
from latticework.core.errors import UserError
from latticework.core.ledger import write_whole
from latticework.core.task import Part
from latticework.core.value import digest_of, setting

from .files import Stamp, arrays_digest, bytes_digest, stamps
from .graph import coded, fact_lines, read_split
from .mirror import read_arrays
from .table import column_named, find_table, header, line_of, need, numbers, read_table

if TYPE_CHECKING:
    import polars as pl

Array = np.ndarray[Any, Any]
SET, TARGET, SPLIT = ("set", "set_id"), ("target", "y"), ("split",)
FORM = "sets.npz (values, sizes[, target]) or sets.csv (set,value…[,target])"
SPLIT_NAMES = ("train", "valid", "test")
_WORDS = {"": -1, "train": 0, "valid": 1, "validation": 1, "val": 1, "test": 2}
NPZ_OPTIONAL = ("target", "ids", "split", "features")


class SetRows(NamedTuple):
    """Which sets of a part are asked about: `rows` int64 [q], numbers of its sets; `ids` of all its sets."""

    rows: Array
    ids: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Sets:
    """B sets of n elements in all, one after another.

    sizes int64 [B], 0 for an empty set; values float32 [n, F] with the columns `features`; y float64 [B], NaN unknown, or none;
    split int8 [B], 0 train, 1 valid, 2 test, -1 none of them, or none. The order of a set's elements is that of the file and
    means nothing.
    """

    ids: tuple[str, ...]
    sizes: Array
    values: Array
    features: tuple[str, ...] = ("value",)
    y: Array | None = None
    split: Array | None = None
    notes: tuple[str, ...] = ()
    _cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def ptr(self) -> Array:
        """int64 [B + 1]: set i has the elements ptr[i] to ptr[i + 1]."""
        return np.concatenate(([0], np.cumsum(self.sizes))).astype(np.int64)

    @property
    def index(self) -> Array:
        """int64 [n]: the set of each element."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    def take(self, rows: Array) -> Sets:
        """Some sets (numbers int64 [k], in the order wanted)."""
        rows = np.asarray(rows, np.int64)
        sizes, start = self.sizes[rows], self.ptr[rows]
        before = np.cumsum(sizes) - sizes
        at = np.repeat(start - before, sizes) + np.arange(int(sizes.sum()))
        return replace(
            self, ids=tuple(self.ids[i] for i in rows.tolist()), sizes=sizes, values=self.values[at],
            y=None if self.y is None else self.y[rows], split=None if self.split is None else self.split[rows], _cache={},
        )  # fmt: skip

    def hidden(self) -> Sets:
        """The same sets without targets and split."""
        return replace(self, y=None, split=None, _cache={})


def schema_of(sets: Sets) -> dict[str, Any]:
    """What a model keeps: the names of the columns, in their order."""
    return {"features": list(sets.features)}


# -- reading -------------------------------------------------------------------------------------------------------------
def file_of(path: Path) -> Path | None:
    """The file of a path: itself, or ``sets.npz``, ``sets.csv`` or ``sets.parquet`` of a folder."""
    if not path.is_dir():
        return path if path.is_file() else None
    return path / "sets.npz" if (path / "sets.npz").is_file() else find_table(path, "sets")


def read_sets(path: Path) -> Sets:
    """A user's sets. `UserError` names the file, and the line and column or the array and its place."""
    file = file_of(path)
    if file is None:
        raise UserError(f"{path} holds no {FORM}")
    return _from_arrays(file) if file.suffix == ".npz" else _from_table(file)


def _from_table(path: Path) -> Sets:
    frame = read_table(path)
    name, target, split = need(path, frame, *SET), column_named(frame, *TARGET), column_named(frame, *SPLIT)
    unnamed = (frame[name] == "").arg_true()
    if len(unnamed):
        raise UserError(f"{path}, line {line_of(unnamed[0])}, column {name!r}: no set is named")
    columns = [c for c in frame.columns if c not in (name, target, split)]
    if not columns:
        raise UserError(f"{path} has no column of values beside {', '.join(frame.columns)}")
    with np.errstate(over="ignore"):  # said by what follows
        values = np.stack([numbers(path, frame[c]).to_numpy() for c in columns], 1).astype(np.float32)
    _check_range(path, values, columns)
    ids, (code,) = coded([frame[name]])
    first = np.full(len(ids), len(code), np.int64)
    np.minimum.at(first, code, np.arange(len(code)))
    y = None
    if target is not None:
        _one_a_set(path, frame[target], code, first)
        cells = frame[target].gather(first)
        known = (cells != "").to_numpy()
        y = np.full(len(ids), np.nan)
        numbers(path, _blank_as(frame[target], "0"))  # names the line of the first that is no number
        y[known] = cells.filter(cells != "").cast(float).to_numpy()
    splits = None
    if split is not None:
        _one_a_set(path, frame[split], code, first)
        splits = read_split(path, frame[split])[first]
    order = np.argsort(code, kind="stable")
    notes = []
    if (np.diff(code) < 0).any():
        notes.append("the lines of some sets do not stand together; they were put together, in the order of the file")
    sizes = np.bincount(code, minlength=len(ids)).astype(np.int64)
    return Sets(tuple(ids.to_list()), sizes, values[order], tuple(columns), y, splits, tuple(notes))


def _blank_as(column: pl.Series, text: str) -> pl.Series:
    return column.set(column == "", text)


def _one_a_set(path: Path, column: pl.Series, code: Array, first: Array) -> None:
    """Each set has the same word on all its lines."""
    differs = (column != column.gather(first[code])).arg_true()
    if len(differs):
        row = int(differs[0])
        raise UserError(
            f"{path}, line {line_of(row)}, column {column.name!r}: {column[row]!r} where line {line_of(int(first[code[row]]))} of the "
            f"same set has {column[int(first[code[row]])]!r}"
        )


def _check_range(path: Path, values: Array, columns: Sequence[str]) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise UserError(f"{path}, element {row + 1}, column {columns[column]!r}: the value is not finite as a 32-bit number")


def _from_arrays(path: Path) -> Sets:
    try:
        held = read_arrays(path)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path} is not a readable .npz of plain arrays: {error}") from None
    for name in ("values", "sizes"):
        if name not in held:
            raise UserError(f"{path} has no array {name!r}; found {', '.join(held) or 'none'}")
    values, sizes = held["values"], held["sizes"]
    if values.dtype.kind not in "biuf":
        raise UserError(f"{path}: array 'values' is of type {values.dtype}; numbers are expected")
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or not values.shape[1]:
        raise UserError(f"{path}: array 'values' has the shape {list(held['values'].shape)}; [n] or [n, F] is expected")
    if sizes.ndim != 1 or sizes.dtype.kind not in "iu" or not len(sizes):
        raise UserError(f"{path}: array 'sizes' is {sizes.dtype} {list(sizes.shape)}; whole numbers [B] are expected, one a set")
    if (sizes < 0).any():
        raise UserError(f"{path}: set {int((sizes < 0).argmax())} has the negative size {int(sizes.min())}")
    if int(sizes.sum()) != len(values):
        raise UserError(f"{path}: the sizes add up to {int(sizes.sum())}, and there are {len(values)} values")
    wide = values.shape[1]
    features = _texts(path, held, "features", wide, ["value"] if wide == 1 else [f"value {i}" for i in range(wide)])
    ids = _texts(path, held, "ids", len(sizes), [str(i) for i in range(len(sizes))])
    for what, names in (("set", ids), ("feature", features)):
        if len(set(names)) < len(names):
            twice = next(n for i, n in enumerate(names) if n in names[:i])
            raise UserError(f"{path}: two {what}s are called {twice!r}")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    _check_range(path, values, features)
    y = None
    if "target" in held:
        y = held["target"]
        if y.dtype.kind not in "biuf" or y.shape != sizes.shape:
            raise UserError(
                f"{path}: array 'target' is {y.dtype} {list(y.shape)}; numbers [{len(sizes)}] are expected, one a set"
            )
        y = y.astype(np.float64)
        if np.isinf(y).any():
            raise UserError(f"{path}: the target of set {ids[int(np.isinf(y).argmax())]!r} is infinite")
    split = None
    if "split" in held:
        words = [w.lower() for w in _texts(path, held, "split", len(sizes), [])]
        for i, word in enumerate(words):
            if word not in _WORDS:
                raise UserError(f"{path}: set {ids[i]!r} has the split {word!r}; use train, valid, test or nothing")
        split = np.array([_WORDS[w] for w in words], np.int8)
    unused = sorted(set(held) - {"values", "sizes", *NPZ_OPTIONAL})
    notes = (f"arrays that nothing reads: {', '.join(unused)}",) if unused else ()
    return Sets(tuple(ids), sizes.astype(np.int64), values, tuple(features), y, split, notes)


def _texts(path: Path, held: Mapping[str, Array], name: str, count: int, default: list[str]) -> list[str]:
    if name not in held:
        return default
    found = held[name]
    if found.shape != (count,) or found.dtype.kind not in "UiuS":
        raise UserError(f"{path}: array {name!r} is {found.dtype} {list(found.shape)}; texts [{count}] are expected")
    return [t.decode() if isinstance(t, bytes) else str(t) for t in found.tolist()]


# -- what sets are like --------------------------------------------------------------------------------------------------
def facts(sets: Sets) -> dict[str, Any]:
    """Counts and shapes; computed once."""
    if "facts" not in sets._cache:
        sets._cache["facts"] = _facts(sets)
    found: dict[str, Any] = sets._cache["facts"]
    return found


def _facts(sets: Sets) -> dict[str, Any]:
    if not len(sets):
        raise UserError("there are no sets")
    known = np.zeros(0) if sets.y is None else sets.y[~np.isnan(sets.y)]
    found: dict[str, Any] = {
        "sets": len(sets),
        "elements": int(sets.sizes.sum()),
        "largest": int(sets.sizes.max()),
        "median": float(np.median(sets.sizes)),
        "smallest": int(sets.sizes.min()),
        "empty": int((sets.sizes == 0).sum()),
        "features": len(sets.features),
        "labelled": len(known),
        "duplicates": _duplicates(sets),
        "split": None if sets.split is None else {name: int((sets.split == code).sum()) for code, name in enumerate(SPLIT_NAMES)},
    }
    if len(known):
        found["lowest target"], found["highest target"] = float(known.min()), float(known.max())
    return found


def _duplicates(sets: Sets) -> int:
    """How many sets have exactly the elements of an earlier one, in any order."""
    order = np.lexsort((*sets.values.T[::-1], sets.index))
    rows, ptr = np.ascontiguousarray(sets.values[order]), sets.ptr
    return len(sets) - len({rows[a:b].tobytes() for a, b in zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True)})


def remarks(sets: Sets) -> list[str]:
    """What `data check` says beside the facts."""
    found, lines = facts(sets), list(sets.notes)
    if found["duplicates"]:
        lines.append(f"{found['duplicates']} sets have exactly the elements of an earlier one; all are kept")
    if found["empty"]:
        lines.append(f"{found['empty']} sets are empty")
    if sets.y is None:
        lines.append("no set has a target: add a column or an array 'target' to train on them")
    constant = [name for name, low, high in zip(sets.features, *_ranges(sets), strict=True) if low == high]
    if constant:
        lines.append(f"the same value throughout: {', '.join(constant)}")
    return lines


def _ranges(sets: Sets) -> tuple[list[float], list[float]]:
    if not len(sets.values):
        return [0.0] * len(sets.features), [1.0] * len(sets.features)
    return sets.values.min(0).tolist(), sets.values.max(0).tolist()


# -- the data sets -------------------------------------------------------------------------------------------------------
class SetData(Dataset):
    """What data sets of sets share: facts, check, writer and the whole as a part."""

    kind: ClassVar[str] = "sets"

    def read(self) -> Sets:
        raise NotImplementedError

    def facts(self) -> Mapping[str, Any]:
        return facts(self.read())

    def check(self) -> list[str]:
        sets = self.read()
        return fact_lines(facts(sets)) + remarks(sets)

    def write(self, to: Path) -> None:
        write_sets(self.read(), to)

    def whole(self) -> Part:
        sets = self.read()
        return Part(sets, SetRows(np.arange(len(sets)), sets.ids), None, schema_of(sets))


def write_sets(sets: Sets, to: Path) -> None:
    """``sets.csv`` in a folder, or the file itself where `to` ends in .csv or .npz; with an empty set the folder gets ``sets.npz``."""
    import polars as pl

    empty = bool((sets.sizes == 0).any())
    if not to.suffix:
        to = to / ("sets.npz" if empty else "sets.csv")
    if to.suffix == ".npz":
        arrays: dict[str, Any] = {
            "values": sets.values, "sizes": sets.sizes, "ids": np.array(sets.ids, str), "features": np.array(sets.features, str),
        }  # fmt: skip
        if sets.y is not None:
            arrays["target"] = sets.y
        if sets.split is not None:
            arrays["split"] = np.array(["", *SPLIT_NAMES])[sets.split + 1]
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_whole(to, buffer.getvalue())
        return
    if empty:
        raise UserError(f"{to}: a set without elements has no line in a table; write an .npz")
    index = sets.index
    columns: dict[str, Any] = {"set": np.array(sets.ids, object)[index].tolist()}
    columns |= {name: sets.values[:, i] for i, name in enumerate(sets.features)}
    if sets.y is not None:
        columns["target"] = pl.Series(sets.y[index]).fill_nan(None)
    if sets.split is not None:
        columns["split"] = np.array(["", *SPLIT_NAMES])[sets.split[index] + 1].tolist()
    write_whole(to, pl.DataFrame(columns).write_csv())


class SetFiles(SetData):
    """A user's sets, by path; their identity is the bytes of the file, not where it lies."""

    name: ClassVar[str] = "set-files"
    path: Path = setting(..., "sets.npz or sets.csv, or a folder that holds it")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By header: a table with a column `set`, or an .npz with the arrays values and sizes."""
        file = file_of(path)
        if file is None:
            return False
        if file.suffix == ".npz":
            try:
                with zipfile.ZipFile(file) as held:
                    return {"values.npy", "sizes.npy"} <= set(held.namelist())
            except (OSError, zipfile.BadZipFile):
                return False
        return file.suffix in (".csv", ".parquet") and bool(set(header(file)) & set(SET))

    @classmethod
    def from_object(cls, given: Any) -> Dataset | None:
        """`Sets` made in Python."""
        return GivenSets.hold(given) if isinstance(given, Sets) else None

    def _file(self) -> Path:
        file = file_of(self.path)
        if file is None:
            raise UserError(f"{self.path} holds no {FORM}")
        return file

    def read(self) -> Sets:
        file = self._file()
        return _read_cached(file, stamps([file], file))

    def digest(self) -> str:
        file = self._file()
        return digest_of([self.name, bytes_digest(stamps([file], file))])


@lru_cache(maxsize=4)
def _read_cached(path: Path, stamp: tuple[Stamp, ...]) -> Sets:
    return read_sets(path)


class GivenSets(Given, SetData):
    """Sets made in Python; they live as long as the process and are named by their content."""

    name: ClassVar[str] = "given-sets"

    @classmethod
    def hold(cls, sets: Sets) -> GivenSets:
        if len(sets.ids) != len(sets.sizes) or len(set(sets.ids)) < len(sets.ids):
            raise UserError(f"{len(sets.sizes)} sets need as many ids, each of its own")
        if (sets.sizes < 0).any() or int(sets.sizes.sum()) != len(sets.values):
            raise UserError(f"the sizes add up to {int(sets.sizes.sum())}, and there are {len(sets.values)} values")
        if sets.values.ndim != 2 or sets.values.shape[1] != len(sets.features):
            raise UserError(f"the values have the shape {list(sets.values.shape)} and {len(sets.features)} features are named")
        if not np.isfinite(sets.values).all():
            raise UserError("a value is not finite")
        if sets.y is not None and (sets.y.shape != sets.sizes.shape or np.isinf(sets.y).any()):
            raise UserError("the targets are one finite number a set, or NaN where there is none")
        arrays = (sets.sizes, sets.values, sets.y, sets.split)
        digest = arrays_digest(arrays, (sets.ids, sets.features))
        cls._held[digest] = sets
        return cls(content=digest)


# -- generators ----------------------------------------------------------------------------------------------------------
class DrawnSets(SetData):
    """Sets drawn by a seed: sizes evenly from `smallest` to `largest`. A task may draw more by the same recipe (`draw`)."""

    sets: int = setting(20_000, "how many sets", ge=1, le=10_000_000)
    smallest: int = setting(2, "elements of a set, at least", ge=1, le=100_000)
    largest: int = setting(16, "elements of a set, at most", ge=1, le=100_000)
    seed: int = setting(0, "of the draw", ge=0)

    def elements(self, sizes: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """Values float32 [n, 1] of sets of these sizes, and their targets float64 [B]."""
        raise NotImplementedError

    def draw(self, sizes: Array, rng: np.random.Generator) -> Sets:
        """Fresh sets of the sizes int64 [B], by the recipe of this data set."""
        values, y = self.elements(np.asarray(sizes, np.int64), rng)
        return Sets(tuple(map(str, range(len(sizes)))), np.asarray(sizes, np.int64), values, ("value",), y)

    def digest(self) -> str:
        return digest_of(self.identity())

    def read(self) -> Sets:
        return _drawn(self)


@lru_cache(maxsize=4)
def _drawn(of: DrawnSets) -> Sets:
    if of.smallest > of.largest:
        raise UserError(f"{of.name}: smallest={of.smallest} is above largest={of.largest}")
    rng = np.random.default_rng([of.seed, 0x5E75])
    return of.draw(rng.integers(of.smallest, of.largest + 1, of.sets), rng)


class SecondMinimum(DrawnSets):
    """Values from U(0, 1); the target is the second smallest of them (1 for a set of one)."""

    name: ClassVar[str] = "second-minimum"

    def elements(self, sizes: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        values = rng.random(int(sizes.sum()), np.float32)
        index = np.repeat(np.arange(len(sizes)), sizes)
        ordered = values[np.lexsort((values, index))]
        start = np.cumsum(sizes) - sizes
        y = np.ones(len(sizes))
        many = sizes > 1
        y[many] = ordered[start[many] + 1]
        return values[:, None], y


class SumModulo(DrawnSets):
    """Bits, 0 or 1 with equal chance; the target is their sum modulo `modulus` (2: parity). What a recurrent fold counts easily."""

    name: ClassVar[str] = "sum-modulo"
    modulus: int = setting(2, "the target is the sum modulo this number", ge=2, le=1000)

    def elements(self, sizes: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        values = rng.integers(0, 2, int(sizes.sum()))
        total = np.bincount(np.repeat(np.arange(len(sizes)), sizes), values, len(sizes))
        return values.astype(np.float32)[:, None], total % self.modulus
