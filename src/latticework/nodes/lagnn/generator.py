"""The recipe of the generator: a conditional VAE over the edges of one graph, and which of its states is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.common.settled import read_as_bags
from latticework.core.errors import OutOfTime, UserError
from latticework.core.method import Generator, Method, Model
from latticework.core.run import Run
from latticework.core.task import Part, Task
from latticework.core.training import Watch, minibatches, train
from latticework.core.value import setting
from latticework.layers.propagation import adjacency
from latticework.layers.sparse_features import compact

from ..network import operator_of
from .cvae import (
    Field,
    NeighbourCVAE,
    ReferenceGCN,
    acquisition,
    cvae_loss,
    neighbour_pairs,
    receptive_field,
    row_normalise,
    row_normalise_,
)  # fmt: skip


def raw_features(part: Part) -> Tensor:
    """x float32 [n, f] as given; an error for users where there is none or a value is not finite."""
    x: Tensor | None = part.data.x
    if x is None:
        raise UserError("the nodes have no features, and neighbour-cvae generates them; add columns to nodes.csv")
    bad = ~torch.isfinite(x)
    if bool(bad.any()):
        raise UserError(f"neighbour-cvae: {_place(part, bad)} is not finite; fill or remove it")
    return x


def _place(part: Part, wrong: Tensor) -> str:
    node, column = (int(v) for v in torch.nonzero(wrong)[0])
    return f"feature {part.schema['features'][column]!r} of node {part.query.ids[node]!r} ({float(part.data.x[node, column]):g})"


class Sampler:
    """Feature matrices of one graph from a frozen generator: z [n, L] -> [n, f], rows summing to 1 where they are bags."""

    def __init__(self, net: NeighbourCVAE, x: Tensor, normalise: bool) -> None:
        self.net, self.normalise = net.eval(), normalise
        with torch.no_grad():
            self.condition = net.condition(net.scaled(compact(x)))

    def __call__(self, z: Tensor) -> Tensor:
        x = self.net.sample(z.to(self.condition.device), self.condition)
        return row_normalise_(x) if self.normalise else x

    def noise(self, generator: torch.Generator) -> Tensor:
        """z float32 [n, L], drawn on the CPU."""
        return torch.randn(len(self.condition), self.net.latent, generator=generator)


class NeighbourCVAEModel(Model):
    """A trained generator: features of a neighbour for every node of any graph with the same features."""

    method: NeighbourCVAEMethod

    def __init__(self, method: NeighbourCVAEMethod, schema: Mapping[str, Any], net: NeighbourCVAE) -> None:
        self.method, self.schema, self.net = method, schema, net.eval()

    def sample(self, query: Part, rng: np.random.Generator) -> Any:
        """float32 [n, f]: one draw for each node of a part's graph, on the scale of its features."""
        sampler = Sampler(self.net, raw_features(query), normalise=False)
        return sampler(sampler.noise(torch.Generator().manual_seed(int(rng.integers(2**62))))).numpy()

    def state(self) -> Mapping[str, Any]:
        return self.net.state_dict()

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        net = generator_net(schema["generator"])
        net.load_state_dict(dict(state))
        return cls(method, schema, net)


def generator_net(sizes: Mapping[str, Any]) -> NeighbourCVAE:
    """The network of the sizes that a model file names."""
    return NeighbourCVAE(sizes["features"], sizes["latent"], sizes["hidden"], sizes["variant"])


