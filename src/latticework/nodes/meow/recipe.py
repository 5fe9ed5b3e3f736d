"""The recipes: how MEOW and AdaMEOW are fitted without labels, and what their models say of themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import scipy.sparse as sp
import torch
from pydantic import field_validator, model_validator
from torch import Tensor, nn

from latticework.core.errors import UserError
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.svg import bars
from latticework.core.task import Part, Task
from latticework.core.training import Patience, Watch
from latticework.core.training import train as train_network
from latticework.core.value import setting
from latticework.data.hetero import (
    Chain,
    biadjacency,
    chain_counts,
    chain_types,
    doubled_of,
    edges_of,
    parse_path,
    path_text,
    reverse_chain,
    steps_from,
    unread_weights,
)
from latticework.layers.contrastive import weighted_info_nce
from latticework.layers.propagation import normalise
from latticework.layers.sparse_features import SparseFeatures

from ..embedding import EmbeddingMethod, EmbeddingModel
from .losses import Clustering, SoftWeights, cluster_weights, concentration, prototype_loss, spherical_kmeans
from .network import MEOW
from .views import Features, Views, masked_features, masked_graph, mean_graph, nearest, operator, path_graph, reached

Array = np.ndarray[Any, Any]
BARS = 20  # of a histogram of soft weights
SAMPLED = 1000  # anchors whose soft weights are drawn
SPARSE = 0.2  # features up to this share of non-zeros stay sparse


class Seen(NamedTuple):
    """A part as the method sees it: its meta-paths, the views of them, and how wide each type's features are."""

    paths: tuple[str, ...]
    views: Views
    widths: tuple[int, ...]
    untouched: int  # target nodes without any meta-path


class ViewModel(EmbeddingModel):
    """Vectors of the target nodes, with the attention over the views and how negatives were weighted."""

    def __init__(
        self, method: Any, schema: Mapping[str, Any], vectors: Tensor, attention: Tensor, weights: Tensor, pairs: Tensor
    ) -> None:
        super().__init__(method, schema, vectors)
        self.attention, self.weights, self.pairs = attention, weights, pairs

    def embed(self, part: Part) -> Any:
        """float32 [n, width] of all nodes of the target type."""
        if part.schema["target"] != self.schema["target"]:
            raise UserError(
                f"this model embeds {self.schema['target']} nodes, not {part.schema['target']}; fit again with "
                f"-s task.target={part.schema['target']}"
            )
        return super().embed(part)

    def state(self) -> Mapping[str, Any]:
        return {"vectors": self.vectors, "attention": self.attention, "weights": self.weights, "pairs": self.pairs}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(method, schema, *(state[key] for key in ("vectors", "attention", "weights", "pairs")))

    def explain(self, part: Part) -> Findings:
        """How much each view counts, and how large the weights of negatives are."""
        names = [f"{path}{twin}" for path in self.schema["views"] for twin in ("", ", masked")]
        shares = [float(b) for b in self.attention]
        scalars: dict[str, Any] = {
            f"attention on {path}": shares[2 * p] + shares[2 * p + 1] for p, path in enumerate(self.schema["views"])
        }
        tables: dict[str, Any] = {
            "attention over views": [{"view": v, "attention": s} for v, s in zip(names, shares, strict=True)]
        }
        figures = {"attention over views": bars(names, shares, "attention over views", "view")}
        if len(self.weights):
            total = float(self.pairs.sum())
            rows = [
                {"weight": float(w), "share of pairs": float(c) / total} for w, c in zip(self.weights, self.pairs, strict=True)
            ]
            mean = sum(r["weight"] * r["share of pairs"] for r in rows)
            spread = sum((r["weight"] - mean) ** 2 * r["share of pairs"] for r in rows) ** 0.5
            scalars |= {"mean weight of a negative": mean, "spread of the weights": spread}
            tables["weights of negatives"] = rows
            figures["weights of negatives"] = bars(
                [f"{r['weight']:.3g}" for r in rows], [r["share of pairs"] for r in rows], "share of pairs by weight", "weight"
            )
        return Findings(scalars, tables, figures)


