"""LATTE: layers that attend over longer and longer chains of relations, and say which of them they used.

Layer l sees every *meta-relation* of length l, a chain of l relations that is composed automatically: ``author-paper``, then
``author-paper-conference``, ... Within a meta-relation m a node i attends over the nodes j at the chain's other end, then it
weighs its meta-relations and itself, and the outputs of all layers stand side by side:

    a_ij = softmax_j( s_m LeakyReLU( <W_left h_i, u_m> + <W_right h_j, v_m> ) ),      o_i^m = sum_j a_ij W_right h_j
    beta_i = softmax( W_phi h_i + b ) over (meta-relations of i's type, itself),      o_i = ReLU( sum_m beta_im o_i^m + beta_i,self W_left h_i )

Source: Tran and Gao, "Layer-stacked Attention for Heterogeneous Network Embedding" (arXiv 2020), as the official code has it
(its edge values, its proximity loss). Here the composed edges are all pairs that a chain joins, so that they do not change while
the attention learns; the code's threshold and sampling are options. Training is full-batch, on the weights of the best validation loss
(the code: neighbour sampling and averaged weights).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from pydantic import field_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.utils import softmax

from latticework.common.settled import read_alike
from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.method import Backbone, Predictor, Ref
from latticework.core.probe import Probe
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.svg import bars
from latticework.core.task import Part, Task
from latticework.core.training import Patience
from latticework.core.training import train as train_network
from latticework.core.value import setting
from latticework.data.hetero import (
    Chain,
    Relation,
    Step,
    biadjacency,
    chain_types,
    doubled_of,
    meta_paths,
    path_text,
    steps_from,
    target_of,
    unread_weights,
    whole_hetero,
)
from latticework.layers.attention import Edges, attend
from latticework.layers.propagation import WeakCache
from latticework.layers.sparse_features import FeatureLinear, SparseFeatures, compact

from .network import NodeModel, asked_of, loss_of, settle, watching

Array = NDArray[Any]
Features = Tensor | SparseFeatures
_kept = WeakCache()
_WORK = 1 << 22  # products that are counted at a time
FAR = 100  # times the budget: beyond that, counting pairs for an error would take longer than the error is worth


# -- meta-relations and their edges ------------------------------------------------------------------------------------
def meta_relations(relations: Sequence[Relation], layers: int, doubled: Collection[Step] = ()) -> tuple[tuple[Chain, ...], ...]:
    """The meta-relations of each layer: all chains of 1 to `layers` relations, each followed forwards or backwards.

    Steps that are `doubled` (they walk the very edges of another one) are left out.

    A chain (t0, ..., tl) sends from its last type to its first. ``ValueError`` for layers < 1 or without relations.
    """
    if layers < 1:
        raise ValueError(f"layers must be >= 1, is {layers}")
    types = dict.fromkeys(kind for source, _, to in relations for kind in (source, to))
    if not types:
        raise ValueError("there are no relations to compose")
    chains = [c for kind in types for c in meta_paths(list(relations), kind, layers, doubled=doubled)]
    return tuple(tuple(c for c in chains if len(c) == length) for length in range(1, layers + 1))


def needed_types(levels: Sequence[Sequence[Chain]], target: str) -> tuple[frozenset[str], ...]:
    """Types whose output each layer must give for the target's outputs of all layers to be exact.

    The last layer gives the target alone; a layer before it gives what the next one reads: itself and its tails.
    """
    needed = [frozenset([target])]
    for chains in reversed(levels[1:]):
        ends = [(chain_types(c)[0], chain_types(c)[-1]) for c in chains]
        needed.insert(0, needed[0] | {tail for head, tail in ends if head in needed[0]})
    return tuple(needed)


def compose(A: sp.csr_array, B: sp.csr_array) -> sp.csr_array:
    """Composed edges and their values: ``A diag(1 / (colsum(A) + rowsum(B))) B``, float64.

    A middle node without an edge on either side would divide by 0: it joins nothing, and its factor is 0. A [n, k], B [k, m]
    with values >= 0 -> [n, m], indices sorted. ``ValueError`` where the shapes do not meet. A = [[1, 1]], B = [[1], [1]]: [[1.0]].
    """
    if A.shape[1] != B.shape[0]:
        raise ValueError(f"A is {A.shape[0]} x {A.shape[1]}, B {B.shape[0]} x {B.shape[1]}: they do not meet")
    A, B = sp.csr_array(A, dtype=np.float64), sp.csr_array(B, dtype=np.float64)
    total = np.asarray(A.sum(axis=0)).ravel() + np.asarray(B.sum(axis=1)).ravel()
    factor = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
    found = sp.csr_array((A @ sp.diags_array(factor).tocsr() @ B).tocsr())
    found.sort_indices()
    return found


def pairs_joined(A: sp.csr_array, B: sp.csr_array, most: int, stop: int | None = None) -> int:
    """How many non-zeros ``A B`` has, counted a few rows at a time; with `stop`, counting ends soon past so many.

    A bound from the degrees comes first: where it is at most `most` it is the answer, so that small products are multiplied only once.
    """
    work = np.concatenate([[0], np.cumsum(np.diff(B.indptr)[A.indices], dtype=np.int64)])[A.indptr]  # up to each row
    if work[-1] <= most:
        return int(work[-1])
    found, start = 0, 0
    while start < A.shape[0] and (stop is None or found <= stop):
        end = max(int(np.searchsorted(work, work[start] + _WORK, side="right")) - 1, start + 1)
        found += int((A[start:end] @ B).nnz)
        start = end
    return found


# -- the network -------------------------------------------------------------------------------------------------------
class Attention(NamedTuple):
    """Of one meta-relation: its `edges`; `logits` [E, H] before and `weights` [E, H] after the softmax (no dropout).

    A logit is ``s LeakyReLU(here_i + there_j)``, with `here` [n, H] and `there` [m, H] for any pair.
    """

    edges: Edges
    logits: Tensor
    weights: Tensor
    here: Tensor
    there: Tensor


class LATTELayer(nn.Module):
    """One layer: attention within each meta-relation, then over the meta-relations of each node.

    `ends` gives each meta-relation's (head type, tail type) by a number of its own; `gives` are the types that get an output.
    Projections are per type (d^2 + d left and right), u, v and s per meta-relation: one more adds 2 d + 1, and d + 1 to
    its head type's W_phi. ``ValueError`` where the width is not a multiple of the heads.
    """

    def __init__(self, ends: Mapping[int, tuple[str, str]], gives: Sequence[str], width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"the width {width} is not a multiple of {heads} heads")
        self.ends, self.gives = dict(ends), tuple(gives)
        self.heads, self.dropout = heads, dropout
        self.of_type = {kind: [m for m, (head, _) in self.ends.items() if head == kind] for kind in self.gives}
        gain = nn.init.calculate_gain("leaky_relu", 0.2)

        def linear() -> nn.Linear:
            layer = nn.Linear(width, width)
            nn.init.xavier_normal_(layer.weight, nn.init.calculate_gain("relu"))
            nn.init.zeros_(layer.bias)
            return layer

        self.left = nn.ModuleDict({key_of(kind): linear() for kind in self.gives})
        self.right = nn.ModuleDict({key_of(kind): linear() for kind in dict.fromkeys(tail for _, tail in self.ends.values())})
        self.phi = nn.ModuleDict({key_of(kind): nn.Linear(width, len(own) + 1) for kind, own in self.of_type.items()})
        self.u, self.v, self.sharp = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        for m in self.ends:
            for held in (self.u, self.v):
                held[str(m)] = nn.Parameter(nn.init.xavier_normal_(torch.empty(heads, width // heads), gain))
            self.sharp[str(m)] = nn.Parameter(torch.ones(1))

    def forward(
        self, h: Mapping[str, Tensor], edges: Mapping[int, Edges]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[int, Attention]]:
        """h [n_t, d] by type -> outputs [n_t, d] and beta [n_t, R_t + 1] (the node itself last) by type; the attention."""
        split = (self.heads, -1)
        left = {kind: self.left[key_of(kind)](h[kind]) for kind in self.gives}
        right = {kind: self.right[key_of(kind)](h[kind]).unflatten(1, split) for kind in {tail for _, tail in self.ends.values()}}
        out, betas, seen = {}, {}, {}
        for kind in self.gives:
            beta = torch.softmax(self.phi[key_of(kind)](h[kind]), 1)
            L = left[kind].unflatten(1, split)
            total = beta[:, -1:] * left[kind]
            for slot, m in enumerate(self.of_type[kind]):
                at, R = edges[m], right[self.ends[m][1]]
                here, there = (L * self.u[str(m)]).sum(2), (R * self.v[str(m)]).sum(2)
                logits = self.logits(m, here[at.row], there[at.column])
                weights = softmax(logits, at.row, num_nodes=at.shape[0]) if len(at) else logits
                seen[m] = Attention(at, logits, weights, here, there)
                found = attend(F.dropout(weights, self.dropout, self.training), R, at).flatten(1)
                total = total + beta[:, slot : slot + 1] * found
            out[kind], betas[kind] = F.relu(total), beta
        return out, betas, seen

    def logits(self, m: int, here: Tensor, there: Tensor) -> Tensor:
        """``s LeakyReLU(<L_i, u> + <R_j, v>)`` from the two products, for pairs of a meta-relation."""
        return self.sharp[str(m)] * F.leaky_relu(here + there, 0.2)


def key_of(kind: str) -> str:
    """A type's name as a module's: torch allows no full stop in it, and "type" keeps clear of a module's own attributes."""
    return "type " + kind.replace(".", "·")


