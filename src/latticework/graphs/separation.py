"""The task `graph-separation`: how many pairs of different graphs a method cannot tell apart, and what separates without training.

A method gives every graph a vector, in one copy or several (networks with other random weights). A pair is told apart where some
copy puts the two vectors further apart than a gap, in L1; else it is unresolved. So with ``D(g, h) = max over copies of
||v_g - v_h||_1`` the unresolved pairs are those with ``D <= gap``. Over all pairs they are found by sorting: ``|p(v_g) - p(v_h)| <=
||v_g - v_h||_1`` for each coordinate p and for the sum, so in the order of one such p only neighbours within the gap can be
unresolved, and equal vectors are counted once for all of them.

Some graphs are asked a second time with their nodes numbered otherwise. Whoever tells a graph from itself separates by numbering,
and its other separations say nothing.

Sources: the rule with 100 random networks and a gap of 1e-3 is that of Balcilar et al., "Breaking the Limits of Message Passing Graph
Neural Networks" (ICML 2021), and of "Frame Averaging" (ICLR 2022).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self, runtime_checkable

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch_geometric.data import Data

from latticework.common.graph_batches import Packed
from latticework.core.dataset import Dataset
from latticework.core.errors import OutOfTime, UserError
from latticework.core.ledger import write_whole
from latticework.core.method import Backbone, Method, Model
from latticework.core.result import Metric, Score
from latticework.core.run import Run
from latticework.core.task import Fold, Part, Query, Task
from latticework.core.value import Value, setting
from latticework.data.graphs import GraphSet, from_data, match_features, schema_of, wl_colours

Array = NDArray[Any]
LISTED = 2_000_000  # pairs held as a list; above, only their number is kept
WRITTEN = 100_000


@runtime_checkable
class Separator(Protocol):
    """A model that gives graphs vectors, in `copies` copies; two graphs are told apart beyond `gap` in L1."""

    @property
    def copies(self) -> int: ...

    @property
    def gap(self) -> float: ...

    def vectors(self, part: Part, copy: int, rows: Array) -> Array:
        """float64 [len(rows), d] of some graphs of the part."""
        ...


# -- counting ----------------------------------------------------------------------------------------------------------------
class Near(NamedTuple):
    """Pairs within the gap: their number, the pairs int64 [2, k] with g < h (none where there are too many), and how many pairs
    of different vectors were looked at."""

    count: int
    pairs: Array | None
    looked: int


def near_pairs(vectors: Array, gap: float, most: int = LISTED) -> Near:
    """Pairs of rows with ``max over copies of ||v_g - v_h||_1 <= gap``: vectors float64 [copies, G, d].

    Equal rows are one with a weight. The others are sorted by the coordinate (or the sum of coordinates) of a copy that leaves
    the fewest pairs within the gap, and only those are compared. ``ValueError`` for a value that is not finite.
    """
    copies, graphs, d = vectors.shape
    if not np.isfinite(vectors).all():
        raise ValueError(f"the vector of graph {int(np.argwhere(~np.isfinite(vectors))[0, 1])} is not finite")
    if graphs < 2:
        return Near(0, np.zeros((2, 0), np.int64), 0)
    flat = np.ascontiguousarray(vectors.transpose(1, 0, 2).reshape(graphs, copies * d) + 0.0)
    whole = flat.view(np.dtype((np.void, max(flat.itemsize * flat.shape[1], 1)))).ravel() if flat.shape[1] else np.zeros(graphs)
    _, first, group = np.unique(whole, return_index=True, return_inverse=True)
    V, members = flat[first], np.bincount(group)
    key = _sharpest(V.reshape(len(V), copies, d), gap)
    order = np.argsort(key, kind="stable")
    V, key, weight = V[order], key[order], members[order]
    count, looked, places = _near(V, key, weight, copies, d, gap, np.empty((2, 0), np.int64))
    within = int((members * (members - 1) // 2).sum())
    if count + within > most:
        return Near(count + within, None, looked)
    places = np.empty((2, looked), np.int64)
    found = _near(V, key, weight, copies, d, gap, places)[2]
    return Near(count + within, _spelled(places[:, :found], order, group), looked)


def _sharpest(V: Array, gap: float) -> Array:
    """Of every copy's coordinates and their sum the one with the fewest pairs within the gap: float64 [G]."""
    best, fewest = np.zeros(len(V)), np.inf
    for copy in range(V.shape[1]):
        for column in [*V[:, copy].T, V[:, copy].sum(1)]:
            held = np.sort(column)
            pairs = (np.searchsorted(held, held + gap, "right") - np.arange(len(held)) - 1).sum()
            if pairs < fewest:
                best, fewest = column, pairs
    return best


