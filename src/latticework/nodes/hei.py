"""HEI: a node classifier that relies on what holds across kinds of neighbourhood.

Each node gets a neighbour pattern ``z`` (how unlike its neighbours' features are, without labels); a small net turns z into
soft environments ``rho(z)`` that are pushed to where the classifier fails most; then the classifier is trained with a
penalty on differing between them: ``R + lambda sum_k penalty_k``, ``R_k = sum_i rho_k(z_i) l_i / sum_i rho_k(z_i)``. At test
time nothing is left but the classifier. For graphs whose test nodes are more, or less, homophilic than the labelled ones.

Source: "Leveraging Invariant Principle for Heterophilic Graph Structure Distribution Shifts" (WWW 2025, arXiv 2408.09490).
The official code penalises the sum of squared environment risks, which is not an invariance penalty (`official_penalty`);
the paper's own, the gap between the shared head and one head for each environment, is `gap_penalty`; `irm_penalty` is the
gradient norm of "Invariant Risk Minimization" (arXiv 1907.02893) on the same environments.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.core.errors import UserError
from latticework.core.method import Method, Model, Predictor
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.svg import lines
from latticework.core.task import Part, Task
from latticework.core.training import Watch, train
from latticework.core.value import setting
from latticework.data.graph import Graph, Nodes, joined, local_homophily
from latticework.layers.propagation import adjacency

from .network import NodeModel, NodeNetwork, asked_of, backbones_with, loss_of, watching

Array = NDArray[Any]
Similarity = Literal["norm2", "cos"]
Penalty = Literal["irm", "gap", "official"]
EMPTY = 1e-6  # an environment of less mass than this is left out
# Adam's steps vanish where gradients near its eps of 1e-8: the environments ascend the penalty times this
ASCENT = 1e6


# -- the neighbour pattern ---------------------------------------------------------------------------------------------
@numba.njit(cache=True)
def _unlike(a: Array, b: Array, x: Array, distance: bool, out: Array) -> None:  # pragma: no cover - compiled
    for e in range(len(a)):
        i, j = a[e], b[e]
        total = 0.0
        for f in range(x.shape[1]):
            u, v = np.float64(x[i, f]), np.float64(x[j, f])
            total += (u - v) * (u - v) if distance else u * v
        out[e] = np.sqrt(total) if distance else total


def neighbour_pattern(x: Array, edge_index: Array, similarity: Similarity = "norm2", undirected: bool = True) -> Array:
    """``z_i``: the mean over a node's neighbours j of ``||x_i - x_j||_2`` (norm2) or of ``x_i . x_j`` (cos, not normalised).

    Loops and repeats of an edge do not count; a node without neighbours gets 0. ``undirected`` takes edges both ways, else
    the neighbours of a node are those that its edges lead to. O(m F), every pair once, nothing of size [n, n].

    Shapes: ``x`` float [n, F], ``edge_index`` integer [2, m] -> float32 [n]. ``ValueError`` for no neighbours at all,
    features that are not finite (with the first such row), another shape, or an unknown similarity.
    """
    x = np.ascontiguousarray(x)
    if x.ndim != 2 or not x.shape[1]:
        raise ValueError(f"x must be [n, F] with F >= 1, is {list(x.shape)}")
    if similarity not in ("norm2", "cos"):
        raise ValueError(f"similarity must be norm2 or cos, not {similarity!r}")
    if not np.isfinite(x).all():
        raise ValueError(f"x holds NaN or infinite values, first in row {int(np.flatnonzero(~np.isfinite(x).all(1))[0])}")
    n = len(x)
    A = adjacency(edge_index, n, undirected=undirected, rows="source").tocoo()
    keep = A.row < A.col if undirected else A.row != A.col
    a, b = A.row[keep].astype(np.int64), A.col[keep].astype(np.int64)
    if not len(a):
        raise ValueError("no node has a neighbour: there is no pattern")
    value = np.empty(len(a))
    _unlike(a, b, x, similarity == "norm2", value)
    total, count = np.bincount(a, value, n), np.bincount(a, minlength=n)
    if undirected:
        total, count = total + np.bincount(b, value, n), count + np.bincount(b, minlength=n)
    return (total / np.maximum(count, 1)).astype(np.float32)


def standard(z: Array, rows: Array) -> tuple[float, float]:
    """Mean and unbiased standard deviation of z over the training nodes. ``ValueError`` for fewer than two of them."""
    if len(rows) < 2:
        raise ValueError(f"z is standardised over the training nodes: 2 or more are needed, there are {len(rows)}")
    own = z[rows].astype(np.float64)
    return float(own.mean()), float(own.std(ddof=1))


class EnvironmentNet(nn.Module):
    """``rho(z)``: Linear(1, hidden), ReLU, Linear(hidden, K), softmax; Xavier-uniform from `generator`, zero biases.

    Shapes: z [b], standardised -> [b, K], rows sum to 1. ``ValueError`` for K < 1.
    """

    def __init__(self, environments: int, hidden: int = 16, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if environments < 1:
            raise ValueError(f"environments must be >= 1, is {environments}")
        # made without a draw: the classifier's own random numbers stay as they would be in plain training
        with torch.random.fork_rng(devices=[]):
            self.first, self.second = nn.Linear(1, hidden), nn.Linear(hidden, environments)
        for layer in (self.first, self.second):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, z: Tensor) -> Tensor:
        return torch.softmax(self.second(F.relu(self.first(z[:, None]))), 1)


# -- penalties ---------------------------------------------------------------------------------------------------------
def environment_means(values: Tensor, rho: Tensor) -> Tensor:
    """``sum_i rho_ik v_ik / sum_i rho_ik`` for the environments that hold any node. [n] or [n, K], [n, K] -> [at most K].

    With ``values`` the losses this is the environments' risk R_k.
    """
    mass = rho.sum(0)
    kept = mass >= EMPTY
    weighted = (rho * (values[:, None] if values.ndim == 1 else values)).sum(0)
    return weighted[kept] / mass[kept]


def irm_penalty(logits: Tensor, y: Tensor, rho: Tensor) -> Tensor:
    """``sum_k (d/ds R_k(s logits) at s = 1)^2`` in closed form: ``d/ds l_i = sum_c (p_ic - [y_i = c]) logit_ic``.

    0 where no rescaling of the logits helps any environment. Shapes: [n, C], int64 [n], [n, K] -> scalar.
    """
    expected = (torch.softmax(logits, 1) * logits).sum(1)
    return environment_means(expected - logits.gather(1, y[:, None])[:, 0], rho).square().sum()


def official_penalty(logits: Tensor, y: Tensor, rho: Tensor) -> Tensor:
    """What the official code computes: ``sum_k (d/ds sum_i rho_ik NLL(s log p_i) / n)^2`` at s = 1.

    The scale stands after the log-softmax, where the loss is linear in it: the derivative is the loss itself, and the sum is
    ``sum_k (sum_i rho_ik l_i / n)^2``. It asks for a small risk, not for the same one: a control, not a penalty on variance.
    """
    loss = F.cross_entropy(logits, y, reduction="none")
    return ((rho * loss[:, None]).sum(0) / len(y)).square().sum()


def gap_penalty(logits: Tensor, own: Tensor, y: Tensor, rho: Tensor) -> Tensor:
    """``sum_k R_k(shared head) - R_k(head k)``; ``own`` [K, n, C] are the logits of the environments' heads.

    At least 0 where each head minimises its own risk, since the shared head is one of those it could be; 0 for equal heads.
    """
    shared = F.cross_entropy(logits, y, reduction="none")
    return environment_means(shared[:, None] - head_losses(own, y), rho).sum()


def head_losses(own: Tensor, y: Tensor) -> Tensor:
    """Losses [n, K] of the environments' heads, from their logits [K, n, C]."""
    K, n, C = own.shape
    return F.cross_entropy(own.reshape(K * n, C), y.repeat(K), reduction="none").reshape(K, n).T


