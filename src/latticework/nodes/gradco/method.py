"""The recipe of GRADCO's vectors: one orbit adjacency as pointwise mutual information, factorised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import scipy.sparse as sp
import torch
from pydantic import field_validator

from latticework.core.errors import OutOfTime, UserError
from latticework.core.method import Method
from latticework.core.run import Run
from latticework.core.task import Part, Task
from latticework.core.value import setting
from latticework.layers.memory import free_memory
from latticework.layers.pointwise_information import factorise, positive_information, unit_scale
from latticework.layers.propagation import adjacency

from ..embedding import EmbeddingMethod, EmbeddingModel
from .counts import FAR, ORBITS, Orbit, OrbitCounts, orbit_name, read_orbit

WEIGHTED = "its edges have weights, and a graphlet knows only whether an edge is there; leave the weights out"
# (h, a, b) and its transpose give the same vectors
DISTINCT: tuple[Orbit, ...] = tuple(o for o in ORBITS if o[1] <= o[2])
# value and column of an entry of the counts, of their sum with the transpose, of the information and of its copy for the SVD
_FACTOR_BYTES = 48


def simple_adjacency(edge_index: Any, n: int, weight: Any = None) -> tuple[sp.csr_array, list[str]]:
    """The undirected simple graph of an edge list, 0/1 CSR [n, n], and what was done to it in words; weights other than 1 are refused."""
    if weight is not None and bool((weight != 1).any()):
        raise UserError(f"orbits cannot be counted on this graph: {WEIGHTED}")
    notes = []
    written = adjacency(edge_index, n)
    A = sp.csr_array(written.maximum(written.T))
    both = A.nnz - written.nnz
    loops = int((A.diagonal() != 0).sum())
    repeats = int(written.sum()) - written.nnz
    if both:
        notes.append(f"directed edges taken both ways: {both} reverse edges added")
    if loops:
        notes.append(f"{loops} self-loops dropped: a simple graph has none")
        A.setdiag(0)
        A.eliminate_zeros()
    if repeats:
        notes.append(f"{repeats} repeated edges count once")
    A.data[:] = 1
    A.sort_indices()
    return A, notes


class GradcoModel(EmbeddingModel):
    """Vectors of one orbit adjacency, and the graph, so that those of another can be made."""

    def __init__(self, method: Method, schema: Mapping[str, Any], vectors: torch.Tensor, graph: tuple[Any, Any]) -> None:
        super().__init__(method, schema, vectors)
        self.graph = graph

    def at(self, **late: Any) -> Self:
        other = super().at(**late)
        mine, asked = self.method, other.method
        assert isinstance(mine, Gradco) and isinstance(asked, Gradco)
        if asked.orbit != mine.orbit:
            other.vectors = asked.vectors(self._adjacency())
        return other

    def points(self) -> Sequence[Mapping[str, Any]]:
        """Its own orbit first, then the others: a pair and its transpose give the same vectors, so one of them is listed."""
        assert isinstance(self.method, Gradco)
        own = self.method.orbit
        counts = OrbitCounts(self._adjacency())
        listed = [own, *(o for o in DISTINCT if o != own and (o[0], o[2], o[1]) != own)]
        return [{"orbit": orbit_name(o)} for o in listed if _bytes(counts, o) <= (free_memory() or np.inf)]

    def _adjacency(self) -> sp.csr_array:
        indptr, indices = (t.numpy() for t in self.graph)
        return sp.csr_array((np.ones(len(indices)), indices, indptr), shape=(len(indptr) - 1,) * 2)

    def state(self) -> Mapping[str, Any]:
        return {"vectors": self.vectors, "indptr": self.graph[0], "indices": self.graph[1]}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(method, schema, state["vectors"], (state["indptr"], state["indices"]))

    def parameters(self) -> int:
        return int(self.vectors.numel())


class Gradco(EmbeddingMethod):
    """Vectors of nodes from one orbit adjacency: who is met often, in one given position of one small pattern.

    ``O^h_ab[i, j]`` counts the graphlets (connected induced subgraphs of up to four nodes) that hold i on orbit a and j on
    orbit b at distance h inside the graphlet; `orbit` is written ``h:a-b``, so 1:0-0 are the edges themselves, 2:1-1 the ends
    of open triples, 3:4-4 the ends of induced paths of four. The counts become positive pointwise mutual information
    ``max(log(O_ij vol / (r_i c_j)), 0) ≈ U Σ V^T``, and a node's vector is its row of ``U √Σ``, times one number for all
    nodes (entries of mean square 1). With ``orientation=symmetric`` the counts are ``O + O^T``; ``both`` puts half of the
    numbers for a node as i (``U √Σ``) beside half for it as j (``V √Σ``).

    `orbit` may change after the fit: the model keeps the graph, and the counts of another pair of orbits are made from it.
    Which pair suits the labels is chosen by ``--tune`` on the validation part. Edges are taken both ways, self-loops are
    dropped, repeats count once, weights are refused. Source: arXiv 2405.14194; an SVD stands in for its factorisation.
    """

    name: ClassVar[str] = "gradco"
    chance: ClassVar[bool] = False
    model: ClassVar[type[EmbeddingModel]] = GradcoModel
    orbit: Orbit = setting(
        (2, 1, 1), "distance:row-column, one of the 28 pairs of orbits", late=True, search=[orbit_name(o) for o in DISTINCT]
    )
    dim: int = setting(64, "length of a node's vector", ge=2, le=4096)
    weights: Literal["ppmi", "counts"] = setting("ppmi", "what is factorised: positive mutual information, or the counts")
    orientation: Literal["symmetric", "both"] = setting("symmetric", "the sum with the transpose, or both sides apart")

    @field_validator("orbit", mode="before")
    @classmethod
    def _one_of_28(cls, given: Any) -> Orbit:
        return read_orbit(given)

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        return WEIGHTED if facts["weighted"] else None

    def fit(self, train: Part, valid: Part | None, run: Run) -> GradcoModel:
        data = train.data
        A, notes = simple_adjacency(data.edge_index, int(data.num_nodes), data.edge_weight)
        run.notes += notes
        method = self
        try:
            vectors = self.vectors(A, run)
        except OutOfTime:
            run.stopped = True
            run.notes.append(
                f"the time was up before {orbit_name(self.orbit)} was counted: the vectors are those of the edges, 1:0-0"
            )
            method = self.but(orbit="1:0-0")
            vectors = method.vectors(A)
        if not vectors.any():
            run.notes.append(f"no pair of nodes sits on {orbit_name(method.orbit)}: all vectors are zero")
        graph = torch.from_numpy(A.indptr.astype(np.int64)), torch.from_numpy(A.indices.astype(np.int32))
        return GradcoModel(method, dict(train.schema), vectors, graph)

    def vectors(self, A: sp.csr_array, run: Run | None = None) -> torch.Tensor:
        """float32 [n, dim] for a simple graph; `run` hears the progress and may stop it."""
        try:
            counts = OrbitCounts(A)
        except ValueError as reason:
            raise UserError(f"orbits cannot be counted on this graph: {reason}") from None
        need, free = _bytes(counts, self.orbit), free_memory()
        if free is not None and need > free:
            raise UserError(
                f"the vectors of {orbit_name(self.orbit)} may take {need / 1e9:.1f} GB on this graph, and {free / 1e9:.1f} GB are "
                "free; take an orbit at distance one, as in -s orbit=1:1-2"
            )

        def on_rows(start: int) -> None:
            if run is not None:
                run.log(start, rows=start)

        counted = counts.matrices([self.orbit], on_rows=on_rows)[self.orbit]
        if self.orientation == "symmetric":
            counted = sp.csr_array(counted + counted.T)
        information = positive_information(counted) if self.weights == "ppmi" else counted.astype(np.float64)
        if self.orientation == "symmetric":
            found = factorise(information, self.dim)[0]
        else:
            half = self.dim // 2
            left, right = factorise(information, self.dim - half)
            found = np.hstack([left, right[:, :half]])
        return torch.from_numpy(unit_scale(found).astype(np.float32))


def _bytes(counts: OrbitCounts, orbit: Orbit) -> int:
    need = counts.need([orbit])
    entries = need.far if orbit == FAR else need.pairs if orbit[0] == 2 else 2 * counts.m
    return need.memory + _FACTOR_BYTES * entries
