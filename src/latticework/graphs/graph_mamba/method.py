"""The recipe of Graph Mamba: one value for nodes and for graphs, whose fields are the paper's steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn
from torch_geometric.data import Data

from latticework.common.graph_batches import Packed
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.task import Part, Task
from latticework.core.value import setting

from ..codes import codes_of
from ..network import GRAPH_TASKS, GraphFault, GraphModel, degree_of, device_of, outputs_of
from ..of_nodes import NodesOrGraphs, NodesOrGraphsModel, bare, is_graph
from .network import Encoder, GraphMamba, Mixer
from .tokens import Ordering, csr_of, importance, with_sequences

MOST_TIMED = 8192  # nodes; attention over more takes long and gigabytes


class GraphMambaModel(NodesOrGraphsModel):
    """A trained Graph Mamba; its answers are means over `draws` draws of the walks."""

    def predict(self, part: Part) -> Any:
        """Probabilities float64 [q, C] of the asked nodes or graphs, or numbers [q, T] in raw units."""
        method: Any = self.method
        made = self.prepared(part)
        draws = method.draws if method.draws_matter() and made else 1
        found = [self.answers(part, made if draw == 0 else method.drawn(made, draw=draw)) for draw in range(draws)]
        return sum(found) / len(found)

    def explain(self, part: Part) -> Findings:
        """What a pass costs beside attention of equal width, and what the walks saw: different nodes in a token, ways back, by length."""
        method: Any = self.method
        graphs = [bare(part.data)] if is_graph(part) else list(part.data)
        if not graphs:
            return Findings()
        made = method.prepare(graphs, self.schema)
        tables = {"a pass against attention of equal width": cost} if (cost := self.cost(made)) else {}
        pairs = {"pairs that attention among all nodes would look at": int(sum(int(g.num_nodes or 0) ** 2 for g in made))}
        if not method.walk_length:
            return Findings(pairs, tables)
        slots = method.walk_length * method.repeats + 1
        sizes = torch.cat([g.token_size.view(-1, slots) for g in made]).double()
        shape = torch.cat([g.token_shape.view(-1, slots, 2) for g in made]).double()
        rows = []
        if method.ordering != "shuffled":  # else a place in the sequence has no one length
            for r in range(method.walk_length, 0, -1):
                at = slice((method.walk_length - r) * method.repeats, (method.walk_length - r + 1) * method.repeats)
                rows.append({
                    "walk length": r, "different nodes": float(sizes[:, at].mean()), "most": float(sizes[:, at].max()),
                    "share of steps back at the node": float(shape[:, at, 1].mean()),
                })  # fmt: skip
        scalars = {
            "tokens a node": slots, "steps in all sequences": int(sizes.shape[0] * slots), **pairs,
        }  # fmt: skip
        return Findings(scalars, ({"what the walks saw": rows} if rows else {}) | tables)

    def cost(self, made: Sequence[Data]) -> list[dict[str, Any]]:
        """Seconds of a pass over the largest prepared graph, here and with attention over its nodes instead (the best of three)."""
        method: Any = self.method
        largest = max(made, key=lambda g: int(g.num_nodes or 0))
        n = int(largest.num_nodes or 0)
        if method.mixer != "mamba" or n > MOST_TIMED:
            return []
        device = device_of(self.net)
        with torch.random.fork_rng():
            other = method.but(mixer="attention")
            attending = other.module(self.schema["inputs"], outputs_of(self.schema), self.schema).to(device).eval()
        batch = Packed([largest], device).batch(torch.zeros(1, dtype=torch.int64))
        rows = []
        for name, net in (("selective scan", self.net), ("attention", attending)):
            seconds = []
            for _ in range(3):
                started = time.perf_counter()
                with torch.no_grad():
                    net(batch).sum().item()  # waits for a device
                seconds.append(time.perf_counter() - started)
            rows.append({"nodes are read by": name, "nodes": n, "milliseconds a pass": 1000 * min(seconds)})
        return rows


class GraphMambaMethod(NodesOrGraphs):
    """Nodes as sequences of random-walk neighbourhoods, far to near, read by a bidirectional selective scan.

    The steps of the paper are fields. *Tokens*: for each length 1 .. `walk_length`, `repeats` tokens of `walks` walks; 0: one token a
    node, so that a graph is one sequence. *Order*: `ordering` of the nodes by degree or PageRank, ascending, ties at random;
    ``shuffled`` mixes nodes, and a node's tokens too. *Local encoder*: `encoder`, and `local` for what tells of the sub-graph's shape.
    *Scan*: `bidirectional`, `state`, `expand`. Optional: `pe`. `mpnn` adds message passing beside; `mixer` replaces the scan over nodes
    by full attention of equal width or by nothing, as controls. One value serves nodes and graphs: the part decides.

    AdamW with warm-up and cosine decay; walks and ties are drawn anew in every epoch, and are fixed when answering (`draws` > 1
    averages over so many). Walks follow edges as written, source to target, and end where there is no way on; ``both_ways`` lets
    them go against them too. Edge weights are not read; edge features are, by the message passing. A graph of nodes is trained as
    one batch: memory grows with nodes x (walk_length x repeats + 1) x width x layers. ``graph-mamba:small`` is for two cores.
    """

    name: ClassVar[str] = "graph-mamba"
    tasks: ClassVar[tuple[str, ...]] = ("node-classification", *GRAPH_TASKS, "long-range")
    model: ClassVar[type[GraphModel]] = GraphMambaModel
    encode_head: ClassVar[bool] = True

    walk_length: int = setting(4, "m, longest walk; 0: one token a node", ge=0, le=100, search=[0, 1, 2, 4])
    walks: int = setting(4, "M, walks that make a token", ge=1, le=1000, search=[1, 2, 4, 8])
    repeats: int = setting(4, "s, tokens of each length", ge=1, le=100, search=[1, 2, 4])
    encoder: Encoder = setting("mean", "tokens to vectors: mean of features and the walks' statistics, or a GIN on the sub-graph")
    ordering: Ordering = setting("degree", "what nodes are sorted by; shuffled: by chance", search=["degree", "pagerank"])
    local: bool = setting(True, "the encoder sees the sub-graph's shape; false: its nodes' features alone")
    mpnn: bool = setting(True, "a message passing layer beside the sequence over nodes")
    pe: Literal["none", "rwse", "laplacian"] = setting("none", "codes joined to the features")
    codes: int = setting(8, "columns of the codes", ge=1, le=256)
    bidirectional: bool = setting(True, "read both ways")
    mixer: Mixer = setting("mamba", "what reads the sequence of nodes; attention and none are controls")
    state: int = setting(16, "N, states a channel", ge=1, le=256)
    expand: int = setting(2, "channels of the scan over the width", ge=1, le=8)
    heads: int = setting(4, "mixer=attention: heads, at most", ge=1, le=64)
    pool: Literal["mean", "sum"] = setting("mean", "how node states become a graph's vector", search=["mean", "sum"])
    both_ways: bool = setting(False, "walks and messages go along edges and against them")
    longest: int = setting(65_536, "most nodes of a graph that are one sequence", ge=1)
    warmup: float = setting(0.05, "share of the epochs in which the learning rate rises", ge=0, lt=1)
    dropout: float = setting(0.1, "after each block and each message passing layer", ge=0, lt=1, search=(0.0, 0.5))
    weight_decay: float = setting(1e-5, "on all parameters (decoupled)", ge=0, le=1)
    epochs: int = setting(200, "at most", ge=1, le=100_000)
    patience: int = setting(50, "epochs without a better validation value before the fit stops", ge=1)
    draws: int = setting(1, "draws of the walks whose answers are averaged", ge=1, le=1000, late=True)

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        if self.mixer == "none" and not self.mpnn and not self.walk_length:
            return "with mixer=none, mpnn=false and walk_length=0 no node hears of another; leave one of them on"
        return None

    def draws_matter(self) -> bool:
        """Whether anything is drawn when answering: walks, an order with ties, or the signs of eigenvectors."""
        return bool(self.walk_length) or self.mixer == "mamba" or self.pe == "laplacian"

    # -- the network -------------------------------------------------------------------------------------------------
    def module(self, inputs: int, outputs: int, schema: Mapping[str, Any]) -> nn.Module:
        return GraphMamba(
            inputs + (0 if self.pe == "none" else self.codes), outputs, self.width, self.layers, self.walk_length, self.state,
            self.expand * self.width, self.encoder, self.local, self.mixer, self.mpnn, self.bidirectional, self.both_ways,
            self.pool, schema["reads"], self.dropout, schema["edge inputs"], self.heads, self.longest,
        )  # fmt: skip

    def settled(self, train: Part) -> dict[str, Any]:
        found = super().settled(train)
        return found if train.schema.get("asked") is None else found | {"reads": "asked"}

    def prepare(self, graphs: Sequence[Data], schema: Mapping[str, Any]) -> list[Data]:
        made = super().prepare(graphs, schema)
        column = schema["features"].index(schema["asked"]) if schema["reads"] == "asked" else -1
        for number, (graph, given) in enumerate(zip(made, graphs, strict=True)):
            n = int(graph.num_nodes or 0)
            if self.mixer != "none" and n > self.longest:
                words = f"it has {n} nodes, and sequences are at most longest={self.longest}; raise it, or cut the graph"
                raise GraphFault(number, words)
            indptr, indices = csr_of(graph.edge_index.numpy(), n, self.both_ways)
            graph.value = torch.from_numpy(importance(indptr, indices, self.ordering))
            if self.pe != "none":
                graph.code = codes_of(graph, self.pe, self.codes)
            if column >= 0:
                graph.asked = given.x[:, column] > 0
        return self.drawn(made)

    def drawn(self, made: list[Data], rng: np.random.Generator | None = None, draw: int = 0) -> list[Data]:
        """Prepared graphs with walks, order and the signs of eigenvectors drawn anew (the first draw when answering keeps the signs)."""
        made = with_sequences(made, self.walk_length, self.walks, self.repeats, self.ordering, self.both_ways, rng, draw)
        if self.pe == "laplacian" and (rng is not None or draw):
            for graph in made:
                signs = (np.random.default_rng([0x7369676E, draw]) if rng is None else rng).choice([-1.0, 1.0], self.codes)
                graph.code = graph.code * torch.from_numpy(signs.astype(np.float32))
        return made

    def redraw(self, graphs: list[Data], schema: Mapping[str, Any], epoch: int, run: Run) -> list[Data]:
        return self.drawn(graphs, run.rng(f"walks {epoch}"))

    def schedule(self) -> Callable[[int], float]:
        rise = max(round(self.warmup * self.epochs), 1)

        def factor(epoch: int) -> float:
            if epoch < rise and self.warmup:
                return (epoch + 1) / (rise + 1)
            done = (epoch - rise) / max(self.epochs - rise, 1)
            return 0.5 * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0)))

        return factor

    # -- the fit -----------------------------------------------------------------------------------------------------
    def fit(self, train: Part, valid: Part | None, run: Run) -> GraphModel:
        for sentence in self.notes_on(train):
            run.notes.append(sentence)
        return super().fit(train, valid, run)

    def notes_on(self, part: Part) -> list[str]:
        """What a user should know of these graphs."""
        found = []
        graphs = [part.data] if is_graph(part) else part.data
        if self.walk_length and not self.both_ways:
            stuck = sum(
                int(((np.bincount(g.edge_index[0].numpy(), minlength=int(g.num_nodes or 0)) == 0) & (degree_of(g) > 0)).sum())
                for g in graphs
            )
            if stuck:
                found.append(f"{stuck} nodes have edges in and none out: walks end there (both_ways=true lets them go back)")
        if any(getattr(g, "edge_weight", None) is not None for g in graphs):
            found.append("edge weights are not read")
        return found
