"""Networks on sequences of snapshots: what all of them share, from a window's links to the fit.

A snapshot is kept compactly: a row for each node that has a link in it, and one last row that stands for all others, which
are alike (no link, a self-loop of 1, the degree 0). So a snapshot costs what happened in it, not how many nodes there are, and
scoring all pairs takes (rows)^2 distinct scores.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numba
import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from pydantic import field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.core.errors import UserError
from latticework.core.method import Backbone, Stream
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.task import Part
from latticework.core.training import Patience, Watch, train
from latticework.core.value import setting
from latticework.data.events import Events
from latticework.layers.propagation import SparseOperator, normalise

from .snapshots import EDGES, LINKS, ClassQuery, LinkBlock, SnapshotModel, distinct_pairs, truth_of, windows_of

Array = NDArray[Any]


# -- snapshots -----------------------------------------------------------------------------------------------------------
class OneHot:
    """One-hot rows [n, F] by the place of their one, int64 [n]: ``X @ W`` picks rows of W, and its gradient adds into them."""

    def __init__(self, place: Tensor, width: int) -> None:
        self.place, self.shape = place, (len(place), width)

    def __matmul__(self, W: Tensor) -> Tensor:
        return W[self.place]

    def rows(self, index: Tensor) -> Tensor:
        """Dense rows [k, F]."""
        return F.one_hot(self.place[index], self.shape[1]).to(torch.get_default_dtype())

    def to(self, device: str) -> OneHot:
        return OneHot(self.place.to(device), self.shape[1])


def rows_of_features(X: Any, index: Tensor) -> Tensor:
    """Rows of a feature matrix of either form, dense."""
    found: Tensor = X.rows(index) if isinstance(X, OneHot) else X[index]
    return found


class Snapshot(NamedTuple):
    """`nodes` int64 [r - 1], ascending: who has a link; `A` [r, r] normalised; `X` one-hot degrees [r, F]; `active` bool [r].

    The last row stands for every other node.
    """

    nodes: Array
    A: SparseOperator
    X: OneHot
    active: Tensor


def snapshot_of(src: Array, dst: Array, width: int, device: str = "cpu") -> Snapshot:
    """The snapshot of a window's events: ``D^-1/2 (A + I) D^-1/2`` with A symmetrised and weighted by the number of events.

    A node's degree is how many others it met; `width` - 1 and more share the last place. Self-loops of the log are left out:
    every node has one of weight 1 as it is.
    """
    keep = src != dst
    nodes, ends = np.unique(np.stack([src[keep], dst[keep]]), return_inverse=True)
    u, v = ends.reshape(2, -1)
    r = len(nodes) + 1
    A = sp.coo_array((np.ones(2 * len(u)), (np.concatenate([u, v]), np.concatenate([v, u]))), shape=(r, r)).tocsr()
    A.sum_duplicates()
    degree = np.minimum(np.diff(A.indptr), width - 1)
    S = SparseOperator.from_scipy(normalise(A + sp.eye_array(r, format="csr"), "symmetric"), np.float32)
    active = torch.ones(r, dtype=torch.bool)
    active[-1] = False
    return Snapshot(nodes, S, OneHot(torch.from_numpy(degree.astype(np.int64)), width).to(device), active.to(device))


def largest_degree(events: Events, number: Array) -> int:
    """The most partners that a node has in one window."""
    top = 0
    for w in np.unique(number):
        rows = number == w
        top = max(top, int(snapshot_of(events.src[rows], events.dst[rows], 1 << 31).X.place.max()))
    return top


def place_of(nodes: Array, asked: Array) -> Array:
    """The row of each asked node among those of a snapshot; the last row for a node that is not in it."""
    at = np.searchsorted(nodes, asked)
    if not len(nodes):
        return np.zeros(len(asked), np.int64)
    return np.where(nodes[np.minimum(at, len(nodes) - 1)] == asked, at, len(nodes))


def recency_of(
    links: Any, window: int, history: int, decay: float, nodes: int, *, directed: bool = False,
    of: Literal["presence", "events"] = "presence",
) -> sp.csr_array:  # fmt: skip
    """``sum_k decay^k x_k`` float64 CSR [nodes, nodes], x_k being who met (or how often) k + 1 windows before `window`.

    `links(w)` gives the ends of a window's events. Both directions count alike unless `directed`.
    """
    total = sp.csr_array((nodes, nodes), dtype=np.float64)
    for k in range(history + 1):
        u, v = links(window - 1 - k)
        if not len(u):
            continue
        if not directed:
            u, v = np.concatenate([u, v]), np.concatenate([v, u])
        met = sp.coo_array((np.ones(len(u)), (u, v)), shape=(nodes, nodes)).tocsr()
        met.sum_duplicates()
        if of == "presence":
            met.data[:] = 1
        total = total + met * decay**k
    return sp.csr_array(total)


# -- heads ---------------------------------------------------------------------------------------------------------------
class PairHead(nn.Module):
    """``Linear(2d, c), ReLU, Linear(c, C)`` on ``[h_u, h_v]``; the first map is split, so that all pairs share its halves."""

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2 * width, hidden), nn.Linear(hidden, classes)

    def halves(self, H: Tensor) -> tuple[Tensor, Tensor]:
        """``h W_a + b`` and ``h W_b``, each [n, c]: the parts of a source and of a target."""
        a, b = self.first.weight.split(H.shape[1], dim=1)
        return F.linear(H, a, self.first.bias), F.linear(H, b)

    def forward(self, H: Tensor, rows: Tensor) -> Tensor:
        """Logits [q, C] of pairs int64 [2, q] of rows of H."""
        source, target = self.halves(H)
        found: Tensor = self.second(F.relu(source[rows[0]] + target[rows[1]]))
        return found


class NodeHead(nn.Module):
    """``Linear(d, c), ReLU, Linear(c, C)``: logits [q, C] of rows int64 [q]."""

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, classes)

    def forward(self, H: Tensor, rows: Tensor) -> Tensor:
        found: Tensor = self.second(F.relu(self.first(H[rows])))
        return found


@numba.njit(cache=True)
def all_pairs(source: Array, target: Array, w: Array, bias: float, out: Array) -> None:  # pragma: no cover - compiled
    """``out[i, j] = bias + sum_c w_c relu(source[i, c] + target[c, j])``; target is transposed, [c, n]. A row's bits do not
    depend on which rows stand beside it."""
    for i in range(source.shape[0]):
        for j in range(target.shape[1]):
            out[i, j] = bias
        for c in range(source.shape[1]):
            a, weight = source[i, c], w[c]
            for j in range(target.shape[1]):
                out[i, j] += weight * max(a + target[c, j], np.float32(0))


class SnapshotNet(nn.Module):
    """A body (history -> nodes, their vectors and one last row for all others), a head, and, where it remembers, the scale of
    ``log(recency + 0.001)`` in the logit. Then the head starts at 0: what is learned is added to what is remembered."""

    def __init__(self, body: Any, head: Any, remembers: bool = False) -> None:
        super().__init__()
        self.body, self.head = body, head
        self.recall = nn.Parameter(torch.ones(())) if remembers else None
        if remembers:
            nn.init.zeros_(head.second.weight)
            nn.init.zeros_(head.second.bias)


# -- fitting -------------------------------------------------------------------------------------------------------------
DECAY, FAINT = 0.7, 1e-3  # of the recency score that a network may be given; what a pair without one counts as


class Case(NamedTuple):
    """A window to be learned: the snapshots that are seen, what is asked (pairs [2, q] or nodes [q]) and its classes."""

    window: int
    history: tuple[Snapshot, ...]
    rows: Array
    y: Array


class SnapshotNetModel(SnapshotModel):
    """A fitted snapshot network: weights, and the events of the latest windows. Each answer is computed from these anew."""

    def __init__(self, method: Any, schema: Mapping[str, Any], net: SnapshotNet) -> None:
        super().__init__(method, schema)
        self.net = net.eval()

    # -- what is seen ----------------------------------------------------------------------------------------------------
    def latest_window(self) -> int:
        return int(self.kept[0][-1]) if len(self.kept[0]) else -1

    def snapshot(self, window: int) -> Snapshot:
        device = str(next(self.net.parameters()).device)
        made: Snapshot = self.cached(("snapshot", window), lambda: snapshot_of(*self.links(window), self.schema["width"], device))
        return made

    def history_before(self, window: int) -> tuple[Snapshot, ...]:
        """The ``history + 1`` snapshots before a window, empty ones too; none from before the log begins."""
        first = max(window - 1 - int(self.schema["history"]), 0)
        return tuple(self.snapshot(w) for w in range(first, max(window, first + 1)))

    # -- answers ---------------------------------------------------------------------------------------------------------
    def link_scores(self, query: LinkBlock) -> Array:
        """float32 [b, n]: the logit of a link against none, from the halves of the head's first map."""
        if self.schema["target"] != LINKS:
            return super().link_scores(query)
        nodes, source, target, w, bias = self.cached(("halves", query.window), lambda: self._halves(query.window))
        column = place_of(nodes, np.arange(query.nodes))
        distinct, inverse = np.unique(column[query.src], return_inverse=True)
        out = np.empty((len(distinct), target.shape[1]), np.float32)
        all_pairs(source[distinct], target, w, bias, out)
        found = out[:, column][inverse]
        if self.net.recall is not None:
            met = self.cached(("recency", query.window, query.nodes), lambda: self._recency(query.window, query.nodes))
            scale = float(self.net.recall.detach())
            rows = met[query.src]
            where = np.repeat(np.arange(len(query.src)), np.diff(rows.indptr))
            found += np.float32(scale * np.log(FAINT))
            found[where, rows.indices] += (scale * np.log1p(rows.data / FAINT)).astype(np.float32)
        return found

    def _recency(self, window: int, nodes: int) -> sp.csr_array:
        return recency_of(self.links, window, int(self.schema["history"]), DECAY, nodes, directed=bool(self.schema["directed"]))

    def _halves(self, window: int) -> tuple[Array, Array, Array, Array, float]:
        with torch.no_grad():
            nodes, H = self.net.body(self.history_before(window))
            head = self.net.head
            assert isinstance(head, PairHead)
            source, target = (v.cpu().numpy() for v in head.halves(H))
            w = (head.second.weight[1] - head.second.weight[0]).cpu().numpy()
            bias = float(head.second.bias[1] - head.second.bias[0])
        return nodes, np.ascontiguousarray(source), np.ascontiguousarray(target.T), w, bias

    def class_scores(self, query: ClassQuery) -> Array:
        """Probabilities float64 [q, C]; the links of the asked window are the last snapshot."""
        if self.schema["target"] == LINKS:
            return super().class_scores(query)
        device = str(next(self.net.parameters()).device)
        seen = self.history_before(query.window)[1 if query.window > self.schema["history"] else 0 :]
        history = (*seen, snapshot_of(query.src, query.dst, self.schema["width"], device))
        with torch.no_grad():
            logits = logits_of(self.net, history, query.rows)
        return torch.softmax(logits.double(), 1).cpu().numpy()

    def explain(self, part: Part) -> Findings:
        """How the validation windows were scored, beside the recency baseline."""
        from latticework.core.svg import lines

        past = self.schema.get("past")
        if not past:
            return Findings()
        figure = lines(
            {name: [(row["snapshot"], row[name]) for row in past] for name in ("map", "map of recency")},
            "MAP of past windows", "snapshot", dots=True,
        )  # fmt: skip
        return Findings({}, {"past windows": past}, {"past windows": figure})

    # -- keeping ---------------------------------------------------------------------------------------------------------
    def state(self) -> Mapping[str, Any]:
        return {**super().state(), **{f"net.{k}": v for k, v in self.net.state_dict().items()}}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        net = method.module(schema)
        net.load_state_dict({k[4:]: v for k, v in state.items() if k.startswith("net.")})
        return cls(method, schema, net).restored(state)

    def parameters(self) -> int:
        return sum(p.numel() for p in self.net.parameters())


