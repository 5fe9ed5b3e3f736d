"""Published sets of graphs, by name, and drawn ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from latticework.core.errors import UserError
from latticework.core.value import digest_of, setting

from .graph_texts import read_graph6, read_text
from .graphs import GraphSet, GraphSetData, checked
from .mirror import locate


class _File(NamedTuple):
    folder: str
    file: str
    sha: str
    folds: str = ""  # SHA-256 of folds.txt, where the set has published folds


_FILES: Mapping[str, _File] = {
    "tu-mutag": _File("tu-mutag", "MUTAG.txt", "5897dae243f6c773aab54ec99e86551c3b1e8601acef254714073042c632d30e", "b6028f2facb5fc1c870578c606d9ff7095b26e5725ac2bfd5bf176f3723e9114"),
    "tu-ptc": _File("tu-ptc", "PTC.txt", "711729eaf2a5308752aa7c11062dd99f645f978afc400909a5927051b314ec55", "209339fe9d9a800c214ec4c28ae6f8fdca21f5f890bfdd7d6aac2541de42e959"),
    "tu-proteins": _File("tu-proteins", "PROTEINS.txt", "ed0730f9bf9da68aa6a8c80f2f2b6ecea5d05791ca254c709f3efab3b45d937b", "ba0407873040624cabc70ae37dd2c5915172cc1cfe6648dde4946f91d206d1cb"),
    "tu-nci1": _File("tu-nci1", "NCI1.txt", "415d2e0861484c2baef1e40ee3ca62dd13c06d6b99549fb25774f43533e9321d", "92c9020abbcdc48b0079492239935088adba382e3098a753ddb06754a34d76bc"),
    "tu-nci109": _File("tu-nci109", "NCI109.txt", "04d374f6aec353733b933fb1d6de18dccbe2660117f78ef9a9545721dbfd0e6e", "18e71d60e2e15bf7d00edb2913b50dd3a46d976614248575b2f6ef1fb089c3e7"),
    "tu-enzymes": _File("tu-enzymes", "ENZYMES.txt", "04e048844018a0f9c87afdc0d69031c4b625bb97d40320b9dbd76acc663f41a6", "eff756bccfb1bd576a8367a7cf21de7f78ea97d0bd156cc47c23b73e43763128"),
    "tu-imdbbinary": _File("tu-imdbbinary", "IMDBBINARY.txt", "1068c698677c07c04f3ad56fc4a175cb2161523c840abfdaf50e101ecc30504f", "53c1bbb3bc14b436d60819d6cf51c354887220ffc28a058b2fb5a65febdbfba1"),
    "tu-imdbmulti": _File("tu-imdbmulti", "IMDBMULTI.txt", "f4cc1b32112303bf1b16a8351df8b8073978fdead823775fbe79e60cf94e7009", "5514a36bd540d0075ee032e12c3d0e950f79d59029032039ba2f4f077f71b056"),
    "esol": _File("esol", "esol.npz", "95661d2555fdc219111f4017f895520bd3ec759457e62d38ebd89eb3bb4d1af2"),
    "freesolv": _File("freesolv", "freesolv.npz", "2cca2ebfde1fbee3c958e189cb80184644b6db933348039e38394efa23a95126"),
    "graph-separation:exp": _File("graph-separation", "EXP.txt", "16f24a5ad96400b2d53eb5cd2843fb2006e50ed67821f6c4abe5ae23100bf899"),
    "graph-separation:exp-pyg": _File("graph-separation", "EXP-pyg.txt", "6a0cffd9a2d864f71663025495d2d057c76dbed55bc348d3ce705b3636a3cba0"),
    "graph-separation:cexp": _File("graph-separation", "CEXP.txt", "711521591cb429f774cb6864d3fc80ff20e65a1ec14c1874aad9918a3eec332a"),
    "graph-separation:graph8c": _File("graph-separation", "graph8c.g6", "0002354f1ab3344a2706626a037ad15367bf23a2163aa68f552c3a169ca9a036"),
    "graph-separation:sr251256": _File("graph-separation", "sr251256.g6", "f55f86eb48cd61c3315c62341cc3a8c59289c58504edb3ab859d7ef2068b9aa4"),
}  # fmt: skip
TARGETS = {"esol": "log solubility (mol/L)", "freesolv": "hydration free energy (kcal/mol)"}


class MirroredGraphSet(GraphSetData):
    """A published set of graphs under ``LATTICEWORK_DATA``, by the name it has in the catalogue."""

    name: ClassVar[str] = "mirrored-graph-set"
    file: str = setting(..., "the catalogue name, as in tu-mutag or graph-separation:exp")

    def _entry(self) -> _File:
        if self.file not in _FILES:
            raise UserError(f"no graph set of the catalogue is called {self.file!r}; known: {', '.join(_FILES)}")
        return _FILES[self.file]

    def digest(self) -> str:
        return digest_of([self._entry().sha, self._entry().folds, self.revision])

    def read(self) -> GraphSet:
        of = self._entry()
        path = locate(of.folder, of.file, of.sha)
        if of.folds and locate(of.folder, "folds.txt", of.folds).parent != path.parent:
            raise UserError(f"{path} and its folds.txt lie in different places; put both under LATTICEWORK_DATA/{of.folder}")
        return _read(path, self.file)


@lru_cache(maxsize=4)
def _read(path: Path, name: str) -> GraphSet:
    if path.suffix == ".npz":
        from .molecules import read_molecules

        return checked(read_molecules(path, TARGETS[name]), str(path))
    return checked(read_graph6(path) if path.suffix == ".g6" else read_text(path), str(path))


class RingsAndCliques(GraphSetData):
    """Random trees to which a ring of five or a clique of four was joined, which is the class; by seed.

    Nodes have one of three tags, which say a little about the class. Each graph has a target (its triangles) and each node one
    (its local clustering coefficient), so that every task on graphs can be tried without a folder of data.
    """

    name: ClassVar[str] = "rings-and-cliques"
    graphs: int = setting(200, "how many graphs", ge=2, le=1_000_000)
    seed: int = setting(0, "of the draw", ge=0)

    def digest(self) -> str:
        return digest_of(self.identity())

    def read(self) -> GraphSet:
        return _rings_and_cliques(self.graphs, self.seed)


@lru_cache(maxsize=8)
def _rings_and_cliques(count: int, seed: int) -> GraphSet:
    rng = np.random.default_rng([seed, 0x7267])
    y = rng.permutation(np.arange(count) % 2)
    motifs = (np.array([[0, 1], [1, 2], [2, 3], [3, 4], [4, 0]]), np.array([[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]))
    sizes, pairs, tags, triangles, clustering = [], [], [], [], []
    for label in y.tolist():
        base, extra = int(rng.integers(6, 15)), 5 - label
        n = base + extra
        grown = np.arange(1, base)
        tree = np.stack([(rng.random(base - 1) * grown).astype(np.int64), grown], axis=1)
        bridge = np.array([[int(rng.integers(base)), base]])
        joined = np.concatenate([tree, bridge, motifs[label] + base])
        place = rng.permutation(n)  # where a node stands says nothing
        tag = np.where(rng.random(n) < 0.3, label, rng.integers(0, 3, n))
        near = np.zeros((n, n))
        near[joined[:, 0], joined[:, 1]] = near[joined[:, 1], joined[:, 0]] = 1
        closed, degree = np.diagonal(near @ near @ near), near.sum(1)
        triangles.append(closed.sum() / 6)
        local = np.empty(n)
        local[place] = closed / np.maximum(degree * (degree - 1), 1)
        at = np.empty(n, np.int64)
        at[place] = tag
        both = place[np.concatenate([joined, joined[:, ::-1]])]
        pairs.append(both[np.lexsort((both[:, 1], both[:, 0]))])
        sizes.append(n)
        tags.append(at)
        clustering.append(local)
    start = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    edges = np.concatenate([p + s for p, s in zip(pairs, start, strict=True)]).T
    return checked(
        GraphSet(
            tuple(f"g{i}" for i in range(count)), np.array(sizes, np.int64), np.ascontiguousarray(edges),
            x=np.eye(3, dtype=np.float32)[np.concatenate(tags)], features=("tag=0", "tag=1", "tag=2"), y=y.astype(np.int64),
            classes=("ring", "clique"), targets=np.array(triangles)[:, None], target_names=("triangles",),
            node_targets=np.concatenate(clustering).astype(np.float32),
        )
    )  # fmt: skip