def head_parameters(net: nn.Module, h: Tensor, graph: tuple[Any, ...]) -> set[str]:
    """Names of the parameters that ``net.head(h, *graph)`` reads."""
    named = dict(net.named_parameters())
    was = net.training
    net.eval()  # no dropout is drawn and no running mean moves
    found = torch.autograd.grad(net.head(h.detach(), *graph).sum(), list(named.values()), allow_unused=True)
    net.train(was)
    return {name for name, gradient in zip(named, found, strict=True) if gradient is not None}


class Environments(nn.Module):
    """What exists in training beside the classifier: the environment net and, for the gap, a head for each environment."""

    def __init__(self, net: nn.Module, rho: EnvironmentNet, heads: int, inputs: tuple[Any, ...]) -> None:
        super().__init__()
        self.net, self.rho, self.heads = net, rho, nn.ModuleList()
        self.names: set[str] = set()
        if heads:
            was = net.training
            net.eval()
            with torch.no_grad():
                h = net.encode(*inputs)
            net.train(was)
            self.names = head_parameters(net, h, inputs[1:])
            # copies share all that the head does not read
            shared = {id(p): p for name, p in net.named_parameters() if name not in self.names}
            self.heads.extend(copy.deepcopy(net, dict(shared)) for _ in range(heads))

    def head_weights(self) -> list[nn.Parameter]:
        """The parameters of all the environments' heads."""
        return [p for head in self.heads for name, p in head.named_parameters() if name in self.names]

    @torch.no_grad()
    def start_heads(self) -> None:
        """Give each environment's head the weights of the shared one."""
        now = self.net.state_dict()
        for head in self.heads:
            for name, value in head.state_dict().items():
                value.copy_(now[name])

    def own_logits(self, h: Tensor, graph: tuple[Any, ...], index: Tensor) -> Tensor:
        """[K, n, C] of the nodes asked for."""
        return torch.stack([head.head(h, *graph)[index] for head in self.heads])


