"""LightHGNN: a hypergraph network teaches an MLP that needs a vertex's own features only.

The teacher is trained with the hypergraph; the student then learns its probabilities at *all* training vertices,
``lamb CE + (1 - lamb) mean_v KL(p_v^t || p_v^s)``. LightHGNN+ adds the same term for the mean probabilities of hyperedges,
over hyperedges that are drawn with their reliability ``rho_e``: how little their mean entropy moves when the teacher's
features are disturbed. To answer, the student reads no hyperedge: it serves in a fraction of the time, and vertices whose
hyperedges are unknown.

Source: "LightHGNN: Distilling Hypergraph Neural Networks into MLPs for 100x Faster Inference" (ICLR 2024). Where paper and
official code leave a choice, the settings are the code's. Its losses feed probabilities to a KL that expects logarithms
(``loss=official`` here): the minimiser is then proportional to ``exp(p^t)``, nearly uniform with the right order, so accuracy
survives and calibration does not. Its temperature divides probabilities, a constant shift; here it divides logits.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.common.settled import read_alike, read_as_bags
from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.method import Method, Model, Predictor, Ref
from latticework.core.probe import Probe
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.svg import bars
from latticework.core.task import Part, Task
from latticework.core.training import Watch
from latticework.core.training import train as train_net
from latticework.core.value import setting
from latticework.data.graph import Nodes
from latticework.layers.distillation import entropy, kl_divergence, kl_of_probabilities, perturb, soften
from latticework.layers.hypergraph import edge_mean
from latticework.layers.propagation import SparseOperator
from latticework.layers.sparse_features import FeatureLinear, compact

from .hyper_baselines import HYPER_TASKS, HGNNMethod, incidence_of, kept, refusal, say_fewer
from .hyper_tasks import HypergraphNodeClassification
from .network import EncodeHead, Features

DECILES = 10


# -- the science ---------------------------------------------------------------------------------------------------------
class LightStudent(EncodeHead):
    """The student: ``dropout(relu(X W1 + b1)) W2 + b2``. x [n, F] (a tensor, or `SparseFeatures`) -> logits [n, C]."""

    def __init__(self, features: int, classes: int, hidden: int = 128, dropout: float = 0.5) -> None:
        super().__init__()
        self.first, self.second = FeatureLinear(features, hidden), nn.Linear(hidden, classes)
        self.dropout = dropout

    def encode(self, x: Features, *graph: Any) -> Tensor:
        return F.dropout(F.relu(self.first(x)), self.dropout, self.training)

    def head(self, h: Tensor, *graph: Any) -> Tensor:
        return self.second(h)


def soft_target_loss(target: Tensor, logits: Tensor, form: Literal["kl", "official"] = "kl") -> Tensor:
    """Mean over rows of ``KL(target || softmax(logits))``; `official`: of ``sum exp(t) (t - log p)``. [k, C], [k, C] -> []."""
    term = kl_divergence if form == "kl" else kl_of_probabilities
    return term(target, F.log_softmax(logits, -1)).mean()


def high_order_loss(
    teacher: Tensor, student: Tensor, mean: SparseOperator, mask: Tensor, form: Literal["kl", "official"] = "kl"
) -> Tensor:
    """The term of LightHGNN+: mean over kept hyperedges of ``KL(p_e^t || p_e^s)`` with ``p_e`` the mean over its vertices.

    teacher, student probabilities [n, C], mean ``D_e^-1 H^T`` [E, n], mask bool [E] -> []; 0 for an empty mask.
    """
    if not bool(mask.any()):
        return student.sum() * 0
    term = kl_divergence if form == "kl" else kl_of_probabilities
    # p_e is small where all its vertices say so; the logarithm must stay finite
    log_p = (mean @ student)[mask].clamp(min=torch.finfo(student.dtype).tiny).log()
    return term((mean @ teacher)[mask], log_p).mean()


def hyperedge_entropy(p: Tensor, mean: SparseOperator) -> Tensor:
    """``h_e``: the mean over a hyperedge's vertices of ``-sum_c p log p``. p [n, C], mean [E, n] -> [E]."""
    return (mean @ entropy(p)[:, None])[:, 0]


def reliability(before: Tensor, after: Tensor) -> Tensor:
    """``rho_e = 1 - delta_e / max delta`` with ``delta_e = |h'_e - h_e|``: in [0, 1], 0 for the least reliable hyperedge.

    Entropies [E], [E] -> [E]. All 1 where nothing moved.
    """
    delta = (after - before).abs()
    largest = delta.max() if len(delta) else delta.sum()
    return 1 - delta / largest if bool(largest > 0) else torch.ones_like(delta)


