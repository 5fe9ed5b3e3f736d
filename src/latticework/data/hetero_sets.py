"""Heterogeneous graphs by name: from the catalogue's mirror, derived from others, drawn by a seed, or made in Python."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from latticework.core.dataset import Dataset, Given
from latticework.core.errors import UserError
from latticework.core.value import digest_of, setting

from .hetero import HeteroGraph, HeteroSet, Relation, finish_hetero, relation_text
from .mirror import HECO, csr_of, locate, read_arrays

# file -> (target, names of the relations by their two types)
_FILES: Mapping[str, tuple[str, Mapping[tuple[str, str], str]]] = {
    "acm": ("paper", {("paper", "author"): "by", ("paper", "subject"): "on"}),
    "imdb": ("movie", {("movie", "actor"): "with", ("movie", "director"): "by", ("movie", "keyword"): "about"}),
    "dblp": ("author", {("paper", "author"): "by", ("paper", "conference"): "at", ("paper", "term"): "uses"}),
}
SPLITS = ("20", "40", "60")


class MirroredHetero(HeteroSet):
    """A published heterogeneous graph under ``LATTICEWORK_DATA``, with its splits of 20, 40 and 60 labels a class.

    ACM: papers, authors, subjects; IMDB: films, actors, directors, keywords; DBLP: authors, papers, conferences, terms. As
    used by HeCo, MEOW and AdaMEOW: 1,000 validation and 1,000 test nodes a split.
    """

    name: ClassVar[str] = "mirrored-hetero"
    file: str = setting(..., "acm, imdb or dblp")

    def _sha256(self) -> str:
        if self.file not in HECO:
            raise UserError(f"no heterogeneous graph of the catalogue is called {self.file!r}; known: {', '.join(HECO)}")
        return HECO[self.file]

    def digest(self) -> str:
        return digest_of([self._sha256(), self.revision])

    def read(self) -> HeteroGraph:
        return _read_npz(locate("hetero-heco", f"{self.file}.npz", self._sha256()), self.file)


@lru_cache(maxsize=4)
def _read_npz(path: Path, file: str) -> HeteroGraph:
    target, named = _FILES[file]
    parts = read_arrays(path)

    def matrix(name: str) -> Any:
        return parts[name].astype(np.float32) if name in parts else csr_of(parts, name)

    relations: dict[Relation, Any] = {}
    sizes: dict[str, int] = {}
    for (source, to), name in named.items():
        joined = matrix(f"{source}_{to}").tocoo()
        sizes[source], sizes[to] = joined.shape
        relations[source, name, to] = np.stack([joined.row, joined.col]).astype(np.int64)
    types = (target, *(kind for kind in sizes if kind != target))
    x = {kind: matrix(f"x_{kind}") for kind in types if f"x_{kind}" in parts or f"x_{kind}_indptr" in parts}
    y = parts["y"].astype(np.int64)
    splits, notes = {}, []
    for rate in SPLITS:
        split = np.full(len(y), -1, np.int8)
        for code, word in enumerate(("train", "val", "test")):
            split[parts[f"{word}_{rate}"]] = code
        splits[rate] = split
        listed = len(parts[f"train_{rate}"])
        if twice := listed - int((split == 0).sum()):
            notes.append(f"split {rate}: {twice} of {listed} listed train nodes stand twice and count once")
    return finish_hetero(
        HeteroGraph(
            types, {kind: tuple(str(i) for i in range(sizes[kind])) for kind in types}, relations, x=x,
            features={kind: tuple(f"x{i}" for i in range(m.shape[1])) for kind, m in x.items()},
            y={target: y}, classes={target: tuple(str(c) for c in range(int(y.max()) + 1))}, splits={target: splits},
            notes=tuple(notes),
        )
    )  # fmt: skip


class HeteroBlocks(HeteroSet):
    """Authors, papers and venues drawn by a seed, so that an author's class shows in the venues two steps away.

    A venue belongs to a class; a paper's venue is of its own class with probability `clear` and any venue else; an author
    writes three papers, of the author's class with probability `clear`. Paper features are noise, author features say a
    little (`signal` standard deviations along one direction a class), venues have none. One class is not more frequent.
    """

    name: ClassVar[str] = "hetero-blocks"
    authors: int = setting(120, "nodes that are classified", ge=6, le=100_000)
    papers: int = setting(240, "papers", ge=6, le=1_000_000)
    venues: int = setting(6, "venues, spread over the classes", ge=2, le=10_000)
    classes: int = setting(3, "classes of authors", ge=2, le=100)
    clear: float = setting(0.85, "how often an edge keeps to its class", ge=0, le=1)
    signal: float = setting(0.7, "how far the class moves the author's features", ge=0, le=100)
    seed: int = setting(0, "of the draw", ge=0)

    def digest(self) -> str:
        return digest_of(self.identity())

    def read(self) -> HeteroGraph:
        return _blocks(self.authors, self.papers, self.venues, self.classes, self.clear, self.signal, self.seed)


@lru_cache(maxsize=4)
def _blocks(authors: int, papers: int, venues: int, classes: int, clear: float, signal: float, seed: int) -> HeteroGraph:
    rng = np.random.default_rng([seed, 0x68657465])
    y, topic, area = np.arange(authors) % classes, np.arange(papers) % classes, np.arange(venues) % classes

    def drawn(of: Any, among: Any) -> Any:
        """For each of `of` one of `among`, of the same class with probability `clear`."""
        own = np.where(rng.random(len(of)) < clear, of, rng.integers(0, classes, len(of)))
        return np.array(
            [rng.choice(found) if len(found := np.flatnonzero(among == c)) else rng.integers(len(among)) for c in own]
        )

    writers = np.repeat(np.arange(authors), 3)
    writes = np.unique(np.stack([writers, drawn(y[writers], topic)]), axis=1)
    x = rng.normal(size=(authors, classes + 3)).astype(np.float32)
    x[np.arange(authors), y] += np.float32(signal)
    noise = rng.normal(size=(papers, 5)).astype(np.float32)
    names = {"author": "author", "paper": "paper", "venue": "venue"}
    counts = {"author": authors, "paper": papers, "venue": venues}
    return finish_hetero(
        HeteroGraph(
            tuple(names), {kind: tuple(f"{kind} {i}" for i in range(counts[kind])) for kind in names},
            {
                ("author", "writes", "paper"): writes.astype(np.int64),
                ("paper", "at", "venue"): np.stack([np.arange(papers), drawn(topic, area)]).astype(np.int64),
            },
            x={"author": x, "paper": noise},
            features={"author": tuple(f"f{i}" for i in range(x.shape[1])), "paper": tuple(f"g{i}" for i in range(5))},
            y={"author": y.astype(np.int64)}, classes={"author": tuple(f"class {c}" for c in range(classes))},
        )
    )  # fmt: skip


class WithoutRelation(HeteroSet):
    """Another heterogeneous graph without one of its relations; nodes, features, labels and splits stay."""

    name: ClassVar[str] = "without-relation"
    of: Dataset = setting(..., "the whole graph")
    relation: str = setting(..., "its name, or source-name-target where several have that name")

    def digest(self) -> str:
        return digest_of([self.name, self.of.digest(), self.relation, self.revision])

    def read(self) -> HeteroGraph:
        graph: HeteroGraph = self.of.read()
        fits = [key for key in graph.relations if self.relation in (key[1], relation_text(key))]
        known = ", ".join(relation_text(key) for key in graph.relations)
        if len(fits) != 1:
            found = "several relations are" if fits else "no relation is"
            raise UserError(f"without-relation.relation: {found} called {self.relation!r}; there are {known}")
        (gone,) = fits
        left = {key: e for key, e in graph.relations.items() if key != gone}
        if not left:
            raise UserError(f"without-relation.relation: {known} is the only relation; nothing would be left")
        return replace(
            graph, relations=left, weights={k: w for k, w in graph.weights.items() if k != gone},
            notes=(*graph.notes, f"relation {relation_text(gone)} left out"), _cache={},
        )  # fmt: skip


class GivenHetero(Given, HeteroSet):
    """A heterogeneous graph made in Python (a PyG ``HeteroData``); it lives as long as the process, named by its content."""

    name: ClassVar[str] = "given-hetero"

    @classmethod
    def hold(cls, graph: HeteroGraph) -> GivenHetero:
        digest = content_digest(graph)
        cls._held[digest] = graph
        return cls(content=digest)


def content_digest(graph: HeteroGraph) -> str:
    """SHA-256 of all arrays and names."""
    if "digest" not in graph._cache:
        sha = hashlib.sha256()

        def add(where: Any, array: Any) -> None:
            parts = (array,) if isinstance(array, np.ndarray) else (array.indptr, array.indices, array.data)
            for part in parts:
                sha.update(repr((where, part.dtype.str, part.shape)).encode() + part.tobytes())

        for held in (graph.relations, graph.weights, graph.x, graph.y, graph.fixed):
            for key, array in held.items():  # type: ignore[attr-defined]
                add(key, array)
        for kind, named in graph.splits.items():
            for name, split in named.items():
                add((kind, name), split)
        sha.update(
            repr((graph.types, sorted(graph.ids.items()), sorted(graph.classes.items()), sorted(graph.features.items()))).encode()
        )
        graph._cache["digest"] = sha.hexdigest()
    return str(graph._cache["digest"])