def logits_of(net: SnapshotNet, history: Sequence[Snapshot], rows: Array) -> Tensor:
    """Logits [q, C] of pairs [2, q] or nodes [q]."""
    nodes, H = net.body(history)
    found: Tensor = net.head(H, torch.from_numpy(place_of(nodes, rows.ravel()).reshape(rows.shape)).to(H.device))
    return found


def cases_of(model: SnapshotNetModel, events: Events) -> list[Case]:
    """The train windows that can be learned: all with a whole history and something to ask."""
    schema, device = model.schema, str(next(model.net.parameters()).device)
    number = windows_of(events.t, schema["origin"], schema["window"])
    bounds = np.searchsorted(number, np.arange(schema["windows"] + 1))
    pieces = [events.rows(int(a), int(b)) for a, b in itertools.pairwise(bounds)]
    snapshots = [snapshot_of(p.src, p.dst, schema["width"], device) for p in pieces]
    own = schema["target"] != LINKS  # the asked window's links are seen
    span = schema["history"] + 1
    found = []
    for w in range(span - own, len(pieces)):
        rows, y = truth_of(pieces[w], schema)
        if len(y):
            found.append(Case(w, tuple(snapshots[w - span + own : w + own]), rows, y))
    if not found:
        raise UserError(f"no train window after the first {span} has a link; use longer windows or a smaller task.history")
    return found


