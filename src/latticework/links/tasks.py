"""Link prediction: which pairs of nodes of one graph are joined, where some links are not known.

What a method gets and gives
----------------------------
``Part.data``
    The tensors of the training graph alone (`data.graph.Graph.tensors`): ``edge_index`` int64 [2, 2 p], each training link in
    both directions, ``edge_weight`` float32 [2 p] or none, ``x`` float32 [n, F] or none, ``num_nodes``, ``directed`` = False.
    It is one object for train, valid and test (with `add_valid` the test part's graph has the validation links, too), so what
    is computed for it once may be kept with it. No validation or test link is in it, nor in anything made from it.
``Part.query``
    `LinkPairs`: of the train part the training links int64 [2, p], each once (i < j); of valid and test parts links and
    non-links, mixed. ``Part.truth`` of the train part says that all are links; negatives to learn from are the method's to draw
    (`non_links`, from the training graph alone).
``Part.schema``
    As for node tasks (`features`, `nodes`, ...), with `ids`, the names of the nodes, and `graph`, a digest of them alone: a
    model of the fitted nodes answers wherever the nodes are the same.
answer
    float [q], one finite score a pair, higher = more likely; ``(i, j)`` and ``(j, i)`` are the same question. Logits, or
    anything that ranks: a model whose scores are no logits says ``"logits": False`` in its schema, and no probability is
    written. The task's headline on the valid part chooses (higher is better, whatever the negatives are). A model may have ``counts(part)``, further columns
    (name -> array [q]) of the pairs that a user asks about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from latticework.common.settled import settled
from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.ledger import write_whole
from latticework.core.method import Predictor
from latticework.core.result import Metric, Score
from latticework.core.run import Run
from latticework.core.task import Fold, Part, Query, Task
from latticework.core.value import Value, digest_of, setting
from latticework.data.graph import Graph, schema_of
from latticework.data.table import matched_columns
from latticework.layers.hashing import GOLDEN, mixed

from .heuristics import linked, pattern, shared
from .negatives import distinct_non_links, hard_negatives, non_links
from .ranking import Truth, hits_at, kth_best, list_above, list_ranks, pair_slices, ranks

__all__ = ["Candidates", "LinkPairs", "LinkPrediction", "Links", "Truth", "links_of", "non_links", "schema_for"]

Array = NDArray[Any]
TRAIN, VALID, TEST = 0, 1, 2
# pairs asked of a model at once when all non-linked ones are ranked
CHUNK = 1 << 18


class LinkPairs(NamedTuple):
    """What is asked of a model: `pairs` int64 [2, q] of node numbers; `ids`, the names of all nodes."""

    pairs: Array
    ids: tuple[str, ...]


class Candidates(NamedTuple):
    """What a user asks: `pairs` of a file, or (none) the `top` best of all pairs that are not joined. The task cuts it up."""

    pairs: Array | None
    ids: tuple[str, ...]
    top: int


class Ranked(NamedTuple):
    """Answer to `Candidates`: `pairs` int64 [2, q], best first where they were chosen; `score` float64 [q]; further columns."""

    pairs: Array
    score: Array
    columns: Mapping[str, Array]


TOP = 100  # candidates where no number is asked for


class LinkQuery(Query):
    """Which pairs of the user's graph are scored."""

    name: ClassVar[str] = "links"
    top: int | None = setting(None, "so many of the best pairs that are not joined; left out: 100", ge=1)
    pairs: Path | None = setting(None, "a file of pairs (source,target) to score instead")


def check_pairs(pairs: Array, ids: Sequence[str]) -> None:
    """`UserError` for a pair out of range or of a node with itself."""
    n = len(ids)
    if pairs.ndim != 2 or pairs.shape[0] != 2 or pairs.dtype.kind not in "iu":
        raise UserError(f"pairs are int [2, q], not {pairs.dtype} {list(pairs.shape)}")
    wrong = np.flatnonzero(((pairs < 0) | (pairs >= n)).any(0))
    if len(wrong):
        i, j = pairs[:, wrong[0]].tolist()
        raise UserError(f"pair {int(wrong[0])} is ({i}, {j}): nodes are numbered 0..{n - 1}")
    same = np.flatnonzero(pairs[0] == pairs[1])
    if len(same):
        raise UserError(f"pair {int(same[0])} joins {ids[int(pairs[0, same[0]])]!r} to itself; links join two different nodes")