# -- the recipe --------------------------------------------------------------------------------------------------------
class HEIModel(Model):
    """The backbone as it was trained, and, to explain it, the environment net and the labels it was taught."""

    def __init__(
        self, method: HEI, inner: NodeModel, rho: EnvironmentNet, at: tuple[float, float], rows: Tensor, y: Tensor
    ) -> None:
        self.method: HEI = method
        self.inner, self.schema, self.scope = inner, inner.schema, inner.scope
        self.rho, self.at_mean, self.at_std, self.rows, self.y = rho, *at, rows, y

    def predict(self, part: Part) -> Any:
        """Probabilities float32 [q, C] of the asked nodes: the backbone's."""
        if self.scope == "fitted data":
            from .baselines import same_graph

            same_graph(self, part)
        return self.inner.predict(part)

    def parameters(self) -> int:
        return self.inner.parameters()

    def state(self) -> Mapping[str, Any]:
        found = {f"backbone.{name}": value for name, value in self.inner.state().items()}
        found |= {f"rho.{name}": value for name, value in self.rho.state_dict().items()}
        at = torch.tensor([self.at_mean, self.at_std], dtype=torch.float64)
        return {**found, "standard": at, "rows": self.rows, "labels": self.y}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        def under(prefix: str) -> dict[str, Any]:
            return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

        inner = method.backbone.model.restore(method.backbone, schema, under("backbone."))
        rho = EnvironmentNet(method.environments, method.environment_hidden)
        rho.load_state_dict(under("rho."))
        mean, std = state["standard"].tolist()
        return cls(method, inner, rho, (mean, std), state["rows"], state["labels"])

    @torch.no_grad()
    def environments(self, z: Array) -> Array:
        """Soft environments [b, K] of nodes with these patterns; one for all where the pattern did not vary."""
        if not self.at_std:
            return np.full((len(z), self.method.environments), 1 / self.method.environments)
        return np.asarray(self.rho(torch.from_numpy(((z - self.at_mean) / self.at_std).astype(np.float32))).numpy())

    def explain(self, part: Part) -> Findings:
        """Soft environments against the pattern, and whether the unlabelled nodes look as homophilic as the labelled ones.

        Homophily is read from known labels where there are any and from predictions elsewhere, for both groups alike.
        """
        z = self.method.pattern(part).astype(np.float64)
        rho = self.environments(z)
        along = np.linspace(*np.quantile(z, [0.01, 0.99]), 60)
        curves = self.environments(along)
        names = [f"environment {k}" for k in range(rho.shape[1])]
        rows = [
            {"environment": k, "share of nodes": float(rho[:, k].mean()), "mean pattern z": float(np.average(z, weights=rho[:, k] + 1e-12))}
            for k in range(rho.shape[1])
        ]  # fmt: skip
        figures = {
            "environments against the pattern": lines(
                {name: list(zip(along.tolist(), curves[:, k].tolist(), strict=True)) for k, name in enumerate(names)},
                "soft environments", "neighbour pattern z",
            )
        }  # fmt: skip
        scalars: dict[str, Any] = {"nodes told apart (largest minus smallest mean share)": float(np.ptp(rho.mean(0)))}
        n = int(part.data.num_nodes)
        if part.schema["graph"] == self.schema["graph"]:
            scalars |= self._shift(part, z, n, figures)
        return Findings(scalars, {"environments": rows}, figures)

    def _shift(self, part: Part, z: Array, n: int, figures: dict[str, Any]) -> dict[str, Any]:
        from scipy.stats import ks_2samp

        labels = np.asarray(self.predict(part._replace(query=Nodes(np.arange(n), part.query.ids)))).argmax(1)
        known = np.zeros(n, bool)
        known[self.rows.numpy()] = True
        labels[known] = self.y.numpy()
        edges = joined(part.data.edge_index, part.data.edge_weight).numpy()
        local = local_homophily(Graph(edges, part.query.ids, y=labels))
        groups = {
            "labelled nodes": local[known & np.isfinite(local)],
            "the others, as predicted": local[~known & np.isfinite(local)],
        }
        if min(len(g) for g in groups.values()) < 2:
            return {}
        bins = np.linspace(0, 1, 11)
        figures["homophily of labelled and other nodes"] = lines(
            {name: [(float(c), float(s)) for c, s in zip((bins[1:] + bins[:-1]) / 2, np.histogram(g, bins)[0] / len(g), strict=True)]
             for name, g in groups.items()},
            "share of nodes", "share of neighbours with the node's class", dots=True,
        )  # fmt: skip
        mine, rest = groups.values()
        test = ks_2samp(mine, rest)
        apart = test.pvalue < 0.01
        word = "less" if rest.mean() < mine.mean() else "more"
        train_only = np.full(n, -1, np.int64)
        train_only[known] = self.y.numpy()
        true = local_homophily(Graph(edges, part.query.ids, y=train_only))
        seen = np.isfinite(true)
        varies = seen.sum() > 2 and np.ptp(true[seen]) > 0 and np.ptp(z[seen]) > 0
        return {
            "mean homophily of labelled nodes": float(mine.mean()),
            "mean homophily of the others, as predicted": float(rest.mean()),
            "distance of the two distributions (Kolmogorov-Smirnov)": float(test.statistic),
            "shift": f"yes: the others look {word} homophilic" if apart else "none to be seen",
            "correlation of z with homophily among labelled nodes": float(np.corrcoef(z[seen], true[seen])[0, 1])
            if varies
            else None,
        }


