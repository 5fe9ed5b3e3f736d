"""What heterogeneous methods must beat: HAN, R-GCN and HGT with PyG's layers, and metapath2vec.

Reverse relations are added for all of them. A type without features starts from the mean of its neighbours' features, or from a
free vector for each node, as LATTE's does, so that none is helped by it.
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

from latticework.core.errors import OutOfTime, UserError
from latticework.core.method import Encoder, Predictor
from latticework.core.run import Run
from latticework.core.task import Part, Task
from latticework.core.value import setting
from latticework.data.hetero import (
    Chain,
    Relation,
    Step,
    biadjacency,
    chain_counts,
    chain_types,
    doubled_of,
    parse_path,
    path_text,
    reverse_chain,
    sizes_of,
    step_types,
    steps_from,
    unread_weights,
)
from latticework.layers.attention import Edges
from latticework.layers.sparse_features import FeatureLinear
from latticework.layers.walks import walk_from

from .embedding import EmbeddingMethod, EmbeddingModel
from .latte import FAR, TypedModel, feature_scales, free_types, input_widths, key_of, pairs_joined, placed
from .network import Features, NodeModel, NodeNetwork

Array = NDArray[Any]
TASKS = ("hetero-node-classification",)
Triples = tuple[tuple[str, str, str], ...]


# -- networks ----------------------------------------------------------------------------------------------------------
class TypeInputs(nn.Module):
    """A linear map of each type's features to one width, or a free vector for each node of a type of width 0."""

    def __init__(self, widths: Mapping[str, int], sizes: Mapping[str, int], width: int) -> None:
        super().__init__()
        self.types = tuple(widths)
        self.maps, self.free = nn.ModuleDict(), nn.ModuleDict()
        for kind, features in widths.items():
            if features:
                self.maps[key_of(kind)] = FeatureLinear(features, width)
            else:
                self.free[key_of(kind)] = nn.Embedding(sizes[kind], width)

    def forward(self, x: Mapping[str, Features]) -> dict[str, Tensor]:
        keys = {kind: key_of(kind) for kind in self.types}
        return {kind: self.maps[key](x[kind]) if key in self.maps else self.free[key].weight for kind, key in keys.items()}


def module_name(kind: str) -> str:
    """A type's name where torch takes it for a module's, else one that it takes: ``items`` is a method, ``a.b`` has a full stop."""
    refused = "." in kind or hasattr(nn.ModuleDict(), kind) or hasattr(nn.ParameterDict(), kind)
    return key_of(kind) if refused else kind