@numba.njit(cache=True)
def _near(V: Array, key: Array, weight: Array, copies: int, d: int, gap: float, out: Array) -> tuple[int, int, int]:
    """(pairs within the gap by weight, pairs compared, rows of `out` that were filled)."""
    count, looked, found = 0, 0, 0
    slack = gap + 1e-9 * max(abs(key[0]), abs(key[-1]), gap)  # the sum of coordinates is rounded
    for a in range(len(key)):
        for b in range(a + 1, len(key)):
            if key[b] - key[a] > slack:
                break
            looked += 1
            near = True
            for c in range(copies):
                total = 0.0
                for k in range(c * d, (c + 1) * d):
                    total += abs(V[a, k] - V[b, k])
                if total > gap:
                    near = False
                    break
            if near:
                count += weight[a] * weight[b]
                if found < out.shape[1]:
                    out[0, found], out[1, found] = a, b
                    found += 1
    return count, looked, found


def _spelled(places: Array, order: Array, group: Array) -> Array:
    """Pairs of groups (places in the order) and pairs within groups as pairs of graphs, sorted."""
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    found = [np.zeros((2, 0), np.int64)]
    for a, b in order[places].T.tolist():
        g, h = np.meshgrid(members[a], members[b])
        found.append(np.stack([g.ravel(), h.ravel()]))
    for own in members:
        if len(own) > 1:
            i, j = np.triu_indices(len(own), 1)
            found.append(np.stack([own[i], own[j]]))
    pairs = np.sort(np.concatenate(found, 1), axis=0)
    return pairs[:, np.lexsort(pairs[::-1])]


# -- the task ----------------------------------------------------------------------------------------------------------------
class Compared(NamedTuple):
    """What is asked: `rows` int64 [q] and `ids` of all graphs, the last of which are relabelled ones; `of` int64 [r], whose they
    are; `pairs` int64 [2, k], or none for all pairs of the others."""

    rows: Array
    ids: tuple[str, ...]
    of: Array
    pairs: Array | None

    @property
    def graphs(self) -> int:
        return len(self.rows) - len(self.of)

    @property
    def total(self) -> int:
        return self.graphs * (self.graphs - 1) // 2 if self.pairs is None else self.pairs.shape[1]


class Told(NamedTuple):
    """The answer: how many pairs are unresolved, those that are listed int64 [2, k], and which relabelled graphs were told from
    themselves, bool [r]."""

    unresolved: int
    pairs: Array
    by_numbering: Array


class SeparationQuery(Query):
    """Nothing is asked beside the graphs."""

    name: ClassVar[str] = "pairs"


