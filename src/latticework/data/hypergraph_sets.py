"""Hypergraphs by name: built in, from the catalogue's mirror, derived from graphs, or drawn by a seed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import scipy.sparse as sp

from latticework.core.dataset import Dataset, Given
from latticework.core.errors import UserError
from latticework.core.value import digest_of, setting

from .files import arrays_digest
from .graph import Graph, undirected_pairs
from .hypergraph import Hypergraph, HypergraphSet, finish, from_memberships
from .mirror import HECO, csr_of, locate, read_arrays


class _File(NamedTuple):
    """Where a published hypergraph lies; of a heterogeneous graph, how its hyperedges are made.

    `hyperedges` are products of relations that lead from the vertices to what becomes a hyperedge, a relation turned round
    where it ends in ``'``; several stand beside one another.
    """

    folder: str
    file: str
    sha256: str
    vertices: str = ""
    hyperedges: tuple[tuple[str, ...], ...] = ()


_ACM = ("hetero-heco", "acm.npz", HECO["acm"], "paper")
_IMDB = ("hetero-heco", "imdb.npz", HECO["imdb"], "movie")
_DBLP = ("hetero-heco", "dblp.npz", HECO["dblp"], "author")
_FILES: Mapping[str, _File] = {
    "hypergraphs-citation:cora-coauthorship": _File(
        "hypergraphs-citation", "cora-coauthorship.npz", "10aa24c7bbbabeb750ec3a562d2f702a97aa3131b8a13e8932db87ed98266721"
    ),
    "hypergraphs-citation:cora-cocitation": _File(
        "hypergraphs-citation", "cora-cocitation.npz", "c57ed8f5a78029273af17a0147958ff013e688ebccd0b6dae75646966a11c11d"
    ),
    "hypergraphs-citation:citeseer-cocitation": _File(
        "hypergraphs-citation", "citeseer-cocitation.npz", "3b928b03aa319586f2ac1dc0e02d8c1e5544770787d816c6fe9851b5ebf9e715"
    ),
    "hypergraphs-heco:acm-author": _File(*_ACM, (("paper_author",),)),
    "hypergraphs-heco:acm-subject": _File(*_ACM, (("paper_subject",),)),
    "hypergraphs-heco:imdb": _File(*_IMDB, (("movie_actor",), ("movie_director",))),
    "hypergraphs-heco:dblp-paper": _File(*_DBLP, (("paper_author'",),)),
    "hypergraphs-heco:dblp-term": _File(*_DBLP, (("paper_author'", "paper_term"),)),
    "hypergraphs-heco:dblp-conference": _File(*_DBLP, (("paper_author'", "paper_conference"),)),
}  # fmt: skip


class MirroredHypergraph(HypergraphSet):
    """A published hypergraph under ``LATTICEWORK_DATA``, by the name it has in the catalogue.

    Those of hypergraphs-heco are made of heterogeneous graphs: ACM's papers joined by author or by subject, IMDB's films by
    actor and by director, DBLP's authors by paper, by term or by conference.
    """

    name: ClassVar[str] = "mirrored-hypergraph"
    file: str = setting(..., "the catalogue name, as in hypergraphs-citation:cora-coauthorship")

    def _entry(self) -> _File:
        if self.file not in _FILES:
            raise UserError(f"no hypergraph of the catalogue is called {self.file!r}; known: {', '.join(_FILES)}")
        return _FILES[self.file]

    def digest(self) -> str:
        return digest_of([self._entry().sha256, [list(p) for p in self._entry().hyperedges], self.revision])

    def read(self) -> Hypergraph:
        entry = self._entry()
        return _read_npz(locate(entry.folder, entry.file, entry.sha256), entry.vertices, entry.hyperedges)


@lru_cache(maxsize=8)
def _read_npz(path: Path, vertices: str, hyperedges: tuple[tuple[str, ...], ...]) -> Hypergraph:
    parts = read_arrays(path)
    features = csr_of(parts, f"x_{vertices}" if vertices else "x")
    if vertices:
        blocks, names = [], []
        for chain in hyperedges:
            product = None
            for step in chain:
                relation = csr_of(parts, step.rstrip("'"))
                relation = sp.csr_array(relation.T) if step.endswith("'") else relation
                product = relation if product is None else sp.csr_array(product @ relation)
            assert product is not None
            kind = chain[-1].removesuffix("'").split("_")[0 if chain[-1].endswith("'") else 1]
            joined = np.asarray((product != 0).sum(0)).ravel() > 0  # one that no vertex has makes no hyperedge
            blocks.append(product[:, np.flatnonzero(joined)])
            names += [f"{kind} {i}" for i in np.flatnonzero(joined)]
        incidence = sp.csc_array(sp.hstack(blocks))
        incidence.sort_indices()
        pointer, members = incidence.indptr.astype(np.int64), incidence.indices.astype(np.int64)
    else:
        pointer, members = parts["edge_ptr"].astype(np.int64), parts["edge_nodes"].astype(np.int64)
        names = [f"e{i}" for i in range(len(pointer) - 1)]
    y = parts["y"].astype(np.int64)
    return finish(
        Hypergraph(
            pointer, members, tuple(str(i) for i in range(len(y))), tuple(names), x=features.toarray(), y=y,
            classes=tuple(str(c) for c in range(int(y.max()) + 1)), features=tuple(f"x{i}" for i in range(features.shape[1])),
        )
    )  # fmt: skip


class Neighbourhoods(HypergraphSet):
    """A plain graph as a hypergraph: each joined pair is a hyperedge, and so is each node with its neighbours.

    Direction, weights, loops and repeated edges are not kept; a node without neighbours is in no hyperedge.
    """

    name: ClassVar[str] = "neighbourhoods"
    of: Dataset = setting(..., "the graph")

    def digest(self) -> str:
        return digest_of([self.name, self.of.digest(), self.revision])

    def read(self) -> Hypergraph:
        return _neighbourhoods(self.of, self.of.digest())


@lru_cache(maxsize=4)
def _neighbourhoods(of: Dataset, digest: str) -> Hypergraph:
    graph: Graph = of.read()
    if graph.multi_label:
        raise UserError(f"{of.name} has several labels a node; hypergraphs take one")
    a, b = undirected_pairs(graph)
    pairs = len(a)
    centres, place = np.unique(np.concatenate([a, b]), return_inverse=True)
    around = np.concatenate([place, np.arange(len(centres))]) + pairs
    vertex = np.concatenate([a, b, np.concatenate([b, a]), centres])
    edge = np.concatenate([np.arange(pairs), np.arange(pairs), around])
    pointer, members, _ = from_memberships(vertex, edge, pairs + len(centres))
    names = [f"{graph.ids[u]} – {graph.ids[v]}" for u, v in zip(a, b, strict=True)]
    names += [f"around {graph.ids[c]}" for c in centres]
    return finish(
        Hypergraph(
            pointer, members, graph.ids, tuple(names), x=graph.x, y=graph.y, classes=graph.classes, features=graph.features,
            notes=(f"{pairs} pairs and {len(centres)} neighbourhoods of a graph",),
        )
    )  # fmt: skip


class RandomHypergraph(HypergraphSet):
    """Hyperedges of uniform sizes over uniform vertices, random features and classes: for timing, there is nothing to learn."""

    name: ClassVar[str] = "random-hypergraph"
    nodes: int = setting(1000, "how many vertices", ge=2, le=10_000_000)
    hyperedges: int = setting(0, "how many hyperedges; 0: as many as vertices", ge=0, le=10_000_000)
    smallest: int = setting(2, "size of the smallest hyperedge", ge=1, le=1000)
    largest: int = setting(39, "size of the largest hyperedge", ge=1, le=10_000)
    features: int = setting(16, "columns of random features", ge=1, le=100_000)
    classes: int = setting(4, "random classes", ge=2, le=1000)
    seed: int = setting(0, "of the draw", ge=0)

    def digest(self) -> str:
        return digest_of(self.identity())

    def read(self) -> Hypergraph:
        return _random(self)


@lru_cache(maxsize=2)
def _random(of: RandomHypergraph) -> Hypergraph:
    if of.smallest > min(of.largest, of.nodes):
        raise UserError(
            f"random-hypergraph: smallest is {of.smallest}; largest {of.largest} and nodes {of.nodes} must not be below"
        )
    rng = np.random.default_rng([of.seed, 0x68797065])
    edges = of.hyperedges or of.nodes
    sizes = rng.integers(of.smallest, min(of.largest, of.nodes) + 1, edges)
    members = np.concatenate([np.sort(rng.choice(of.nodes, size, replace=False)) for size in sizes])
    pointer = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    y = rng.integers(0, of.classes, of.nodes)
    y[: of.classes] = np.arange(of.classes)[: of.nodes]  # each class occurs
    return finish(
        Hypergraph(
            pointer, members.astype(np.int64), tuple(str(i) for i in range(of.nodes)), tuple(f"e{i}" for i in range(edges)),
            x=rng.standard_normal((of.nodes, of.features), dtype=np.float32), y=y.astype(np.int64),
            classes=tuple(str(c) for c in range(of.classes)), features=tuple(f"x{i}" for i in range(of.features)),
        )
    )  # fmt: skip


class DigitsHyperedges(HypergraphSet):
    """scikit-learn's handwritten digits; a hyperedge holds an image and its nearest neighbours in pixel space."""

    name: ClassVar[str] = "digits-hyperedges"
    images: int = setting(1797, "the first so many images", ge=20, le=1797)
    neighbours: int = setting(5, "nearest neighbours in a hyperedge beside the image itself", ge=1, le=100)

    def digest(self) -> str:
        return content_digest(self.read())

    def read(self) -> Hypergraph:
        return _digits(self.images, min(self.neighbours, self.images - 1))