class HeteroNet(nn.Module):
    """Inputs by type, PyG's convolutions, and a linear map of the target's vectors to logits [n, C].

    HAN attends over meta-paths of the target, in one layer; R-GCN and HGT pass messages along relations and their reverses.
    `UserError` where there is nothing to pass along.
    """

    def __init__(self, kind: str, inputs: TypeInputs, edges: Triples, target: str, classes: int, method: HeteroNetwork) -> None:
        super().__init__()
        from torch_geometric.nn import HGTConv, RGCNConv

        from .han_layer import HANLayer

        if not edges:
            raise UserError(f"{kind}: no relation touches {target!r}, the type that is classified; mlp reads its features alone")
        self.kind, self.target, self.dropout = kind, target, method.dropout
        self.inputs = inputs
        self.named = {kind: module_name(kind) for kind in inputs.types}
        self.along = {(a, name, b): (self.named[a], name.replace(".", "·"), self.named[b]) for a, name, b in edges}
        width, metadata = method.hidden, (list(self.named.values()), list(self.along.values()))
        make = {
            "han": lambda: HANLayer(width, width, metadata, heads=method.heads, dropout=method.dropout),
            "hgt": lambda: HGTConv(width, width, metadata, heads=method.heads),
            "r-gcn": lambda: RGCNConv(width, width, len(edges)),
        }[kind]
        self.convolutions = nn.ModuleList(make() for _ in range(method.layers))
        self.head = nn.Linear(width, classes)

    @property
    def free(self) -> nn.ModuleDict:
        return self.inputs.free

    def forward(self, x: Mapping[str, Features], edges: Mapping[tuple[str, str, str], Any]) -> Tensor:
        h = {kind: F.dropout(F.relu(v), self.dropout, self.training) for kind, v in self.inputs(x).items()}
        for conv in self.convolutions:
            h = (self._united if self.kind == "r-gcn" else self._typed)(conv, h, edges)
            if self.kind != "han":
                h = {kind: F.dropout(F.relu(v), self.dropout, self.training) for kind, v in h.items()}
        return self.head(h[self.target])

    def _typed(self, conv: nn.Module, h: Mapping[str, Tensor], edges: Mapping[tuple[str, str, str], Tensor]) -> dict[str, Tensor]:
        """PyG's convolution of dictionaries, whose keys name modules; types that no message reaches drop out."""
        kinds = {name: kind for kind, name in self.named.items()}
        out = conv({self.named[kind]: v for kind, v in h.items()}, {self.along[key]: e for key, e in edges.items()})
        return {kinds[name]: v for name, v in out.items() if v is not None}

    def _united(
        self, conv: nn.Module, h: Mapping[str, Tensor], edges: Mapping[tuple[str, str, str], Tensor]
    ) -> dict[str, Tensor]:
        """R-GCN on all types as one graph, whose edges are numbered by relation."""
        sizes = [len(v) for v in h.values()]
        first = dict(zip(h, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
        joined = [e + torch.tensor([[first[a]], [first[b]]], device=e.device) for (a, _, b), e in edges.items()]
        number = torch.cat([torch.full((e.shape[1],), i, device=e.device) for i, e in enumerate(edges.values())])
        out = conv(torch.cat(list(h.values())), torch.cat(joined, 1), number)
        return dict(zip(h, out.split(sizes), strict=True))


class HeteroNetwork(NodeNetwork):
    """Fields that the heterogeneous networks share."""

    tasks: ClassVar[tuple[str, ...]] = TASKS
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    model: ClassVar[type[NodeModel]] = TypedModel
    layers: int = setting(2, "convolutions", ge=1, le=16, search=(1, 3))
    heads: int = setting(8, "attention heads; their widths add up to `hidden`", ge=1, le=64)
    featureless: Literal["neighbour-mean", "free"] = setting("neighbour-mean", "what types without features start from")
    row_normalise: Literal[False] = setting(False, "features are read as they stand")

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        if self.hidden % self.heads:
            return f"{self.name}.hidden: {self.hidden} is not a multiple of {self.heads} heads"
        return free_types(self.featureless, task, facts)

    def settled(self, train: Part) -> dict[str, Any]:
        return {"scales": feature_scales(train, self.featureless)}

    def build(self, train: Part, run: Run) -> nn.Module:
        run.notes += unread_weights(train.data, train.data.edge_types)
        return super().build(train, run)

    def triples(self, schema: Mapping[str, Any]) -> Triples:
        """What messages run along, as (from, name, to)."""
        return tuple(self._along(schema))

    def _along(self, schema: Mapping[str, Any]) -> dict[tuple[str, str, str], Step]:
        """The steps that messages take, by PyG's names for them: relations and their reverses, without doubled ones.

        Relations between types that no chain joins to the target are left out: nothing of them would reach it.
        """
        doubled = doubled_of(schema)
        joined = joined_types(schema)
        relations: list[Relation] = [(source, name, to) for source, name, to in schema["relations"] if source in joined]
        found: dict[tuple[str, str, str], Step] = {}
        for key in relations:
            reverse = (key[2], f"rev_{key[1]}", key[0])
            while reverse in relations or reverse in found:  # PyG's ToUndirected gives such names, too
                reverse = (reverse[0], f"rev_{reverse[1]}", reverse[2])
            found |= {name: step for name, step in ((key, (key, True)), (reverse, (key, False))) if step not in doubled}
        return found

    def module(self, features: int, classes: int, schema: Mapping[str, Any], inputs: int = 1) -> nn.Module:
        joined = joined_types(schema)
        widths = {kind: width for kind, width in input_widths(schema, self.featureless).items() if kind in joined}
        start = TypeInputs(widths, schema["types"], self.hidden)
        return HeteroNet(self.name, start, self.triples(schema), schema["target"], classes, self)

    def inputs(self, part: Part, device: str) -> tuple[Any, ...]:
        edges = {}
        for name, (key, forward) in self._along(part.schema).items():
            index = part.data[key].edge_index.to(device)
            edges[name] = index if forward else index.flip(0)
        return placed(part, self.featureless, device), edges


class RGCN(HeteroNetwork):
    """Relational GCN: a linear map for each relation (and its reverse), mean over neighbours, PyG's ``RGCNConv``.

    Source: Schlichtkrull et al., ESWC 2018.
    """

    name: ClassVar[str] = "r-gcn"
    heads: Literal[1] = setting(1, "it has no attention")


class HGT(HeteroNetwork):
    """Heterogeneous graph transformer: queries and keys by node type, attention and messages by relation, PyG's ``HGTConv``.

    Source: Hu et al., WWW 2020.
    """

    name: ClassVar[str] = "hgt"


class HAN(HeteroNetwork):
    """Heterogeneous graph attention: node attention within each meta-path of the target, attention over meta-paths.

    PyG's ``HANConv``, one layer. Meta-paths go from the target to itself; left out, they are there and back through each neighbour
    type, and through each type two steps away. Paths with more pairs than `edge_budget` in all are refused. Source: Wang et al., WWW 2019.
    """

    name: ClassVar[str] = "han"
    revision: ClassVar[int] = 2  # 1 drew the dropout of attention in another order
    layers: int = setting(1, "convolutions", ge=1, le=4)
    paths: tuple[str, ...] = setting((), "meta-paths of the target, as in author-paper-author; none: there and back, to length 4")
    edge_budget: int = setting(6_000_000, "pairs that the meta-paths may join in all", ge=1)

    @field_validator("paths", mode="before")
    @classmethod
    def _alone(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    def chains(self, schema: Mapping[str, Any]) -> tuple[Chain, ...]:
        """The meta-paths, from the target to itself."""
        return target_paths(self.name, self.paths, schema)

    def triples(self, schema: Mapping[str, Any]) -> Triples:
        known = plan_of(schema)
        return tuple((schema["target"], path_text(c, known).replace(".", "·"), schema["target"]) for c in self.chains(schema))

    def module(self, features: int, classes: int, schema: Mapping[str, Any], inputs: int = 1) -> nn.Module:
        widths = {schema["target"]: input_widths(schema, self.featureless)[schema["target"]]}
        start = TypeInputs(widths, schema["types"], self.hidden)
        return HeteroNet(self.name, start, self.triples(schema), schema["target"], classes, self)

    def inputs(self, part: Part, device: str) -> tuple[Any, ...]:
        edges: dict[tuple[str, str, str], Edges] = {}
        left = self.edge_budget
        for name, chain in zip(self.triples(part.schema), self.chains(part.schema), strict=True):
            half = len(chain) // 2
            factors = [chain_counts(part.data, steps) for steps in (chain[:half], chain[half:]) if steps]
            # counted before the pairs are made: one hub may join more of them than memory holds
            size = factors[0].nnz if len(factors) == 1 else pairs_joined(*factors, left, FAR * self.edge_budget)
            if size > left:
                more = " or more" if size > FAR * self.edge_budget else ""
                raise UserError(
                    f"{self.name}: its meta-paths join more than {self.edge_budget:,} pairs ({name[1]} alone {size:,}{more}); "
                    "give other ones with -s paths=…, or a larger -s edge_budget"
                )
            pairs = factors[0] if len(factors) == 1 else factors[0] @ factors[1]
            if self.paths and not pairs.nnz:
                raise UserError(
                    f"{self.name}.paths: meta-path {path_text(chain, part.data)!r} matches nothing in these data; leave it out"
                )
            left -= pairs.nnz
            edges[name] = Edges(pairs, device)
        x = placed(part, self.featureless, device)
        return {part.query.target: x[part.query.target]} if part.query.target in x else {}, edges


def joined_types(schema: Mapping[str, Any]) -> frozenset[str]:
    """The target and all types that some chain of relations joins to it; all types where no target is named."""
    if schema["target"] is None:
        return frozenset(schema["types"])
    found, before = {schema["target"]}, 0
    while len(found) > before:
        before = len(found)
        for source, _, to in schema["relations"]:
            found |= {source, to} if found & {source, to} else set()
    return frozenset(found)


class Plan(NamedTuple):
    """A schema's types and relations, from which meta-paths are read as from data."""

    node_types: tuple[str, ...]
    edge_types: tuple[Relation, ...]


def plan_of(schema: Mapping[str, Any]) -> Plan:
    return Plan(tuple(schema["types"]), tuple(tuple(key) for key in schema["relations"]))  # type: ignore[misc]


def target_paths(name: str, paths: Sequence[str], schema: Mapping[str, Any]) -> tuple[Chain, ...]:
    """The meta-paths that a method is given, from the target to itself; where it is given none, there and back."""
    target, known = schema["target"], plan_of(schema)
    found = tuple(parse_path(text, known) for text in paths)
    for text, chain in zip(paths, found, strict=True):
        ends = chain_types(chain)
        if (ends[0], ends[-1]) != (target, target):
            raise UserError(f"{name}.paths: {text!r} goes from {ends[0]} to {ends[-1]}; both ends must be {target}")
    return found or there_and_back(known.edge_types, target, doubled_of(schema))


def there_and_back(relations: Sequence[Relation], target: str, doubled: Collection[Step] = ()) -> tuple[Chain, ...]:
    """Symmetric meta-paths of the target: through each step, and through each further one that leads to another type."""
    found: list[Chain] = []
    for first in steps_from(relations, target, doubled):
        found.append((first, *reverse_chain((first,))))
        for second in steps_from(relations, step_types(first)[1], doubled):
            if step_types(second)[1] not in (target, step_types(first)[1]):
                found.append((first, second, *reverse_chain((first, second))))
    return tuple(dict.fromkeys(found))


# -- metapath2vec --------------------------------------------------------------------------------------------------------
class Metapath2vec(EmbeddingMethod):
    """Walks that follow a meta-path, read as sentences by skip-gram (gensim's Word2Vec), several meta-paths in turn.

    A walk starts at a node of the target type and follows its meta-path again and again, each step to a uniform neighbour of the next
    type; where there is none it ends. Left out, the meta-paths are there and back through each neighbour type and each type
    two steps away. Source: Dong, Chawla and Swami, KDD 2017 (its settings; negative sampling over all types, not the ++ form).
    """

    name: ClassVar[str] = "metapath2vec"
    tasks: ClassVar[tuple[str, ...]] = TASKS
    gives: ClassVar[tuple[type[Any], ...]] = (Encoder,)
    paths: tuple[str, ...] = setting((), "meta-paths of the target, as in author-paper-author; none: there and back, to length 4")
    dim: int = setting(128, "length of a node's vector", ge=1, le=4096)
    walks: int = setting(10, "walks that start at each node, for each meta-path", ge=1, le=1000)
    length: int = setting(40, "nodes of a walk", ge=2, le=10_000)
    window: int = setting(5, "context on each side", ge=1, le=100)
    negatives: int = setting(5, "negative samples", ge=1, le=100)
    epochs: int = setting(1, "passes over the walks", ge=1, le=1000)

    @field_validator("paths", mode="before")
    @classmethod
    def _alone(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        if getattr(task, "protocol", "") == "inductive":
            return "it learns a vector for each node that it sees, and an inductive test asks for others"
        return None

    def fit(self, train: Part, valid: Part | None, run: Run) -> EmbeddingModel:
        try:
            from gensim.models import Word2Vec
        except ImportError:
            raise UserError("metapath2vec needs gensim: pip install 'latticework[walks]'") from None
        data, target = train.data, train.query.target
        chains = target_paths(self.name, self.paths, train.schema)
        run.notes += unread_weights(data, (key for chain in chains for key, _ in chain))
        if not chains:
            raise UserError(f"metapath2vec: no relation touches {target}, so there is no meta-path to walk")
        first = _offsets(sizes_of(data))
        sentences: list[list[str]] = []
        for number, chain in enumerate(chains):
            walks = path_walks(data, chain, first, self.walks, self.length, run.rng(f"walks {number}"))
            sentences += [[str(node) for node in walk if node >= 0] for walk in walks]
            try:
                run.log(number)
            except OutOfTime:
                run.stopped = True
                break
        # one worker: gensim's threads would race, and the same seed would give other vectors
        model = Word2Vec(
            sentences, vector_size=self.dim, window=self.window, min_count=0, sg=1, hs=0, negative=self.negatives,
            workers=1, epochs=self.epochs, seed=int(run.rng("word2vec").integers(2**31)),
        )  # fmt: skip
        count = int(data[target].num_nodes)
        vectors = np.stack([model.wv[str(first[target] + node)] for node in range(count)])
        run.notes.append(f"meta-paths: {', '.join(path_text(c, data) for c in chains)}")
        return EmbeddingModel(self, dict(train.schema), torch.from_numpy(vectors))


def path_walks(
    data: Any, chain: Chain, first: Mapping[str, int], walks: int, length: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Walks that follow a meta-path round and round: int64 [n * walks, length] of nodes numbered through all types, -1 at the end.

    Each place of the path is a layer of its own whose edges lead to the next layer, so that the walk on all of them is uniform.
    """
    steps = [biadjacency(data, step).astype(np.float32) for step in chain]
    layers = len(steps)
    blocks: list[list[Any]] = [[None] * layers for _ in range(layers)]
    for i, A in enumerate(steps):
        A.data[:] = 1
        blocks[i][(i + 1) % layers] = A
    joined = sp.csr_array(sp.block_array(blocks)) if layers > 1 else sp.csr_array(steps[0])
    sizes = [A.shape[0] for A in steps]
    layer = np.repeat(np.arange(layers), sizes)
    kinds = chain_types(chain)
    number = (
        np.arange(len(layer)) - np.cumsum([0, *sizes[:-1]])[layer] + np.array([first[kinds[i]] for i in range(layers)])[layer]
    )
    found = np.full((walks * sizes[0], length), -1, np.int32)
    for i in range(walks):
        chances = np.minimum(rng.random((sizes[0], length - 1), dtype=np.float32), np.float32(1 - 2**-24))
        walk_from(joined.indptr, joined.indices, rng.permutation(sizes[0]), chances, found[i * sizes[0] : (i + 1) * sizes[0]])
    return np.where(found >= 0, number[found], -1)


def _offsets(sizes: Mapping[str, int]) -> dict[str, int]:
    """The first number of each type's nodes, where all are numbered through."""
    return dict(zip(sizes, np.cumsum([0, *list(sizes.values())[:-1]]).tolist(), strict=True))