def pair_batches(pairs: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """A shuffled cut of all pairs; a last batch of one joins the batch before it, since BatchNorm has no variance of one."""
    batches = minibatches(pairs, size, generator)
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


class Search(nn.Module):
    """What a fit carries from step to step: the CVAE, and with ``selection=bayes`` its judge and the best state so far."""

    steps: Tensor
    best: Tensor
    kept_at: Tensor

    def __init__(self, cvae: NeighbourCVAE, kept: NeighbourCVAE | None, reference: ReferenceGCN | None) -> None:
        super().__init__()
        self.cvae, self.kept, self.reference = cvae, kept, reference
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("best", torch.tensor(-torch.inf))
        self.register_buffer("kept_at", torch.tensor(0))


class NeighbourCVAEMethod(Method):
    """A conditional VAE of a neighbour's features given the centre's, over both directions of every edge.

    Adam on batches of pairs, drawn by index and never stacked. Edges count alike whatever their weight, an edge of weight 0
    joins nothing, directed graphs are symmetrised, and a node without neighbours gives no pair but can be sampled for.

    `variant`: bags of words and other features in [0, 1] take cross-entropy; all others the large variant, with BatchNorm,
    tanh and squared errors, and columns scaled to [-1, 1] (``auto`` looks at the data).

    `selection`: ``bayes``, the paper's: after every step a GCN, trained on the real features for `reference_epochs`, answers
    for the train nodes by `passes` dropout passes on a fresh sample; the state whose passes agree most on the true labels is
    kept, and the GCN goes on for `update_epochs` on that sample. The best score counts from the first step, but a state is
    kept after `warm_up` steps only; where none is, the last one stands. It needs two hops around the train nodes, and costs
    `passes` GCN passes a step. ``lowest-loss``: the epoch of the lowest mean loss. ``none``: the last state.
    """

    name: ClassVar[str] = "neighbour-cvae"
    gives: ClassVar[tuple[type[Any], ...]] = (Generator,)
    model: ClassVar[type[NeighbourCVAEModel]] = NeighbourCVAEModel

    selection: Literal["bayes", "none", "lowest-loss"] = setting("bayes", "which state is kept")
    passes: int = setting(100, "bayes: dropout passes a step", ge=1, le=10_000)
    warm_up: int = setting(200, "bayes: steps before a state may be kept", ge=0)
    reference_epochs: int = setting(100, "bayes: steps of the GCN on the real features", ge=0, le=100_000)
    update_epochs: int = setting(20, "bayes: steps of the GCN on each kept sample", ge=0, le=100_000)
    latent: int = setting(10, "length of z", ge=1, le=4096)
    hidden: int = setting(256, "width of encoder and decoder", ge=1, le=65_536)
    epochs: int = setting(10, "passes over the pairs", ge=1, le=100_000)
    batch: int = setting(64, "pairs a step", ge=2, le=1_000_000)
    lr: float = setting(0.01, "learning rate of Adam", gt=0, le=1)
    variant: Literal["auto", "bernoulli", "gaussian"] = setting("auto", "how features are distributed")

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        if not facts["features"]:
            return "the nodes have no features, which it generates"
        if not facts["pairs joined"] + facts["self-loops"]:
            return "the graph has no edge, and it learns from edges"
        if self.selection == "bayes" and facts["multi-label"]:
            return "selection=bayes needs one label a node; use selection=none or lowest-loss"
        return None

    def fit(self, train_part: Part, valid: Part | None, run: Run) -> NeighbourCVAEModel:
        x = raw_features(train_part)
        variant = self._variant(train_part, x)
        data = train_part.data
        pairs = neighbour_pairs(adjacency(data.edge_index, int(data.num_nodes), data.edge_weight, undirected=True))
        if pairs.shape[1] < (2 if variant == "gaussian" else 1):
            raise UserError("neighbour-cvae: the graph has no edge to learn from; give edges, or use lagnn with copies=0")
        sizes = {"features": x.shape[1], "latent": self.latent, "hidden": self.hidden, "variant": variant}
        cvae = generator_net(sizes)
        if variant == "gaussian":
            cvae.fit_scale(x)
        bayes = self.selection == "bayes"
        reference = ReferenceGCN(x.shape[1], len(train_part.schema["classes"])) if bayes else None
        search = Search(cvae, generator_net(sizes) if bayes else None, reference).to(run.device)
        groups: list[dict[str, Any]] = [{"params": list(cvae.parameters())}]
        if reference is not None:
            groups.append({"params": list(reference.parameters()), "lr": 0.01, "weight_decay": 5e-4})
        optimiser = torch.optim.Adam(groups, lr=self.lr)
        judge = self._judge(search, train_part, x, optimiser, run) if bayes else None
        step = self._step(search, pairs, x.to(run.device), optimiser, judge, run)
        losses: list[float] = []

        def counted(epoch: int) -> float:
            losses.append(step(epoch))
            return losses[-1]

        lowest = (lambda: Watch(losses[-1])) if self.selection == "lowest-loss" else None
        epoch = train(search, counted, run, epochs=self.epochs, optimiser=optimiser, watch=lowest)
        kept = cvae
        if bayes:
            at = int(search.kept_at)
            assert search.kept is not None
            kept = search.kept if at else cvae
            run.notes.append(
                f"generator of step {at}, U = {float(search.best):.4g}" if at else "no score rose: the last generator"
            )
        elif lowest is not None:
            run.notes.append(f"generator of epoch {epoch + 1}, by its loss")
        if not all(bool(torch.isfinite(v).all()) for v in kept.state_dict().values()):
            raise UserError(f"neighbour-cvae diverged at lr={self.lr:g}; use a smaller lr")
        return NeighbourCVAEModel(self, {**train_part.schema, "generator": sizes}, kept.cpu())

    def _variant(self, part: Part, x: Tensor) -> Literal["bernoulli", "gaussian"]:
        outside = (x < 0) | (x > 1)
        if self.variant == "bernoulli" and bool(outside.any()):
            raise UserError(
                f"neighbour-cvae(variant=bernoulli): {_place(part, outside)} lies outside [0, 1]; use variant=gaussian or auto"
            )
        if self.variant != "auto":
            return self.variant
        return "gaussian" if bool(outside.any()) else "bernoulli"

    def _step(
        self, search: Search, pairs: Tensor, x: Tensor, optimiser: torch.optim.Optimizer,
        judge: Callable[[torch.Generator], dict[str, float]] | None, run: Run,
    ) -> Callable[[int], float]:  # fmt: skip
        """One epoch over the pairs; draws are named by the epoch, so that a fit which resumes makes the same ones."""
        cvae = search.cvae
        scaled = cvae.scaled(x)
        assert isinstance(scaled, Tensor)

        def epoch_of(epoch: int) -> float:
            draws = run.generator(f"pairs {epoch}")
            looks = run.generator(f"looks {epoch}")
            total = 0.0
            for chosen in pair_batches(pairs.shape[1], self.batch, draws):
                centre, neighbour = pairs[:, chosen].to(x.device)
                eps = torch.randn(len(chosen), self.latent, generator=draws).to(x.device)
                optimiser.zero_grad(set_to_none=True)
                target = scaled[neighbour]
                loss = cvae_loss(cvae(target, scaled[centre], eps), target, cvae.variant)
                loss.backward()
                optimiser.step()
                value = float(loss.detach())
                total += value * len(chosen)
                search.steps += 1
                curves = {"batch loss": value} | (judge(looks) if judge is not None else {})
                try:
                    run.log(int(search.steps) - 1, **curves)
                except OutOfTime:
                    break  # the trainer meets it again and stops
            return total / pairs.shape[1]

        return epoch_of

    def _judge(
        self, search: Search, part: Part, x: Tensor, optimiser: torch.optim.Optimizer, run: Run
    ) -> Callable[[torch.Generator], dict[str, float]]:
        """The look after every step: score a fresh sample, keep the state and teach the reference where it is the best."""
        if part.truth is None or np.asarray(part.truth.y).ndim != 1:
            raise UserError("neighbour-cvae(selection=bayes) reads one label a train node; use selection=none or lowest-loss")
        cvae, kept, reference = search.cvae, search.kept, search.reference
        assert kept is not None and reference is not None
        y = torch.from_numpy(np.asarray(part.truth.y, np.int64)).to(run.device)
        field = receptive_field(operator_of(part), torch.from_numpy(part.query.rows))
        bags = read_as_bags(part, x)  # which networks of nodes read divided by their sum
        near = x[field.nodes]
        real = (row_normalise(near) if bags else near).to(run.device)
        near = near.to(run.device)
        if run.device != "cpu":
            field = Field(field.nodes, field.inner.to_torch(run.device), field.outer.to_torch(run.device))

        def teach(features: Tensor, steps: int) -> None:
            for _ in range(steps):
                optimiser.zero_grad(set_to_none=True)  # Adam leaves parameters without a gradient alone: here the CVAE's
                F.cross_entropy(reference(features, field)[0], y).backward()
                optimiser.step()

        reference.train()
        teach(real, self.reference_epochs)

        def look(draws: torch.Generator) -> dict[str, float]:
            cvae.eval()
            sampler = Sampler(cvae, near, bags)
            sample = sampler(sampler.noise(draws))
            cvae.train()
            with torch.no_grad():
                score = float(acquisition(reference(sample, field, self.passes), y))
            if score > float(search.best):
                search.best.fill_(score)
                if int(search.steps) > self.warm_up:
                    kept.load_state_dict(cvae.state_dict())
                    search.kept_at.copy_(search.steps)
                    teach(sample, self.update_epochs)
            return {"U": score}

        return look
