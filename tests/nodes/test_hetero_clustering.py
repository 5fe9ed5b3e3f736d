"""Clustering of one node type: the task, its read-out and baselines, and MEOW's methods and probe through the batteries."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from latticework.core.dataset import Dataset, open_data
from latticework.core.errors import UserError
from latticework.core.evaluate import ask, evaluate, fit
from latticework.core.grid import entry_of, task_of
from latticework.core.ledger import Ledger
from latticework.core.run import Run
from latticework.core.value import Value
from latticework.data.hetero import HeteroGraph, write_hetero
from latticework.nodes.hetero_clustering import HeteroNodeClustering, KMeansReadout, nearest_centre
from latticework.nodes.meow import NegativePush
from latticework.nodes.tasks import Truth
from latticework.testing import check_method, check_probe, check_task

FINGERPRINTS = Path(__file__).parent / "fingerprints_meow.json"
TASK = "hetero-node-clustering"
MEOW = "meow(nei_max=10; clusters=6,12; epochs=3; width=16)"
ADAMEOW = "adameow(nei_max=10; epochs=3; width=16)"
BLOCKS = "hetero-blocks"


def graph() -> HeteroGraph:
    found: HeteroGraph = open_data(BLOCKS).read()
    return found


def changed(**fields: Any) -> Dataset:
    return open_data(replace(graph(), _cache={}, **fields))


def test_new_data_are_matched_by_name() -> None:
    """Columns in another order give the same groups; a missing one is named."""
    task: Any = task_of(TASK)
    data = open_data(BLOCKS)
    kind = graph().labelled[0]
    model, _ = fit(entry_of("kmeans"), data, task.for_data(data), ledger=Ledger(None))
    wanted, _ = ask(model, task.for_data(data), data)
    x, names = graph().x[kind], graph().features[kind]
    order = np.random.default_rng(0).permutation(len(names))
    turned = changed(x=graph().x | {kind: x[:, order]}, features=graph().features | {kind: tuple(names[i] for i in order)})
    assert np.array_equal(ask(model, task.for_data(data), turned)[0], wanted)
    fewer = changed(x=graph().x | {kind: x[:, 1:]}, features=graph().features | {kind: names[1:]})
    with pytest.raises(UserError, match=f"{kind}: the model needs the node feature '{names[0]}'"):
        ask(model, task.for_data(data), fewer)


# -- batteries ---------------------------------------------------------------------------------------------------------------
def test_task() -> None:
    check_task(TASK, BLOCKS)


@pytest.mark.parametrize("text", ["one-cluster", "kmeans", MEOW, ADAMEOW])
def test_method_under_clustering(text: str) -> None:
    check_method(text, BLOCKS, TASK, fingerprints=FINGERPRINTS)


@pytest.mark.parametrize("text", [MEOW, ADAMEOW])
def test_method_under_classification(text: str) -> None:
    check_method(text, BLOCKS, "hetero-node-classification", fingerprints=FINGERPRINTS)


def test_plain_info_nce() -> None:
    check_method(f"{MEOW[:-1]}; weights=false; prototypes=0.0)", BLOCKS, "hetero-node-classification")


def test_the_readout() -> None:
    check_method(KMeansReadout(encoder=entry_of(MEOW), starts=3), BLOCKS, TASK)


def test_probe() -> None:
    check_probe(NegativePush(encoder=entry_of(MEOW)), BLOCKS)


# -- the scores --------------------------------------------------------------------------------------------------------------
def scores(y: list[int], said: list[int]) -> dict[str, float]:
    part = type("Part", (), {"truth": Truth(np.array(y))})()
    return {s.metric: s.value for s in HeteroNodeClustering().score(np.array(said), part, None)}  # type: ignore[misc]


def test_scores_against_their_formulas() -> None:
    rng = np.random.default_rng(0)
    y, said = rng.integers(0, 3, 40), rng.integers(0, 4, 40)

    def entropy(*columns: np.ndarray) -> float:
        counts = np.unique(np.stack(columns), axis=1, return_counts=True)[1] / 40
        return float(-(counts * np.log(counts)).sum())

    found = scores(list(y), list(said))
    mutual = entropy(y) + entropy(said) - entropy(y, said)
    assert found["nmi"] == pytest.approx(mutual / ((entropy(y) + entropy(said)) / 2), abs=1e-12)
    both = sum(y[i] == y[j] and said[i] == said[j] for i, j in itertools.combinations(range(40), 2))
    of_y = sum(math.comb(int(c), 2) for c in np.bincount(y))
    of_said = sum(math.comb(int(c), 2) for c in np.bincount(said))
    chance = of_y * of_said / math.comb(40, 2)
    assert found["ari"] == pytest.approx((both - chance) / ((of_y + of_said) / 2 - chance), abs=1e-12)


def test_names_of_groups_do_not_count_and_one_group_says_nothing() -> None:
    assert scores([0, 0, 1, 1, 2], [2, 2, 0, 0, 1]) == {"nmi": 1.0, "ari": 1.0}
    assert scores([0, 0, 1, 1, 2], [0] * 5) == {"nmi": 0.0, "ari": 0.0}


def test_nearest_centre_is_the_nearest() -> None:
    rng = np.random.default_rng(0)
    x, centres = rng.normal(size=(50, 6)), rng.normal(size=(4, 6))
    expected = ((x[:, None] - centres[None]) ** 2).sum(2).argmin(1)
    assert (nearest_centre(x, centres) == expected).all()
    assert (nearest_centre(sp.csr_array(x), centres) == expected).all()


# -- what is seen ------------------------------------------------------------------------------------------------------------
def test_no_part_that_a_method_sees_has_labels_and_the_whole_type_is_clustered() -> None:
    data = open_data(BLOCKS)
    task = task_of(TASK).for_data(data)
    fold = task.fold(data, "whole")
    target = fold.train.query.target
    assert fold.train.truth is None and fold.valid is None
    assert len(fold.train.query.rows) == data.read().sizes[target]
    assert task.clusters == len(data.read().classes[target]) == fold.train.schema["clusters"]  # type: ignore[attr-defined]


def test_labels_change_the_scores_and_no_group() -> None:
    """Starts of k-means are chosen by inertia: with other labels the same seed gives the same groups."""
    target = open_data(BLOCKS).read().labelled[0]
    y = graph().y[target]
    shuffled = changed(y={target: np.random.default_rng(1).permutation(y)})
    answers = []
    for data in (open_data(BLOCKS), shuffled):
        task: Any = task_of(TASK).for_data(data)
        model, run = fit(KMeansReadout(encoder=entry_of(MEOW)), data, task)
        answers.append(task.answer(model, task.fold(data, "whole").test.blind(), run))
    assert (answers[0] == answers[1]).all()


def test_data_without_labels_are_clustered_where_the_number_is_said(tmp_path: Path) -> None:
    bare = changed(y={}, classes={}, fixed={}, splits={})
    target = graph().labelled[0]
    with pytest.raises(UserError, match=r"-s task.clusters=5 -s task.target="):
        task_of(TASK).for_data(bare)
    with pytest.raises(UserError, match="say it, and whose"):
        task_of(f"{TASK}(target={target})").for_data(bare)
    task: Any = task_of(f"{TASK}(target={target}; clusters=4)")
    result = evaluate(task.for_data(bare), bare, entry_of("kmeans"), "whole", 0, Ledger(tmp_path))
    assert result.status == "done" and result.headline is None
    assert {s.why for s in result.scores} == {"no node has a label"}
    model, _ = fit(entry_of("kmeans"), bare, task.for_data(bare))
    said, part = ask(model, task, bare)
    assert len(said) == bare.read().sizes[target] and set(said.tolist()) <= {0, 1, 2, 3}
    task.write(said, part, tmp_path / "groups.csv")
    assert (tmp_path / "groups.csv").read_text().startswith("id,cluster\n")


def test_wrong_targets_and_numbers() -> None:
    data, target = open_data(BLOCKS), graph().labelled[0]
    other = next(k for k in graph().types if k not in graph().labelled)
    for text, says in (
        ("target=nobody", "'nobody' is not a node type"),
        (f"target={other}", f"no {other} node has a label"),
        (f"target={target}; clusters=100000", "give fewer"),
        (f"target={target}; clusters=1", "one class"),
    ):
        with pytest.raises(UserError, match=says):
            task_of(f"{TASK}({text})").for_data(data)


def test_kmeans_without_features_goes_by_links_and_keeps_to_its_graph() -> None:
    bare = changed(x={}, features={})
    task: Any = task_of(TASK).for_data(bare)
    model, run = fit(entry_of("kmeans"), bare, task)
    part = task.fold(bare, "whole").test
    links = model.method.matrix(part)  # type: ignore[attr-defined]
    assert links.shape[0] == bare.read().sizes[part.query.target] and links.sum() > 0
    nmi = task.headline(task.score(task.answer(model, part.blind(), run), part, run))
    assert nmi is not None and nmi > 0.08  # the blocks show in who is joined
    assert model.scope == "fitted data"
    with pytest.raises(UserError, match="kmeans answers for the graph it was fitted on"):
        model.predict(part._replace(schema={**part.schema, "graph": "another"}))  # type: ignore[attr-defined]


def test_answers_must_be_group_numbers() -> None:
    data = open_data(BLOCKS)
    task: Any = task_of(TASK).for_data(data)
    part = task.fold(data, "whole").test.blind()

    class Wrong:
        method = entry_of("kmeans")

        def __init__(self, given: Any) -> None:
            self.given = given

        def predict(self, part: Any) -> Any:
            return self.given

    for given in (np.zeros((len(part.query.rows), 3)), np.zeros(3, np.int64), np.zeros(len(part.query.rows))):
        with pytest.raises(UserError, match="instead of group numbers"):
            task.answer(Wrong(given), part, Run(task=task))


def test_answers_from_elsewhere_are_judged(tmp_path: Path) -> None:
    held, target = graph(), graph().labelled[0]
    write_hetero(held, tmp_path / "g")
    rows = "\n".join(f"{i},{c}" for i, c in zip(held.ids[target], held.y[target], strict=True))
    (tmp_path / "a.csv").write_text(f"id,cluster\n{rows}\n")
    task: Any = task_of(TASK)
    assert {s.metric: s.value for s in task.judge(tmp_path / "a.csv", tmp_path / "g")} == {"nmi": 1.0, "ari": 1.0}
    (tmp_path / "b.csv").write_text("id,cluster\nnobody,1\n")
    with pytest.raises(UserError, match="no id has a label"):
        task.judge(tmp_path / "b.csv", tmp_path / "g")
    first = held.ids[target][0]
    (tmp_path / "c.csv").write_text(f"id,cluster\n{first},1\n{first},2\n")
    with pytest.raises(UserError, match="stands more than once"):
        task.judge(tmp_path / "c.csv", tmp_path / "g")


def test_values_are_values() -> None:
    assert isinstance(task_of(TASK), Value) and KMeansReadout(encoder=entry_of(MEOW)).row().endswith("+ k-means")


# -- as a user types it ------------------------------------------------------------------------------------------------------
def test_compare_fit_and_predict_by_command(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    write_hetero(graph(), tmp_path / "g")
    status, out, err = command(
        "compare", tmp_path / "g", "-m", "kmeans", "--task", TASK, "--repeats", "2", "--runs", tmp_path / "runs"
    )
    assert status == 0, err
    assert "one-cluster" in out and "kmeans" in out
    words = ("-s", "nei_max=10", "-s", "clusters=6,12", "-s", "epochs=2", "-s", f"task={TASK}")
    status, _, err = command("fit", "meow", tmp_path / "g", *words, "-o", tmp_path / "m")
    assert status == 0, err
    status, _, err = command("predict", tmp_path / "m", tmp_path / "g", "-o", tmp_path / "groups.csv")
    assert status == 0, err
    assert (tmp_path / "groups.csv").read_text().splitlines()[0] == "id,cluster"
