"""The wrapper: any node classifier that reads several feature matrices, on the real one and freshly generated ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latticework.common.settled import read_as_bags
from latticework.core.errors import UserError
from latticework.core.method import Method, Model, Predictor, Ref
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.svg import bars
from latticework.core.task import Part, Task
from latticework.core.training import train
from latticework.core.value import setting
from latticework.data.graph import joined
from latticework.layers.propagation import adjacency

from ..baselines import GCN
from ..network import NodeModel, NodeNetwork, asked_of, backbones_with, device_of, loss_of, watching
from .consistency import consistency
from .cvae import NeighbourCVAE
from .generator import (
    NeighbourCVAEMethod,
    NeighbourCVAEModel,
    Sampler,
    generator_net,
    raw_features,
)  # fmt: skip

Array = NDArray[Any]
DEGREES = ((0, 0), (1, 1), (2, 2), (3, 3), (4, 5), (6, 10), (11, None))


class Augmented(nn.Module):
    """A network of `copies` + 1 feature matrices, and the noise [copies, n, L] of the sample set that it is judged with."""

    noise: Tensor

    def __init__(self, net: nn.Module, copies: int, nodes: int, latent: int) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("noise", torch.zeros(copies, nodes, latent))

    def forward(self, inputs: Sequence[Any], samples: Sequence[Tensor]) -> Tensor:
        """Logits [n, C] from a backbone's own inputs (features first), generated matrices before the real one."""
        x, *graph = inputs
        out: Tensor = self.net([*samples, x] if samples else x, *graph)
        return out


