"""Files of graph sets: the TUDataset folder (read and written), its one-file text, and graph6."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latticework.core.errors import UserError
from latticework.core.ledger import write_folder

from .graph import MAX_CATEGORIES
from .graphs import Array, GraphSet, coded_classes, coded_texts, ends_of, ranges, target_names_of
from .table import some, text_bytes


# -- text of numbers and words, line by line ----------------------------------------------------------------------------
class Lines:
    """A text file cut into words (at blanks and commas) without a Python loop over its lines."""

    def __init__(self, path: Path, empty: bool = False) -> None:
        self.path = path
        self.data = _bytes_of(path, empty)
        mark = np.frombuffer(self.data, np.uint8)
        blank = (mark <= 32) | (mark == ord(","))
        edge = np.diff(np.concatenate([[True], blank, [True]]).astype(np.int8))
        self.start, self.end = np.flatnonzero(edge < 0), np.flatnonzero(edge > 0)
        ends = np.flatnonzero(mark == 10)
        self.line = np.searchsorted(ends, self.start)  # of each word, from 0
        self.words = np.bincount(self.line, minlength=len(ends))  # of each line

    def word(self, k: int) -> str:
        return self.data[self.start[k] : self.end[k]].decode()

    def where(self, k: int) -> str:
        """The place of a word, for messages."""
        return f"{self.path}, line {int(self.line[k]) + 1}"

    def numbers(self, dtype: Any, data: bytes | None = None) -> Array:
        """All words as numbers; the error names the first that is none."""
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # numpy stops at a word that is no number, and warns
            try:
                found = np.fromstring((data or self.data).replace(b",", b" "), dtype, sep=" ")
            except (ValueError, DeprecationWarning):
                found = np.zeros(0, dtype)
        if len(found) != len(self.start):
            kind, what = (int, "a whole number") if np.dtype(dtype).kind == "i" else (float, "a number")
            text = data or self.data
            for k, (a, b) in enumerate(zip(self.start.tolist(), self.end.tolist(), strict=True)):
                try:
                    kind(text[a:b].decode())
                except ValueError:
                    raise UserError(f"{self.where(k)}: {self.word(k)!r} where {what} is expected") from None
            raise UserError(f"{self.path} is not a text of numbers")
        return np.asarray(found)

    def table(self, dtype: Any, columns: int | None = None) -> Array:
        """[rows, columns], every line as many numbers as the first (or as `columns`)."""
        if not len(self.words):
            return np.zeros((0, columns or 0), dtype)
        wanted = columns or int(self.words[0])
        odd = np.flatnonzero(self.words != wanted)
        if len(odd):
            found = int(self.words[odd[0]])
            raise UserError(f"{self.path}, line {int(odd[0]) + 1}: {found} numbers where {wanted} are expected")
        return self.numbers(dtype).reshape(-1, wanted)


def _bytes_of(path: Path, empty: bool = False) -> bytes:
    """A file's text in UTF-8 with plain line ends; `empty`: it may hold nothing."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not data.strip():
        if empty:
            return b""
        raise UserError(f"{path} is empty")
    if b"\x00" in data[:4096]:
        raise UserError(f"{path} is a binary file, not text")
    return text_bytes(path)


def _text_lines(path: Path, rows: int, what: str) -> list[str]:
    """One text for each of `rows`; an empty line is an unknown one."""
    lines = [line.strip() for line in _bytes_of(path).decode().removesuffix("\n").split("\n")]
    # what was stripped at the end may be unknown ones
    raw = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n").rstrip(b" \t")
    lines += [""] * min(len(raw) - len(raw.rstrip(b"\n")) - 1, rows - len(lines))
    _as_many(path, len(lines), rows, what)
    return lines


def _as_many(path: Path, found: int, rows: int, what: str) -> None:
    if found != rows:
        few = "short" if found < rows else "long"
        raise UserError(f"{path} has {found} lines for {rows} {what}: it is too {few}")


