"""Tables as people write them: CSV with any header order, a BOM, CRLF, or semicolons; parquet beside it.

Every value is text until something asks for numbers; an error names the file, the line, the column and the value.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latticework.core.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    Array = np.ndarray[Any, Any]

SUFFIXES = (".csv", ".parquet")


def is_number(text: str) -> bool:
    """Whether a text is a number, finite or not."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def find_table(folder: Path, stem: str) -> Path | None:
    """``stem.csv`` or ``stem.parquet`` in a folder."""
    for suffix in SUFFIXES:
        if (folder / f"{stem}{suffix}").is_file():
            return folder / f"{stem}{suffix}"
    return None


def header(path: Path) -> list[str]:
    """The column names, lower case; empty where the file is no readable table."""
    try:
        if path.suffix == ".parquet":
            import polars as pl

            return [name.strip().lower() for name in pl.read_parquet_schema(path)]
        with path.open("rb") as file:
            line = file.readline(1_000_000).decode("utf-8-sig")
        return [cell.strip().strip('"').lower() for cell in line.strip().split(_separator(line))]
    except (OSError, UnicodeDecodeError, ValueError):
        return []


def read_table(path: Path) -> pl.DataFrame:
    """All columns as text, names stripped (lower case where they are known words), nothing dropped."""
    import polars as pl

    if path.suffix == ".parquet":
        try:
            frame = pl.read_parquet(path)
        except Exception as error:
            raise UserError(f"{path} is not a readable parquet file: {error}") from None
        for name, kind in frame.schema.items():
            try:
                frame = frame.with_columns(pl.col(name).cast(pl.Utf8).fill_null(""))
            except pl.exceptions.PolarsError:
                raise UserError(f"{path}, column {name!r}: {kind} where texts, numbers or dates are expected") from None
        return _named(path, frame)
    data = text_bytes(path)
    first, _, rest = data.partition(b"\n")
    separator = _separator(first.decode())
    names = next(csv.reader([first.decode().strip()], delimiter=separator))
    if not rest.strip():
        raise UserError(f"{path}: only a header ({', '.join(names)}) and no rows")
    _check_width(path, data, len(names), separator)
    try:
        frame = pl.read_csv(
            io.BytesIO(rest), has_header=False, new_columns=[f"c{i}" for i in range(len(names))], separator=separator,
            infer_schema=False, schema={f"c{i}": pl.Utf8 for i in range(len(names))},
        )  # fmt: skip
    except pl.exceptions.PolarsError as error:
        _exact_width(path, data, len(names), separator, free=False)
        raise UserError(f"{path} is not a table with {len(names)} columns: {error}") from None
    if frame.width != len(names):
        _exact_width(path, data, len(names), separator)
    frame.columns = _unique(path, [n.strip() for n in names])
    frame = frame.with_columns(pl.all().fill_null(""))
    if b" " in rest or b"\t" in rest:  # spaces around a cell are the spreadsheet's, never meant
        frame = frame.with_columns(pl.all().str.strip_chars())
    return _named(path, frame)


def _named(path: Path, frame: pl.DataFrame) -> pl.DataFrame:
    frame.columns = _unique(path, [name.strip() for name in frame.columns])
    return frame


def _unique(path: Path, names: list[str]) -> list[str]:
    seen: set[str] = set()
    for i, name in enumerate(names):
        if not name:
            raise UserError(f"{path}: column {i + 1} of the header has no name")
        # columns that are made from values, p(class) and column=category, may differ in case alone
        key = name if "=" in name or name.endswith(")") else name.lower()
        if key in seen:
            raise UserError(f"{path}: the header names column {name!r} twice")
        seen.add(key)
    return names


def text_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not data.strip():
        raise UserError(f"{path} is empty; expected a header line and rows")
    if data[:2] == b"\x1f\x8b":
        raise UserError(f"{path} is gzip-compressed, not CSV; unpack it first (gunzip)")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path} is UTF-16; save it as UTF-8 (in a spreadsheet: 'CSV UTF-8')")
    if b"\x00" in data[:4096]:
        raise UserError(f"{path} is a binary file, not CSV")
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8") from None
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return data.rstrip(b"\n ") + b"\n"


def _separator(line: str) -> str:
    counts = {mark: line.count(mark) for mark in (",", ";", "\t")}
    return max(counts, key=lambda mark: counts[mark]) if any(counts.values()) else ","


def _check_width(path: Path, data: bytes, columns: int, separator: str) -> None:
    """Every row has as many cells as the header: polars would fill short rows silently."""
    lines = data.count(b"\n")
    if b'"' not in data and data.count(separator.encode()) == lines * (columns - 1) and columns > 1:
        return  # as many separators as rows need: a short row would show, unless a long one hides it, which polars refuses
    _exact_width(path, data, columns, separator)