class HEI(Method):
    """A node classifier trained to rely on what holds across kinds of neighbourhood.

    The backbone is trained as it would be alone (its own fields say how: rate, decay, epochs, the choice of the epoch) for
    `warm_up` epochs; for `infer_epochs` more the environment net ascends the penalty, once an epoch, while the classifier
    still ignores it; then the environments are frozen and the classifier's loss is ``[R + l2 ||w||^2 + strength penalty] /
    (1 + strength)`` (divided only where strength > 1). The epoch that is kept is chosen among those with the penalty, by the
    backbone's rule; without a valid part it is the last. With strength 0, one environment, or a pattern that is the same for
    all training nodes it is plain training, bit for bit. The official schedule has no warm-up and 5 to 15 epochs of
    inference, which leave the environments almost uniform; the defaults here give them time.

    The pattern is computed from features and edges of the whole graph, standardised over the training nodes. Bags of words
    are taken as they are. It carries what the features carry: look at ``latticework probe homophily`` first, which says how
    it goes with true homophily.
    """

    name: ClassVar[str] = "hei"
    tasks: ClassVar[tuple[str, ...]] = ("node-classification",)
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    model: ClassVar[type[HEIModel]] = HEIModel

    backbone: Method = setting("linkx", "the classifier that is trained; it has the stages encode and head")
    penalty: Penalty = setting(
        "irm", "gradient norm, gap to the environments' own heads, or the official code's form (a control)"
    )
    environments: int = setting(4, "K, latent environments", ge=1, le=64, search=[2, 4, 6, 8])
    strength: float = setting(
        10.0, "weight of the penalty: 1 to 1,000 for irm, 0.1 to 10 for gap", ge=0, le=1e6, search=(0.1, 1000.0, "log")
    )
    warm_up: int = setting(100, "epochs of plain training first", ge=0, le=100_000)
    infer_epochs: int = setting(100, "epochs in which the environments are inferred", ge=0, le=100_000)
    similarity: Literal["norm2", "cos", "shuffled"] = setting(
        "norm2", "pattern: mean distance to the neighbours, mean product with them, or (a control) distances shuffled over nodes"
    )
    environment_hidden: int = setting(16, "width of the environment net", ge=1, le=1024)
    environment_lr: float = setting(1e-3, "learning rate of Adam for the environment net", gt=0, le=1)
    l2: float = setting(1e-3, "weight of the squared weights in the loss with the penalty", ge=0, le=1)
    symmetrise: bool = setting(True, "the pattern takes edges both ways; false: only those that leave a node")

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        if not isinstance(self.backbone, NodeNetwork) or not self.backbone.encode_head:
            return f"its backbone {self.backbone.name} has no stages encode and head; these have: {', '.join(backbones_with('encode_head'))}"
        if facts["multi-label"]:
            return "its penalties are made for one label a node"
        if facts["features"] and not facts["pairs joined"]:
            return "no node has a neighbour, so there is no neighbour pattern to infer environments from"
        return self.backbone.refuses(task, facts)

    def pattern(self, part: Part) -> Array:
        """z float32 [n] of a part's graph."""
        if part.data.x is None:
            raise UserError("hei reads node features, and the nodes have none")
        similarity: Similarity = "cos" if self.similarity == "cos" else "norm2"
        try:
            edges = joined(part.data.edge_index, part.data.edge_weight).numpy()
            return neighbour_pattern(part.data.x.numpy(), edges, similarity, self.symmetrise)
        except ValueError as reason:
            raise UserError(f"hei: {reason}") from None

    def fit(self, train: Part, valid: Part | None, run: Run) -> HEIModel:
        if not isinstance(self.backbone, NodeNetwork) or not self.backbone.encode_head:
            raise UserError(self.refuses(run.task, {}) if run.task else f"{self.backbone.name} has no stages encode and head")
        if train.truth.y.ndim == 2:
            raise UserError("hei reads one label a node")
        rows = train.query.rows
        z = self.pattern(train)
        if self.similarity == "shuffled":
            z = run.rng("shuffled pattern").permutation(z)
        try:
            mean, std = standard(z, rows)
        except ValueError as reason:
            raise UserError(f"hei: {reason}") from None
        if std <= 1e-7 * max(abs(mean), 1.0):
            std = 0.0
            run.notes.append("the neighbour pattern is the same for all training nodes: one environment, plain training")
        rho = EnvironmentNet(self.environments, self.environment_hidden, run.generator("environments"))
        own = None if not std else torch.from_numpy(((z[rows] - mean) / std).astype(np.float32))
        inner = _fit(self, self.backbone, rho, own, train, valid, run)
        at = (mean, std)
        return HEIModel(
            self, inner, rho.cpu().eval(), at, torch.from_numpy(rows), torch.from_numpy(np.asarray(train.truth.y, np.int64))
        )