# -- the graph that links are predicted in ---------------------------------------------------------------------------------
class Links(NamedTuple):
    """All links of a data set: the graph they are of; `pairs` int64 [2, k] (i < j, sorted), `weight` [k], first `time` [k]."""

    graph: Graph
    pairs: Array
    weight: Array | None
    time: Array | None


def links_of(data: Dataset) -> Links:
    """Joined pairs of a graph or of events, each once; direction, repeats and self-loops do not count.

    A weighted pair keeps the larger weight of its two directions (repeats add up); events count once, at their first time, and
    bring neither weights nor features.
    """
    given = data.read()
    if data.kind == "events":
        n = given.nodes
        low, high = np.minimum(given.src, given.dst), np.maximum(given.src, given.dst)
        check_joined(low, high)
        apart = low != high
        keys, first = np.unique((low * n + high)[apart], return_index=True)  # the first index is the earliest event
        graph = Graph(np.zeros((2, 0), np.int64), given.ids, directed=False)
        return Links(graph, np.stack([keys // n, keys % n]), None, given.t[apart][first])
    graph = given
    n = graph.nodes
    if graph.weight is not None and len(graph.weight) and graph.weight.min() < 0:
        at = int(graph.weight.argmin())
        u, v = (graph.ids[int(e[at])] for e in graph.edge_index)
        raise UserError(f"the edge from {u!r} to {v!r} has weight {graph.weight[at]:g}; weights of links are >= 0")
    if graph.x is not None and len(graph.x) != n:
        raise UserError(f"{len(graph.x)} rows of features for {n} nodes; one row a node is needed")
    check_joined(*graph.edge_index)
    from latticework.layers.propagation import adjacency

    # joined is who has an edge, whatever its weight: one of weight 0 is a link, too
    upper = sp.csr_array(sp.triu(adjacency(graph.edge_index, n, None, undirected=True), 1))
    upper.sort_indices()
    pairs = np.stack([np.repeat(np.arange(n), np.diff(upper.indptr)), upper.indices]).astype(np.int64)
    weight = None
    if graph.weight is not None:
        weighed = adjacency(graph.edge_index, n, graph.weight, undirected=True)
        weight = np.asarray(weighed[pairs[0], pairs[1]], np.float32).ravel()
    return Links(graph, pairs, weight, None)


def check_joined(u: Array, v: Array) -> None:
    """`UserError` where no edge joins two different nodes."""
    if not (u != v).any():
        raise UserError("no two different nodes are joined: there is no link to learn from")


def deal(pairs: Array, draw: int) -> Array:
    """uint64 [k], a number for each pair that looks random and hangs on the pair and the draw alone, not on the other pairs.

    So links keep their places in a split when others are put in the place of the test links. (SplitMix64's last step, twice.)
    """

    low, high = pairs.astype(np.uint64)
    return mixed(mixed(low * GOLDEN + np.uint64(draw + 1)) + high * GOLDEN)


def graph_of(links: Links, rows: Array) -> Graph:
    """The graph with some of the links alone (by mask or number), each in both directions; labels and splits are left out."""
    i, j = links.pairs[:, rows]
    weight = None if links.weight is None else np.tile(links.weight[rows], 2)
    return replace(
        links.graph, edge_index=np.stack([np.append(i, j), np.append(j, i)]), weight=weight, y=None, classes=(), fixed=None,
        splits=None, directed=False, notes=(), _cache={},
    )  # fmt: skip


def schema_for(graph: Graph) -> dict[str, Any]:
    """`schema_of` a graph of which links are asked: `graph` names its nodes, whatever links them."""
    ids = list(graph.ids)
    return {**schema_of(graph), "graph": digest_of(ids)[:16], "ids": ids, "classes": [], "multi": False, "directed": False}


class LinkPrediction(Task):
    """Scores for pairs of nodes: links that were taken out of the graph must rank above pairs that are not joined.

    Links are undirected pairs, each once. ``split=random`` cuts them at random, 70/10/20 into train, valid and test (repeats are
    splits); ``split=by-time``, for events, by the time at which a pair first met (equal times are never cut apart; repeats are
    other negatives and seeds). Valid and test links are in no part's graph. `keep_train` thins the training links after the
    split, at random: how a model fares in a graph that lacks links.

    ``negatives=uniform``: as many pairs that are not joined as there are links, drawn uniformly, one set for all links. The
    headline is Hits@k, the share of links scored strictly above the k-th best negative; MRR is the mean of 1 / rank of each link
    among all negatives. ``negatives=hard``: each link stands in a list of its own among `against` pairs that keep one of its
    ends, those that heuristics on the training graph rank highest; they are the same for every method. The headline is MRR
    within the lists; Hits@k is the share of links that are among the k best of their list. Ties take the mean rank, AUC and
    average precision are over all pairs at once. No negative is joined anywhere in the data (for the validation part, which knows of
    no test link: in the train and valid parts).
    """

    name: ClassVar[str] = "link-prediction"
    kinds: ClassVar[tuple[str, ...]] = ("graph", "events")
    role: ClassVar[type[Any]] = Predictor
    readouts: ClassVar[Mapping[str, str]] = {"Encoder": "link-readout"}
    Query: ClassVar[type[Value]] = LinkQuery

    negatives: Literal["uniform", "hard"] = setting("uniform", "among which pairs a link must be found")
    k: int = setting(100, "of Hits@k", ge=1, le=1_000_000)
    split: Literal["random", "by-time"] = setting("random", "at random, or (events) by the time of the first meeting")
    train: float = setting(0.7, "share of the links that trains", gt=0, lt=1)
    valid: float = setting(0.1, "share that validates; 0: there is no validation part", ge=0, lt=1)
    keep_train: float = setting(1.0, "share of the training links that is kept after the split", gt=0, le=1)
    against: int = setting(500, "negatives=hard: pairs in the list of each link", ge=1, le=1_000_000)
    add_valid: bool = setting(False, "the graph has the validation links, too, when the test links are asked")

    @property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        return tuple(Metric(name, "", "higher") for name in (f"hits@{self.k}", "mrr", "auc", "average-precision"))

    @property
    def headline_metric(self) -> str:  # type: ignore[override]
        return "mrr" if self.negatives == "hard" else f"hits@{self.k}"

    def baselines(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        return "common-neighbours", "gcn-links"

    def hidden(self, test: Part) -> list[Any]:
        return [test.truth.y, test.query.pairs[:, test.truth.y]]

    # -- folds -------------------------------------------------------------------------------------------------------------
    def for_data(self, data: Dataset) -> LinkPrediction:
        self._expect(data)
        given = data.read()
        check_joined(*((given.src, given.dst) if data.kind == "events" else given.edge_index))
        return self

    def _expect(self, data: Dataset) -> None:
        if self.train + self.valid >= 1:
            raise UserError(
                f"train {self.train:g} and valid {self.valid:g} leave nothing to test; they must add up to less than 1"
            )
        if self.split == "by-time" and data.kind != "events":
            raise UserError(
                f"split=by-time needs events with times (events.csv), and this is {data.kind}; use -s task.split=random"
            )

    def reads(self, data: Dataset) -> list[str]:
        given, found = data.read(), []
        if data.kind == "events":
            loops = int((given.src == given.dst).sum())
            unread = [word for word, value in (("weights", given.weight), ("features", given.x)) if value is not None]
            found.append("events count as links: each pair once, both ways, at its first time")
            if unread:
                found.append(f"{' and '.join(unread)} of events are not read")
        else:
            loops = int((given.edge_index[0] == given.edge_index[1]).sum())
            if given.directed:
                found.append("directed edges count as links: each pair once, both ways")
        return [*found, f"{loops} self-loops do not count as links"] if loops else found

    def plan(self, data: Dataset, repeats: int) -> list[tuple[str, int]]:
        return [(f"{self.split}-{i}", i) for i in range(repeats)]

    def final(self, data: Dataset) -> str:
        return "all-0"

    def overlap(self, data: Dataset) -> float | None:
        return None if self.split == "by-time" else (1 - self.train - self.valid) / self.train

    def cut(self, links: Links, name: str) -> Array:
        """int8 [k]: 0 train, 1 valid, 2 test, -1 a training link that `keep_train` leaves out."""
        number = int(name.rpartition("-")[2])
        m = links.pairs.shape[1]
        dealt = deal(links.pairs, 2 * number)
        # a model for use tests nothing: what does not validate trains
        final = name.startswith("all")
        train = 1 - self.valid if final else self.train
        ends = [round(train * m), m if final else round((train + self.valid) * m)]
        code = np.full(m, TEST, np.int8)
        if self.split == "by-time":
            assert links.time is not None
            order = np.argsort(links.time, kind="stable")
            t = links.time[order]
            ends = [end if end >= m else int(np.searchsorted(t, t[end])) for end in ends]
        else:
            order = np.argsort(dealt, kind="stable")
        code[order[: ends[1]]] = VALID
        code[order[: ends[0]]] = TRAIN
        if self.keep_train < 1:
            mine = np.flatnonzero(code == TRAIN)
            kept = max(round(self.keep_train * len(mine)), 1)
            code[mine[np.argsort(deal(links.pairs[:, mine], 2 * number + 1), kind="stable")[kept:]]] = -1
        return code

    def fold(self, data: Dataset, name: str) -> Fold:
        links, code = self.dealt(data, name)
        graph = graph_of(links, code == TRAIN)
        schema = schema_for(graph)
        p = links.pairs[:, code == TRAIN]
        train = Part(graph.tensors(), LinkPairs(p, graph.ids), Truth(np.ones(p.shape[1], bool)), schema)
        # the validation part knows of no test link, not even to avoid it among its negatives
        valid = self._part(graph, links, code == VALID, code != TEST, name, schema) if (code == VALID).any() else None
        seen = graph_of(links, (code == TRAIN) | (code == VALID)) if self.add_valid else graph
        return Fold(train, valid, self._part(seen, links, code == TEST, np.ones(len(code), bool), name, schema))

    def dealt(self, data: Dataset, name: str) -> tuple[Links, Array]:
        """The links of a data set and where each stands in a split (see `cut`); `UserError` for a part without any."""
        self._expect(data)
        links = links_of(data)
        code = self.cut(links, name)
        for word, c, share in (("train", TRAIN, 1), ("valid", VALID, self.valid), ("test", TEST, not name.startswith("all"))):
            if share and not (code == c).any():
                less = f"; bring more, or use -s task.{word}=0" if word == "valid" else ""
                raise UserError(
                    f"{len(code)} links at too few times, or too few links: the {word} part of split {name} has none{less}"
                )
        return links, code

    def _part(self, graph: Graph, of: Links, asked: Array, known: Array, name: str, schema: Mapping[str, Any]) -> Part:
        """Some links, among pairs that the known links do not join, asked on a graph."""
        rng = np.random.default_rng([int(name.rpartition("-")[2]), int(known.all()), 0x6C696E6B])
        A, taken = pattern(graph.edge_index, graph.nodes), pattern(of.pairs[:, known], graph.nodes)
        links = of.pairs[:, asked]
        p = links.shape[1]
        lists = None
        if self.negatives == "hard":
            others, number = hard_negatives(A, taken, links, self.against, rng, graph.x)
            lists = np.append(np.arange(p), number)
            fewest = int(np.bincount(number, minlength=p).min()) if p else 0
        else:
            others = distinct_non_links(taken, p, rng)
            fewest = p
        if p and self.k > fewest:
            what = "the shortest list of a link" if lists is not None else "one part"
            hint = f"use -s task.k={max(fewest // 2, 1)}" if fewest else "the graph is too dense for any"
            raise UserError(
                f"Hits@k with k = {self.k} needs more negatives than there are: {what} has {fewest}; {hint}"
                + (", or more of them with -s task.against" if lists is not None and fewest >= self.against else "")
            )
        pairs = np.concatenate([links, others], axis=1)
        y = np.arange(pairs.shape[1]) < p
        order = rng.permutation(len(y))
        if lists is not None:
            order = order[np.argsort(lists[order], kind="stable")]  # lists stay together, each in random order
            lists = lists[order]
        # no end comes first more often for links than for others
        turned = rng.random(len(y)) < 0.5
        pairs, y = np.where(turned, pairs[::-1], pairs)[:, order], y[order]
        slices = pair_slices(A, pairs, y) if p else {}
        return Part(graph.tensors(), LinkPairs(pairs, graph.ids), Truth(y, lists, slices), schema)

    # -- asking ------------------------------------------------------------------------------------------------------------
    def ask(self, data: Dataset | None, query: Any, schema: Mapping[str, Any]) -> Part:
        assert data is not None
        links = links_of(data)
        graph = as_fitted(graph_of(links, np.arange(links.pairs.shape[1])), schema)
        if query.pairs is not None and query.top is not None:
            raise UserError("--pairs scores every pair of its file, --top the best of all that are not joined; give one of them")
        own = {**schema_for(graph), "logits": schema.get("logits", True), **settled(schema)}
        pairs = None if query.pairs is None else read_pairs(query.pairs, graph.ids)
        return Part(graph.tensors(), Candidates(pairs, graph.ids, query.top or TOP), None, own)

    def answer(self, model: Any, part: Part, run: Run) -> Any:
        if isinstance(part.query, Candidates):
            return self._ranked(model, part)
        return self._asked(model, part)

    @staticmethod
    def _asked(model: Any, part: Part) -> Array:
        check_pairs(part.query.pairs, part.query.ids)
        found = model.predict(part)
        scores = np.asarray(found.detach().cpu() if hasattr(found, "detach") else found, dtype=np.float64)
        if scores.shape != (part.query.pairs.shape[1],):
            raise UserError(f"{model.method.name} gave scores {list(scores.shape)} for {part.query.pairs.shape[1]} pairs")
        if not np.isfinite(scores).all():
            i, j = part.query.pairs[:, int(np.flatnonzero(~np.isfinite(scores))[0])]
            raise UserError(
                f"{model.method.name} gave a score that is not finite for {part.query.ids[i]!r} and {part.query.ids[j]!r}"
            )
        return scores

    def _ranked(self, model: Any, part: Part) -> Ranked:
        query: Candidates = part.query
        A = pattern(part.data.edge_index, len(query.ids))

        def scored(pairs: Array) -> Array:
            return self._asked(model, part._replace(query=LinkPairs(pairs, query.ids)))

        if query.pairs is not None:
            pairs = query.pairs
            cuts = range(0, pairs.shape[1], CHUNK)
            score = np.concatenate([scored(pairs[:, a : a + CHUNK]) for a in cuts]) if len(cuts) else np.zeros(0)
            columns: dict[str, Array] = {"linked": linked(A, pairs)}
        else:
            pairs, score, columns = np.zeros((2, 0), np.int64), np.zeros(0), {}
            for block in unlinked(A):
                joint, values = np.concatenate([pairs, block], axis=1), np.append(score, scored(block))
                best = np.argsort(-values, kind="stable")[: query.top]
                pairs, score = joint[:, best], values[best]
        columns |= {"common neighbours": shared(A, pairs).astype(np.int64)}
        if hasattr(model, "counts"):
            columns |= model.counts(part._replace(query=LinkPairs(pairs, query.ids)))
        return Ranked(pairs, score, columns)

    # -- judging -----------------------------------------------------------------------------------------------------------
    def value(self, answer: Any, part: Part, run: Run) -> float | None:
        truth: Truth = part.truth
        if self.negatives == "uniform":
            return hits_at(answer[truth.y], answer[~truth.y], self.k)
        return float((1 / list_ranks(answer, truth)).mean())

    def score(self, answer: Any, part: Part, run: Run | None) -> list[Score]:
        truth: Truth = part.truth
        scores = self._scores(answer, truth)
        if not truth.slices:
            return scores
        name = self.headline_metric
        hits, reciprocal = self._each(answer, truth)
        each = reciprocal if self.negatives == "hard" else hits
        for kind, (group, names) in truth.slices.items():
            mine = group[truth.y]
            for i, words in enumerate(names):
                if (mine == i).any():
                    at = {"slice": kind, "range": words, "links": int((mine == i).sum())}
                    scores.append(Score(name, float(each[mine == i].mean()), at))
        return scores

    def _each(self, answer: Array, truth: Truth) -> tuple[Array, Array]:
        """Of each link, in order: whether it is a hit, and 1 / rank."""
        rank = list_ranks(answer, truth) if truth.lists is not None else ranks(answer[truth.y], answer[~truth.y])
        if truth.lists is None:
            bar = kth_best(answer[~truth.y], self.k)
            return (answer[truth.y] > bar).astype(float), 1 / rank
        above = list_above(answer, truth)
        return (above < self.k).astype(float), 1 / rank

    def _scores(self, answer: Array, truth: Truth) -> list[Score]:
        from sklearn.metrics import average_precision_score, roc_auc_score

        if not truth.y.any() or truth.y.all():
            why = "there are no links" if not truth.y.any() else "there is no pair to tell links from"
            return [Score(metric.name, None, {}, why) for metric in self.metrics]
        hits, reciprocal = self._each(answer, truth)
        return [
            Score(f"hits@{self.k}", float(hits.mean())),
            Score("mrr", float(reciprocal.mean())),
            Score("auc", float(roc_auc_score(truth.y, answer))),
            Score("average-precision", float(average_precision_score(truth.y, answer))),
        ]

    def write(self, answer: Any, part: Part, to: Path) -> None:
        """CSV: source, target, score, probability (where the score is a logit), and what is known of the pair."""
        import polars as pl

        names = np.array(part.query.ids, object)
        if not isinstance(answer, Ranked):
            answer = Ranked(part.query.pairs, answer, {})
        columns: dict[str, Any] = {
            "source": names[answer.pairs[0]].tolist(), "target": names[answer.pairs[1]].tolist(), "score": answer.score,
        }  # fmt: skip
        if part.schema.get("logits", True):
            from scipy.special import expit

            columns["probability"] = expit(answer.score)
        write_whole(to, pl.DataFrame({**columns, **answer.columns}).write_csv())

    def judge(self, answers: Path, truth: Path) -> list[Score]:
        """A file of scores (source,target,score) against one of truths (source,target,label of 0 or 1), in any order.

        A column `list` in the truths says among which pairs a link must be found; without it all negatives count.
        """
        from latticework.data.table import column_named, need, numbers

        asked, frame = _ends(answers, each_once=True)
        told, known = _ends(truth)
        column = column_named(known, "list")
        of_list = [""] * len(told) if column is None else [str(v) for v in known[column].to_list()]
        repeated = [listed for listed, times in Counter(zip(told, of_list, strict=True)).items() if times > 1]
        if repeated:
            (u, v), word = repeated[0]
            raise UserError(
                f"{truth} names the pair {u!r}, {v!r} twice" + (f" in list {word!r}" if word else "") + "; once is enough"
            )
        if (column is not None) != (self.negatives == "hard"):
            raise UserError(
                f"{truth} has no column 'list', which negatives=hard needs"
                if column is None
                else f"{truth} has a column 'list': judge it with -s negatives=hard"
            )
        label = numbers(truth, known[need(truth, known, "label")]).to_numpy()
        if not np.isin(label, (0, 1)).all() or len(np.unique(label)) < 2:
            raise UserError(f"{truth}: column 'label' needs both 1 (a link) and 0 (none)")
        of = dict(zip(asked, numbers(answers, frame[need(answers, frame, "score", "probability")]).to_list(), strict=True))
        wanted = set(told)
        for keys, here, there in ((asked, wanted, truth), (told, of, answers)):
            strange = [key for key in keys if key not in here]
            if strange:
                u, v = strange[0]
                raise UserError(f"{there} lacks the pair {u!r}, {v!r} ({len(strange)} such); both files must name the same pairs")
        y = label == 1
        lists = None if column is None else np.unique(np.array(known[column].to_list(), str), return_inverse=True)[1]
        most = 1 if lists is None else int(lists.max()) + 1
        if lists is not None and not (np.bincount(lists[y], minlength=most) == 1).all():
            raise UserError(f"{truth}: each list has one pair with label 1")
        fewest = int((~y).sum()) if lists is None else int(np.bincount(lists[~y], minlength=most).min())
        if self.k > fewest:
            raise UserError(
                f"Hits@k with k = {self.k} needs more negatives than the {fewest} of {truth}; use -s k={max(fewest // 2, 1)}"
            )
        return self._scores(np.array([of[key] for key in told]), Truth(y, lists))


# -- a user's graph and pairs ------------------------------------------------------------------------------------------------
def unlinked(A: sp.csr_array) -> Iterator[Array]:
    """All pairs i < j that are not joined, in blocks of about `CHUNK`."""
    n = A.shape[0]
    start = 0
    while start < n - 1:
        stop = start + 1
        while stop < n - 1 and (stop + 1 - start) * (n - 1 - start) <= CHUNK:
            stop += 1
        free = A[start:stop].toarray() == 0
        free &= np.arange(n)[None] > np.arange(start, stop)[:, None]
        i, j = np.nonzero(free)
        for a in range(0, len(i), CHUNK):
            yield np.stack([i[a : a + CHUNK] + start, j[a : a + CHUNK]]).astype(np.int64)
        start = stop


def as_fitted(graph: Graph, schema: Mapping[str, Any]) -> Graph:
    """A user's graph with its nodes and features in the model's order, by name; nodes that are new come last.

    Without features, nodes of the model that the file does not name (they have no link in it) are added.
    """
    from latticework.data.graph_sets import subgraph

    wanted = list(schema["features"])
    if not schema.get("reads_features", True):
        wanted, graph = [], replace(graph, x=None, features=(), _cache={})
    if list(graph.features) != wanted:
        x = matched_columns(graph.x, graph.features, wanted, graph.nodes)
        graph = replace(graph, x=x, features=tuple(wanted), _cache={})
    known = {name: i for i, name in enumerate(schema["ids"])}
    here = set(graph.ids)
    lacking = [] if wanted else [name for name in known if name not in here]
    if lacking:
        graph = replace(graph, ids=(*graph.ids, *lacking), _cache={})
    order = sorted(range(graph.nodes), key=lambda i: known.get(graph.ids[i], len(known) + i))
    return (
        replace(subgraph(graph, np.array(order, np.int64)), notes=(), _cache={}) if order != list(range(graph.nodes)) else graph
    )


def read_pairs(path: Path, ids: Sequence[str]) -> Array:
    """int64 [2, q] of a file source,target; `UserError` for an unknown node or one with itself, with its line."""
    from latticework.data.table import line_of

    keys, _ = _ends(path, turned=False)
    place = {name: i for i, name in enumerate(ids)}
    for row, ends in enumerate(keys):
        for name in ends:
            if name not in place:
                raise UserError(f"{path}, line {line_of(row)}: {name!r} is no node of the graph")
    return np.array([[place[u], place[v]] for u, v in keys], np.int64).reshape(-1, 2).T.copy()


def _ends(path: Path, each_once: bool = False, turned: bool = True) -> tuple[list[tuple[str, str]], Any]:
    """The pairs of a table, and the table; `turned`: the smaller name first, since links have no direction.

    `UserError`, with its line, for a node with itself and, `each_once`, for a pair that stands there twice.
    """
    from latticework.data.table import line_of, need, read_table

    if not path.exists():
        raise UserError(f"{path} does not exist")
    frame = read_table(path)
    source, target = need(path, frame, "source", "src", "from"), need(path, frame, "target", "dst", "to")
    ends = list(zip(frame[source].to_list(), frame[target].to_list(), strict=True))
    for row, (u, v) in enumerate(ends):
        if u == v:
            raise UserError(f"{path}, line {line_of(row)}: {u!r} is paired with itself; links join two different nodes")
    keys = [(v, u) if turned and v < u else (u, v) for u, v in ends]
    seen: set[tuple[str, str]] = set()
    for row, key in enumerate(keys if each_once else ()):
        if key in seen:
            raise UserError(f"{path}, line {line_of(row)}: the pair {key[0]!r}, {key[1]!r} stands more than once")
        seen.add(key)
    return keys, frame
