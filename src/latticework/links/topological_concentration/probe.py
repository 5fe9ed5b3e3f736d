"""The probe: Topological Concentration of a graph under a split, and what it says of a link predictor's answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latticework.core import store
from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.evaluate import suited
from latticework.core.ledger import write_whole
from latticework.core.method import Ref
from latticework.core.probe import Probe
from latticework.core.registry import class_value
from latticework.core.result import Findings
from latticework.core.run import Run, fitted
from latticework.core.svg import lines
from latticework.core.task import Fold, Part
from latticework.core.value import setting

from ..heuristics import pattern
from ..tasks import CHUNK, TEST, TRAIN, VALID, LinkPairs, LinkPrediction
from .concentration import Concentration, approximate, atc_embedding, atc_limit, subgraph_density, topological_concentration
from .per_node import KS, Bin, binned, per_node, rank_correlation

Array = NDArray[Any]
BINS = 10
# Where two hops may reach everybody, the limit of ATC holds n^2 numbers.
_LIMIT_NODES = 8192


class Split(NamedTuple):
    """A fold as this probe sees it: its name and seed, its nodes and links (training and held-out, by word); whole for a model."""

    name: str
    seed: int
    ids: tuple[str, ...]
    train: Array
    held: Mapping[str, Array]
    fold: Fold | None

    @property
    def asked(self) -> str:
        """Which links the model is judged by: those that no fit has seen, or (a model for use holds none back) chose by."""
        return "test" if self.held["test"].shape[1] else "valid"


class TopologicalConcentrationProbe(Probe):
    """How much each node shares with its train, validation and test neighbours, and how that goes with link prediction there.

    TC_i is the share of the walks from i, up to `hops` steps in the train graph, that end where walks from its neighbours do,
    the mean over its neighbours: its train neighbours (hops = 1: the local clustering coefficient) or held-out ones. The
    paper finds that it is high where a link predictor does well, more surely than degree is, and that the test neighbours of a
    node share less with it than its train neighbours do (a shift; expected of a split by time, small in a random one; given for
    hops = 1, since longer walks along a train edge lead back over it, so that train neighbours share more in any split).

    With a `model`, all other nodes are ranked for each node with held-out links (known ones left out), and the node's
    measure, Hits@10 unless told otherwise, is set against TC: over nodes, and over means of ten ranges of equal width with at
    least `least` nodes, for degree of its logarithm. `model.method=NAME` is fitted here, on each split; a `model.saved` brings
    its task and split along: a model for use has trained on all but the validation links, so these are what it is judged by.

    ``exact=false`` measures ATC instead, whose time grows with the edges alone: the mean inner product with the neighbours
    after `hops` steps of a random projection to `dim` numbers, with its standard error (the limit of dim → ∞ lies within 1.96
    of it for 19 nodes in 20). Its values are not TC's; ranks may be alike, and where both are measured the probe says how much.
    Undefined values (no neighbour to compare with) are left empty and out of every mean. ``nodes.csv`` has a row a node.
    """

    name: ClassVar[str] = "topological-concentration"
    kinds: ClassVar[tuple[str, ...]] = ("graph", "events")
    hops: int = setting(1, "steps of the walks", ge=1, le=3)
    exact: bool = setting(True, "false: ATC alone, for large graphs")
    dim: int = setting(64, "width of ATC's random projection", ge=1, le=65536)
    cosine: bool = setting(False, "ATC of unit vectors")
    task: LinkPrediction = setting(LinkPrediction(), "what splits the links; a saved model brings its own")
    splits: int = setting(1, "splits of the task that are measured, their nodes taken together", ge=1, le=100)
    model: Ref = setting(Ref(), "a link predictor: model.method=NAME, fitted here, or model.saved=MODEL; left out: none")
    measure_by: Literal["hits", "recall", "precision", "f1", "ndcg"] = setting("hits", "what is measured at a node")
    k: int = setting(10, "of the measure: among how many of the best", ge=1, le=1000)
    least: int = setting(20, "nodes that a range must have", ge=1)
    nodes: int = setting(5000, "at most so many nodes a split are ranked for (drawn, where there are more)", ge=3)

    def measure(self, data: Dataset | None, run: Run) -> Findings:
        if data is None:
            raise UserError("topological-concentration needs a graph or events")
        if self.model.net is not None:
            raise UserError("topological-concentration cannot ask a bare net; give model.method or model.saved")
        task, splits = self._splits(data)
        rows, scalars = [], []
        for step, split in enumerate(splits):
            row, found = self._one(task, data, split, run)
            rows.append(row)
            scalars.append(found)
            run.log(step, splits=step + 1)
        joint = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
        means: dict[str, Any] = {key: _mean([s[key] for s in scalars]) for key in scalars[0]}
        what = "TC" if self.exact else "ATC"
        tables: dict[str, Any] = {"by degree": _by_degree(joint, what)}
        figures = {"train and test neighbours": _shift_figure(tables["by degree"], what)}
        if f"{self.measure_by}@{self.k}" in joint:
            means["judged by"] = f"{splits[0].asked} links of {', '.join(s.name for s in splits)}"
            self._performance(joint, splits[0].asked, what, means, tables, figures)
        return Findings(means, tables, figures, self._written(joint, splits, data, run))

    # -- one split ---------------------------------------------------------------------------------------------------------
    def _splits(self, data: Dataset) -> tuple[LinkPrediction, list[Split]]:
        task: Any = self.task
        plan = task.for_data(data).plan(data, self.splits)
        if self.model.saved is not None:
            head = store.read_head(self.model.saved)["provenance"]
            if "fold" not in head or "digest" not in head:
                raise UserError(f"{self.model.saved} does not say on which split it was fitted; fit it again")
            task = class_value("task", head["task"])
            if not isinstance(task, LinkPrediction):
                raise UserError(f"{self.model.saved} is a model of {task.name}, not of link-prediction")
            if head["digest"] != data.digest():
                raise UserError(f"{self.model.saved} was fitted on other data; give those, or fit it on these")
            plan = [(head["fold"], head["seed"])]
        task = task.for_data(data)
        return task, [self._split(task, data, name, seed) for name, seed in plan]

    def _split(self, task: LinkPrediction, data: Dataset, name: str, seed: int) -> Split:
        links, code = task.dealt(data, name)
        train, valid, test = (links.pairs[:, code == place] for place in (TRAIN, VALID, TEST))
        fold = None
        if self.model.method is not None or self.model.saved is not None:
            # Hits@k of the task chooses the epoch of a fit; where none is chosen, few links are no reason to stop
            chooses = self.model.method is not None and suited(task, self.model.method).chance
            fold = (task if chooses else task.but(k=1)).fold(data, name)
        return Split(name, seed, links.graph.ids, train, {"valid": valid, "test": test}, fold)

    def _one(self, task: LinkPrediction, data: Dataset, split: Split, run: Run) -> tuple[dict[str, Array], dict[str, Any]]:
        """Columns of the nodes (NaN where undefined), and scalars of the split."""
        n = len(split.ids)
        A = pattern(split.train, n)
        held = {word: pattern(pairs, n) for word, pairs in split.held.items()}
        row = {"degree": np.diff(A.indptr).astype(np.float64), "density": subgraph_density(A)}
        scalars: dict[str, Any] = {"nodes": n, "train links": A.nnz // 2}
        what = "TC" if self.exact else "ATC"
        beside = self._approximate(A, held, row, run)
        for word, asked in (("train", None), *held.items()):
            if self.exact:
                _put(row, f"TC {word}", topological_concentration(A, asked, self.hops))
            values = row[f"{what} {word}"]
            scalars[f"{what} of {word} neighbours"] = float(np.nanmean(values)) if np.isfinite(values).any() else None
        for word in held:
            both = np.isfinite(row[f"{what} train"]) & np.isfinite(row[f"{what} {word}"])
            change = row[f"{what} train"][both] - row[f"{what} {word}"][both]
            # from two hops on, walks over the train edge itself lead back to its ends, so that train neighbours always share more
            comparable = self.hops == 1 and bool(both.any())
            scalars[f"shift to {word} neighbours (train - {word})"] = float(change.mean()) if comparable else None
            scalars[f"nodes of the shift to {word}"] = int(both.sum())
        if self.exact:
            for word in ("train", *held):
                ok = np.isfinite(row[f"TC {word}"]) & np.isfinite(row[f"ATC {word}"])
                found = rank_correlation(row[f"ATC {word}"][ok], row[f"TC {word}"][ok])
                scalars[f"rank correlation of ATC with TC, {word} neighbours"] = found
        scalars |= beside
        if self.model.method is not None or self.model.saved is not None:
            row |= self._answers(task, data, split, A, held, run)
        return row, scalars

    def _approximate(self, A: Any, held: Mapping[str, Any], row: dict[str, Array], run: Run) -> dict[str, Any]:
        """ATC's columns; its stated error and, where the graph is small enough, the one against its limit."""
        scalars: dict[str, Any] = {}
        against = self.exact and not self.cosine and (self.hops == 1 or A.shape[0] <= _LIMIT_NODES)
        E = atc_embedding(A, self.dim, self.hops, rng=run.rng("projection"))
        for word, asked in (("train", None), *held.items()):
            atc = approximate(A, E, asked, self.cosine)
            ok, some = atc.defined, bool(atc.defined.any())
            _put(row, f"ATC {word}", Concentration(atc.values, ok))
            row[f"ATC error {word}"] = np.where(ok, atc.error, np.nan)
            scalars[f"standard error of ATC, {word} neighbours"] = float(atc.error[ok].mean()) if some else None
            if against:
                limit = atc_limit(A, asked, self.hops)
                error = float(np.abs(atc.values - limit)[ok].mean()) if some else None
                scalars[f"error of ATC against its limit, {word} neighbours"] = error
                scalars[f"limit of ATC, {word} neighbours"] = float(limit[ok].mean()) if some else None
        return scalars

    # -- the model ---------------------------------------------------------------------------------------------------------
    def _answers(
        self, task: LinkPrediction, data: Dataset, split: Split, A: Any, held: Mapping[str, Any], run: Run
    ) -> dict[str, Array]:
        """Measures of each node with held-out links, by the model's own ranking of all others; NaN for the rest."""
        assert split.fold is not None
        model = self._model(task, data, split, split.fold, run)
        n, truth = A.shape[0], held[split.asked]
        known = A + held["valid"] if split.asked == "test" else A
        sources = np.flatnonzero(np.diff(truth.indptr) > 0)
        if not len(sources):
            raise UserError(f"split {split.name} holds no links back, so the model has nothing to find; give task.valid above 0")
        if len(sources) > self.nodes:
            sources = np.sort(run.rng(f"nodes {split.name}").choice(sources, self.nodes, replace=False))
        order, ks = run.rng("ties").permutation(n), sorted({*KS, self.k})
        part = (split.fold.test if split.asked == "test" else split.fold.valid or split.fold.test).blind()
        row: dict[str, Array] = {}
        rows = max(1, CHUNK // n)
        for start in range(0, len(sources), rows):
            block = sources[start : start + rows]
            found = per_node(
                self._ranked(task, model, part, block, n, run), truth[block].toarray() > 0, known[block].toarray() > 0, ks, order
            )
            for key, values in found.items():
                row.setdefault(key, np.full(n, np.nan))[block] = values
            run.log(start, nodes=min(start + rows, len(sources)))
        return row

    @staticmethod
    def _ranked(task: LinkPrediction, model: Any, part: Part, block: Array, n: int, run: Run) -> Array:
        """Scores [b, n] of all nodes for a block; a node and itself get the lowest (they are not asked)."""
        i, j = np.repeat(block, n), np.tile(np.arange(n), len(block))
        apart = i != j
        pairs = np.stack([i[apart], j[apart]])
        answer = task.answer(model, part._replace(query=LinkPairs(pairs, part.query.ids)), run)
        scores = np.full(len(i), answer.min() - 1.0)
        scores[apart] = answer
        return scores.reshape(len(block), n)

    def _model(self, task: LinkPrediction, data: Dataset, split: Split, fold: Fold, run: Run) -> Any:
        if self.model.saved is not None:
            return store.load_model(self.model.saved, run.nets)
        assert self.model.method is not None
        if self.model.data is not None:
            raise UserError("the model is asked about the probed data, so it is fitted on these; leave model.data out")
        method = suited(task, self.model.method)
        refusal = method.refuses(task, data.facts())
        if refusal:
            raise UserError(f"{method.name} cannot be used here: {refusal}")
        seed = split.seed if self.model.seed is None else self.model.seed
        child = run.child(seed, f"{run.label} > {method.name}, {split.name}")
        child.task, child.digest, child.fold = task, data.digest(), split.name
        return fitted(method, fold.train, fold.valid, child)

    # -- what is found -----------------------------------------------------------------------------------------------------
    def _performance(
        self,
        joint: dict[str, Array],
        asked: str,
        what: str,
        means: dict[str, Any],
        tables: dict[str, Any],
        figures: dict[str, str],
    ) -> None:
        key = f"{self.measure_by}@{self.k}"
        y = joint[key]
        means |= {"nodes ranked for": int(np.isfinite(y).sum()), f"mean {key} of a node": float(np.nanmean(y))}
        means["mean MRR of a node"] = float(np.nanmean(joint["mrr"]))
        views = {
            what: joint[f"{what} {asked}"], f"{what} of train neighbours": joint[f"{what} train"], "degree": np.log1p(joint["degree"]),
            "subgraph density": joint["density"],
        }  # fmt: skip
        bins: dict[str, list[Bin]] = {}
        for name, x in views.items():
            ok = np.isfinite(x) & np.isfinite(y)
            bins[name] = binned(x[ok], y[ok], BINS, self.least)
            means[f"{name} with performance, nodes"] = rank_correlation(x[ok], y[ok])
            means[f"{name} with performance, binned"] = rank_correlation([b.x for b in bins[name]], [b.y for b in bins[name]])
        for other in ("degree", "subgraph density"):
            for kind in ("nodes", "binned"):
                pair = [means[f"{name} with performance, {kind}"] for name in (what, other)]
                margin = None if None in pair else pair[0] - pair[1]
                means[f"{what} over {other}, {kind}"] = margin
        for name in (what, "degree"):
            back = np.expm1 if name == "degree" else float
            points = [(float(back(b.x)), b.y) for b in bins[name]]
            tables[f"performance by {name}"] = [
                {f"mean {name}": x, f"mean {key}": value, "nodes": b.nodes}
                for (x, value), b in zip(points, bins[name], strict=True)
            ]
            figures[f"performance by {name}"] = lines(
                {key: points}, f"mean {key} of ranges of {name}", name, dots=True, log=name == "degree"
            )  # fmt: skip

    def _written(self, joint: dict[str, Array], splits: list[Split], data: Dataset, run: Run) -> list[Path]:
        """``nodes.csv`` in the run's folder, where there is one."""
        if run.folder is None:
            return []
        import polars as pl

        ids = list(splits[0].ids)
        columns: dict[str, Any] = {"id": ids * len(splits)}
        if len(splits) > 1:
            columns["split"] = [split.name for split in splits for _ in ids]
        for key, values in joint.items():
            columns[key.replace(" ", "_").lower()] = pl.Series(values, dtype=pl.Float64).fill_nan(None)
        frame = pl.DataFrame(columns).with_columns(pl.col("degree").cast(pl.Int64))
        path = run.folder / "nodes.csv"
        run.folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, frame.write_csv())
        return [path]


