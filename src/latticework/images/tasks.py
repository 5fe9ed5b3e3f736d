"""Image classification: which class has each picture; with budgets, how well within so many FLOPs.

A fold is the data's own split and a repeat is a seed. Data without a split get one fixed draw by class: a fifth tests and a
tenth validates; a split without validation images gives a tenth of its train images by class. A part holds its own pictures
only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.ledger import write_whole
from latticework.core.method import Predictor
from latticework.core.result import Metric, Score
from latticework.core.run import Run
from latticework.core.task import Fold, Part, Query, Task
from latticework.core.value import Value, setting
from latticework.data.images import TEST, TRAIN, VALID, Images

Array = NDArray[Any]
_SEED = 0  # of the split that data without one get
TEST_SHARE, VALID_SHARE = 0.2, 0.1


class ImageAnswer(NamedTuple):
    """`probabilities` float64 [q, C], or none where no operating point fits the budget (`why`).

    `flops` an image, `budget` the one that was asked for, `where` coordinates of the scores, `many`: of a model with more
    operating points than this one.
    """

    probabilities: Array | None
    flops: float | None = None
    budget: float | None = None
    why: str = ""
    many: bool = False
    where: Mapping[str, Any] = {}


class ImageQuery(Query):
    """Which of the user's pictures are predicted."""

    name: ClassVar[str] = "pictures"
    images: Literal["unlabelled", "all"] = setting(
        "unlabelled", "those without a label (all, where every one has a label), or all"
    )