def false_pairs(case: Case, times: int, rng: np.random.Generator) -> Array:
    """int64 [2, k]: `times` as many pairs as there are true ones: a true link's source with a node of the history; pairs that
    are true, and a node's pair with itself, are dropped."""
    sources = np.unique(case.rows[0])
    active = np.unique(np.concatenate([s.nodes for s in case.history]))
    if not len(active):
        active = np.unique(case.rows)
    k = times * case.rows.shape[1]
    u, v = sources[rng.integers(len(sources), size=k)], active[rng.integers(len(active), size=k)]
    return without(np.stack([u, v]), case.rows)


def without(pairs: Array, true: Array) -> Array:
    """Distinct pairs of two different nodes that are not among the true ones, int64 [2, k]."""
    n = int(max(pairs.max(initial=0), true.max(initial=0))) + 1
    u, v = pairs[:, ~np.isin(pairs[0] * n + pairs[1], true[0] * n + true[1])]
    return distinct_pairs(u, v)


class SnapshotNetwork(Backbone):
    """Fields and fit of a network on snapshots; subclasses give `body`.

    One step of Adam for each train window that has a whole history; the epoch with the best validation headline is kept.
    """

    tasks: ClassVar[tuple[str, ...]] = ("snapshot-prediction",)
    gives: ClassVar[tuple[type[Any], ...]] = (Stream,)
    model: ClassVar[type[SnapshotNetModel]] = SnapshotNetModel

    layers: tuple[int, ...] = setting((100, 100), "widths of the layers")
    head: int = setting(100, "width of the head's hidden layer", ge=1, le=4096)
    lr: float = setting(1e-3, "learning rate of Adam", gt=0, le=1, search=(1e-4, 1e-2, "log"))
    class_weights: tuple[float, ...] | None = setting(
        None, "of each class in the loss; left out: .1 and .9 for links, the inverse of the train shares for classes"
    )
    negatives: int = setting(50, "next-links: pairs that did not meet for each that did, in training", ge=1, le=10_000)
    degree_cap: int | Literal["train"] = setting(
        "train", "degrees from here on share a place; train: the largest of the train part"
    )
    epochs: int = setting(1000, "at most", ge=1, le=100_000)
    patience: int = setting(50, "epochs without a better validation value before the fit stops", ge=1)

    def body(self, features: int, schema: Mapping[str, Any]) -> nn.Module:
        """history of snapshots -> (nodes int64 [k], vectors [k + 1, width]); it has an attribute `width`."""
        raise NotImplementedError

    def remembers(self) -> bool:
        return bool(getattr(self, "memory", False))

    def module(self, schema: Mapping[str, Any]) -> SnapshotNet:
        """The bare network: body and head."""
        if not self.layers or min(self.layers) < 1:
            raise UserError(f"{self.name}: layers are one width or more, each at least 1, not {list(self.layers)}")
        links = schema["target"] == LINKS
        if self.remembers() and not links:
            raise UserError(f"{self.name}: memory=true is for task.target=next-links")
        body = self.body(schema["width"], schema)
        classes = 2 if links else len(schema["classes"])
        head = (PairHead if schema["target"] in (LINKS, EDGES) else NodeHead)(body.width, self.head, classes)  # type: ignore[arg-type]
        return SnapshotNet(body, head, self.remembers())

    @field_validator("degree_cap")
    @classmethod
    def _cap(cls, cap: int | str) -> int | str:
        if cap != "train" and int(cap) < 1:
            raise ValueError(f"is train, or 1 or more: {cap} would leave no place for a degree")
        return cap

    def schema_for(self, train: Part) -> dict[str, Any]:
        events: Events = train.data
        cap = self.degree_cap
        if cap == "train":
            cap = largest_degree(events, windows_of(events.t, train.schema["origin"], train.schema["window"]))
        return {**train.schema, "width": int(cap) + 1}

    def build(self, train: Part, run: Run) -> nn.Module:
        return self.module(self.schema_for(train))

    def fit(self, train: Part, valid: Part | None, run: Run) -> SnapshotNetModel:
        schema = self.schema_for(train)
        model = self.model(self, schema, self.module(schema).to(run.device))
        model.observe(train.data)
        fit_network(self, model, train, valid, run)
        model.net.cpu()
        model._cache = {}
        return model