def _put(row: dict[str, Array], key: str, found: Concentration) -> None:
    row[key] = np.where(found.defined, found.values, np.nan)


def _mean(values: list[Any]) -> Any:
    """The mean over splits; none where one split has none."""
    if any(value is None for value in values):
        return None
    found = float(np.mean(values))
    return int(found) if all(isinstance(value, int) for value in values) and found.is_integer() else found


def _by_degree(joint: Mapping[str, Array], what: str) -> list[dict[str, Any]]:
    """Means of train and held-out values by train degree, in ranges that double."""
    degree, rows = joint["degree"], []
    low = 1
    while low <= degree.max(initial=0):
        mine = (degree >= low) & (degree < 2 * low)
        row: dict[str, Any] = {"degree": f"{low}" if low == 1 else f"{low}–{2 * low - 1}", "nodes": int(mine.sum())}
        for word in ("train", "valid", "test"):
            values = joint[f"{what} {word}"][mine]
            row[word] = float(np.nanmean(values)) if np.isfinite(values).any() else None
        rows.append(row)
        low *= 2
    return rows


def _shift_figure(rows: list[dict[str, Any]], what: str) -> str:
    series = {
        f"{word} neighbours": [(2.0**i, row[word]) for i, row in enumerate(rows) if row[word] is not None]
        for word in ("train", "valid", "test")
    }
    return lines({k: v for k, v in series.items() if v}, f"mean {what} by degree", "degree", log=True, dots=True)
