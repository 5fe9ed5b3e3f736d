"""Graph classification, graph regression and subgraph counting: what is said of each graph of a set.

One protocol for all methods: folds that test every graph, or stratified draws; a validation part that chooses; a test part that is
looked at once. The scenarios (edges disturbed, classes unequal, few labels) are fields of the task, so that every method is under
them. A part holds its own graphs only: ``data`` a list of PyG `Data` without labels, ``query`` the positions in that list and the
names of its graphs, ``truth`` what is true of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch_geometric.data import Data

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.ledger import write_whole
from latticework.core.method import Predictor
from latticework.core.result import Metric, Score
from latticework.core.run import Run
from latticework.core.task import Fold, Part, Query, Task
from latticework.core.value import Value, setting
from latticework.data.graphs import Graphs, GraphSet, match_features, schema_of, wl_colours

from .scenarios import deal, disturbed, drawn, generator, quantile_strata, spread, thinned

Array = NDArray[Any]
TRAIN, VALID, TEST = 0, 1, 2
Slices = Mapping[str, tuple[Array, tuple[str, ...]]]


class Truth(NamedTuple):
    """`y` int64 [q] or float64 [q, T] in raw units; `slices` name -> (group int64 [q], names of the groups)."""

    y: Array
    slices: Slices = {}  # noqa: RUF012  (never written)


SCENARIO_OF = {"noise": "noisy", "share": "noisy", "ratio": "imbalanced", "labels": "few-shot"}


class GraphQuery(Query):
    """Which graphs of the user's set are predicted."""

    name: ClassVar[str] = "graphs"
    graphs: Literal["unlabelled", "all"] = setting("unlabelled", "those without a truth (all, where every graph has one), or all")