def fit_network(method: SnapshotNetwork, model: SnapshotNetModel, part: Part, valid: Part | None, run: Run) -> None:
    """Train a model's net in place."""
    net, links = model.net, model.schema["target"] == LINKS
    cases = cases_of(model, part.data)
    weights = _class_weights(method, cases, links, len(model.schema["classes"])).to(run.device)
    met = {c.window: _recency_before(c.window, part.data, model.schema) for c in cases} if net.recall is not None else {}
    optimiser = torch.optim.Adam(net.parameters(), lr=method.lr)

    def step(epoch: int) -> float:
        rng, total = run.rng(f"false pairs {epoch}"), 0.0
        for case in cases:
            rows, y = case.rows, case.y
            if links:
                false = false_pairs(case, method.negatives, rng)
                if net.recall is not None:  # what it remembers must be ranked among itself, too
                    remembered = np.stack(met[case.window].nonzero())
                    false = np.concatenate([false, without(remembered, case.rows)], axis=1)
                rows = np.concatenate([rows, false], axis=1)
                y = np.concatenate([y, np.zeros(false.shape[1], np.int64)])
            optimiser.zero_grad(set_to_none=True)
            logits = logits_of(net, case.history, rows)
            if net.recall is not None:
                seen = np.log(np.asarray(met[case.window][rows[0], rows[1]]).ravel() + FAINT).astype(np.float32)
                logits = logits + torch.stack([torch.zeros(len(seen)), torch.from_numpy(seen)], 1).to(run.device) * net.recall
            each = F.cross_entropy(logits, torch.from_numpy(y).to(run.device), weight=weights, reduction="sum")
            loss = each / len(y)  # by the number of samples, not by the sum of weights
            loss.backward()
            optimiser.step()
            total += float(loss.detach())
        return total / len(cases)

    def look() -> Watch:
        assert run.task is not None and valid is not None
        value = run.task.value(run.task.answer(model, valid.blind(), run), valid, run)
        return Watch(0.0 if value is None else -value, {} if value is None else {"valid": value})

    epoch = train(
        net, step, run, epochs=method.epochs, optimiser=optimiser, watch=None if valid is None else look,
        patience=Patience(epochs=method.patience),
    )  # fmt: skip
    if valid is not None:
        run.notes.append(f"weights of epoch {epoch + 1}, chosen on the validation windows")
        if links:
            _beside_recency(model, part, valid, run)