class GraphSeparation(Task):
    """How many pairs of graphs are not told apart; all graphs of the set count as different from one another.

    `pairs`: ``all`` pairs of the set; ``consecutive``: graphs 0 and 1, 2 and 3, …; ``auto`` is consecutive where each such pair has
    equally many nodes and two different labels, as in EXP and CEXP, else all. Nothing is trained, so there is one fold with all
    graphs; repeats are seeds. `relabelled` graphs, drawn once, are asked again with nodes and edges in another order.
    """

    name: ClassVar[str] = "graph-separation"
    kinds: ClassVar[tuple[str, ...]] = ("graph-set",)
    role: ClassVar[type[Any]] = Separator
    Query: ClassVar[type[Value]] = SeparationQuery
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("unresolved", "pairs", "lower"),
        Metric("separated", "", "higher"),
        Metric("told by numbering", "graphs", "lower"),
    )
    headline_metric: ClassVar[str] = "unresolved"

    pairs: Literal["auto", "all", "consecutive"] = setting("auto", "which pairs are compared")
    relabelled: int = setting(50, "graphs asked again with their nodes numbered otherwise, at most", ge=0, le=100_000)

    def for_data(self, data: Dataset) -> Self:
        given: GraphSet = data.read()
        if self.pairs == "auto":
            return self.but(pairs="consecutive" if _in_pairs(given) else "all")
        if self.pairs == "consecutive" and len(given) % 2:
            raise UserError(f"pairs=consecutive needs an even number of graphs, and there are {len(given)}; use pairs=all")
        if len(given) < 2:
            raise UserError("one graph alone makes no pair")
        return self

    def baselines(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        return "degree-sequence", "wl-1"

    def plan(self, data: Dataset, repeats: int) -> list[tuple[str, int]]:
        return [("whole", seed) for seed in range(repeats)]

    def hidden(self, test: Part) -> list[Any]:
        return []  # that all graphs differ is known to everyone

    def fold(self, data: Dataset, name: str) -> Fold:
        given: GraphSet = data.read()
        task = self.for_data(data)
        train = Part(given.graphs(), task._asked(given, 0)[1], None, schema_of(given))
        return Fold(train, None, task._part(given, schema_of(given)))

    def ask(self, data: Dataset | None, query: Value, schema: Mapping[str, Any]) -> Part:
        assert data is not None
        kept = {key: schema[key] for key in ("classes", "features", "edge_features", "targets", "multi")}
        return self.for_data(data)._part(match_features(data.read(), schema), kept)

    def _part(self, given: GraphSet, schema: Mapping[str, Any]) -> Part:
        graphs, query = self._asked(given, self.relabelled)
        return Part(graphs, query, None, dict(schema))

    def _asked(self, given: GraphSet, again: int) -> tuple[list[Data], Compared]:
        graphs = given.graphs()
        rng = np.random.default_rng([len(graphs), 0x73657061])
        of = np.sort(rng.choice(len(graphs), min(again, len(graphs)), replace=False))
        more = [renumbered(graphs[g], rng) for g in of.tolist()]
        ids = (*given.ids, *(f"{given.ids[g]} renumbered" for g in of.tolist()))
        pairs = np.arange(len(graphs) // 2 * 2).reshape(-1, 2).T if self.pairs == "consecutive" else None
        return graphs + more, Compared(np.arange(len(ids)), ids, of, pairs)

    def answer(self, model: Any, part: Part, run: Run) -> Told:
        """Copy by copy; graphs of pairs that are told apart are not asked again."""
        asked: Compared = part.query
        told = np.zeros(len(asked.of), bool)
        again = np.arange(asked.graphs, len(asked.rows))
        probes = np.unique(np.concatenate([asked.of, again]))
        pairs, stack, count, looked_at = asked.pairs, [], asked.total, 0
        for copy in range(model.copies):
            wanted = asked.rows if pairs is None else np.unique(np.concatenate([pairs.ravel(), probes]))
            V = np.asarray(model.vectors(part, copy, wanted), np.float64)
            if V.ndim != 2 or len(V) != len(wanted):
                raise UserError(f"{model.method.name} gave {list(V.shape)} instead of a vector for each of {len(wanted)} graphs")
            if not np.isfinite(V).all():
                row = int(wanted[np.argwhere(~np.isfinite(V))[0, 0]])
                raise UserError(f"{model.method.name} gave graph {asked.ids[row]!r} a vector that is not finite")

            def of(rows: Array, V: Array = V, wanted: Array = wanted) -> Array:
                return V[np.searchsorted(wanted, rows)]

            told |= np.abs(of(asked.of) - of(again)).sum(1) > model.gap
            if pairs is None:
                stack.append(V[: asked.graphs])
                # a set that is hardly told apart is looked at again when there are twice as many copies
                if len(stack) >= 2 * looked_at or copy == model.copies - 1:
                    found = near_pairs(np.stack(stack), model.gap)
                    count, pairs, looked_at = found.count, found.pairs, len(stack)
            else:
                pairs = pairs[:, np.abs(of(pairs[0]) - of(pairs[1])).sum(1) <= model.gap]
                count = pairs.shape[1]
            try:
                run.log(copy, unresolved=float(count))
            except OutOfTime:
                run.stopped = True
                break
        return Told(count, np.zeros((2, 0), np.int64) if pairs is None else pairs, told)

    def score(self, answer: Told, part: Part, run: Run | None) -> list[Score]:
        total = part.query.total
        return [
            Score("unresolved", float(answer.unresolved)),
            Score("separated", 1 - answer.unresolved / total),
            Score("told by numbering", float(answer.by_numbering.sum())),
        ]

    def write(self, answer: Told, part: Part, to: Path) -> None:
        """``graph,other`` for every unresolved pair (the first 100,000)."""
        import polars as pl

        ids = np.array(part.query.ids, object)
        rows = answer.pairs[:, :WRITTEN]
        frame = pl.DataFrame(
            {"graph": ids[rows[0]].tolist(), "other": ids[rows[1]].tolist()}, schema={"graph": pl.String, "other": pl.String}
        )
        write_whole(to, frame.write_csv())


def _in_pairs(given: GraphSet) -> bool:
    """Whether graphs 2 i and 2 i + 1 have equally many nodes and two different labels, throughout."""
    if len(given) % 2 or given.y is None:
        return False
    (a, b), (m, n) = given.y.reshape(-1, 2).T, given.sizes.reshape(-1, 2).T
    return bool(((a != b) & (a >= 0) & (b >= 0) & (m == n)).all())


def renumbered(graph: Data, rng: np.random.Generator) -> Data:
    """The same graph, its nodes and its edges in another order."""
    n = int(graph.num_nodes or 0)
    place = torch.from_numpy(rng.permutation(n))
    order = torch.from_numpy(rng.permutation(graph.edge_index.shape[1]))
    made = Data(edge_index=place[graph.edge_index[:, order]], num_nodes=n)
    if graph.x is not None:
        made.x = torch.empty_like(graph.x)
        made.x[place] = graph.x
    if graph.edge_attr is not None:
        made.edge_attr = graph.edge_attr[order]
    return made


# -- what separates without a network ----------------------------------------------------------------------------------------
class CodesModel(Model):
    """Vectors of whole numbers that a method computes; a difference of 1 anywhere tells graphs apart."""

    copies, gap = 1, 0.5

    def __init__(self, method: CodesMethod, schema: Mapping[str, Any]) -> None:
        self.method: CodesMethod = method
        self.schema = schema

    def vectors(self, part: Part, copy: int, rows: Array) -> Array:
        return self.method.codes(part.data)[rows]

    def state(self) -> Mapping[str, Any]:
        return {}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(method, schema)


class CodesMethod(Method):
    """A method that gives graphs vectors of whole numbers, without chance and without a fit."""

    tasks: ClassVar[tuple[str, ...]] = ("graph-separation",)
    gives: ClassVar[tuple[type[Any], ...]] = (Separator,)
    model: ClassVar[type[CodesModel]] = CodesModel
    chance: ClassVar[bool] = False

    def codes(self, graphs: Sequence[Data]) -> Array:
        """float64 [G, d] of whole numbers."""
        raise NotImplementedError

    def fit(self, train: Part, valid: Part | None, run: Run) -> CodesModel:
        return self.model(self, dict(train.schema))


class WL1(CodesMethod):
    """1-WL colour refinement from the node features, until no colour splits: what message passing can tell apart at most."""

    name: ClassVar[str] = "wl-1"

    def codes(self, graphs: Sequence[Data]) -> Array:
        return wl_colours(from_data(list(graphs)), None)[:, None].astype(np.float64)


class DegreeSequence(CodesMethod):
    """The sorted degrees of a graph."""

    name: ClassVar[str] = "degree-sequence"

    def codes(self, graphs: Sequence[Data]) -> Array:
        most = max(int(g.num_nodes or 0) for g in graphs)
        found = np.full((len(graphs), most), -1.0)
        for row, graph in zip(found, graphs, strict=True):
            n = int(graph.num_nodes or 0)
            row[:n] = np.sort(np.bincount(graph.edge_index[0].numpy(), minlength=n))
        return found


# -- networks as they are initialised ----------------------------------------------------------------------------------------
class UntrainedModel(Model):
    """Random networks, made again from their seeds whenever they are asked: no weight is kept."""

    def __init__(self, method: Untrained, schema: Mapping[str, Any], seeds: torch.Tensor) -> None:
        self.method: Untrained = method
        self.schema, self.seeds = schema, seeds
        self._held: tuple[Any, Packed] | None = None

    @property
    def copies(self) -> int:
        return len(self.seeds)

    @property
    def gap(self) -> float:
        return self.method.gap

    def net(self, copy: int) -> torch.nn.Module:
        """One of the networks, ready to be asked."""
        method = self.method
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(self.seeds[copy]))
            net: torch.nn.Module = method.socket().module(self.schema["inputs"], method.outputs, self.schema)
        return (net.double() if method.precision == "float64" else net).eval()

    def vectors(self, part: Part, copy: int, rows: Array) -> Array:
        if self._held is None or self._held[0] is not part.data:
            self._held = part.data, Packed(self.method.socket().prepare(part.data, self.schema))
        packed, net = self._held[1], self.net(copy)
        found = []
        with torch.no_grad():
            for some in torch.from_numpy(np.ascontiguousarray(rows)).split(self.method.batch):
                batch = packed.batch(some)
                if self.method.precision == "float64":
                    for key, value in list(batch):
                        if isinstance(value, torch.Tensor) and value.is_floating_point():
                            batch[key] = value.double()
                found.append(net(batch).double())
        return torch.cat(found).numpy() if found else np.zeros((0, self.method.outputs))

    def state(self) -> Mapping[str, Any]:
        return {"seeds": self.seeds}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(method, schema, state["seeds"])

    def parameters(self) -> int:
        return self.copies * sum(p.numel() for p in self.net(0).parameters())


class Untrained(Method):
    """Networks with random weights, nothing trained: two graphs are told apart where any of them puts their outputs `gap` apart (L1).

    Takes any backbone for whole graphs. The networks run in float64, so that a gap means structure and not rounding; a backbone
    that knows float32 alone needs ``precision=float32``.
    """

    name: ClassVar[str] = "untrained"
    tasks: ClassVar[tuple[str, ...]] = ("graph-separation",)
    gives: ClassVar[tuple[type[Any], ...]] = (Separator,)
    model: ClassVar[type[UntrainedModel]] = UntrainedModel

    backbone: Backbone = setting("gin", "the network: any backbone for whole graphs")
    copies: int = setting(100, "networks with random weights", ge=1, le=10_000)
    gap: float = setting(1e-3, "L1 distance of the outputs beyond which two graphs are told apart", gt=0)
    outputs: int = setting(10, "numbers that a network gives a graph", ge=1, le=10_000)
    batch: int = setting(128, "graphs at a time", ge=1, le=65_536)
    precision: Literal["float64", "float32"] = setting("float64", "of the networks")

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        if not all(hasattr(self.backbone, need) for need in ("settled", "prepare", "module")):
            return f"its backbone {self.backbone.name} is none for whole graphs; use gin, spen or k-path"
        return None

    def socket(self) -> Any:
        reason = self.refuses(GraphSeparation(), {})
        if reason:
            raise UserError(f"untrained: {reason}")
        return self.backbone

    def row(self) -> str:
        return f"untrained {self.backbone.row()}, best of {self.copies}"

    def fit(self, train: Part, valid: Part | None, run: Run) -> UntrainedModel:
        schema = self.socket().settled(train)
        seeds = torch.from_numpy(run.rng("copies").integers(2**62, size=self.copies))
        return self.model(self, schema, seeds)