class ViewContrast(EmbeddingMethod):
    """What MEOW and AdaMEOW share: their views, their network and how they are trained, without labels."""

    tasks: ClassVar[tuple[str, ...]] = ("hetero-node-classification", "hetero-node-clustering")
    reads_features: ClassVar[bool] = True
    model: ClassVar[type[EmbeddingModel]] = ViewModel

    paths: tuple[str, ...] = setting((), "meta-paths of the target type; none: there and back through each neighbour type")
    nei_max: tuple[int, ...] = setting(
        (110,), "neighbours kept by PathSim, for each path (one number: for all)", search=["[25]", "[110]", "[400]"]
    )
    width: int = setting(64, "width of all layers, and of the vectors", ge=1, le=4096)
    dropout: float = setting(0.2, "dropout on features, contexts, convolutions and the attention's query", ge=0, lt=1)
    tau: float = setting(0.4, "temperature", gt=0, le=100, search=(0.2, 1.0))
    lr: float = setting(7e-4, "learning rate of Adam", gt=0, le=1, search=(1e-4, 1e-2, "log"))
    weight_decay: float = setting(0.0, "on all parameters", ge=0, le=1)
    epochs: int = setting(10_000, "at most", ge=1, le=100_000)
    feat_mask: float = setting(0.3, "share of the target's feature entries that the masked twin lacks", ge=0, lt=1)
    adj_mask: tuple[float, ...] = setting((0.3,), "share of a path's edges that the twin lacks (one number: for all)")
    context: bool = setting(True, "the fine views see through which nodes a path goes; false is the ablation")
    anchors: int = setting(0, "anchors drawn for each epoch's loss; 0: all", ge=0)
    block: int = setting(0, "rows of the n x n similarities at a time; 0: as the loss is cheapest", ge=0, le=100_000)
    transposed: bool = setting(False, "normalised graphs as the official code's product leaves them, transposed")
    row_normalise: bool = setting(True, "divide a node's features by their sum, in types where none is negative")

    @field_validator("paths", "nei_max", "adj_mask", "clusters", mode="before", check_fields=False)
    @classmethod
    def _alone(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str | int | float) else given

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        if not self.nei_max or min(self.nei_max) < 1:
            raise ValueError(f"nei_max: whole numbers of at least 1, not {self.nei_max}")
        if not self.adj_mask or not all(0 <= share < 1 for share in self.adj_mask):
            raise ValueError(f"adj_mask: shares from 0 to below 1, not {self.adj_mask}")
        return self

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        if getattr(task, "protocol", "") == "inductive":
            return "it gives vectors of the graph that it was fitted on alone; use -s task.protocol=transductive"
        return None

    # -- what is seen ----------------------------------------------------------------------------------------------------
    def chains(self, part: Part, run: Run) -> dict[str, Chain]:
        """The meta-paths by their texts, each from the target type to itself."""
        data, target = part.data, part.query.target
        if not self.paths:
            return self._default_chains(part, run)
        found = {}
        for text in self.paths:
            chain = parse_path(text, data)
            ends = chain_types(chain)
            if (ends[0], ends[-1]) != (target, target):
                raise UserError(
                    f"{self.name}.paths: meta-path {text!r} goes from {ends[0]} to {ends[-1]}, and both ends must be the target "
                    f"type {target!r}; write one like {target}-{ends[1] if ends[1] != target else ends[0]}-{target}"
                )
            if text in found:
                raise UserError(f"{self.name}.paths: meta-path {text!r} stands twice")
            found[text] = chain
        return found

    def _default_chains(self, part: Part, run: Run) -> dict[str, Chain]:
        data, target = part.data, part.query.target
        found: dict[str, Chain] = {}
        for step in steps_from(tuple(data.edge_types), target, doubled_of(part.schema)):
            if edges_of(data, step[0]).shape[1]:
                chain = (step, *reverse_chain((step,)))
                found[path_text(chain, data)] = chain
        if not found:
            raise UserError(f"{self.name}: no relation joins {target!r} to anything, so there is no meta-path to see it through")
        run.notes.append(f"meta-paths: {', '.join(found)} (there and back through each neighbour type; none was given)")
        return found

    def seen(self, part: Part, run: Run) -> Seen:
        """The views of a part; the masked twin is drawn from the run's stream "masks", once."""
        data, target = part.data, part.query.target
        chains = self.chains(part, run)
        keep = self._each("nei_max", self.nei_max, chains)
        shares = self._each("adj_mask", self.adj_mask, chains)
        rng = run.rng("masks")
        order = [target]
        for chain in chains.values() if self.context else ():
            order += [kind for kind in chain_types(chain)[1:-1] if kind not in order]
        matrices = [feature_matrix(data, kind, self.row_normalise) for kind in order]
        masked = masked_features(matrices[0], self.feat_mask, rng)
        graphs, twins, contexts = [], [], []
        touched = np.zeros(int(data[target].num_nodes), bool)
        for (text, chain), most, share in zip(chains.items(), keep, shares, strict=True):
            counts = chain_counts(data, chain)
            if not counts.nnz:
                raise UserError(f"{self.name}.paths: meta-path {text!r} matches nothing in this graph; leave it out")
            touched |= np.diff(counts.indptr) > 0
            kept = nearest(counts, int(most))
            graphs.append(path_graph(kept, self.transposed))
            twins.append(path_graph(masked_graph(kept, float(share), rng), self.transposed))
            inner = chain_types(chain)[1:-1] if self.context else ()
            means = reached([biadjacency(data, step) for step in chain]) if inner else []
            contexts.append([(order.index(t), operator(M, run.device)) for t, M in zip(inner, means, strict=True)])
        run.notes += unread_weights(data, (key for chain in chains.values() for key, _ in chain))
        untouched = int((~touched).sum())
        if untouched:
            run.notes.append(f"{untouched} of {len(touched)} {target} nodes are on no meta-path; they see themselves alone")
        views = Views(
            [packed(x, run.device) for x in matrices], packed(masked, run.device), operator(mean_graph(graphs), run.device),
            [operator(A, run.device) for A in graphs], [operator(A, run.device) for A in twins], contexts,
        )  # fmt: skip
        return Seen(tuple(chains), views, tuple(x.shape[1] for x in matrices), untouched)

    def _each(self, field: str, given: Sequence[float], chains: Mapping[str, Chain]) -> Sequence[float]:
        if len(given) not in (1, len(chains)):
            raise UserError(
                f"{self.name}.{field}: {len(given)} numbers for {len(chains)} meta-paths ({', '.join(chains)}); give one for each, or one"
            )
        return given if len(given) == len(chains) else list(given) * len(chains)

    # -- the fit ---------------------------------------------------------------------------------------------------------
    def network(self, seen: Seen) -> nn.Module:
        return MEOW(
            seen.widths, [[place for place, _ in inner] for inner in seen.views.contexts], self.width, self.dropout, self.context
        )

    def built(self, seen: Seen, run: Run) -> nn.ModuleDict:
        """The trained parts: ``encoder`` and what else there is."""
        return nn.ModuleDict({"encoder": self.network(seen).to(run.device)})

    def ready(self, n: int, target: str) -> None:
        """Errors before any training."""

    def loss(self, net: nn.ModuleDict, coarse: Tensor, fine: Tensor, epoch: int, run: Run) -> Tensor:
        raise NotImplementedError

    def weighing(self, net: nn.ModuleDict, coarse: Tensor, fine: Tensor, run: Run) -> tuple[Tensor, Tensor]:
        """Weights and how many pairs have each, for the figure."""
        raise NotImplementedError

    def patience_of(self) -> Patience | None:
        return None

    def anchor_rows(self, n: int, epoch: int, run: Run) -> Tensor | None:
        """The anchors of an epoch, or none for all."""
        if not self.anchors or self.anchors >= n:
            return None
        return torch.randperm(n, generator=run.generator(f"anchors {epoch}"))[: self.anchors].sort().values.to(run.device)

    def trained(self, part: Part, run: Run) -> tuple[nn.ModuleDict, Seen]:
        """The trained parts in eval mode, and the views that they were trained on."""
        seen = self.seen(part, run)
        self.ready(int(part.data[part.query.target].num_nodes), part.query.target)
        net = self.built(seen, run)
        optimiser = torch.optim.Adam(net.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        last = [np.inf]

        def step(epoch: int) -> float:
            optimiser.zero_grad(set_to_none=True)
            coarse, fine = net["encoder"](seen.views)
            try:
                value = self.loss(net, coarse, fine, epoch, run)
            except ValueError as error:
                raise UserError(f"{self.name}, epoch {epoch + 1}: {error}") from None
            value.backward()
            optimiser.step()
            last[0] = float(value.detach())
            return last[0]

        patience = self.patience_of()
        # the training loss chooses, as published: nothing else may be asked where there are no labels
        watch = None if patience is None else lambda: Watch(last[0], {"loss": last[0]})
        train_network(net, step, run, epochs=self.epochs, optimiser=optimiser, watch=watch, patience=patience)
        return net.eval(), seen

    def fit(self, train: Part, valid: Part | None, run: Run) -> ViewModel:
        net, seen = self.trained(train, run)
        encoder: Any = net["encoder"]
        with torch.no_grad():
            Z, beta, h = encoder.fine(seen.views)
            weights, pairs = self.weighing(net, encoder.projected(encoder.coarse(h, seen.views)), encoder.projected(Z), run)
        # rows of Z are at most of length 1: in this unit their coordinates are about as large, as penalised read-outs expect
        vectors = (Z * self.width**0.5).cpu().contiguous()
        schema = {**train.schema, "views": list(seen.paths)}
        return ViewModel(self, schema, vectors, beta.cpu(), weights.cpu(), pairs.cpu())


class MEOWMethod(ViewContrast):
    """Vectors of one node type without labels: two views of the graph are contrasted, negatives weighted by clusterings.

    The coarse view says which target nodes are joined by the meta-paths, the fine ones through which other nodes; a masked
    twin of each path is drawn once. The loss pulls a node's two views together and pushes other nodes away, weighted by in
    how many of the `clusters` clusterings (drawn anew each epoch, from the fine view) they lie apart; the prototype term
    pulls a node to its clusters' centres. Adam on all nodes at once, until the training loss has not fallen for `patience`
    epochs. The vectors are ``sqrt(width) Z_f`` in eval mode (the official code reads the last training pass, with dropout live); k-means and
    classifiers stand outside, in the task.

    The defaults are the paper's for ACM but for one `nei_max` for all paths; `nei_max` matters most. Settings of a data set
    are presets; `infonce` is the control without weights and prototypes.
    """

    name: ClassVar[str] = "meow"
    clusters: tuple[int, ...] = setting((100, 300), "number of clusters of each clustering")
    weights: bool = setting(True, "weight negatives by the clusterings; false: plain InfoNCE")
    prototypes: float = setting(1.0, "lambda, the weight of the prototype term; 0: none", ge=0, le=1000, search=[0.0, 0.1, 1.0])
    patience: int = setting(30, "epochs without a lower training loss before the fit stops", ge=1)
    iterations: int = setting(20, "steps of k-means at most", ge=1, le=1000)
    restarts: int = setting(5, "starts of k-means, of which the best is kept", ge=1, le=100)

    @model_validator(mode="after")
    def _clusters(self) -> Self:
        if not self.clusters or min(self.clusters) < 1:
            raise ValueError(f"clusters: whole numbers of at least 1, not {self.clusters}")
        if self.weights and max(self.clusters) == 1:
            raise ValueError("clusters: one cluster of all nodes leaves no negative; give at least one number above 1")
        return self

    @property
    def clustered(self) -> bool:
        return self.weights or self.prototypes > 0

    def patience_of(self) -> Patience:
        return Patience(epochs=self.patience)

    def ready(self, n: int, target: str) -> None:
        if self.clustered and max(self.clusters) > n:
            raise UserError(
                f"{self.name}.clusters: {max(self.clusters)} clusters of {n} {target} nodes; give fewer than nodes, as in "
                f"-s clusters={max(n // 20, 2)},{max(n // 10, 3)}"
            )

    def clusterings(self, fine: Tensor, stream: str, run: Run) -> list[Clustering]:
        generator = run.generator(stream)
        x = fine.detach()
        return [spherical_kmeans(x, k, generator, self.iterations, self.restarts) for k in self.clusters]

    def loss(self, net: nn.ModuleDict, coarse: Tensor, fine: Tensor, epoch: int, run: Run) -> Tensor:
        found = self.clusterings(fine, f"clusters {epoch}", run) if self.clustered else []
        weights = cluster_weights(torch.stack([c.assignment for c in found])) if self.weights else None
        rows = self.anchor_rows(len(fine), epoch, run)
        value = weighted_info_nce(coarse, fine, self.tau, weights, rows=rows, block=self.block or 512)
        if self.prototypes:
            terms = [prototype_loss(coarse, c, concentration(fine.detach(), c, self.tau)) for c in found]
            value = value + self.prototypes * torch.stack(terms).mean()
        return value

    def weighing(self, net: nn.ModuleDict, coarse: Tensor, fine: Tensor, run: Run) -> tuple[Tensor, Tensor]:
        if not self.weights:
            return torch.zeros(0), torch.zeros(0)
        found = self.clusterings(fine, "clusters of the end", run)
        weights = cluster_weights(torch.stack([c.assignment for c in found]))
        pairs = torch.zeros(len(found) + 1, dtype=torch.int64, device=fine.device)
        for rows in torch.arange(len(fine), device=fine.device).split(512):
            pairs += torch.bincount(weights(rows).to(torch.int64).flatten(), minlength=len(pairs))
        pairs[0] -= len(fine)  # a node is no negative of itself
        return torch.arange(len(pairs), dtype=torch.float32), pairs


class AdaMEOWMethod(ViewContrast):
    """MEOW whose negatives are weighted by a small network, trained with the rest, instead of by clusterings.

    ``w_ij = sigmoid(MLP(f_i + c_j))`` for anchors of the fine view and others of the coarse one, the node itself among
    them. With `row_mean` (this library's addition, on) a node's weights are divided by their mean: without it, as
    published, the loss falls by shrinking all weights alike. The official code stops by looking at test scores; here the
    number of epochs is fixed and the last weights are kept.
    """

    name: ClassVar[str] = "adameow"
    nei_max: tuple[int, ...] = setting(
        (690,), "neighbours kept by PathSim, for each path (one number: for all)", search=["[25]", "[110]", "[400]"]
    )
    dropout: float = setting(0.3, "dropout on features, contexts, convolutions and the attention's query", ge=0, lt=1)
    tau: float = setting(1.0, "temperature", gt=0, le=100, search=(0.2, 1.0))
    lr: float = setting(5e-5, "learning rate of Adam", gt=0, le=1, search=(1e-5, 1e-2, "log"))
    weight_decay: float = setting(1e-5, "on all parameters", ge=0, le=1)
    epochs: int = setting(1200, "all of them are run", ge=1, le=100_000)
    adj_mask: tuple[float, ...] = setting((0.2,), "share of a path's edges that the twin lacks (one number: for all)")
    row_mean: bool = setting(True, "divide the weights of an anchor by their mean; false: as published")
    hidden: int = setting(16, "width of the weighing network", ge=1, le=1024)

    def built(self, seen: Seen, run: Run) -> nn.ModuleDict:
        net = super().built(seen, run)
        net["soft"] = SoftWeights(self.width, self.hidden, self.row_mean).to(run.device)
        return net

    def loss(self, net: nn.ModuleDict, coarse: Tensor, fine: Tensor, epoch: int, run: Run) -> Tensor:
        soft: Any = net["soft"]
        # a block holds [rows, n, hidden]: few rows keep it in the cache
        return weighted_info_nce(
            fine, coarse, self.tau, soft.weights, parameters=soft.learned(), rows=self.anchor_rows(len(fine), epoch, run),
            block=self.block or 32,
        )  # fmt: skip

    def weighing(self, net: nn.ModuleDict, coarse: Tensor, fine: Tensor, run: Run) -> tuple[Tensor, Tensor]:
        soft: Any = net["soft"]
        rows = torch.linspace(0, len(fine) - 1, min(SAMPLED, len(fine)), device=fine.device).long()
        learned = soft.learned()
        found = torch.cat([soft.weights(some, fine, coarse, *learned).flatten() for some in rows.split(32)])
        low, high = float(found.min()), float(found.max())
        counts = torch.histc(found, BARS, low, high if high > low else low + 1e-6)
        step = (max(high - low, 1e-6)) / BARS
        return low + step * (torch.arange(BARS) + 0.5), counts


# -- features of a type ------------------------------------------------------------------------------------------------
def feature_matrix(data: Any, kind: str, row_normalise: bool) -> sp.csr_array:
    """float32 CSR [n_t, F_t]; a type without features is one-hot."""
    x = data[kind].get("x")
    if x is None or not x.shape[1]:
        return sp.csr_array(sp.eye_array(int(data[kind].num_nodes), dtype=np.float32))
    found = sp.csr_array(x.numpy())
    if row_normalise and (not found.nnz or found.data.min() >= 0):
        found = normalise(found, "row")
    return sp.csr_array(found, dtype=np.float32)


def packed(x: sp.csr_array, device: str) -> Features:
    """Sparse features on the CPU where they are mostly zero, else a dense tensor."""
    if device == "cpu" and x.nnz <= SPARSE * x.shape[0] * x.shape[1]:
        return SparseFeatures(x)
    return torch.from_numpy(x.toarray()).to(device)