class GraphTask(Task):
    """What tasks on graph sets share: which graphs train, validate and test, and what is done to them beforehand.

    `protocol`: ``folds`` are ten folds that together test every graph once: the published ones where the data have as many (a graph
    that stands in none of them joins the fold with the fewest of its class, by a fixed rule), else stratified ones; repeats are
    folds, then other draws; a stratified slice of the rest, as large as a fold, validates. ``given`` are the published folds as they are: graphs in
    none are always trained on, repeats are folds, then seeds. ``random`` is a stratified draw (numbers: by quantile) a repeat.
    ``order`` cuts by the order of the file: the first sixth validates, the second tests, the rest trains (EXP and CEXP: 200, 200, 800).
    ``auto`` takes folds where the data bring some, as many as those (unless they bring one alone, a test split: ``given`` tests on
    it, or `folds` says otherwise), else random. Where several numbers are asked, the first makes the strata.
    """

    kinds: ClassVar[tuple[str, ...]] = ("graph-set",)
    role: ClassVar[type[Any]] = Predictor
    Query: ClassVar[type[Value]] = GraphQuery

    protocol: Literal["auto", "folds", "given", "random", "order"] = setting("auto", "which splits")
    folds: int = setting(10, "protocol=folds: into how many", ge=2, le=100)
    train: float = setting(0.8, "protocol=random: share that trains", gt=0, lt=1)
    valid: float = setting(0.1, "protocol=random: share that validates; 0: there is no validation part", ge=0, lt=1)
    scenario: Literal["standard", "noisy"] = setting("standard", "noisy: the edges of all graphs are disturbed")
    noise: Literal["remove", "rewire", "add"] = setting("remove", "scenario=noisy: what is done to joined pairs")
    share: float = setting(0.1, "scenario=noisy: share of a graph's joined pairs, in train, valid and test alike", gt=0, le=1)
    missing: Literal["refuse", "leave-out"] = setting("refuse", "graphs without a truth: an error, or left to be predicted")

    # -- what the subclasses say -------------------------------------------------------------------------------------
    @classmethod
    def fits(cls, data: Dataset) -> bool:
        """Whether the data have the truth that this task asks for."""
        raise NotImplementedError

    def known(self, given: GraphSet) -> Array:
        """bool [G]: which graphs have a truth."""
        raise NotImplementedError

    def truth_of(self, given: GraphSet) -> Array:
        raise NotImplementedError

    def strata(self, given: GraphSet, rows: Array) -> Array:
        raise NotImplementedError

    def schema_for(self, given: GraphSet, train: Array) -> dict[str, Any]:
        """The part's schema; `train` are the graphs that train."""
        raise NotImplementedError

    def fewer(self, given: GraphSet, split: Array, fold: str) -> Array:
        """The split under scenarios that take labels away."""
        return split

    # -- folds -------------------------------------------------------------------------------------------------------
    def for_data(self, data: Dataset) -> Any:
        given: GraphSet = data.read()
        self.check(given)
        if self.protocol != "auto":
            return self
        if given.folds is None:
            return self.but(protocol="random")
        usual, published = type(self).model_fields["folds"].default, int(given.folds[self.known(given)].max(initial=0))
        return self.but(protocol="folds", folds=published if self.folds == usual and published > 1 else self.folds)

    def check(self, given: GraphSet) -> None:
        """Errors before any training, where the data are not what the task needs, or a field belongs to another scenario."""
        for field, scenario in SCENARIO_OF.items():
            known_field = type(self).model_fields.get(field)
            if known_field is not None and getattr(self, field) != known_field.default and self.scenario != scenario:
                raise UserError(
                    f"task.{field} belongs to scenario={scenario}, and this is {self.scenario}; add -s task.scenario={scenario}"
                )
        known = self.known(given)
        if not known.all() and self.missing == "refuse":
            first = given.ids[int(np.flatnonzero(~known)[0])]
            raise UserError(
                f"{int((~known).sum())} of {len(known)} graphs have no {self.word()}, first graph {first!r}; add it, or leave "
                f"them to be predicted with -s task.missing=leave-out"
            )
        if self.protocol == "folds" and self.folds > known.sum():
            raise UserError(
                f"{int(known.sum())} graphs cannot make {self.folds} folds; use fewer (-s task.folds=2), or more graphs"
            )
        if self.protocol in ("random", "auto") and self.train + self.valid >= 1:
            raise UserError(f"train={self.train} and valid={self.valid} leave no graph to test; their sum is below 1")
        if self.protocol == "given" and given.folds is None:
            raise UserError("the data bring no folds; use -s task.protocol=folds or random")

    def word(self) -> str:
        return "truth"

    def plan(self, data: Dataset, repeats: int) -> list[tuple[str, int]]:
        task = self.for_data(data)
        if task.protocol == "order":
            return [("order", seed) for seed in range(repeats)]
        if task.protocol == "given":
            count = int(data.read().folds.max())
            return [(f"given-{i % count}", i // count) for i in range(repeats)]
        return [(f"{task.protocol}-{i}", i) for i in range(repeats)]

    def final(self, data: Dataset) -> str:
        return "all-0"

    def overlap(self, data: Dataset) -> float | None:
        task = self.for_data(data)
        if task.protocol == "order":
            return None
        split = task.split(data.read(), task.plan(data, 1)[0][0])
        return float((split == TEST).sum() / max((split == TRAIN).sum(), 1))

    def split(self, given: GraphSet, fold: str) -> Array:
        """int8 [G]: 0 train, 1 valid, 2 test, -1 neither; before any label is taken away."""
        kind, _, number = fold.partition("-")
        rows = np.flatnonzero(self.known(given))
        strata = self.strata(given, rows)
        part = np.full(len(rows), TRAIN, np.int8)
        if kind == "order":
            cut = len(rows) // 6
            part[:cut], part[cut : 2 * cut] = VALID, TEST
        elif kind == "all":
            part[drawn(strata, round(0.1 * len(rows)), generator("graphs", fold))] = VALID
        elif kind == "random":
            rng = generator("graphs", fold)
            tests = round((1 - self.train - self.valid) * len(rows))
            part[drawn(strata, tests, rng)] = TEST
            rest = np.flatnonzero(part != TEST)
            part[rest[drawn(strata[rest], round(self.valid * len(rows)), rng)]] = VALID
        else:
            tested = self.tested(given, rows, strata, kind, int(number))
            part[tested] = TEST
            rest = np.flatnonzero(~tested)
            folds = self.folds if kind == "folds" or given.folds is None else int(given.folds.max())
            held = round(len(rest) / (folds - 1)) if folds > 2 else len(rest) // 2
            part[rest[drawn(strata[rest], held, generator("graphs", fold, "valid"))]] = VALID
        split = np.full(len(given.sizes), -1, np.int8)
        split[rows] = part
        return split

    def tested(self, given: GraphSet, rows: Array, strata: Array, kind: str, number: int) -> Array:
        """bool [rows]: the test graphs of a fold."""
        published = None if given.folds is None else given.folds[rows]
        if kind == "given":
            assert published is not None
            return np.asarray(published == number + 1)
        draw, place = divmod(number, self.folds)
        if draw == 0 and published is not None and int(published.max(initial=0)) == self.folds:
            return np.asarray(spread(published, strata) == place)
        return np.asarray(deal(strata, self.folds, generator("graphs", "folds", self.folds, draw)) == place)

    def fold(self, data: Dataset, name: str) -> Fold:
        given: GraphSet = data.read()
        task = self.for_data(data)
        split = task.fewer(given, task.split(given, name), name)
        rows = [np.flatnonzero(split == code) for code in (TRAIN, VALID, TEST)]
        for word, index in (("train", rows[0]), ("test", rows[2])):
            if not len(index) and not (word == "test" and name.startswith("all")):
                raise UserError(f"the {word} part of {name} holds no graph: {int(task.known(given).sum())} graphs are too few")
        schema = task.schema_for(given, rows[0])
        task.look(given, rows, schema, name)
        slices = graph_slices(given, rows[0])
        train, valid, test = (task.part(given, index, schema, name, slices if i == TEST else {}) for i, index in enumerate(rows))
        return Fold(train, valid if len(rows[1]) else None, test)

    def look(self, given: GraphSet, rows: Sequence[Array], schema: Mapping[str, Any], fold: str) -> None:
        """Errors of one fold."""

    def part(self, given: GraphSet, rows: Array, schema: Mapping[str, Any], fold: str, slices: Slices) -> Part:
        truth = Truth(self.truth_of(given)[rows], {name: (group[rows], names) for name, (group, names) in slices.items()})
        return Part(self.graphs(given, rows, fold), asked(given, rows), truth, dict(schema))

    def graphs(self, given: GraphSet, rows: Array, fold: str) -> list[Data]:
        """The graphs of a part, disturbed where the scenario says so: drawn for each graph and fold, whatever part it is in."""
        graphs = given.graphs(rows)
        if self.scenario != "noisy":
            return graphs
        rngs = (generator("noise", fold, int(row)) for row in rows)
        return [disturbed(g, self.noise, self.share, rng) for g, rng in zip(graphs, rngs, strict=True)]

    def ask(self, data: Dataset | None, query: Value, schema: Mapping[str, Any]) -> Part:
        assert isinstance(query, GraphQuery) and data is not None
        given = match_features(data.read(), schema)
        rows = np.arange(len(given.sizes))
        if query.graphs == "unlabelled":
            without = np.flatnonzero(~self.known(given))
            rows = without if len(without) else rows
        kept = {key: schema[key] for key in ("classes", "features", "edge_features", "targets", "multi")}
        return Part(given.graphs(rows), asked(given, rows), None, kept)

    def hidden(self, test: Part) -> list[Any]:
        return [test.truth.y]

    # -- answers -----------------------------------------------------------------------------------------------------
    def answer(self, model: Any, part: Part, run: Run) -> Array:
        found = np.asarray(model.predict(part), dtype=np.float64)
        columns = list(part.schema["classes"] or part.schema["targets"])
        if found.shape != (len(part.query.rows), len(columns)):
            what = "class probabilities" if part.schema["classes"] else "numbers"
            raise UserError(
                f"{model.method.name} gave {list(found.shape)} instead of {what} {[len(part.query.rows), len(columns)]} "
                f"(graphs x {'classes' if part.schema['classes'] else 'targets'})"
            )
        if not np.isfinite(found).all():
            row = int(np.flatnonzero(~np.isfinite(found).all(1))[0])
            raise UserError(f"{model.method.name} gave a value that is not finite for graph {part.query.ids[row]!r}")
        return found

    def score(self, answer: Any, part: Part, run: Run | None) -> list[Score]:
        truth: Truth = part.truth
        scores = self.scores(truth.y, answer, part.schema)
        for kind, (group, names) in truth.slices.items():
            for i, words in enumerate(names):
                rows = group == i
                if rows.any():
                    at = {"slice": kind, "range": words, "graphs": int(rows.sum())}
                    scores.append(self.in_slice(truth.y[rows], answer[rows])._replace(at=at))
        return scores

    def scores(self, y: Array, answer: Array, schema: Mapping[str, Any]) -> list[Score]:
        raise NotImplementedError

    def in_slice(self, y: Array, answer: Array) -> Score:
        raise NotImplementedError


class GraphClassification(GraphTask):
    """Which class has each graph: probabilities over the classes; the headline is accuracy, macro-F1 where classes are unequal.

    `scenario`: ``noisy`` disturbs the edges of all graphs; ``imbalanced`` keeps a share `ratio` ** c of class c in train and valid
    (the classes in their order, the first whole; one graph at least); ``few-shot`` keeps `labels` graphs a class in train and at
    most as many in valid. The test part is whole in all of them. Macro-F1 is the mean over the classes that the test graphs have
    or that were predicted; ROC-AUC the mean over the classes with both.
    """

    name: ClassVar[str] = "graph-classification"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("accuracy", "", "higher"),
        Metric("macro-f1", "", "higher"),
        Metric("roc-auc", "", "higher"),
    )

    scenario: Literal["standard", "noisy", "imbalanced", "few-shot"] = setting(
        "standard", "noisy: edges disturbed; imbalanced: unequal classes; few-shot: few labels"
    )
    ratio: float = setting(0.2, "scenario=imbalanced: class c keeps ratio ** c of its train graphs", gt=0, lt=1)
    labels: int = setting(10, "scenario=few-shot: train graphs a class", ge=1)
    rank_by: Literal["auto", "accuracy", "macro-f1", "roc-auc"] = setting("auto", "the headline")

    @property
    def headline_metric(self) -> str:  # type: ignore[override]
        if self.rank_by != "auto":
            return self.rank_by
        return "macro-f1" if self.scenario == "imbalanced" else "accuracy"

    @classmethod
    def fits(cls, data: Dataset) -> bool:
        return data.read().y is not None

    def baselines(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        return "graph-majority", "wl-svm"

    def word(self) -> str:
        return "label"

    def check(self, given: GraphSet) -> None:
        if given.y is None:
            more = "; they have numbers: use -s task=graph-regression" if given.targets is not None else ""
            raise UserError(f"the graphs have no labels{more}")
        super().check(given)
        found = np.unique(given.y[given.y >= 0])
        if len(found) < 2:
            only = f" ({given.classes[int(found[0])]!r})" if len(found) else ""
            raise UserError(f"all labelled graphs have one class{only}; two are needed" if len(found) else "no graph has a label")

    def known(self, given: GraphSet) -> Array:
        return np.zeros(len(given.sizes), bool) if given.y is None else np.asarray(given.y >= 0)

    def truth_of(self, given: GraphSet) -> Array:
        assert given.y is not None
        return given.y

    def strata(self, given: GraphSet, rows: Array) -> Array:
        return self.truth_of(given)[rows]

    def schema_for(self, given: GraphSet, train: Array) -> dict[str, Any]:
        return schema_of(given) | {"targets": []}

    def fewer(self, given: GraphSet, split: Array, fold: str) -> Array:
        if self.scenario not in ("imbalanced", "few-shot"):
            return split
        y, split = self.truth_of(given), split.copy()
        for code in (TRAIN, VALID):
            rows = np.flatnonzero(split == code)
            counts = np.bincount(y[rows], minlength=len(given.classes))
            if self.scenario == "imbalanced":
                keep = np.minimum(np.maximum(np.floor(counts * self.ratio ** np.arange(len(counts)) + 0.5), 1), counts)
            else:
                keep = np.minimum(counts, self.labels)
                short = np.flatnonzero((keep < self.labels) & (np.bincount(y[y >= 0], minlength=len(counts)) > 0))
                if code == TRAIN and len(short):
                    c = int(short[0])
                    raise UserError(
                        f"class {given.classes[c]!r} has {counts[c]} graphs in the train part of {fold}, fewer than "
                        f"labels={self.labels}; use -s task.labels={max(int(counts.min()), 1)} or less"
                    )
            lost = ~thinned(y[rows], keep, generator("graphs", fold, self.scenario, code))
            split[rows[lost]] = -1
        return split

    def look(self, given: GraphSet, rows: Sequence[Array], schema: Mapping[str, Any], fold: str) -> None:
        y = self.truth_of(given)
        for c in np.unique(y[y >= 0]):
            if not (y[rows[TRAIN]] == c).any():
                raise UserError(
                    f"class {given.classes[int(c)]!r} has no graph in the train part of {fold} (it has {int((y == c).sum())} in all); "
                    f"give it more graphs, leave it out, or use fewer folds"
                )

    def value(self, answer: Any, part: Part, run: Run) -> float | None:
        if self.headline_metric != "accuracy":
            return super().value(answer, part, run)
        return float((answer.argmax(1) == part.truth.y).mean())

    def scores(self, y: Array, answer: Array, schema: Mapping[str, Any]) -> list[Score]:
        return class_scores(y, answer.argmax(1), answer)

    def in_slice(self, y: Array, answer: Array) -> Score:
        return Score("accuracy", float((answer.argmax(1) == y).mean()))

    def write(self, answer: Any, part: Part, to: Path) -> None:
        """CSV: id, prediction, and a column ``p(class)`` each."""
        import polars as pl

        classes = part.schema["classes"]
        columns: dict[str, Any] = {"id": list(part.query.ids), "prediction": [classes[c] for c in answer.argmax(1)]}
        columns |= {f"p({name})": answer[:, c] for c, name in enumerate(classes)}
        write_whole(to, pl.DataFrame(columns).write_csv())

    def judge(self, answers: Path, truth: Path) -> list[Score]:
        from latticework.data.table import column_named, need, numbers, read_table

        found = read_table(answers)
        ids = found[need(answers, found, "id", "graph")].to_list()
        said = found[need(answers, found, "prediction", "label")].to_list()
        known = _true_of(truth, ids, answers, self)
        empty = [i for i, w in zip(ids, said, strict=True) if not w]
        if empty:
            raise UserError(f"{answers}: id {empty[0]!r} has no prediction")
        classes = sorted(set(known.values()) | set(said))
        code = {c: k for k, c in enumerate(classes)}
        columns = [column_named(found, f"p({c})".lower()) for c in classes]
        chances = None
        if all(columns):
            chances = np.stack([numbers(answers, found[str(c)]).to_numpy() for c in columns], 1)
        y = np.array([code[known[i]] for i in ids], np.int64)
        return class_scores(y, np.array([code[w] for w in said], np.int64), chances)


class GraphRegression(GraphTask):
    """Numbers of each graph; the headline is the mean absolute error in the user's units (several targets: their mean).

    ``normalised-mae`` divides each target's error by its mean absolute deviation among the train graphs, so that answering the
    train mean scores about 1; ``r2`` is the share of the test part's variance that is explained.
    """

    name: ClassVar[str] = "graph-regression"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("mae", "", "lower"),
        Metric("rmse", "", "lower"),
        Metric("r2", "", "higher"),
        Metric("normalised-mae", "", "lower"),
        Metric("exact", "", "higher"),
    )

    rank_by: Literal["auto", "mae", "rmse", "r2", "normalised-mae"] = setting("auto", "the headline")

    @property
    def headline_metric(self) -> str:  # type: ignore[override]
        return "mae" if self.rank_by == "auto" else self.rank_by

    @classmethod
    def fits(cls, data: Dataset) -> bool:
        return data.read().targets is not None

    def baselines(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        return "graph-mean", "wl-svm"

    def word(self) -> str:
        return "target"

    def check(self, given: GraphSet) -> None:
        if given.targets is None:
            more = "; they have labels: use -s task=graph-classification" if given.y is not None else ""
            raise UserError(f"the graphs have no numbers to predict{more}")
        bad = np.isinf(given.targets) | (np.isnan(given.targets) & self.known(given)[:, None])
        if bad.any():
            row, column = (int(i[0]) for i in np.nonzero(bad))
            raise UserError(
                f"target {given.target_names[column]!r} of graph {given.ids[row]!r} (number {row + 1}) is {given.targets[row, column]}; "
                f"give a finite number"
            )
        super().check(given)

    def known(self, given: GraphSet) -> Array:
        if given.targets is None:
            return np.zeros(len(given.sizes), bool)
        return np.asarray(~np.isnan(given.targets).all(1))

    def truth_of(self, given: GraphSet) -> Array:
        assert given.targets is not None
        return given.targets

    def strata(self, given: GraphSet, rows: Array) -> Array:
        return quantile_strata(self.truth_of(given)[rows, 0])

    def schema_for(self, given: GraphSet, train: Array) -> dict[str, Any]:
        y = self.truth_of(given)[train]
        return schema_of(given) | {"classes": [], "deviation": np.abs(y - y.mean(0)).mean(0).tolist()}

    def scores(self, y: Array, answer: Array, schema: Mapping[str, Any]) -> list[Score]:
        return number_scores(y, answer, schema["targets"], schema.get("deviation"))

    def in_slice(self, y: Array, answer: Array) -> Score:
        return Score("mae", float(np.abs(answer - y).mean()))

    def value(self, answer: Any, part: Part, run: Run) -> float | None:
        if self.headline_metric != "mae":
            return super().value(answer, part, run)
        return float(np.abs(answer - part.truth.y).mean())

    def write(self, answer: Any, part: Part, to: Path) -> None:
        """CSV: id and a column for each target, ``prediction`` where there is one."""
        import polars as pl

        names = part.schema["targets"]
        columns: dict[str, Any] = {"id": list(part.query.ids)}
        columns |= {"prediction" if len(names) == 1 else f"prediction({name})": answer[:, t] for t, name in enumerate(names)}
        write_whole(to, pl.DataFrame(columns).write_csv())

    def judge(self, answers: Path, truth: Path) -> list[Score]:
        from latticework.data.table import column_named, need, numbers, read_table

        found = read_table(answers)
        ids = found[need(answers, found, "id", "graph")].to_list()
        known = _true_of(truth, ids, answers, self)
        names = list(next(iter(known.values())))
        columns = []
        for name in names:
            column = column_named(found, f"prediction({name})".lower()) or (len(names) == 1 and column_named(found, "prediction"))
            columns.append(numbers(answers, found[column or need(answers, found, name.lower())]).to_numpy())
        y = np.array([[known[i][name] for name in names] for i in ids], np.float64)
        return number_scores(y, np.stack(columns, 1), names, None)


class SubgraphCounting(GraphRegression):
    """How often a pattern occurs in each graph, from data whose targets are exact counts (``counted(of=…; target=cycle-5)``).

    The headline is the normalised error: counts of different patterns and sets are of different size. ``exact`` is the share of
    graphs whose rounded answer is the count.
    """

    name: ClassVar[str] = "subgraph-counting"

    @property
    def headline_metric(self) -> str:  # type: ignore[override]
        return "normalised-mae" if self.rank_by == "auto" else self.rank_by

    @classmethod
    def fits(cls, data: Dataset) -> bool:
        return False  # asked for by name: counts look like any numbers

    def scores(self, y: Array, answer: Array, schema: Mapping[str, Any]) -> list[Score]:
        exact = Score("exact", float((np.rint(answer) == y).all(1).mean()))
        return [*super().scores(y, answer, schema), exact]


def asked(given: GraphSet, rows: Array) -> Graphs:
    """What is asked of a part: its own graphs, by position, with their names."""
    return Graphs(np.arange(len(rows)), tuple(given.ids[int(r)] for r in rows))


# -- scores ------------------------------------------------------------------------------------------------------------------
def class_scores(y: Array, said: Array, chances: Array | None) -> list[Score]:
    """Accuracy, macro-F1, ROC-AUC (two classes: of the second; more: the mean over those with positives and negatives here)."""
    from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

    scores = [
        Score("accuracy", float(accuracy_score(y, said))),
        Score("macro-f1", float(f1_score(y, said, average="macro", zero_division=0))),
    ]
    if chances is None:
        return [*scores, Score("roc-auc", None, {}, "no probabilities were given")]
    wanted = [1] if chances.shape[1] == 2 else range(chances.shape[1])
    both = [c for c in wanted if 0 < (y == c).sum() < len(y)]
    if not both:
        return [*scores, Score("roc-auc", None, {}, "only one class is present")]
    return [*scores, Score("roc-auc", float(np.mean([roc_auc_score(y == c, chances[:, c]) for c in both])))]


def number_scores(y: Array, said: Array, names: Sequence[str], deviation: Sequence[float] | None) -> list[Score]:
    """MAE, RMSE, R2, normalised MAE; with several targets their means first, then each at its name."""

    def of(columns: Array, at: Mapping[str, Any]) -> list[Score]:
        off, true = said[:, columns] - y[:, columns], y[:, columns]
        mae, mse = np.abs(off).mean(0), (off**2).mean(0)
        spread_of = ((true - true.mean(0)) ** 2).mean(0)
        found = [Score("mae", float(mae.mean()), at), Score("rmse", float(np.sqrt(mse).mean()), at)]
        if (spread_of > 0).all():
            found.append(Score("r2", float((1 - mse / spread_of).mean()), at))
        else:
            found.append(Score("r2", None, at, "the true numbers are all equal here"))
        scale = None if deviation is None else np.asarray(deviation)[columns]
        if scale is None:
            return [
                *found,
                Score("normalised-mae", None, at, "the train graphs, whose deviation it divides by, are not known here"),
            ]
        if not (scale > 0).all():
            return [*found, Score("normalised-mae", None, at, "the train graphs' numbers are all equal")]
        return [*found, Score("normalised-mae", float((mae / scale).mean()), at)]

    scores = of(np.arange(len(names)), {})
    if len(names) > 1:
        for t, name in enumerate(names):
            scores += of(np.array([t]), {"slice": "target", "range": name})
    return scores


def _true_of(truth: Path, ids: Sequence[str], answers: Path, task: GraphTask) -> dict[str, Any]:
    """The truth of the answered graphs: a class name each, or a number for each target; from a table or a graph set."""
    from latticework.core.dataset import open_data
    from latticework.data.table import column_named, header, numbers, read_table

    twice = next((i for i in ids if ids.count(i) > 1), None) if len(set(ids)) < len(ids) else None
    if twice is not None:
        raise UserError(f"{answers}: id {twice!r} stands more than once; one answer a graph")
    classes = isinstance(task, GraphClassification)
    names = header(truth) if truth.is_file() else []
    column = next((n for n in ("label", "class", "target", "y") if n in names), None)
    if "id" in names and "smiles" not in names and (column is not None or not classes):
        table = read_table(truth)
        named = table[str(column_named(table, "id"))].to_list()
        if classes:
            words = table[str(column_named(table, str(column)))].to_list()
            known: dict[str, Any] = {i: w for i, w in zip(named, words, strict=True) if w}
        else:
            wanted = [column] if column else [n for n in names if n != "id"]
            found = {str(n): numbers(truth, table[str(column_named(table, str(n)))]).to_list() for n in wanted}
            known = {i: {n: found[n][row] for n in found} for row, i in enumerate(named)}
    else:
        given: GraphSet = open_data(truth).read()
        rows = np.flatnonzero(task.known(given))
        if classes:
            known = {given.ids[r]: given.classes[int(given.y[r])] for r in rows}  # type: ignore[index]
        else:
            known = {given.ids[r]: dict(zip(given.target_names, given.targets[r], strict=True)) for r in rows}  # type: ignore[index]
    strange = [i for i in ids if i not in known]
    if strange:
        raise UserError(
            f"{answers}: id {strange[0]!r} has no {task.word()} in {truth} ({len(strange)} such); judge known graphs only"
        )
    return {i: known[i] for i in ids}


# -- slices and columns ------------------------------------------------------------------------------------------------------
def graph_slices(given: GraphSet, train: Array) -> dict[str, tuple[Array, tuple[str, ...]]]:
    """Groups of graphs for the judge alone: by size (quartiles of the set), and by whether a train graph has the same WL colour.

    A graph that 1-WL cannot tell from a train graph is answered from memory: sets of small molecules are full of such twins.
    """
    sizes = given.sizes
    edges = np.unique(np.quantile(sizes, [0.25, 0.5, 0.75], method="higher"))
    group = np.searchsorted(edges, sizes, side="left")
    names = []
    for i in range(len(edges) + 1):
        low = int(sizes.min()) if i == 0 else int(edges[i - 1]) + 1
        high = int(edges[i]) if i < len(edges) else int(sizes.max())
        names.append(f"{low}" if low >= high else f"{low}–{high}")
    colours = wl_colours(given, None)
    twin = np.isin(colours, np.unique(colours[train])).astype(np.int64)
    return {"nodes": (group, tuple(names)), "twin in train": (twin, ("no", "yes"))}