def _recency_before(window: int, events: Events, schema: Mapping[str, Any]) -> sp.csr_array:
    bounds = windows_of(events.t, schema["origin"], schema["window"])

    def links(w: int) -> tuple[Array, Array]:
        a, b = np.searchsorted(bounds, [w, w + 1])
        return events.src[a:b], events.dst[a:b]

    return recency_of(links, window, int(schema["history"]), DECAY, events.nodes, directed=bool(schema["directed"]))


def _class_weights(method: SnapshotNetwork, cases: Sequence[Case], links: bool, classes: int) -> Tensor:
    wanted = 2 if links else classes
    if method.class_weights is None:
        if links:
            return torch.tensor([0.1, 0.9])
        counts = np.bincount(np.concatenate([c.y for c in cases]), minlength=classes)
        if (counts == 0).any():
            raise UserError(
                "the train windows that have a whole history hold one class less than the train part; use a smaller task.history"
            )
        return torch.from_numpy((1 / counts) / (1 / counts).sum()).float()
    if len(method.class_weights) != wanted or min(method.class_weights) <= 0:
        raise UserError(f"{method.name}: class_weights are {wanted} numbers above 0, not {list(method.class_weights)}")
    return torch.tensor(method.class_weights)


def _beside_recency(model: SnapshotNetModel, part: Part, valid: Part, run: Run) -> None:
    """Scores of the validation windows, ours and the recency baseline's, for users to see whether learning helps."""
    from .snapshot_baselines import RecencyDecay

    assert run.task is not None
    simple = RecencyDecay().started(part)
    found = []
    for each in (model, simple):
        scores = run.task.score(run.task.answer(each, valid.blind(), run), valid, run)
        found.append({(s.metric, s.at.get("snapshot")): s.value for s in scores})
    ours, theirs = found
    snapshots = sorted({at for _, at in ours if at is not None})
    model.schema = {**model.schema, "past": [
        {"snapshot": w, "map": ours["map", w], "map of recency": theirs["map", w], "mrr": ours["mrr", w],
         "mrr of recency": theirs["mrr", w]} for w in snapshots
    ]}  # fmt: skip
    if snapshots:
        run.notes.append(
            f"MAP of {len(snapshots)} validation windows {ours['map', None]:.4f}; the recency baseline has {theirs['map', None]:.4f}"
        )