class Smoothness(NamedTuple):
    """`raw` scales with the embedding; `relative` is that of the embedding at unit mean norm, NaN where it is all zero."""

    raw: float
    relative: float


def topology_score(h: Tensor, mean: SparseOperator) -> Smoothness:
    """Mean over hyperedges of the mean distance between a vertex and its hyperedge's mean: lower is smoother.

    Embeddings h [n, d], mean ``D_e^-1 H^T`` [E, n].
    """
    centre = mean @ h
    edge = torch.from_numpy(np.repeat(np.arange(mean.shape[0]), np.diff(mean.indptr)))
    vertex = torch.from_numpy(mean.indices.astype(np.int64))
    distance = (h[vertex] - centre[edge]).norm(dim=1) * torch.from_numpy(mean.values).to(h.dtype)
    raw = float(distance.sum() / max(mean.shape[0], 1))
    norm = float(h.norm(dim=1).mean())
    return Smoothness(raw, raw / norm if norm > 0 else float("nan"))


# -- the recipes ---------------------------------------------------------------------------------------------------------
class LightModel(Model):
    """The student alone: it answers from features, whatever hyperedges there are or are not."""

    def __init__(self, method: LightHGNN, schema: Mapping[str, Any], net: LightStudent) -> None:
        self.method: LightHGNN = method
        self.schema, self.net = schema, net.eval()

    def predict(self, part: Part) -> Any:
        """Probabilities float32 [q, C]; only the rows that are asked for are read."""
        rows = torch.from_numpy(np.asarray(part.query.rows, np.int64))
        with torch.no_grad():
            logits = self.net(self.method.rows(part, rows, self.schema["bags"]))
        return torch.softmax(logits, 1).numpy()

    def hidden(self, part: Part) -> Tensor:
        """float32 [n, hidden] of all vertices of a part."""
        with torch.no_grad():
            return self.net.encode(self.method.rows(part, None, self.schema["bags"]))

    def explain(self, part: Part) -> Findings:
        """Teacher and student on the validation part, and (LightHGNN+) how reliable the hyperedges were found."""
        tables: dict[str, Any] = {"validation accuracy": [dict(self.schema["validation"])]} if self.schema["validation"] else {}
        counts = self.schema.get("reliability")
        if not counts:
            return Findings({}, tables)
        words = [f"{i / DECILES:.1f}–{(i + 1) / DECILES:.1f}" for i in range(DECILES)]
        tables["reliability of hyperedges"] = [{"rho": w, "hyperedges": c} for w, c in zip(words, counts, strict=True)]
        return Findings({}, tables, {"reliability of hyperedges": bars(words, counts, "hyperedges by reliability", "rho")})

    def state(self) -> Mapping[str, Any]:
        return self.net.state_dict()

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        net = LightStudent(len(schema["features"]), len(schema["classes"]), method.hidden, method.dropout)
        net.load_state_dict(dict(state))
        return cls(method, schema, net)