def one_hot(path: Path, prefix: str, texts: Sequence[str], listed: Path | None = None) -> tuple[Array, tuple[str, ...]]:
    """Categories as columns ``prefix=value``, one 1 a row; `listed`, where it is a file, names all of them in order."""
    names, code = coded_texts(texts)
    if listed is not None and listed.is_file():
        names, code = _in_order(listed, names, code)
    if len(names) > MAX_CATEGORIES:
        raise UserError(
            f"{path}: {prefix} has {len(names)} different texts ({some(names)}); it looks like an id or a number, not a category"
        )
    missing = np.flatnonzero(code < 0)
    if len(missing):
        raise UserError(f"{path}, line {int(missing[0]) + 1}: the {prefix} is empty")
    hot = np.zeros((len(texts), len(names)), np.float32)
    hot[np.arange(len(texts)), code] = 1
    return hot, tuple(f"{prefix}={name}" for name in names)


# -- the one-file text ---------------------------------------------------------------------------------------------------
def read_text(path: Path) -> GraphSet:
    """The one-file text: the number of graphs; per graph ``n label``, then n lines ``tag m neighbour_1 … neighbour_m``.

    Numbers that follow the neighbours are node attributes, as many on every line. ``folds.txt`` beside it, one line a graph,
    gives the published test folds.
    """
    text = Lines(path)
    filled = np.flatnonzero(text.words)
    words, first = text.words[filled], ends_of(text.words)[filled]  # first word of each line that is not blank
    count = _whole(text, 0)
    if words[0] != 1 or count < 1:
        raise UserError(f"{path}, line {int(filled[0]) + 1}: the first line is the number of graphs alone")
    sizes, labels, heads, at = [], [], [], 1
    plain = bytearray(text.data)
    for g in range(count):
        if at >= len(words):
            raise UserError(f"{path} ends after {g} of {count} graphs")
        k = int(first[at])
        if words[at] != 2:
            raise UserError(f"{text.where(k)}: graph {g} begins here; expected 'nodes label', found {int(words[at])} words")
        size = _whole(text, k)
        if size < 1:
            raise UserError(f"{text.where(k)}: graph {g} has {size} nodes; leave it out")
        if at + size >= len(words):
            raise UserError(f"{path} ends within graph {g}, which has {size} nodes (line {int(filled[at]) + 1})")
        sizes.append(size)
        labels.append(text.word(k + 1))
        a, b = int(text.start[k + 1]), int(text.end[k + 1])
        plain[a:b] = b"0" * (b - a)  # a label may be any text; what is left are numbers
        heads.append(at)
        at += 1 + size
    if at < len(words):
        raise UserError(f"{text.where(int(first[at]))}: more lines than {count} graphs have")
    head = np.zeros(len(words), bool)
    head[[0, *heads]] = True
    first, words, line = first[~head], words[~head], filled[~head]
    whole = b"." not in text.data
    numbers = text.numbers(np.int64 if whole else np.float64, bytes(plain))
    for row in np.flatnonzero(words < 2)[:1].tolist():
        raise UserError(
            f"{path}, line {int(line[row]) + 1}: a node has a tag and a number of neighbours; found {int(words[row])} words"
        )
    tags, degree = numbers[first], numbers[first + 1].astype(np.int64)
    more = words - 2 - degree
    bad = np.flatnonzero((degree < 0) | (more != max(int(more[0]), 0)))
    if len(bad):
        row = int(bad[0])
        raise UserError(
            f"{path}, line {int(line[row]) + 1}: {int(degree[row])} neighbours are announced, and {int(words[row]) - 2} numbers follow"
        )
    n = np.repeat(sizes, sizes)
    near = numbers[ranges(first + 2, degree)].astype(np.int64)
    outside = np.flatnonzero((near < 0) | (near >= np.repeat(n, degree)))
    if len(outside):
        row = int(np.repeat(np.arange(len(first)), degree)[outside[0]])
        raise UserError(
            f"{path}, line {int(line[row]) + 1}: neighbour {int(near[outside[0]])} is outside 0 to {int(n[row]) - 1}, the graph's nodes"
        )
    ptr = ends_of(np.array(sizes))
    u = np.repeat(np.arange(len(first)), degree)
    edge_index = np.stack([u, near + np.repeat(np.repeat(ptr[:-1], sizes), degree)])
    if not np.array_equal(tags, np.floor(tags)):
        row = int(np.argmax(tags != np.floor(tags)))
        raise UserError(f"{path}, line {int(line[row]) + 1}: tag {tags[row]} is not a whole number")
    blocks, features = [], []
    if more[0]:
        columns = int(more[0])
        blocks.append(numbers[first[:, None] + 2 + degree[:, None] + np.arange(columns)].astype(np.float32))
        features += [f"attr{i}" for i in range(columns)]
    distinct, code = np.unique(tags.astype(np.int64), return_inverse=True)
    if len(distinct) > MAX_CATEGORIES:
        raise UserError(f"{path}: the nodes have {len(distinct)} different tags; they look like ids or numbers, not categories")
    if len(distinct) > 1:
        blocks.append(np.eye(len(distinct), dtype=np.float32)[code])
        features += [f"tag={t}" for t in distinct]
    notes = [] if len(distinct) > 1 else [f"every node has the tag {distinct[0]}: tags tell nothing and are left out"]
    classes, y = coded_classes(
        str(path), labels, "a number to predict is no label: bring a TUDataset folder with NAME_graph_attributes.txt"
    )
    return GraphSet(
        tuple(str(g) for g in range(count)), np.array(sizes, np.int64), edge_index,
        x=np.concatenate(blocks, axis=1) if blocks else None, features=tuple(features), y=y, classes=classes,
        folds=_folds(path.with_name("folds.txt"), count), notes=tuple(notes),
    )  # fmt: skip