def _exact_width(path: Path, data: bytes, columns: int, separator: str, free: bool = True) -> None:
    """Every row, read with its quotes, has as many cells as the header; `free`: a quote may stand within a cell that has none around it."""
    lines: list[str] = []  # of the row that is read

    def kept() -> Iterator[str]:
        for line in io.StringIO(data.decode(), newline="\n"):
            lines.append(line)
            yield line

    why, begins = "quotes stand around whole cells, and one within a cell is written twice", 1
    reader = csv.reader(kept(), delimiter=separator, strict=True)
    try:
        for row in reader:
            if len(row) != columns:
                raise UserError(f"{path}, line {reader.line_num}: {len(row)} cells where the header has {columns}")
            for cell in row if not free else ():
                if '"' in cell and '"' + cell.replace('"', '""') + '"' not in "".join(lines):
                    raise UserError(f"{path}, line {begins}: {why}; found {cell}")
            begins = reader.line_num + 1
            lines.clear()
    except csv.Error as error:
        raise UserError(f"{path}, line {begins}: {why} ({error})") from None


def column_named(frame: pl.DataFrame, *names: str) -> str | None:
    """The column whose name, without case, is one of these; where several are, the one that is named first here."""
    columns = {column.lower(): column for column in frame.columns}
    return next((columns[name] for name in names if name in columns), None)


def need(path: Path, frame: pl.DataFrame, *names: str) -> str:
    """Like `column_named`, with an error saying what was found."""
    found = column_named(frame, *names)
    if found is None:
        raise UserError(f"{path} has no column {names[0]!r}; found {', '.join(frame.columns)}")
    return found


def numbers(path: Path, column: pl.Series) -> pl.Series:
    """A text column as float64, every cell a finite number; the error names the first that is not."""
    import polars as pl

    values = column.cast(pl.Float64, strict=False)
    bad = values.is_null() | ~values.is_finite().fill_null(False)
    if bad.any():
        row = bad.arg_true()[0]
        found = column[row]
        what = "empty" if not found else repr(found)
        raise UserError(f"{path}, line {line_of(row)}, column {column.name!r}: {what} where a finite number is expected")
    return values


def line_of(row: int) -> int:
    """The line of a row of the frame: the header is line 1."""
    return int(row) + 2


def some(items: Iterable[object], most: int = 3) -> str:
    """The first few of many, for messages."""
    listed = list(items)
    return ", ".join(repr(i) if isinstance(i, str) else str(i) for i in listed[:most]) + (" …" if len(listed) > most else "")


def matched_columns(
    x: Array | None, names: Sequence[str], wanted: Sequence[str], rows: int, of: str = "node", noun: str = "feature"
) -> Array | None:
    """A file's columns x [rows, names] in a model's order, by name: [rows, wanted]; none where the model wants none.

    A category (``group=value``) that the file lacks is a column of zeros; one that the model never saw is left out with a warning
    that counts its rows, and so is a column that is none of the model's. `UserError` where a column of numbers, or a whole group of
    categories, is missing.
    """
    import numpy as np

    if list(names) == list(wanted):
        return x
    place = {name: i for i, name in enumerate(names)}
    groups = {name.partition("=")[0] for name in names if "=" in name}
    missing = [name for name in wanted if name not in place and not ("=" in name and name.partition("=")[0] in groups)]
    if missing and rows:  # a file without a single edge has no features of edges, and needs none
        found = f"found {', '.join(names[:8])}" if names else f"there are no {of} {noun}s"
        raise UserError(f"the model needs the {of} {noun}{'s' if len(missing) > 1 else ''} {some(missing)}; {found}")
    out = np.zeros((rows, len(wanted)), np.float32 if x is None else x.dtype)
    for column, name in enumerate(wanted):
        if x is not None and name in place:
            out[:, column] = x[:, place[name]]
    known, asked = {name.partition("=")[0] for name in wanted if "=" in name}, set(wanted)
    left_out = []
    for name in names:
        if name in asked:
            continue
        if x is not None and "=" in name and name.partition("=")[0] in known:
            count = int((x[:, place[name]] != 0).sum())
            if count:
                warnings.warn(f"{count} {of}s are {name}, which the model never saw: nothing is told of it", stacklevel=3)
        else:
            left_out.append(name)
    if left_out:
        warnings.warn(f"{len(left_out)} {of} {noun}s are none of the model's and left out: {some(left_out)}", stacklevel=3)
    return out if len(wanted) else None