class LightHGNN(Method):
    """An MLP on a vertex's own features that a hypergraph network has taught, for requests without a hypergraph.

    The teacher (any method of the task) is trained first, in a cell that both students and the teacher's own row share. The
    student then learns ``lamb CE + (1 - lamb) mean KL(p^t || p^s)`` over all vertices of the training hypergraph, labelled or
    not, with `lamb` = `labels_share`: 0 in the published configuration, where labels act through the teacher and through the
    choice of the epoch on validation accuracy. Adam for `epochs` full batches. The saved model is the student alone; `predict`
    needs a ``nodes.csv`` with the features and no hyperedges. ``loss=official`` is the published code's expression.
    Bags of words are read as they are: divided by their sums (`row_normalise`) they are so small that weight decay outweighs a
    teacher who is unsure, and the student may learn nothing.
    """

    name: ClassVar[str] = "light-hgnn"
    tasks: ClassVar[tuple[str, ...]] = HYPER_TASKS
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    model: ClassVar[type[LightModel]] = LightModel

    teacher: Ref = setting(Ref(method=HGNNMethod()), "who teaches: teacher.method=NAME, or teacher.saved=MODEL")
    hidden: int = setting(128, "width of the hidden layer", ge=1, le=65_536)
    dropout: float = setting(0.5, "dropout on the hidden layer", ge=0, lt=1, search=(0.0, 0.8))
    labels_share: float = setting(0.0, "lamb, the share of the labels in the loss beside the teacher", ge=0, le=1)
    loss: Literal["kl", "official"] = setting("kl", "the divergence from the teacher, or the published code's expression")
    lr: float = setting(0.01, "learning rate of Adam", gt=0, le=1, search=(1e-3, 3e-2, "log"))
    weight_decay: float = setting(5e-4, "on all parameters", ge=0, le=1, search=(1e-5, 2e-2, "log"))
    epochs: int = setting(200, "full batches", ge=1, le=100_000)
    row_normalise: bool = setting(False, "divide a node's features by their sum where all are 0 or 1 (bags of words)")

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        return refusal(self.name, facts)

    # -- what is read ------------------------------------------------------------------------------------------------
    def rows(self, part: Part, rows: Tensor | None, bags: bool) -> Features:
        """Features of some vertices, or all. Whether they are bags of words was settled by the fit, not by these rows."""
        x: Tensor | None = part.data.x
        if x is None:
            raise UserError(f"{self.name} answers from node features, and there are none; add the model's columns to nodes.csv")
        x = x if rows is None else x[rows]
        return compact(x / x.sum(1, keepdim=True).clamp(min=1e-12) if bags else x)

    # -- the fit -----------------------------------------------------------------------------------------------------
    def fit(self, train: Part, valid: Part | None, run: Run) -> LightModel:
        say_fewer(train, run)
        teacher = self._teacher(train, valid, run)
        n = train.data.vertices
        everyone = Part(train.data, Nodes(np.arange(n), train.query.ids), None, train.schema)
        target = self._target(teacher, everyone)
        bags = self.row_normalise and read_as_bags(train, train.data.x)
        schema = {**train.schema, "bags": bags, "validation": {}}
        device = run.device
        net = LightStudent(len(schema["features"]), len(schema["classes"]), self.hidden, self.dropout).to(device)
        x = self._on(everyone, None, bags, device)
        labelled, y = torch.from_numpy(train.query.rows).to(device), torch.from_numpy(train.truth.y).to(device)
        soft = target.to(device)
        high = self._high_order(teacher, everyone, target, schema, run)
        optimiser = torch.optim.Adam(net.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        lamb = self.labels_share

        def step(epoch: int) -> float:
            optimiser.zero_grad(set_to_none=True)
            logits = net(x)
            value = (1 - lamb) * (soft_target_loss(soft, logits, self.loss) + high(logits, epoch))
            if lamb:
                value = value + lamb * F.cross_entropy(logits[labelled], y)
            value.backward()
            optimiser.step()
            return float(value.detach())

        watch = None
        if valid is not None:
            held = self._on(valid, torch.from_numpy(valid.query.rows), bags, device)
            truth = torch.from_numpy(valid.truth.y).to(device)

            def look() -> Watch:
                with torch.no_grad():
                    logits = net(held)
                    right = float((logits.argmax(1) == truth).float().mean())
                    value = float(F.cross_entropy(logits, truth))
                # ties in accuracy are broken by the loss
                return Watch(-right + 1e-6 * value, {"valid": right, "valid loss": value})

            watch = look
        epoch = train_net(net, step, run, epochs=self.epochs, optimiser=optimiser, watch=watch)
        model = self.model(self, schema, net.cpu())
        if valid is not None:
            run.notes.append(f"weights of epoch {epoch + 1}, chosen on validation accuracy")
            schema["validation"].update(self._say(model, teacher, train, valid, run))
        return model

    def _teacher(self, train: Part, valid: Part | None, run: Run) -> Any:
        if self.teacher.method is None and self.teacher.saved is None:
            raise UserError(
                f"{self.name}: a teacher is a method or a saved model (-s teacher.method=hgnn, -s teacher.saved=MODEL)"
            )
        method = self.teacher.method
        if method is not None and not set(method.tasks) & set(HYPER_TASKS):
            raise UserError(f"{self.name}: {method.name} cannot teach here; it is for {', '.join(method.tasks)}")
        teacher = run.model(self.teacher, train, valid)
        if not set(teacher.method.tasks) & set(HYPER_TASKS):
            raise UserError(f"{self.name}: {teacher.method.name} cannot teach here; it is for {', '.join(teacher.method.tasks)}")
        known, own = list(teacher.schema["classes"]), list(train.schema["classes"])
        if known != own:
            raise UserError(
                f"{self.name}: the teacher {teacher.method.name} knows {len(known)} classes ({', '.join(known[:5])}) and these data "
                f"have {len(own)} ({', '.join(own[:5])}); fit the teacher on these data"
            )
        wanted, here = list(teacher.schema["features"]), list(train.schema["features"])
        strange = sorted(set(wanted) ^ set(here))
        if strange:
            whose = "the teacher's alone" if strange[0] in wanted else "these data's alone"
            raise UserError(
                f"{self.name}: the teacher {teacher.method.name} reads {len(wanted)} columns and these data have {len(here)}; "
                f"{strange[0]!r} is {whose} ({len(strange)} such): fit the teacher on these data"
            )
        return teacher if wanted == here else ByName(teacher, [here.index(name) for name in wanted])

    @staticmethod
    def _target(teacher: Any, part: Part) -> Tensor:
        """float32 [n, C]: the teacher's probabilities for all vertices."""
        found = torch.from_numpy(np.asarray(teacher.predict(part), np.float32))
        if not bool(torch.isfinite(found).all()):
            row = int(torch.nonzero(~torch.isfinite(found).all(1))[0])
            raise UserError(f"the teacher {teacher.method.name} gave a value that is not finite for node {part.query.ids[row]!r}")
        return found

    def _on(self, part: Part, rows: Tensor | None, bags: bool, device: str) -> Features:
        x = self.rows(part, rows, bags)
        if device == "cpu":
            return x
        return (x if isinstance(x, Tensor) else x.dense()).to(device)

    def _high_order(self, teacher: Any, part: Part, target: Tensor, schema: dict[str, Any], run: Run) -> Any:
        """The term beside the vertices': (logits, epoch) -> loss. None here."""
        return lambda logits, epoch: 0.0

    def _say(self, model: LightModel, teacher: Any, train: Part, valid: Part, run: Run) -> dict[str, float]:
        """Validation accuracy of both beside each other; of a model for use also an MLP's, and what a request costs."""
        y = valid.truth.y

        def accuracy(of: Any) -> float:
            return float((np.asarray(of.predict(valid.blind())).argmax(1) == y).mean())

        found = {"teacher": accuracy(teacher)}
        if run.fold.startswith("all"):
            from .baselines import MLPMethod

            found["mlp"] = accuracy(run.model(MLPMethod(), train, valid))
        found["student"] = accuracy(model)
        run.notes.append("validation accuracy: " + ", ".join(f"{who} {value:.3f}" for who, value in found.items()))
        if run.fold.startswith("all"):
            run.notes.append(_serving(model, teacher, train))
        return found


class ByName:
    """A teacher whose columns stand in another order here."""

    def __init__(self, teacher: Any, order: list[int]) -> None:
        self.teacher, self.order, self.method, self.schema = teacher, order, teacher.method, teacher.schema

    def predict(self, part: Part) -> Any:
        def make() -> Any:
            data = part.data.clone()
            data.x = data.x[:, self.order]
            return data

        return self.teacher.predict(part._replace(data=kept.get(part.data, ("columns", tuple(self.order)), make)))


def undivided(teacher: Any) -> Any:
    """The teacher as a reader of features as they are: it divides no bags of words."""
    found = copy.copy(teacher)
    found.schema = {**teacher.schema, "bags": False}
    if isinstance(teacher, ByName):
        found.teacher = undivided(teacher.teacher)
    return found


def _serving(model: LightModel, teacher: Any, part: Part, requests: int = 20) -> str:
    """A sentence with the milliseconds of a request for 100 vertices, of both."""
    import time

    rows = np.arange(min(100, part.data.vertices))
    asked = Part(part.data, Nodes(rows, part.query.ids), None, part.schema)

    def milliseconds(of: Any, times: int) -> float:
        of.predict(asked)
        before = time.perf_counter()
        for _ in range(times):
            of.predict(asked)
        return 1000 * (time.perf_counter() - before) / times

    return f"a request for {len(rows)} nodes: student {milliseconds(model, requests):.2f} ms, teacher {milliseconds(teacher, 3):.2f} ms"


class LightHGNNPlus(LightHGNN):
    """LightHGNN whose student also matches the teacher's mean prediction over reliable hyperedges.

    The loss becomes ``lamb CE + (1 - lamb) (L_soft + L_high)`` with ``L_high`` the mean KL between hyperedges' mean
    probabilities, over hyperedges drawn anew in each epoch with chance ``rho_e``. ``rho_e = 1 - delta_e / max delta``, where
    ``delta_e`` is how far the hyperedge's mean entropy moves when the teacher's features are multiplied by
    ``(1 + N(0, 1)) noise``, once, after its training. `tau` softens both sides of that term, dividing logits.
    """

    name: ClassVar[str] = "light-hgnn-plus"
    tau: float = setting(1.0, "temperature of the hyperedges' predictions", gt=0, le=1000, search=(0.5, 4.0, "log"))
    noise: float = setting(1.0, "factor on the disturbed features", gt=0, le=100)

    def reliabilities(self, teacher: Any, part: Part, target: Tensor, mean: SparseOperator, run: Run) -> Tensor:
        """``rho`` float32 [E] of a part's hyperedges, isolated vertices' own ones among them."""
        x = part.data.x
        if getattr(teacher.method, "row_normalise", False) and read_as_bags(read_alike(part, teacher.schema), x):
            x = x / x.sum(1, keepdim=True).clamp(min=1e-12)
        data = part.data.clone()  # of the container and its tensors: what was given stays as it is
        data.x = perturb(x, self.noise, run.generator("perturbation"))
        # what is disturbed is what the teacher reads: it divides nothing again
        after = self._target(undivided(teacher), part._replace(data=data))
        return reliability(hyperedge_entropy(target, mean), hyperedge_entropy(after, mean))

    def _high_order(self, teacher: Any, part: Part, target: Tensor, schema: dict[str, Any], run: Run) -> Any:
        mean = mean_of(part, self.name)
        rho = self.reliabilities(teacher, part, target, mean, run)
        schema["reliability"] = np.histogram(rho.numpy(), bins=DECILES, range=(0, 1))[0].tolist()
        soft = soften(target, self.tau).to(run.device)
        chance = rho.numpy()

        def term(logits: Tensor, epoch: int) -> Tensor:
            # one stream an epoch: a fit that resumes draws the same, and dropout draws as without this term
            mask = torch.from_numpy(run.rng(f"hyperedges {epoch}").random(len(chance), np.float32) < chance)
            p = torch.softmax(logits / self.tau, 1)
            return high_order_loss(soft, p, mean, mask.to(logits.device), self.loss)

        return term


def mean_of(part: Part, name: str) -> SparseOperator:
    """``D_e^-1 H^T`` of a part's hypergraph, isolated vertices in hyperedges of their own; kept with the data."""
    H = incidence_of(part, name)
    return kept.get(part.data, "edge mean", lambda: edge_mean(H))


# -- over-smoothing ------------------------------------------------------------------------------------------------------
class HypergraphSmoothness(Probe):
    """How alike nets' hidden embeddings are within hyperedges: the mean distance of a vertex from its hyperedge's mean.

    Lower is smoother; the paper's topology-aware score. The raw score grows with the weights, so nets are compared at unit
    mean norm, `net` over `against`: above 1, `net` is the less smoothed. Nets are trained on the first draw of `task`;
    hyperedges of one vertex, whose distance is 0, do not count.
    """

    name: ClassVar[str] = "hypergraph-smoothness"
    kinds: ClassVar[tuple[str, ...]] = ("hypergraph",)
    net: Ref = setting(Ref(method=LightHGNN()), "whose embeddings: net.method=NAME (hgnn, light-hgnn, …), or net.saved=MODEL")
    against: Ref = setting(Ref(method=HGNNMethod()), "whose they are compared with")
    task: HypergraphNodeClassification = setting(HypergraphNodeClassification(), "under which nets are trained")

    def measure(self, data: Dataset | None, run: Run) -> Findings:
        if data is None:
            raise UserError("hypergraph-smoothness needs a hypergraph")
        task, part = self.task.for_data(data), data.whole()
        H = incidence_of(part, self.name)
        several = np.flatnonzero(np.asarray(H.sum(0)).ravel() > 1)
        if not len(several):
            raise UserError("no hyperedge has two nodes: there is nothing to smooth over")
        mean = edge_mean(H[:, several])
        rows = [self._row(ref, data, task, part, mean, run) for ref in (self.net, self.against)]
        mine, other = (row["score at unit mean norm"] for row in rows)
        scalars = {
            "score at unit mean norm": mine, "score of the other": other, "ratio": mine / other if other > 0 else None,
            "hyperedges": len(several),
        }  # fmt: skip
        return Findings(scalars, {"smoothness within hyperedges": rows})

    def _row(
        self, ref: Ref, data: Dataset, task: Task, part: Part, mean: SparseOperator, run: Run
    ) -> dict[str, Any]:  # fmt: skip
        ref = ref if ref.saved is not None else ref.model_copy(update={"data": data, "task": task})
        model = run.model(ref, part)
        if not hasattr(model, "hidden"):
            raise UserError(
                f"{model.method.name} has no hidden embeddings to look at; use hgnn, hnhn, light-hgnn or light-hgnn-plus"
            )
        h = model.hidden(part)
        found = topology_score(h, mean)
        if not np.isfinite(found.relative):
            raise UserError(f"the hidden embeddings of {model.method.name} are all zero")
        return {
            "net": model.method.label, "score at unit mean norm": found.relative, "raw score": found.raw,
            "mean norm": float(h.norm(dim=1).mean()),
        }  # fmt: skip