class Seen(NamedTuple):
    """What a pass through LATTE gives: `logits` [n, C] of the target; by layer the betas by type and the attention."""

    logits: Tensor
    betas: list[dict[str, Tensor]]
    attention: list[dict[int, Attention]]


class LATTE(nn.Module):
    """Layer-stacked attention over automatically composed meta-relations.

    `widths` gives the features of each type, 0 for a type with a free vector for each of its nodes (`sizes`). Called with
    the features by type (none for free types) and the edges by meta-relation (numbered through all layers, in the order of
    `levels`), as `composed_edges` makes them -> logits [n, C] of the target type.

    With `threshold` > 0 or `sampling`, layers after the first compose their edges at each pass from the attention of the layer
    before (values by `compose`, not differentiable): edges whose largest head is below the threshold are left out, the largest
    of all is kept if none is left; sampling keeps as many edges as the smaller factor has, drawn by their values in training, the
    largest ones else.

    ``prune=False`` computes every type in every layer; the target's outputs are the same. ``ValueError`` for a width that
    is not a multiple of the heads, fewer than two classes, a type that no relation touches as the target.
    """

    def __init__(
        self,
        relations: Sequence[Relation],
        widths: Mapping[str, int],
        sizes: Mapping[str, int],
        target: str,
        classes: int,
        *,
        width: int = 128,
        layers: int = 2,
        heads: int = 2,
        dropout: float = 0.2,
        class_dropout: float = 0.4,
        pool: Literal["concat", "last", "mean", "max"] = "concat",
        threshold: float = 0.0,
        sampling: bool = False,
        budget: int = 2_000_000,
        prune: bool = True,
        doubled: Collection[Step] = (),
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes must be >= 2, is {classes}: there is nothing to tell apart")
        self.levels = meta_relations(relations, layers, doubled)
        if target not in {chain_types(c)[0] for c in self.levels[0]}:
            raise ValueError(f"no relation touches {target!r}, the type that is classified")
        self.target, self.pool, self.dropout, self.class_dropout = target, pool, dropout, class_dropout
        self.threshold, self.sampling, self.budget = threshold, sampling, budget
        every = frozenset(kind for source, _, to in relations for kind in (source, to))
        needed = needed_types(self.levels, target) if prune else (every,) * layers
        self.numbers = number_chains(self.levels)
        stack, read = [], set()
        for chains, gives in zip(self.levels, needed, strict=True):
            ends = {self.numbers[c]: (chain_types(c)[0], chain_types(c)[-1]) for c in chains if chain_types(c)[0] in gives}
            order = tuple(kind for kind in sizes if kind in gives)
            stack.append(LATTELayer(ends, order, width, heads, dropout))
            read |= {kind for pair in ends.values() for kind in pair} if not stack[1:] else set()
        self.layers = nn.ModuleList(stack)
        self.inputs = nn.ModuleDict()
        self.free = nn.ModuleDict()
        for kind in sizes:
            if kind not in read | {target}:
                continue
            if widths[kind]:
                layer = FeatureLinear(widths[kind], width)
                nn.init.xavier_normal_(layer.weight, nn.init.calculate_gain("relu"))
                nn.init.zeros_(layer.bias)
                self.inputs[key_of(kind)] = layer
            else:
                self.free[key_of(kind)] = nn.Embedding(sizes[kind], width)
        self.read = tuple(kind for kind in sizes if kind in read | {target})
        self.classifier = nn.Linear(width * layers if pool == "concat" else width, classes)

    def start(self, x: Mapping[str, Features]) -> dict[str, Tensor]:
        """``h_t = dropout(ReLU(x_t W_t + b_t))``, or the free vectors of a type."""
        h = {}
        for kind in self.read:
            key = key_of(kind)
            given = F.relu(self.inputs[key](x[kind])) if key in self.inputs else self.free[key].weight
            h[kind] = F.dropout(given, self.dropout, self.training)
        return h

    def run(self, x: Mapping[str, Features], edges: Mapping[int, Edges], generator: torch.Generator | None = None) -> Seen:
        """All that a pass finds."""
        h = self.start(x)
        outs, betas, attention = [], [], []
        for layer in self.layers:
            assert isinstance(layer, LATTELayer)
            given = edges if not attention or not self.dynamic else self._composed(layer, attention, edges, generator)
            h, beta, seen = layer(h, given)
            h = {kind: F.dropout(out, self.dropout, self.training) for kind, out in h.items()}
            outs.append(h[self.target])
            betas.append(beta)
            attention.append(seen)
        stacked = {
            "concat": lambda: torch.cat(outs, 1), "last": lambda: outs[-1],
            "mean": lambda: torch.stack(outs).mean(0), "max": lambda: torch.stack(outs).amax(0),
        }[self.pool]()  # fmt: skip
        return Seen(self.classifier(F.dropout(stacked, self.class_dropout, self.training)), betas, attention)

    def forward(self, x: Mapping[str, Features], edges: Mapping[int, Edges]) -> Tensor:
        return self.run(x, edges).logits

    @property
    def dynamic(self) -> bool:
        """Whether composed edges follow the attention."""
        return self.threshold > 0 or self.sampling

    def _composed(
        self,
        layer: LATTELayer,
        attention: list[dict[int, Attention]],
        edges: Mapping[int, Edges],
        generator: torch.Generator | None,
    ) -> dict[int, Edges]:
        """The layer's edges from the attention of the one before; the first layer's edges are the base relations."""
        chains = {m: chain for chain, m in self.numbers.items()}
        found = {}
        left = self.budget - sum(len(a.edges) for seen in attention[1:] for a in seen.values())
        for m in layer.ends:
            chain = chains[m]
            before = attention[-1][self.numbers[chain[:-1]]]
            A = kept_edges(before.edges, before.weights.detach().amax(1), self.threshold)
            B = edges[self.numbers[chain[-1:]]].matrix()
            if not self.sampling and pairs_joined(A, B, max(left, 0), max(left, 0)) > left:
                raise UserError(
                    f"latte: chains of {len(chain)} relations join more pairs than edge_budget {self.budget:,} in all, at "
                    f"{'-'.join(chain_types(chain))}; use a larger -s edge_threshold or -s edge_budget, or -s edge_sampling=true"
                )
            C = compose(A, B)
            left -= C.nnz
            if self.sampling:
                C = sampled_edges(C, min(A.nnz, B.nnz), generator if self.training else None)
            found[m] = Edges(C, str(before.logits.device))
        return found


def number_chains(levels: Sequence[Sequence[Chain]]) -> dict[Chain, int]:
    """Each meta-relation's number, through all layers."""
    return {chain: i for i, chain in enumerate(c for chains in levels for c in chains)}


def kept_edges(edges: Edges, values: Tensor, threshold: float) -> sp.csr_array:
    """The edges whose value is at least the threshold; the largest one where none is."""
    A = edges.matrix(values)
    if threshold > 0 and A.nnz:
        keep = A.data >= threshold
        if not keep.any():
            keep[int(A.data.argmax())] = True
        A.data = np.where(keep, A.data, 0.0)
        A.eliminate_zeros()
    return A


def sampled_edges(C: sp.csr_array, most: int, generator: torch.Generator | None) -> sp.csr_array:
    """At most so many edges, drawn in proportion to their values; without a generator, the largest ones."""
    if C.nnz <= most or not most:
        return C
    if generator is None:
        chosen = np.argsort(-C.data, kind="stable")[:most]
    else:
        # the largest of log(u) / value are such a draw without replacement
        u = torch.rand(C.nnz, generator=generator, dtype=torch.float64).numpy()
        chosen = np.argsort(-(np.log(np.maximum(u, 1e-300)) / np.maximum(C.data, 1e-300)), kind="stable")[:most]
    keep = np.zeros(C.nnz, bool)
    keep[chosen] = True
    row = np.repeat(np.arange(C.shape[0]), np.diff(C.indptr))[keep]
    return sp.csr_array((C.data[keep], (row, C.indices[keep])), shape=C.shape)


def proximity_loss(logits: Tensor, others: Tensor, weights: Tensor | None = None) -> Tensor:
    """``-mean(w_ij log sigmoid(e_ij)) - mean(log sigmoid(-e_ij))`` of one meta-relation: joined pairs near, others far.

    `logits` [E] of its edges and `others` [K] of pairs that it does not join (the largest head each, before the softmax);
    w [E], ones if left out. With zero logits and unit weights: 2 log 2.
    """
    near = F.logsigmoid(logits)
    return -(near if weights is None else weights * near).mean() - (F.logsigmoid(-others).mean() if len(others) else 0.0)


def other_pairs(edges: Edges, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows and columns of about `count` pairs that are not joined, uniform; fewer where nearly all are."""
    n, m = edges.shape
    joined = (edges.row * m + edges.column).cpu()  # sorted: edges lie by row, then by column
    drawn = torch.randint(n * m, (count,), generator=generator)
    place = torch.searchsorted(joined, drawn).clamp(max=max(len(joined) - 1, 0))
    drawn = drawn[joined[place] != drawn] if len(joined) else drawn
    return drawn // m, drawn % m


# -- the recipe --------------------------------------------------------------------------------------------------------
class TypedModel(NodeModel):
    """A trained network on several node types; free vectors confine it to the graph that it was fitted on."""

    def __init__(self, method: Any, schema: Mapping[str, Any], net: nn.Module) -> None:
        super().__init__(method, schema, net)
        if len(net.free):  # type: ignore[arg-type]
            self.scope = "fitted data"

    def predict(self, part: Part) -> Any:
        if self.scope == "fitted data":
            from .baselines import same_graph

            same_graph(self, part)
        return super().predict(part)


class LATTEModel(TypedModel):
    """A trained LATTE, which can say which meta-relations it leans on."""

    def explain(self, part: Part) -> Findings:
        """The mean weight of each meta-relation by layer and type: over the asked nodes of the target type, all of others."""
        net, target = self.net, part.query.target
        assert isinstance(net, LATTE)
        with torch.no_grad():
            found = net.run(*self.method.inputs(read_alike(part, self.schema), "cpu"))
        chains = {m: chain for chain, m in net.numbers.items()}
        rows, scalars = [], {}
        for depth, (layer, betas) in enumerate(zip(net.layers, found.betas, strict=True), 1):
            assert isinstance(layer, LATTELayer)
            for kind, beta in betas.items():
                beta = beta[torch.from_numpy(part.query.rows)] if kind == target else beta
                names = [*(path_text(chains[m], part.data) for m in layer.of_type[kind]), "itself"]
                for slot, name in enumerate(names):
                    mean = float(beta[:, slot].mean()) if len(beta) else 0.0
                    spread = float(beta[:, slot].std()) if len(beta) > 1 else 0.0
                    rows.append({"layer": depth, "type": kind, "meta-relation": name, "mean weight": mean, "spread": spread})
                    if kind == target:
                        scalars[f"layer {depth}: {name}"] = mean
        last = [r for r in rows if r["layer"] == len(net.layers) and r["type"] == target]
        top = max(last, key=lambda r: float(r["mean weight"]))
        scalars["strongest"] = f"{100 * float(top['mean weight']):.0f} % {top['meta-relation']}"
        figure = bars(
            [str(r["meta-relation"]) for r in last], [float(r["mean weight"]) for r in last],
            f"mean weight in layer {len(net.layers)}", f"meta-relations of {target}",
        )  # fmt: skip
        return Findings(scalars, {"weight of meta-relations": rows}, {"weight of meta-relations": figure})


class LATTEMethod(Backbone):
    """Attention over automatically composed chains of relations; each node weighs its chains and itself, layer by layer.

    ``layers=2`` sees relations and all chains of two, with reverse relations added to those that the data have. The report and
    `explain` give the weight of each chain, so that they read "86 % author-paper-conference". A type without features gets
    the mean of its neighbours' (``featureless=neighbour-mean``), or a free vector for each node, as the paper has it: then
    the model answers for the fitted graph alone. ``proximity`` adds a loss that draws joined pairs together. Chains with more
    pairs than `edge_budget` in all are refused before training, with their size.
    """

    name: ClassVar[str] = "latte"
    tasks: ClassVar[tuple[str, ...]] = ("hetero-node-classification",)
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    model: ClassVar[type[NodeModel]] = LATTEModel

    layers: int = setting(2, "longest chain of relations", ge=1, le=6, search=[1, 2])
    width: int = setting(128, "width of each layer; a multiple of the heads", ge=1, le=4096)
    heads: int = setting(2, "attention heads", ge=1, le=64)
    pool: Literal["concat", "last", "mean", "max"] = setting("concat", "how the layers' outputs are read")
    featureless: Literal["neighbour-mean", "free"] = setting("neighbour-mean", "what types without features start from")
    proximity: bool = setting(False, "add the loss that draws joined pairs together (LATTE-2prox)")
    proximity_weights: Literal["attention", "one"] = setting("attention", "weight of a joined pair in that loss")
    negatives: float = setting(2.0, "pairs not joined for each joined one, in that loss", gt=0, le=100)
    edge_threshold: float = setting(0.0, "longer chains keep edges with this much attention; 0: all", ge=0, le=1)
    edge_sampling: bool = setting(False, "longer chains keep as many edges as the smaller of what they are made of")
    edge_budget: int = setting(2_000_000, "pairs that the longer chains may join in all", ge=1)
    dropout: float = setting(0.2, "dropout on inputs, attention and layers", ge=0, lt=1, search=(0.0, 0.6))
    class_dropout: float = setting(0.4, "dropout before the classifier", ge=0, lt=1)
    lr: float = setting(1e-3, "learning rate of Adam", gt=0, le=1, search=(5e-4, 2e-2, "log"))
    weight_decay: float = setting(
        1e-2, "on weights, not on biases, free vectors and sharpness", ge=0, le=1, search=(1e-5, 5e-2, "log")
    )
    epochs: int = setting(250, "at most", ge=1, le=100_000)
    patience: int = setting(10, "epochs without a better validation value before the fit stops", ge=1)
    stop: Literal["loss", "metric"] = setting("loss", "the epoch is chosen by validation loss, or by the headline")

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        if self.width % self.heads:
            return f"latte.width: {self.width} is not a multiple of {self.heads} heads; use -s width={self.heads * 32}"
        return free_types(self.featureless, task, facts)

    def module(self, features: int, classes: int, schema: Mapping[str, Any]) -> LATTE:
        relations = [tuple(key) for key in schema["relations"]]
        try:
            return LATTE(
                relations, input_widths(schema, self.featureless), schema["types"], schema["target"], classes, width=self.width,
                layers=self.layers, heads=self.heads, dropout=self.dropout, class_dropout=self.class_dropout, pool=self.pool,
                threshold=self.edge_threshold, sampling=self.edge_sampling, budget=self.edge_budget,
                doubled=doubled_of(schema),
            )  # fmt: skip
        except ValueError as error:
            raise UserError(f"latte: {error}") from None

    def build(self, train: Part, run: Run) -> nn.Module:
        run.notes += unread_weights(train.data, train.data.edge_types)
        return self.module(0, len(train.schema["classes"]), train.schema)

    def inputs(self, part: Part, device: str) -> tuple[dict[str, Features], dict[int, Edges]]:
        """Features by type, and edges by meta-relation; kept with the part's data, since neither depends on weights."""
        depth = 1 if self.edge_threshold > 0 or self.edge_sampling else self.layers
        key = (device, part.query.target, depth, self.edge_budget, doubled_of(part.schema))
        edges = _kept.get(part.data, key, lambda: composed_edges(part, depth, self.edge_budget, device))
        return placed(part, self.featureless, device), edges

    def settled(self, train: Part) -> dict[str, Any]:
        return {"scales": feature_scales(train, self.featureless)}

    def groups(self, net: nn.Module) -> list[dict[str, Any]]:
        free = [p for name, p in net.named_parameters() if name.endswith("bias") or name.startswith("free.") or ".sharp." in name]
        own = {id(p) for p in free}
        rest = [p for p in net.parameters() if id(p) not in own]
        return [{"params": rest, "weight_decay": self.weight_decay}, {"params": free, "weight_decay": 0.0}]

    def fit(self, train: Part, valid: Part | None, run: Run) -> NodeModel:
        train, valid = settle(self, train, valid)
        net = self.build(train, run).to(run.device)
        assert isinstance(net, LATTE)
        inputs = self.inputs(train, run.device)
        optimiser = torch.optim.Adam(self.groups(net), lr=self.lr)
        index, target = asked_of(train, run.device)
        draws = run.generator("edges")

        def step(epoch: int) -> float:
            optimiser.zero_grad(set_to_none=True)
            found = net.run(*inputs, draws)
            value = loss_of(found.logits[index], target)
            if self.proximity:
                value = value + self.nearness(net, found, draws)
            value.backward()
            optimiser.step()
            return float(value.detach())

        watch = None
        if valid is not None:
            seen = inputs if valid.data is train.data else self.inputs(valid, run.device)
            watch = watching(self.stop, valid, run, lambda: net(*seen))
        best = train_network(
            net, step, run, epochs=self.epochs, optimiser=optimiser, watch=watch, patience=Patience(epochs=self.patience)
        )
        if valid is not None:
            run.notes.append(f"weights of epoch {best + 1}, chosen on validation {self.stop}")
        read = [m for layer in net.layers for m in layer.ends]  # type: ignore[union-attr]
        pairs = f" joining {sum(len(inputs[1][m]) for m in read):,} pairs" if not net.dynamic else ""
        run.notes.append(f"{len(read)} meta-relations{pairs}; reverse relations were added")
        return self.model(self, dict(train.schema), net.cpu())

    def nearness(self, net: LATTE, found: Seen, generator: torch.Generator) -> Tensor:
        """The proximity loss, summed over layers; each meta-relation counts 1 / (2 x their number)."""
        total = torch.zeros((), device=found.logits.device)
        for layer, seen in zip(net.layers, found.attention, strict=True):
            assert isinstance(layer, LATTELayer)
            own = {m: a for m, a in seen.items() if len(a.edges)}
            for m, a in own.items():
                pairs = other_pairs(a.edges, int(self.negatives * len(a.edges)), generator)
                row, column = (i.to(a.logits.device) for i in pairs)
                others = layer.logits(m, a.here[row], a.there[column]).amax(1)
                weights = a.weights.detach().amax(1) if self.proximity_weights == "attention" else None
                total = total + proximity_loss(a.logits.amax(1), others, weights) / (2 * len(own))
        return total


# -- what it reads -----------------------------------------------------------------------------------------------------
def mean_sources(schema: Mapping[str, Any]) -> dict[str, tuple[tuple[Relation, bool], ...]]:
    """For each type without features, the steps to the types whose features are averaged for it, in rounds.

    A type that touches none with features waits for those that it does touch; one that no such round reaches has none.
    """
    relations: list[Relation] = [tuple(key) for key in schema["relations"]]  # type: ignore[misc]
    doubled = doubled_of(schema)
    known = set(schema["all_features"])
    found: dict[str, tuple[tuple[Relation, bool], ...]] = {}
    while True:
        fresh = {}
        for kind in schema["types"]:
            steps = tuple(step for step in steps_from(relations, kind, doubled) if chain_types((step,))[1] in known)
            if kind not in known and steps:
                fresh[kind] = steps
        if not fresh:
            return found
        found |= fresh
        known |= set(fresh)


def input_widths(schema: Mapping[str, Any], featureless: str) -> dict[str, int]:
    """Features that each type starts from; 0: a free vector for each node."""
    widths = {kind: len(names) for kind, names in schema["all_features"].items()}
    if featureless == "neighbour-mean":
        for kind, steps in mean_sources(schema).items():
            widths[kind] = sum(widths[chain_types((step,))[1]] for step in steps)
    return {kind: widths.get(kind, 0) for kind in schema["types"]}


def type_features(part: Part, featureless: str, scales: dict[str, float] | None = None) -> dict[str, Features]:
    """The features of each type that has some, sparse where mostly zero; means of neighbours' for the rest, side by side.

    Means of many sparse rows are small and alike, so those of a type are scaled by one number to a mean square of 1 on the train part,
    which is what the first map's initial law expects: without it DBLP's conferences start 30 times too close together to be told
    apart. The number of a type stands in the schema once a fit has settled it, else it is that of this part; `scales` takes it up.
    """
    data, told = part.data, part.schema.get("scales") or {}
    found: dict[str, Features] = {kind: compact(data[kind].x) for kind in part.schema["all_features"]}
    if featureless != "neighbour-mean":
        return found
    for kind, steps in mean_sources(part.schema).items():
        blocks = []
        for step in steps:
            joined = biadjacency(data, step).astype(np.float64)
            share = sp.diags_array(1 / np.maximum(np.asarray(joined.sum(axis=1)).ravel(), 1)).tocsr() @ joined
            x = found[chain_types((step,))[1]]
            blocks.append(sp.csr_array(share @ (x.scipy() if isinstance(x, SparseFeatures) else sp.csr_array(x.numpy()))))
        together = sp.csr_array(sp.hstack(blocks)).astype(np.float32)
        square = float((together.data.astype(np.float64) ** 2).sum()) / max(together.shape[0] * together.shape[1], 1)
        scale = told.get(kind, float(1 / np.sqrt(square)) if square > 0 else 1.0)
        if scales is not None:
            scales[kind] = scale
        together.data *= np.float32(scale)
        full = together.nnz > 0.2 * together.shape[0] * together.shape[1]
        found[kind] = torch.from_numpy(together.toarray()) if full else SparseFeatures(together)
    return found


def placed(part: Part, featureless: str, device: str) -> dict[str, Features]:
    """`type_features` on a device; kept with the part's data."""

    def make() -> dict[str, Features]:
        own = _kept.of(part.data).get(("own", featureless))  # the train part's, made when its scales were settled
        found = own[1] if own and own[0] == part.schema.get("scales") else type_features(part, featureless)
        if device == "cpu":
            return found
        return {kind: (x.dense() if isinstance(x, SparseFeatures) else x).to(device) for kind, x in found.items()}

    told = tuple(sorted((part.schema.get("scales") or {}).items()))
    return _kept.get(part.data, (device, featureless, told), make)


def feature_scales(part: Part, featureless: str) -> dict[str, float]:
    """What the neighbours' means of each type without features are multiplied by; kept with the part's data, as are the features."""

    def make() -> tuple[dict[str, float], dict[str, Features]]:
        scales: dict[str, float] = {}
        return scales, type_features(part, featureless, scales)

    return dict(_kept.get(part.data, ("own", featureless), make)[0])


def free_types(featureless: str, task: Task, facts: Mapping[str, Any]) -> str | None:
    """Why free vectors cannot be had here: an inductive test asks for nodes that have none."""
    without = [kind for kind in facts["types"] if kind not in facts["features"]]
    if not without or getattr(task, "protocol", "") != "inductive" or (featureless == "neighbour-mean" and facts["features"]):
        return None
    return (
        f"{', '.join(without)} have no features, and free vectors learned for known nodes say nothing of new ones: "
        "use -s featureless=neighbour-mean (which needs one type with features), or -s task.protocol=transductive"
    )


def composed_edges(part: Part, layers: int, budget: int, device: str = "cpu") -> dict[int, Edges]:
    """The edges of all relations, and of the longer chains that a pruned LATTE of so many layers reads, by their numbers.

    `UserError` where the longer ones have more than `budget` in all, with their sizes, before they are made.
    """
    relations: list[Relation] = [tuple(key) for key in part.schema["relations"]]  # type: ignore[misc]
    target = part.query.target
    levels = meta_relations(relations, layers, doubled_of(part.schema))
    needed = needed_types(levels, target)
    numbers = number_chains(levels)
    patterns: dict[Chain, sp.csr_array] = {}
    found: dict[int, Edges] = {}
    sizes: dict[str, int] = {}
    for depth, (chains, gives) in enumerate(zip(levels, needed, strict=True)):
        for chain in chains:
            if depth == 0:
                pattern = biadjacency(part.data, chain[0]).astype(np.float32)
                pattern.data[:] = 1
            elif chain_types(chain)[0] in gives:
                A, B = patterns[chain[:-1]], patterns[chain[-1:]]
                left = budget - sum(sizes.values())
                sizes[path_text(chain, part.data)] = size = pairs_joined(A, B, max(left, 0), FAR * budget)
                if size > left:
                    continue  # the sizes of the rest are counted for the message
                pattern = sp.csr_array(A @ B)
                pattern.data[:] = 1
                sizes[path_text(chain, part.data)] = int(pattern.nnz)
            else:
                continue
            patterns[chain] = pattern
            found[numbers[chain]] = Edges(pattern, device)
        if sum(sizes.values()) > budget:
            more = " or more" if max(sizes.values()) > FAR * budget else ""
            large = sorted(sizes.items(), key=lambda item: -item[1])[:3]
            raise UserError(
                f"latte: chains of {depth + 1} relations join {sum(sizes.values()):,} pairs{more}, above edge_budget {budget:,} "
                f"({', '.join(f'{name}: {size:,}' for name, size in large)}); use -s edge_sampling=true, -s edge_threshold=0.5, "
                f"-s layers={depth}, or a larger -s edge_budget (some 200 bytes a pair while training)"
            )
    return found


# -- the probe ---------------------------------------------------------------------------------------------------------
class MetaRelations(Probe):
    """Which chains of relations tell the class: the mean weight of each, as a LATTE fitted on these data reports it.

    The weights are means over the test nodes of the data's first split, for each layer; those of a layer sum to 1. They say
    what this model leans on, not what it could do without: another seed may choose another of two chains that carry the same.
    """

    name: ClassVar[str] = "meta-relations"
    kinds: ClassVar[tuple[str, ...]] = ("heterogeneous graph",)
    latte: LATTEMethod = setting(LATTEMethod(), "the network that is fitted")
    split: str = setting("random", "the split that it is fitted on")
    target: str | None = setting(None, "the node type that is classified; left out: the one that has labels")

    @field_validator("split", mode="before")
    @classmethod
    def _as_text(cls, given: Any) -> Any:
        return str(given) if isinstance(given, int) and not isinstance(given, bool) else given

    def measure(self, data: Dataset | None, run: Run) -> Findings:
        from .hetero_tasks import HeteroNodeClassification

        if data is None:
            raise UserError("meta-relations needs a heterogeneous graph")
        target = target_of(data.read(), self.target, "target")
        task = HeteroNodeClassification(target=target, split=self.split).for_data(data)
        model = run.model(Ref(method=self.latte, task=task, data=data), whole_hetero(data.read(), target))
        return model.explain(task.fold(data, task.plan(data, 1)[0][0]).test.blind())