def _whole(text: Lines, k: int) -> int:
    try:
        return int(text.word(k))
    except ValueError:
        raise UserError(f"{text.where(k)}: {text.word(k)!r} where a whole number is expected") from None


def _folds(path: Path, count: int) -> Array | None:
    """int8 [G] of one line a graph: 1..k, 0 for a graph that no fold tests."""
    if not path.is_file():
        return None
    found = Lines(path).table(np.int64, 1)[:, 0]
    _as_many(path, len(found), count, "graphs")
    bad = np.flatnonzero((found < 0) | (found > 127))
    if len(bad):
        raise UserError(f"{path}, line {int(bad[0]) + 1}: fold {found[bad[0]]}; folds are 1, 2, …, and 0 is none")
    return found.astype(np.int8)


# -- graph6 --------------------------------------------------------------------------------------------------------------
def read_graph6(path: Path) -> GraphSet:
    """One graph a line in graph6; lines of graphs with the same number of nodes are decoded together."""
    data = _bytes_of(path)
    lines = [line.removeprefix(b">>graph6<<") for line in data.split(b"\n")]
    kept = [i for i, line in enumerate(lines) if line.strip()]
    groups: dict[int, list[int]] = {}
    codes: dict[int, bytes] = {}
    for g, i in enumerate(kept):
        line = lines[i].strip()
        n, start = _graph6_size(path, i, line)
        if len(line) - start != (n * (n - 1) // 2 + 5) // 6:
            raise UserError(
                f"{path}, line {i + 1}: a graph of {n} nodes has {(n * (n - 1) // 2 + 5) // 6} signs, found {len(line) - start}"
            )
        groups.setdefault(n, []).append(g)
        codes[g] = line[start:]
    sizes = np.zeros(len(kept), np.int64)
    ends: list[tuple[Array, Array, Array]] = []
    for n, members in groups.items():
        sizes[members] = n
        signs = np.frombuffer(b"".join(codes[g] for g in members), np.uint8).reshape(len(members), -1)
        bad = np.argwhere((signs < 63) | (signs > 126))
        if len(bad):
            raise UserError(
                f"{path}, line {kept[members[int(bad[0, 0])]] + 1}: {chr(signs[tuple(bad[0])])!r} is no sign of graph6"
            )
        bits = np.unpackbits((signs - 63)[:, :, None], axis=2)[:, :, 2:].reshape(len(members), -1)[:, : n * (n - 1) // 2]
        low, high = np.triu_indices(n, 1)
        order = np.lexsort((low, high))  # column by column, as graph6 writes the upper triangle
        which, pair = np.nonzero(bits)
        ends.append((np.array(members)[which], low[order][pair], high[order][pair]))
    graph, low, high = (np.concatenate([e[k] for e in ends]) for k in range(3))
    u, v, graph = np.concatenate([low, high]), np.concatenate([high, low]), np.concatenate([graph, graph])
    order = np.lexsort((v, u, graph))
    edge_index = np.stack([u, v])[:, order] + ends_of(sizes)[:-1][graph[order]]
    return GraphSet(tuple(str(g) for g in range(len(kept))), sizes, edge_index.astype(np.int64))


def _graph6_size(path: Path, i: int, line: bytes) -> tuple[int, int]:
    """(nodes, where the bits begin) of a line."""
    if line[:1] in (b":", b"&", b";"):
        kind = "digraph6" if line[:1] == b"&" else "sparse6"
        raise UserError(f"{path}, line {i + 1}: this is {kind}; only graph6 is read (nauty's copyg -g, or networkx, converts)")
    length, start = (1, 0) if line[0] != 126 else (3, 1) if line[1:2] != b"~" else (6, 2)
    head = line[start : start + length]
    if len(head) < length or any(not 63 <= c <= 126 for c in head):
        raise UserError(f"{path}, line {i + 1}: not a line of graph6 (signs from '?' to '~')")
    n = 0
    for c in head:
        n = n * 64 + c - 63
    if n < 1 or n > 100_000:
        raise UserError(f"{path}, line {i + 1}: a graph of {n} nodes; graph6 is read from 1 to 100,000")
    return n, start + length


# -- TUDataset folders ---------------------------------------------------------------------------------------------------
def read_tu(folder: Path) -> GraphSet:
    """A TUDataset folder: nodes and graphs are counted from 1 over the whole set.

    Node features are the attributes, then the labels as one-hot columns ``tag=…`` (``tag0=…`` where there are several);
    the features of edges likewise. An empty line of graph labels is an unknown one.
    """
    name = tu_name(folder)

    def file(part: str) -> Path:
        return folder / f"{name}_{part}.txt"

    for part, what in (("A", "the edges, 'node, node' a line"), ("graph_indicator", "the graph of each node")):
        if not file(part).is_file():
            raise UserError(f"{folder} has no {name}_{part}.txt ({what})")
    notes: list[str] = []
    of = Lines(file("graph_indicator")).table(np.int64, 1)[:, 0]
    n, G = len(of), int(of.max())
    if of.min() != 1:
        row = int(of.argmin())
        raise UserError(f"{file('graph_indicator')}, line {row + 1}: graph {of[row]}; graphs are counted from 1")
    sizes = np.bincount(of - 1, minlength=G) if n >= G else np.zeros(1, np.int64)
    if not sizes.all():
        missing = next(g for g in range(1, G + 1) if not (of == g).any())
        raise UserError(f"{file('graph_indicator')}: graph {missing} of {G} has no node")
    order = np.argsort(of, kind="stable")
    if not np.array_equal(order, np.arange(n)):
        notes.append(
            f"{file('graph_indicator').name} is not sorted: nodes are reordered by graph, in the order of the file within each"
        )
    place = np.empty(n, np.int64)
    place[order] = np.arange(n)
    edge_lines = Lines(file("A"), empty=True)
    ends = edge_lines.table(np.int64, 2)
    for row in np.flatnonzero((ends < 1).any(1) | (ends > n).any(1))[:1].tolist():
        raise UserError(f"{file('A')}, line {row + 1}: edge {ends[row, 0]}, {ends[row, 1]} names a node outside 1 to {n}")
    between = np.flatnonzero(of[ends[:, 0] - 1] != of[ends[:, 1] - 1]) if len(ends) else np.zeros(0, int)
    if len(between):
        u, v = ends[between[0]].tolist()
        raise UserError(f"{file('A')}, line {int(between[0]) + 1}: edge {u}, {v} joins graph {of[u - 1]} with graph {of[v - 1]}")
    edge_index = place[ends - 1].T.reshape(2, -1)
    edge_order = np.argsort(of[ends[:, 0] - 1], kind="stable") if len(ends) else np.zeros(0, np.int64)
    x, features = _tu_features(file, "node", n, order)
    edge_x, edge_features = _tu_features(file, "edge", len(ends), edge_order)
    y: Array | None = None
    classes: tuple[str, ...] = ()
    if file("graph_labels").is_file():
        texts = _text_lines(file("graph_labels"), G, "graphs")
        classes, y = coded_classes(
            str(file("graph_labels")), texts, f"numbers to predict stand in {file('graph_attributes').name}"
        )
        if file("class_names").is_file():
            classes, y = _in_order(file("class_names"), classes, y)
        if (y < 0).any():
            notes.append(f"{int((y < 0).sum())} graphs have no label: they are the ones to predict")
    targets: Array | None = None
    target_names: tuple[str, ...] = ()
    if file("graph_attributes").is_file():
        targets = Lines(file("graph_attributes")).table(np.float64)
        _as_many(file("graph_attributes"), len(targets), G, "graphs")
        target_names = _names(file("graph_attribute_names"), "target", targets.shape[1])
    node_targets = None
    if file("node_targets").is_file():
        values = Lines(file("node_targets")).table(np.float64, 1)[:, 0]
        _as_many(file("node_targets"), n, len(values), "nodes")
        node_targets = values.astype(np.float32)[order]
    ids = tuple(str(g) for g in range(1, G + 1))
    if file("graph_ids").is_file():
        ids = tuple(_text_lines(file("graph_ids"), G, "graphs"))
    folds = _folds(file("folds") if file("folds").is_file() else folder / "folds.txt", G)
    return GraphSet(
        ids, sizes.astype(np.int64), edge_index[:, edge_order], x, features, edge_x, edge_features, y, classes, targets,
        target_names, node_targets, folds, tuple(notes),
    )  # fmt: skip


TU_PARTS = (
    "A", "graph_indicator", "graph_labels", "graph_attributes", "node_labels", "node_attributes", "edge_labels", "edge_attributes",
    "class_names", "graph_attribute_names", "node_attribute_names", "edge_attribute_names", "node_label_names", "edge_label_names", "graph_ids", "node_targets", "folds",
)  # fmt: skip


def _tu_features(file: Callable[[str], Path], what: str, rows: int, order: Array) -> tuple[Array | None, tuple[str, ...]]:
    """Attributes and labels of nodes or edges, in the order wanted."""
    blocks: list[Array] = []
    names: list[str] = []
    attributes, labels = file(f"{what}_attributes"), file(f"{what}_labels")
    if attributes.is_file():
        lines = Lines(attributes, empty=True)
        named = file(f"{what}_attribute_names")
        values = lines.table(np.float64, len(_text_lines_of(named)) if named.is_file() else None)
        _as_many(attributes, len(values), rows, f"{what}s")
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0].tolist()
            raise UserError(f"{attributes}, line {row + 1}: {values[row, column]} where a finite number is expected")
        blocks.append(values.astype(np.float32))
        names += _names(file(f"{what}_attribute_names"), "attr", values.shape[1])
    if labels.is_file() and rows:
        lines_of = _text_lines(labels, rows, f"{what}s")
        columns = (
            [[cell.strip() for cell in line.split(",")] for line in lines_of]
            if "," in lines_of[0]
            else [[line] for line in lines_of]
        )
        width = len(columns[0])
        for row, cells in enumerate(columns):
            if len(cells) != width:
                raise UserError(f"{labels}, line {row + 1}: {len(cells)} labels where the first line has {width}")
        for k in range(width):
            listed = file(f"{what}_label_names") if width == 1 else None
            hot, hot_names = one_hot(labels, "tag" if width == 1 else f"tag{k}", [cells[k] for cells in columns], listed)
            blocks.append(hot)
            names += hot_names
    if not blocks or not sum(b.shape[1] for b in blocks):
        return None, ()
    return np.concatenate(blocks, axis=1, dtype=np.float32)[order], tuple(names)


def _text_lines_of(path: Path) -> list[str]:
    return [line.strip() for line in _bytes_of(path).decode().removesuffix("\n").split("\n")]


def _in_order(path: Path, known: tuple[str, ...], code: Array) -> tuple[tuple[str, ...], Array]:
    """Texts and their numbers, in the order of a file that lists them all."""
    names = _text_lines_of(path)
    lacking = [text for text in known if text not in names]
    if lacking:
        raise UserError(f"{path} lacks {some(lacking)}")
    to = np.array([*(names.index(c) for c in known), -1], np.int64)
    return tuple(names), to[code]


def tu_name(folder: Path) -> str:
    found = sorted(
        {p.name.removesuffix(f"_{part}.txt") for part in ("A", "graph_indicator") for p in folder.glob(f"*_{part}.txt")}
    )
    if len(found) != 1:
        raise UserError(
            f"{folder} holds {'several graph sets: ' + some(found) if found else 'no NAME_A.txt'}; give a folder of one"
        )
    return found[0]


def _names(path: Path, prefix: str, count: int) -> tuple[str, ...]:
    """Names of columns, from a file beside the values or by number."""
    if not path.is_file():
        return target_names_of(count) if prefix == "target" else tuple(f"{prefix}{i}" for i in range(count))
    names = _text_lines_of(path)
    _as_many(path, len(names), count, "columns")
    return tuple(names)


# -- writing -------------------------------------------------------------------------------------------------------------
def write_graphs(graphs: GraphSet, folder: Path) -> None:
    """A TUDataset folder that `read_tu` reads back as the same graphs, named after the folder.

    What the format has no place for stands in further files, one line an item, and only where it is needed: names of graphs,
    columns, categories and classes, folds, node targets.
    """
    name = folder.name or "graphs"
    lines: dict[str, Sequence[Any]] = {
        "A": [f"{a}, {b}" for a, b in (graphs.edge_index.T + 1).tolist()],
        "graph_indicator": np.repeat(np.arange(1, len(graphs) + 1), graphs.sizes).tolist(),
    }
    if graphs.y is not None and (graphs.y >= 0).any():
        lines["graph_labels"] = [graphs.classes[c] if c >= 0 else "" for c in graphs.y.tolist()]
        if coded_texts(lines["graph_labels"])[0] != graphs.classes:
            lines["class_names"] = graphs.classes
    if graphs.targets is not None:
        lines["graph_attributes"] = [", ".join(map(repr, row)) for row in graphs.targets.tolist()]
        if graphs.target_names != target_names_of(len(graphs.target_names)):
            lines["graph_attribute_names"] = graphs.target_names
    if graphs.node_targets is not None:
        lines["node_targets"] = _short(graphs.node_targets)
    for what, x, names in (("node", graphs.x, graphs.features), ("edge", graphs.edge_x, graphs.edge_features)):
        if x is None:
            continue
        tags = _tag_columns(x, names)
        if tags:
            columns = [_short(x[:, k]) for k in range(tags)]
            lines[f"{what}_attributes"] = [", ".join(row) for row in zip(*columns, strict=True)]
            if names[:tags] != tuple(f"attr{i}" for i in range(tags)) or not len(x):
                lines[f"{what}_attribute_names"] = names[:tags]
        if tags < len(names):
            texts = [n.partition("=")[2] for n in names[tags:]]
            lines[f"{what}_labels"] = [texts[c] for c in x[:, tags:].argmax(1).tolist()]
            if coded_texts(lines[f"{what}_labels"])[0] != tuple(texts):
                lines[f"{what}_label_names"] = texts
    if graphs.ids != tuple(str(g) for g in range(1, len(graphs) + 1)):
        lines["graph_ids"] = graphs.ids
    if graphs.folds is not None:
        lines["folds"] = graphs.folds.tolist()

    def fill(draft: Path) -> None:
        for part, rows in lines.items():
            (draft / f"{name}_{part}.txt").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")

    write_folder(folder, fill)


def _short(values: Array) -> list[str]:
    """The shortest text of each float32 that reads back as the same."""
    return [str(v) for v in values.astype(np.float32)]


def _tag_columns(x: Array, names: tuple[str, ...]) -> int:
    """Where the columns ``tag=…`` begin that node or edge labels can hold: the last ones, one-hot."""
    at = next((k for k, n in enumerate(names) if n.startswith("tag=")), len(names))
    hot, texts = x[:, at:], [n.removeprefix("tag=") for n in names[at:]]
    fits = (
        all(n.startswith("tag=") for n in names[at:])
        and all(t and "," not in t and t == t.strip() for t in texts)
        and len(x) > 0
        and bool(((hot == 0) | (hot == 1)).all() and (hot.sum(1) == 1).all())
    )
    return at if fits else len(names)