class ImageClassification(Task):
    """Probabilities over classes for pictures. Headline: accuracy; of a model with many operating points their mean; with
    `budgets` the mean over budgets of the accuracy of the point that validation chose at or below each."""

    name: ClassVar[str] = "image-classification"
    kinds: ClassVar[tuple[str, ...]] = ("images",)
    role: ClassVar[type[Any]] = Predictor
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("accuracy", "", "higher"), Metric("macro-f1", "", "higher"))
    headline_metric: ClassVar[str] = "accuracy"
    Query: ClassVar[type[Value]] = ImageQuery

    budgets: tuple[float, ...] = setting((), "FLOPs an image (a multiply-add is two); a model is judged at each")

    @model_validator(mode="after")
    def _positive(self) -> ImageClassification:
        if any(b <= 0 for b in self.budgets) or list(self.budgets) != sorted(set(self.budgets)):
            raise ValueError(f"budgets are positive and rise, not {self.budgets}")
        return self

    # -- folds -------------------------------------------------------------------------------------------------------
    def for_data(self, data: Dataset) -> ImageClassification:
        facts = data.facts()
        if not facts["labelled"]:
            raise UserError(
                "no image has a label; put each into a folder named after its class, or write labels.csv (file,label)"
            )
        if facts["classes"] < 2:
            only = next(iter(facts["class sizes"]))
            raise UserError(f"all labelled images have one class ({only!r}); two are needed")
        return self

    def baselines(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        return "majority-images", "small-cnn"

    def plan(self, data: Dataset, repeats: int) -> list[tuple[str, int]]:
        return [("own", seed) for seed in range(repeats)]

    def final(self, data: Dataset) -> str:
        return "all"

    def split(self, images: Images, fold: str) -> Array:
        """int8 [n]: 0 train, 1 valid, 2 test, -1 neither. ``all`` trains on what would test, too."""
        labels = images.labels
        if images.splits is None:
            split = _cut(labels, np.flatnonzero(labels >= 0), 0.0 if fold == "all" else TEST_SHARE, VALID_SHARE)
        else:
            split = images.splits.copy()
            split[labels < 0] = -1
            if fold == "all":
                split[split == TEST] = TRAIN
            if not (split == VALID).any():
                train = np.flatnonzero(split == TRAIN)
                split[train] = _cut(labels, train, 0.0, VALID_SHARE)[train]
        return split

    def fold(self, data: Dataset, name: str) -> Fold:
        images: Images = data.read()
        self.for_data(data)
        split = self.split(images, name)
        schema = images.schema()
        parts = [self._part(images, np.flatnonzero(split == code), schema) for code in (TRAIN, VALID, TEST)]
        for word, part in (("train", parts[0]), ("test", parts[2])):
            if not len(part.query) and not (word == "test" and name == "all"):
                raise UserError(
                    f"the split has no {word} image with a label; label some as {word}, or leave the split out to have one drawn"
                )
        seen = np.unique(parts[0].truth)
        if len(seen) < 2:
            raise UserError(f"the train images are all of class {images.classes[int(seen[0])]!r}; two classes are needed")
        # the pictures of the train part carry their labels, those of the others do not
        train = parts[0]._replace(data=images.subset(np.flatnonzero(split == TRAIN)))
        return Fold(train, parts[1] if len(parts[1].query) else None, parts[2])

    @staticmethod
    def _part(images: Images, index: Array, schema: Mapping[str, Any]) -> Part:
        return Part(images.subset(index).hidden(), np.arange(len(index)), images.labels[index], schema)

    def ask(self, data: Dataset, query: Value, schema: Mapping[str, Any]) -> Part:
        assert isinstance(query, ImageQuery)
        images: Images = data.read()
        height, width, channels = images.size
        if (height, width) != (schema["height"], schema["width"]):
            wanted = f"{schema['width']}x{schema['height']}"
            how = f"-s data.side={schema['width']}" if schema["width"] == schema["height"] else "scale them first"
            raise UserError(f"the model was fitted on pictures of {wanted}, and these are {width}x{height}; {how}")
        if channels != schema["channels"]:
            if channels != 1:
                raise UserError("the model was fitted on grey pictures, and these are in colour; convert them first")
            images = Images(np.repeat(images.pixels, 3, axis=3), images.labels, images.ids, images.classes)
        index = np.flatnonzero(images.labels < 0) if query.images == "unlabelled" else np.arange(len(images))
        index = index if len(index) else np.arange(len(images))
        return Part(images.hidden(), index, None, images.schema() | {"classes": schema["classes"]})

    # -- judging -----------------------------------------------------------------------------------------------------
    def answer(self, model: Any, part: Part, run: Run) -> ImageAnswer:
        if hasattr(model, "lend"):
            model.lend(run.nets)
        if hasattr(model, "to"):
            model = model.to(run.device)
        point = model.operating() if hasattr(model, "operating") else None
        if point is not None and point.why:
            return ImageAnswer(None, None, point.budget, point.why, point.many, point.where)
        found = np.asarray(model.predict(part), dtype=np.float64)
        expected = (len(part.query), len(part.schema["classes"]))
        if found.shape != expected:
            raise UserError(
                f"{model.method.name} gave {list(found.shape)} instead of class probabilities {list(expected)} (images x classes)"
            )
        if not np.isfinite(found).all():
            row = int(np.flatnonzero(~np.isfinite(found).all(1))[0])
            name = part.data.ids[part.query[row]]
            raise UserError(f"{model.method.name} gave a value that is not finite for picture {name!r}")
        if point is None:
            return ImageAnswer(found)
        return ImageAnswer(found, point.flops, point.budget, "", point.many, point.where)

    def score(self, answer: ImageAnswer, part: Part, run: Run | None) -> list[Score]:
        """Accuracy and macro-F1 at {flops} (of a model without a point chosen by budget), and accuracy at each {budget}."""
        if answer.probabilities is None:
            return [Score("accuracy", None, {**answer.where, "budget": answer.budget}, answer.why)]
        found = _scores(part.truth, answer.probabilities.argmax(1))
        at = {**answer.where, **({} if answer.flops is None else {"flops": answer.flops})}
        if answer.budget is not None:
            return [s._replace(at={**answer.where, "budget": answer.budget}) for s in found]
        scores = [s._replace(at=at) for s in found]
        if answer.many:
            return scores
        for budget in self.budgets:
            fits = answer.flops is not None and answer.flops <= budget
            why = "" if fits else f"it takes {answer.flops:g} FLOPs" if answer.flops is not None else "its FLOPs are unknown"
            scores.append(Score("accuracy", found[0].value if fits else None, {"budget": budget}, why))
        right = answer.probabilities.argmax(1) == part.truth
        for c, name in enumerate(part.schema["classes"]):
            rows = part.truth == c
            if rows.any():
                value = float(right[rows].mean())
                scores.append(Score("accuracy", value, {"slice": "class", "range": name, "images": int(rows.sum())}))
        return scores

    def headline(self, scores: Sequence[Score]) -> float | None:
        plain = [s for s in scores if s.metric == self.headline_metric and not s.at.get("slice")]
        within = [s for s in plain if s.at.get("budget") in self.budgets]
        chosen = within or [s for s in plain if "budget" not in s.at]
        values = [s.value for s in chosen if s.value is not None]
        if not values or len(values) < len(chosen):  # a budget that a model cannot meet has no accuracy
            return None
        return sum(values) / len(values)

    def write(self, answer: ImageAnswer, part: Part, to: Path) -> None:
        """CSV: file, prediction, and a column ``p(class)`` each."""
        import polars as pl

        if answer.probabilities is None:
            raise UserError(answer.why)
        classes = part.schema["classes"]
        columns: dict[str, Any] = {
            "file": [part.data.ids[i] for i in part.query],
            "prediction": [classes[c] for c in answer.probabilities.argmax(1)],
        }
        columns |= {f"p({name})": answer.probabilities[:, c] for c, name in enumerate(classes)}
        write_whole(to, pl.DataFrame(columns).write_csv())

    def judge(self, answers: Path, truth: Path) -> list[Score]:
        """Scores of a CSV (file,prediction) against a CSV (file,label) or a folder of labelled pictures, by class names."""
        said = _named(answers, ("prediction", "label"))
        known = {name: label for name, label in _truth(truth).items() if label}
        strange = [name for name in said if name not in known]
        if strange:
            raise UserError(
                f"{answers}: picture {strange[0]!r} has no label in {truth} ({len(strange)} such); judge labelled pictures only"
            )
        empty = [name for name, word in said.items() if not word]
        if empty:
            raise UserError(f"{answers}: picture {empty[0]!r} has no prediction")
        classes = sorted({*(known[name] for name in said), *said.values()})
        code = {name: i for i, name in enumerate(classes)}
        return _scores(np.array([code[known[n]] for n in said]), np.array([code[w] for w in said.values()]))


def _named(path: Path, columns: tuple[str, ...]) -> dict[str, str]:
    """file -> the word in the first of some columns."""
    from latticework.data.table import line_of, need, read_table

    frame = read_table(path)
    names = frame[need(path, frame, "file", "id")].to_list()
    words = frame[need(path, frame, *columns)].to_list()
    seen: dict[str, str] = {}
    for row, (name, word) in enumerate(zip(names, words, strict=True)):
        if name in seen:
            raise UserError(f"{path}, line {line_of(row)}: {name!r} stands more than once; one line a picture")
        seen[name] = word
    return seen


def _truth(path: Path) -> dict[str, str]:
    from latticework.data.images import list_files

    if path.is_file():
        return _named(path, ("label",))
    listed = list_files(path)
    return dict(zip(listed.ids, listed.labels, strict=True))


def _cut(labels: Array, among: Array, test: float, valid: float) -> Array:
    """A fixed draw by class among some rows: int8 [n], every class keeps a train image."""
    split = np.full(len(labels), -1, np.int8)
    rng = np.random.default_rng(_SEED)
    for c in np.unique(labels[among]):
        rows = rng.permutation(among[labels[among] == c])
        tests, valids = round(test * len(rows)), round(valid * len(rows))
        while tests + valids >= len(rows) and tests + valids:
            tests, valids = (tests, valids - 1) if valids else (tests - 1, 0)
        split[rows] = TRAIN
        split[rows[:tests]] = TEST
        split[rows[tests : tests + valids]] = VALID
    return split


def _scores(truth: Array, said: Array) -> list[Score]:
    from sklearn.metrics import accuracy_score, f1_score

    return [
        Score("accuracy", float(accuracy_score(truth, said))),
        Score("macro-f1", float(f1_score(truth, said, average="macro", zero_division=0))),
    ]