@lru_cache(maxsize=4)
def _digits(count: int, neighbours: int) -> Hypergraph:
    from scipy.spatial import cKDTree
    from sklearn.datasets import load_digits

    images, y = load_digits(return_X_y=True)
    images, y = images[:count], y[:count]
    near = np.sort(cKDTree(images).query(images, neighbours + 1)[1], axis=1)
    return finish(
        Hypergraph(
            np.arange(0, near.size + 1, neighbours + 1, dtype=np.int64), near.reshape(-1).astype(np.int64),
            tuple(f"image-{i}" for i in range(count)), tuple(f"like-{i}" for i in range(count)),
            x=(images / 16).astype(np.float32), y=y.astype(np.int64), classes=tuple(str(c) for c in range(10)),
            features=tuple(f"pixel_{i // 8}_{i % 8}" for i in range(64)),
        )
    )  # fmt: skip


class GivenHypergraph(Given, HypergraphSet):
    """A hypergraph made in Python (a PyG ``HyperGraphData``); it lives as long as the process, named by its content."""

    name: ClassVar[str] = "given-hypergraph"

    @classmethod
    def hold(cls, graph: Hypergraph) -> GivenHypergraph:
        digest = content_digest(graph)
        cls._held[digest] = graph
        return cls(content=digest)


def content_digest(graph: Hypergraph) -> str:
    """SHA-256 of arrays and names."""
    if "digest" not in graph._cache:
        graph._cache["digest"] = arrays_digest(
            (graph.edge_ptr, graph.edge_nodes, graph.x, graph.y),
            (graph.ids, graph.edge_ids, graph.classes, graph.features, graph.linked),
        )
    return str(graph._cache["digest"])