class LAGNNModel(Model):
    """A trained network with its generator, the noise of its own sample set, and (for `explain`) the backbone alone."""

    method: LAGNNMethod

    def __init__(
        self, method: LAGNNMethod, schema: Mapping[str, Any], net: Augmented, generator: NeighbourCVAE | None,
        alone: NodeModel | None = None, seen: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.method, self.schema, self.net, self.generator = method, schema, net.eval(), generator
        self.alone, self.seen = alone, seen

    def predict(self, part: Part) -> Any:
        """Probabilities float32 [q, C] of the asked nodes; of `draws` > 0 sample sets, the mean."""
        backbone, device = self.method.backbone, device_of(self.net)
        inputs = backbone.inputs(part, device)
        if self.generator is None:
            return self._chances([self._logits(inputs, ())], part)
        sampler = sampler_of(self.generator, backbone, part, device)
        draws = self.method.draws
        if draws == 0 and part.schema["graph"] == self.schema["graph"]:
            return self._chances([self._logits(inputs, [sampler(z) for z in self.net.noise])], part)
        # no run's stream: the same draws wherever the model is asked
        generator = torch.Generator().manual_seed(0)
        sets = ([sampler(sampler.noise(generator)) for _ in self.net.noise] for _ in range(max(draws, 1)))
        return self._chances([self._logits(inputs, samples) for samples in sets], part)

    @torch.no_grad()
    def _logits(self, inputs: Sequence[Any], samples: Sequence[Tensor]) -> Tensor:
        out: Tensor = self.net(inputs, samples)
        return out

    @staticmethod
    def _chances(logits: list[Tensor], part: Part) -> Any:
        # one set is not averaged: its bits are the backbone's own
        chances = [torch.softmax(one, 1) for one in logits]
        mean = chances[0] if len(chances) == 1 else torch.stack(chances).mean(0)
        return mean[torch.from_numpy(part.query.rows).to(mean.device)].cpu().numpy()

    def state(self) -> Mapping[str, Any]:
        found = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        if self.generator is not None:
            found |= {f"generator.{k}": v for k, v in self.generator.state_dict().items()}
        if self.alone is not None and self.seen is not None:
            found |= {f"alone.{k}": v for k, v in self.alone.state().items()} | {"seen": self.seen}
        return found

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        def inner(name: str) -> dict[str, Any]:
            return {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}

        noise = state["net.noise"]
        net = Augmented(method.network(schema), *noise.shape)
        net.load_state_dict(inner("net"))
        generator = alone = None
        if schema["generator"] is not None:
            generator = generator_net(schema["generator"])
            generator.load_state_dict(inner("generator"))
        if "seen" in state:
            alone = type(method.backbone).model.restore(method.backbone, schema["alone"], inner("alone"))
        return cls(method, schema, net, generator, alone, state.get("seen"))

    def parameters(self) -> int:
        parts = [self.net] if self.generator is None else [self.net, self.generator]
        return sum(p.numel() for part in parts for p in part.parameters())

    def explain(self, part: Part) -> Findings:
        """What the wrapper changes for nodes of each degree.

        On the validation nodes, whose labels the fit knew: accuracy with and without it. On the asked nodes: how far the
        probabilities moved (half the sum of absolute differences), and how many answers changed.
        """
        if self.alone is None or self.seen is None:
            return Findings()
        degree, right, before = self.seen.numpy()
        few = degree <= 2
        gains = [
            {"neighbours": name, "validation nodes": int(own.sum()), "backbone": float(before[own].mean()),
             "with lagnn": float(right[own].mean()), "gain": float(right[own].mean() - before[own].mean())}
            for name, own in _groups(degree)
        ]  # fmt: skip
        scalars: dict[str, Any] = {"gain on validation nodes": float(right.mean() - before.mean())}
        for name, own in (("at most 2 neighbours", few), ("3 neighbours or more", ~few)):
            scalars[f"gain, {name}"] = float(right[own].mean() - before[own].mean()) if own.any() else None
        mine, theirs = np.asarray(self.predict(part)), np.asarray(self.alone.predict(part))
        moved, other = np.abs(mine - theirs).sum(1) / 2, mine.argmax(1) != theirs.argmax(1)
        changes = [
            {"neighbours": name, "nodes": int(own.sum()), "probability moved": float(moved[own].mean()),
             "answers changed": float(other[own].mean())}
            for name, own in _groups(degrees_of(part)[part.query.rows])
        ]  # fmt: skip
        return Findings(
            scalars,
            {"gain over node degree": gains, "change over node degree": changes},
            {
                "gain over node degree": bars(
                    [r["neighbours"] for r in gains], [r["gain"] for r in gains], "gain in validation accuracy", "neighbours"
                ),
                "change over node degree": bars(
                    [r["neighbours"] for r in changes], [r["probability moved"] for r in changes],
                    "probability moved by the augmentation", "neighbours",
                ),
            },
        )  # fmt: skip


def _groups(degree: Array) -> list[tuple[str, Array]]:
    """Name and members of the groups of nodes by degree that are not empty."""
    found = []
    for low, high in DEGREES:
        own = (degree >= low) & (degree <= (np.inf if high is None else high))
        if own.any():
            found.append((f"{low}+" if high is None else f"{low}" if low == high else f"{low}–{high}", own))
    return found


def degrees_of(part: Part) -> Array:
    """int64 [n]: different neighbours of each node, in either direction, itself aside."""
    A = adjacency(joined(part.data.edge_index, part.data.edge_weight), int(part.data.num_nodes), undirected=True)
    return np.asarray(np.diff(A.indptr) - (A.diagonal() != 0), np.int64)


def sampler_of(generator: NeighbourCVAE, backbone: NodeNetwork, part: Part, device: str) -> Sampler:
    """Samples in the form in which the backbone reads the real features."""
    x = raw_features(part)
    return Sampler(generator.to(device), x.to(device), backbone.row_normalise and read_as_bags(part, x))


class LAGNNMethod(Method):
    """A node classifier that reads, beside the real features, `copies` matrices drawn anew for every forward.

    Each matrix holds for every node features that its neighbour might have, drawn from `generator`; the backbone's first layer
    has a map of its own for each of the `copies` + 1 matrices, whose results stand side by side. A step makes `forwards`
    stochastic forwards: ``loss = mean_k NLL_k + consistency * 1/s sum_k mean_i || p_k,i - p^_i ||^2`` over all nodes, with
    ``p^`` the sharpened mean of the forwards. Learning rate, weight decay, epochs, patience, dropout and width are the
    backbone's own fields; the weights of the best epoch are kept with the sample set that they were chosen with.

    ``copies=0`` is the control: the same forwards and consistency on the real features only; with ``forwards=1`` and
    ``consistency=0`` it is the backbone, bit for bit. `draws` may change after the fit: so many fresh sample sets are averaged
    when predicting (0: the stored one, on its own graph).

    The published runs share one generator between all seeds (``generator.seed=0``), which hides its variance. Their weights
    start from a normal law with a negative mean, a slip; here they start as the backbone's do.
    """

    name: ClassVar[str] = "lagnn"
    tasks: ClassVar[tuple[str, ...]] = ("node-classification",)
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    model: ClassVar[type[LAGNNModel]] = LAGNNModel

    backbone: NodeNetwork = setting(GCN(hidden=8, epochs=2000, patience=2000), "a classifier that reads several feature matrices")
    generator: Ref = setting(Ref(method=NeighbourCVAEMethod()), "the neighbour-cvae; with a seed, one for all seeds")
    copies: int = setting(1, "generated matrices beside the real one; 0: none", ge=0, le=64, search=[1, 2, 4])
    forwards: int = setting(4, "stochastic forwards a step", ge=1, le=64)
    consistency: float = setting(1.0, "weight of the consistency of all forwards", ge=0, le=1000, search=(0.25, 2.0))
    sharpen: float = setting(0.5, "temperature of the mean that forwards are drawn to", gt=0, le=10)
    gain: bool = setting(True, "fit the backbone alone, too, so that explain shows the gain over node degree")
    draws: int = setting(0, "fresh sample sets averaged at predict; 0: the stored one", ge=0, le=10_000, late=True)

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        backbone = self.backbone
        if facts["multi-label"]:
            return "it needs one label a node: consistency is between distributions over classes"
        if not self.copies:
            return backbone.refuses(task, facts)
        if not backbone.many_inputs:
            able = ", ".join(backbones_with("many_inputs"))
            return f"its backbone must read several feature matrices, and {backbone.name} reads one; those that can: {able}"
        if getattr(backbone, "layers", 2) < 2:
            return (
                f"its backbone joins several feature matrices after its first layer: use {backbone.name} with two layers or more"
            )
        method = self.generator.method
        if method is None and self.generator.saved is None:
            return "its generator names nothing; use -s generator.method=neighbour-cvae"
        if method is not None and not isinstance(method, NeighbourCVAEMethod):
            return f"its generator must be a neighbour-cvae, not {method.name}"
        refusal = method.refuses(task, facts) if method is not None and self.generator.data is None else None
        return refusal or backbone.refuses(task, facts)

    def network(self, schema: Mapping[str, Any]) -> nn.Module:
        """The bare network of copies + 1 feature matrices."""
        return self.backbone.module(len(schema["features"]), len(schema["classes"]), schema, inputs=self.copies + 1)

    def _generator(self, train_part: Part, valid: Part | None, run: Run) -> NeighbourCVAEModel | None:
        if not self.copies:
            return None
        made = run.model(self.generator, train_part, valid)
        if not isinstance(made, NeighbourCVAEModel):
            raise UserError(f"lagnn: the generator is a {type(made).__name__}, not a fitted neighbour-cvae")
        if list(made.schema["features"]) != list(train_part.schema["features"]):
            raise UserError(
                f"lagnn: the generator was fitted on {len(made.schema['features'])} features, and the data have "
                f"{len(train_part.schema['features'])}, or others; fit it on these"
            )
        return made

    def fit(self, train_part: Part, valid: Part | None, run: Run) -> LAGNNModel:
        made = self._generator(train_part, valid, run)
        generator = None if made is None else made.net
        latent = 0 if generator is None else generator.latent
        backbone = self.backbone
        net = Augmented(self.network(train_part.schema), self.copies, int(train_part.data.num_nodes), latent).to(run.device)
        epoch = self._train(net, generator, train_part, valid, run)
        if valid is not None:
            run.notes.append(f"weights and samples of epoch {epoch + 1}, chosen on validation {backbone.stop}")
        sizes = None if made is None else dict(made.schema["generator"])
        schema = {**train_part.schema, "generator": sizes, "alone": None}
        model = LAGNNModel(self, schema, net.cpu(), None if generator is None else generator.cpu())
        if self.gain and valid is not None and not run.stopped:
            model.alone = run.model(backbone, train_part, valid)
            model.schema = {**schema, "alone": dict(model.alone.schema)}
            model.seen = self._seen(model, valid)
        return model

    def _seen(self, model: LAGNNModel, valid: Part) -> Tensor:
        """int64 [3, v]: degree, right with the wrapper, right without, of the validation nodes."""
        assert model.alone is not None
        right = [np.asarray(m.predict(valid.blind())).argmax(1) == valid.truth.y for m in (model, model.alone)]
        return torch.from_numpy(np.stack([degrees_of(valid)[valid.query.rows], *right]).astype(np.int64))

    def _train(self, net: Augmented, generator: NeighbourCVAE | None, part: Part, valid: Part | None, run: Run) -> int:
        backbone, device = self.backbone, run.device
        inputs = backbone.inputs(part, device)
        optimiser = torch.optim.Adam(backbone.groups(net.net), lr=backbone.lr)
        index, target = asked_of(part, device)
        sampler = None if generator is None else sampler_of(generator, backbone, part, device)
        now = 0

        def step(epoch: int) -> float:
            nonlocal now
            now = epoch
            # named by the epoch, so that a fit which resumes draws the same
            draws = run.generator(f"samples {epoch}")
            optimiser.zero_grad(set_to_none=True)
            logits = [net(inputs, self._set(sampler, draws)) for _ in range(self.forwards)]
            loss = sum((loss_of(one[index], target) for one in logits[1:]), loss_of(logits[0][index], target)) / self.forwards
            if self.consistency > 0:
                loss = loss + self.consistency * consistency(torch.softmax(torch.stack(logits), -1), self.sharpen)
            loss.backward()
            optimiser.step()
            return float(loss.detach())

        watch = None
        if valid is not None:
            same = valid.data is part.data
            seen = inputs if same else backbone.inputs(valid, device)
            theirs = sampler if same or generator is None else sampler_of(generator, backbone, valid, device)

            def answer() -> Tensor:
                draws = run.generator(f"look {now}")
                self._renew(net, sampler, draws)
                samples = [sampler(z) for z in net.noise] if same and sampler is not None else self._set(theirs, draws)
                logits: Tensor = net(seen, samples)
                return logits

            watch = watching(backbone.stop, valid, run, answer)
        patience = backbone.patience_of()
        epoch = train(net, step, run, epochs=backbone.epochs, optimiser=optimiser, watch=watch, patience=patience)
        if valid is None:
            self._renew(net, sampler, run.generator("look"))
        return epoch

    def _set(self, sampler: Sampler | None, draws: torch.Generator) -> list[Tensor]:
        """A fresh sample set: `copies` matrices [n, f]."""
        return [] if sampler is None else [sampler(sampler.noise(draws)) for _ in range(self.copies)]

    def _renew(self, net: Augmented, sampler: Sampler | None, draws: torch.Generator) -> None:
        """Other noise for the set that the network is judged with."""
        if sampler is not None:
            net.noise.copy_(torch.stack([sampler.noise(draws) for _ in range(self.copies)]))