# The phases' epochs stand in the curves; the choice of the epoch begins with the penalty, so what comes before is set off.
_BEFORE = 1e6


def _fit(
    method: HEI, backbone: NodeNetwork, rho: EnvironmentNet, z: Tensor | None, part: Part, valid: Part | None, run: Run
) -> NodeModel:
    """`fit_network` with environments: the same draws and sums in the same order until the penalty sets in."""
    net = backbone.build(part, run).to(run.device)
    inputs = backbone.inputs(part, run.device)
    index, target = asked_of(part, run.device)
    groups = backbone.groups(net)
    active = method.strength > 0 and method.environments > 1 and z is not None
    infer = method.warm_up if active else math.inf
    begin = method.warm_up + method.infer_epochs if active else math.inf
    if active and begin >= backbone.epochs:
        raise UserError(
            f"hei: {method.warm_up} + {method.infer_epochs} epochs before the penalty leave none of the backbone's "
            f"{backbone.epochs}; use fewer, or -s backbone.epochs={2 * int(begin)}"
        )
    around = Environments(net, rho.to(run.device), method.environments if active and method.penalty == "gap" else 0, inputs)
    weights, heads = list(rho.parameters()), around.head_weights()
    optimiser = torch.optim.Adam(
        [
            *groups,
            {"params": weights, "lr": method.environment_lr, "weight_decay": 0.0},
            *([{"params": heads, "weight_decay": 0.0}] if heads else []),
        ],
        lr=backbone.lr,
    )
    pattern = None if z is None else z.to(run.device)

    def penalty(logits: Tensor, own: Tensor | None, shares: Tensor) -> Tensor:
        if own is not None:
            return gap_penalty(logits, own, target, shares)
        return (official_penalty if method.penalty == "official" else irm_penalty)(logits, target, shares)

    def step(epoch: int) -> float:
        if epoch == infer:
            around.start_heads()
        optimiser.zero_grad(set_to_none=True)
        h = net.encode(*inputs)
        logits = net.head(h, *inputs[1:])[index]
        loss = loss_of(logits, target)
        if epoch < infer:
            loss.backward()
            optimiser.step()
            return float(loss.detach())
        assert pattern is not None
        ascending = epoch < begin
        own = around.own_logits(h.detach() if ascending else h, inputs[1:], index) if heads else None
        with torch.set_grad_enabled(ascending):
            shares = rho(pattern)
        if own is not None:
            fitting = environment_means(head_losses(own, target), shares.detach()).sum()
            taught = torch.autograd.grad(fitting, heads, retain_graph=True)
        if ascending:
            # the classifier does not see the penalty yet: its gradient is that of plain training
            goal = ASCENT * penalty(logits.detach(), None if own is None else own.detach(), shares)
            for weight, gradient in zip(weights, torch.autograd.grad(-goal, weights), strict=True):
                weight.grad = gradient
            total = loss
        else:
            squares = sum((p.square().sum() for p in net.parameters()), torch.zeros((), device=logits.device))
            total = loss + method.l2 * squares + method.strength * penalty(logits, own, shares)
            total = total / (1 + method.strength) if method.strength > 1 else total
        total.backward()
        if own is not None:  # each head learns its own risk, not the penalty
            for weight, gradient in zip(heads, taught, strict=True):
                weight.grad = gradient
        optimiser.step()
        return float(total.detach())

    watch = None
    if valid is not None:
        seen = inputs if valid.data is part.data else backbone.inputs(valid, run.device)
        plain = watching(backbone.stop, valid, run, lambda: net(*seen))
        looks = 0 if run.last() is None else run.last()[0]  # type: ignore[index]

        def look() -> Watch:
            nonlocal looks
            found = plain()
            before = _BEFORE if active and looks < begin else 0.0
            looks += 1
            return found._replace(value=found.value + before)

        watch = look
    patience = backbone.patience_of()
    if active:
        patience = patience._replace(after=max(patience.after, begin / backbone.epochs))
    epoch = train(around, step, run, epochs=backbone.epochs, optimiser=optimiser, watch=watch, patience=patience)
    if valid is not None:
        run.notes.append(f"weights of epoch {epoch + 1}, chosen on validation {backbone.stop}")
    return backbone.finished(net.cpu(), part)
