"""MEOW's recipes on small graphs: no labels, the masked twin, errors, checkpoints, what the models say, the commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import latticework as lw
from latticework.core.errors import UserError
from latticework.core.grid import entry_of, task_of
from latticework.core.ledger import Ledger
from latticework.core.run import Run
from latticework.core.task import Part
from latticework.data.hetero import HeteroGraph, finish_hetero, whole_hetero, write_hetero
from latticework.nodes.meow import AdaMEOWMethod, MEOWMethod, NegativePush
from latticework.nodes.meow.recipe import ViewContrast, ViewModel

SMALL: dict[str, Any] = {"nei_max": (8,), "clusters": (4, 9), "epochs": 4, "width": 16}
SOFT: dict[str, Any] = {"nei_max": (8,), "epochs": 4, "width": 16}


def academic(n: int = 60, seed: int = 0, both_ways: bool = False) -> HeteroGraph:
    """Papers of three classes with features, authors with features and subjects without, who keep to a class mostly."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    authors, subjects = 24, 6

    def joined(m: int, inside: float, outside: float) -> np.ndarray:
        owns = np.arange(m) % 3
        return np.stack(np.nonzero(rng.random((n, m)) < np.where(y[:, None] == owns[None], inside, outside)))

    x = ((rng.random((n, 9)) < 0.2) | (rng.random((n, 9)) < 0.3) & (np.arange(9)[None] % 3 == y[:, None])).astype(np.float32)
    relations = {("paper", "by", "author"): joined(authors, 0.25, 0.03), ("paper", "on", "subject"): joined(subjects, 0.7, 0.05)}
    if both_ways:
        relations[("author", "wrote", "paper")] = relations[("paper", "by", "author")][::-1].copy()
    ids = {"paper": n, "author": authors, "subject": subjects}
    return finish_hetero(
        HeteroGraph(
            tuple(ids), {k: tuple(f"{k} {i}" for i in range(m)) for k, m in ids.items()}, relations,
            x={"paper": x, "author": rng.normal(size=(authors, 5)).astype(np.float32)},
            features={"paper": tuple(f"w{i}" for i in range(9)), "author": tuple(f"a{i}" for i in range(5))},
            y={"paper": y.astype(np.int64)}, classes={"paper": ("a", "b", "c")},
        )
    )  # fmt: skip


def fit(method: ViewContrast, part: Part, run: Run | None = None) -> ViewModel:
    run = run or Run(task=None)
    with run.seeded():
        return method.fit(part, None, run)


@pytest.mark.parametrize("method", [MEOWMethod(**SMALL), AdaMEOWMethod(**SOFT)], ids=lambda m: m.name)
def test_it_needs_no_labels_and_looks_at_none(method: ViewContrast) -> None:
    graph = academic()
    part = whole_hetero(graph)
    assert part.truth is None
    found = fit(method, part)
    assert found.embed(part).shape == (60, 16) and found.embed(part).dtype == np.float32
    other = whole_hetero(replace(graph, y={"paper": graph.y["paper"][::-1].copy()}, _cache={}))
    assert np.array_equal(fit(method, other).vectors, found.vectors)
    without = whole_hetero(replace(graph, y={}, classes={}, _cache={}))
    assert np.array_equal(fit(method, without).vectors, found.vectors)


def test_default_paths_are_there_and_back_and_said() -> None:
    run = Run(task=None)
    method = MEOWMethod(**SMALL)
    seen = method.seen(whole_hetero(academic()), run)
    assert seen.paths == ("paper-author-paper", "paper-subject-paper")
    assert any("paper-author-paper, paper-subject-paper" in note and "none was given" in note for note in run.notes)
    # a relation that is written in both directions is one way to go
    assert len(method.seen(whole_hetero(academic(both_ways=True)), Run(task=None)).paths) == 2
    named = MEOWMethod(**SMALL, paths=("paper-author-paper", "paper-subject-paper"))
    part = whole_hetero(academic())
    assert np.array_equal(fit(named, part).vectors, fit(method, part).vectors)


def test_the_masked_twin_is_drawn_once_from_its_own_stream() -> None:
    part = whole_hetero(academic())
    views = [MEOWMethod(**SMALL | {"epochs": e}).seen(part, Run(task=None)).views for e in (4, 5)]
    other = MEOWMethod(**SMALL).seen(part, Run(task=None, seed=1)).views
    first, again, changed = (v.masked.dense() if hasattr(v.masked, "dense") else v.masked for v in (*views, other))
    assert torch.equal(first, again) and not torch.equal(first, changed)
    calls: list[int] = []

    class Counting(MEOWMethod):
        def seen(self, part: Part, run: Run) -> Any:
            calls.append(1)
            return super().seen(part, run)

    fit(Counting(**SMALL), part)
    assert len(calls) == 1


def test_the_loss_falls_and_patience_stops() -> None:
    part, run = whole_hetero(academic()), Run(task=None)
    fit(MEOWMethod(**SMALL | {"epochs": 60, "lr": 0.01, "dropout": 0.0}), part, run)
    losses = [value for _, value in run.curve["loss"]]
    assert np.mean(losses[-5:]) < losses[0] - 0.3
    hasty = Run(task=None)
    fit(MEOWMethod(**SMALL | {"epochs": 500, "patience": 1, "lr": 1.0}), part, hasty)
    assert len(hasty.curve["loss"]) < 500


def test_vectors_are_read_in_eval_mode() -> None:
    part = whole_hetero(academic())
    method = MEOWMethod(**SMALL | {"dropout": 0.5})
    run = Run(task=None)
    with run.seeded():
        net, seen = method.trained(part, run)
    with torch.no_grad():
        Z = net["encoder"].fine(seen.views)[0]
    assert torch.equal(Z * 4, fit(method, part).vectors)  # 4 = sqrt(width)


def test_anchors_are_drawn_anew_each_epoch_and_all_of_them_is_all() -> None:
    part = whole_hetero(academic())
    some, every = (fit(MEOWMethod(**SMALL, anchors=a), part).vectors for a in (20, 60))
    assert torch.equal(every, fit(MEOWMethod(**SMALL), part).vectors) and not torch.equal(some, every)
    rows = [MEOWMethod(**SMALL, anchors=20).anchor_rows(60, e, Run(task=None)) for e in (0, 0, 1)]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2]) and len(rows[0].unique()) == 20


@pytest.mark.parametrize("block", [7, 1000])
def test_blocks_change_nothing_but_rounding(block: int) -> None:
    part = whole_hetero(academic())
    for method in (MEOWMethod(**SMALL), AdaMEOWMethod(**SOFT)):
        assert (fit(method.but(block=block), part).vectors - fit(method, part).vectors).abs().max() < 1e-3


def test_a_fit_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    part, method = whole_hetero(academic()), MEOWMethod(**SMALL | {"epochs": 8})
    wanted = fit(method, part).vectors
    monkeypatch.setattr("latticework.core.run.Run.keep", _keep_always(Run.keep))
    cut = Run(task=None, ledger=Ledger(tmp_path))
    cut.fit_key = "meow-cut"

    def stop(label: str, step: int, values: Any) -> None:
        cut.deadline = time.monotonic() - 1 if step >= 4 else None

    cut.on_log = stop
    fit(method, part, cut)
    assert cut.stopped and len(cut.curve["loss"]) == 5
    onward = Run(task=None, ledger=Ledger(tmp_path))
    onward.fit_key = "meow-cut"
    found = fit(method, part, onward)
    assert torch.equal(found.vectors, wanted) and [s for s, _ in onward.curve["loss"]] == list(range(8))


def _keep_always(keep: Any) -> Any:
    def always(self: Run, step: int, state: Any, every_s: float = 0.0) -> None:
        keep(self, step, state, 0.0)

    return always


# -- what a model says -------------------------------------------------------------------------------------------------------
def test_explain_shows_attention_and_the_weights_of_negatives() -> None:
    part = whole_hetero(academic())
    found = fit(MEOWMethod(**SMALL), part).explain(part)
    views = found.tables["attention over views"]
    assert [row["view"] for row in views] == [
        "paper-author-paper", "paper-author-paper, masked", "paper-subject-paper", "paper-subject-paper, masked",
    ]  # fmt: skip
    assert sum(row["attention"] for row in views) == pytest.approx(1, abs=1e-6)
    weights = found.tables["weights of negatives"]
    assert [row["weight"] for row in weights] == [0, 1, 2]
    assert sum(row["share of pairs"] for row in weights) == pytest.approx(1)
    assert set(found.figures) == {"attention over views", "weights of negatives"}
    assert all("<svg" in figure for figure in found.figures.values())
    soft = fit(AdaMEOWMethod(**SOFT), part).explain(part)
    assert len(soft.tables["weights of negatives"]) == 20
    assert soft.scalars["mean weight of a negative"] == pytest.approx(1, abs=0.05)  # divided by their mean
    plain = fit(MEOWMethod(**SMALL, weights=False, prototypes=0.0), part).explain(part)
    assert set(plain.figures) == {"attention over views"}


def test_a_model_answers_for_its_own_graph_and_target() -> None:
    part = whole_hetero(academic())
    model = fit(MEOWMethod(**SMALL), part)
    with pytest.raises(UserError, match="meow answers for the graph it was fitted on"):
        model.embed(whole_hetero(academic(seed=3)))
    with pytest.raises(UserError, match="embeds paper nodes, not author"):
        model.embed(part._replace(schema={**part.schema, "target": "author"}))


# -- errors ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"paths": ("author-paper-author",)}, "goes from author to author, and both ends must be the target type 'paper'"),
        ({"paths": ("paper-author",)}, "goes from paper to author"),
        ({"paths": ("paper-venue-paper",)}, "nothing joins|is not a node type"),
        ({"paths": ("",)}, "is not a node type|no step"),
        ({"paths": ("paper-author-paper", "paper-author-paper")}, "stands twice"),
        ({"paths": ("paper-author-paper",), "nei_max": (3, 4)}, "nei_max: 2 numbers for 1 meta-paths"),
        ({"paths": ("paper-author-paper",), "adj_mask": (0.1, 0.2)}, "adj_mask: 2 numbers"),
        ({"clusters": (4, 61)}, "61 clusters of 60 paper nodes; give fewer than nodes"),
    ],
)
def test_errors_before_training(fields: dict[str, Any], says: str) -> None:
    part = whole_hetero(academic())
    with pytest.raises(UserError, match=says):
        fit(MEOWMethod(**SMALL | fields), part)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("meow(tau=0)", "meow.tau"),
        ("meow(tau=-1)", "meow.tau"),
        ("adameow(tau=0)", "adameow.tau"),
        ("meow(clusters=1)", "one cluster of all nodes leaves no negative"),
        ("meow(clusters=0)", "clusters: whole numbers of at least 1"),
        ("meow(nei_max=0)", "nei_max: whole numbers"),
        ("meow(adj_mask=1.0)", "adj_mask: shares"),
        ("meow(cluster=3)", "did you mean 'clusters'"),
    ],
)
def test_errors_of_fields(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        entry_of(text)


def test_a_path_that_matches_nothing_and_a_target_without_relations() -> None:
    graph = academic()
    empty = {**graph.relations, ("paper", "on", "subject"): np.zeros((2, 0), np.int64)}
    part = whole_hetero(replace(graph, relations=empty, _cache={}))
    with pytest.raises(UserError, match="'paper-subject-paper' matches nothing"):
        fit(MEOWMethod(**SMALL, paths=("paper-author-paper", "paper-subject-paper")), part)
    assert fit(MEOWMethod(**SMALL), part).schema["views"] == ["paper-author-paper"]
    alone = {key: np.zeros((2, 0), np.int64) for key in graph.relations}
    with pytest.raises(UserError, match="no relation joins 'paper' to anything"):
        fit(MEOWMethod(**SMALL), whole_hetero(replace(graph, relations=alone, _cache={})))


def test_a_node_without_any_path_sees_itself_alone() -> None:
    graph = academic()
    cut = {key: edges[:, edges[0] != 5] for key, edges in graph.relations.items()}
    part, run = whole_hetero(replace(graph, relations=cut, _cache={})), Run(task=None)
    model = fit(MEOWMethod(**SMALL), part, run)
    assert torch.isfinite(model.vectors).all()
    assert any(note.startswith("1 of 60 paper nodes are on no meta-path") for note in run.notes)


def test_weights_of_edges_are_said_to_be_unused() -> None:
    graph, run = academic(), Run(task=None)
    key = ("paper", "by", "author")
    weighted = replace(graph, weights={key: np.full(graph.relations[key].shape[1], 2.0, np.float32)}, _cache={})
    found = fit(MEOWMethod(**SMALL), whole_hetero(weighted), run)
    assert any("weights of edges are not used" in note for note in run.notes)
    assert torch.equal(found.vectors, fit(MEOWMethod(**SMALL), whole_hetero(graph)).vectors)


def test_the_inductive_protocol_is_refused_before_training() -> None:
    task = task_of("hetero-node-classification(protocol=inductive)")
    assert "transductive" in str(MEOWMethod(**SMALL).refuses(task, {}))
    assert MEOWMethod(**SMALL).refuses(task_of("hetero-node-clustering"), {}) is None


def test_a_type_without_features_is_one_hot_and_single_values_are_lists() -> None:
    graph = academic()
    part = whole_hetero(replace(graph, x={}, features={}, _cache={}))
    assert fit(MEOWMethod(**SMALL), part).vectors.shape == (60, 16)
    assert entry_of("meow(paths=paper-author-paper; nei_max=20; clusters=7)").plain()["paths"] == ["paper-author-paper"]
    assert entry_of("meow:infonce").plain()["weights"] is False and entry_of("meow:acm").plain()["nei_max"] == [110, 700]


# -- the probe ---------------------------------------------------------------------------------------------------------------
def test_near_negatives_get_the_push_and_clusterings_take_it_from_false_ones() -> None:
    class Held:
        def whole(self, target: str | None = None) -> Part:
            return whole_hetero(self.read(), target)

        def read(self) -> HeteroGraph:
            return academic(90)

    run = Run(task=None)
    encoder = MEOWMethod(**SMALL | {"epochs": 60, "lr": 0.01, "clusters": (3, 6), "weights": False, "prototypes": 0.0})
    with run.seeded():
        found = NegativePush(encoder=encoder).measure(Held(), run)  # type: ignore[arg-type]
    assert found.scalars["largest difference from autograd"] < 1e-8
    assert found.scalars["push on the nearest negative over the mean push"] > 1.5
    own, plain = found.scalars["negatives of the anchor's own class"], found.scalars["their share of the push"]
    assert plain > own + 0.03  # nearness and class go together: without weights false negatives get more than their share
    assert found.scalars["their share of the push, weighted by clusterings"] < plain
    rows = found.tables["negatives by similarity"]
    assert len(rows) == 10 and rows[-1]["push"] > rows[0]["push"]
    assert sum(row["push, weighted"] for row in rows) == pytest.approx(1)


# -- as a user types it ------------------------------------------------------------------------------------------------------
def test_embed_other_types_and_from_a_fitted_model(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    write_hetero(academic(), tmp_path / "graph")
    words = ("-s", "clusters=4,9", "-s", "nei_max=8", "-s", "epochs=2")
    more = ("-s", "paths=author-paper-author", "-s", "task.target=author")
    status, _, err = command("embed", tmp_path / "graph", "-m", "meow", *words, *more, "-o", tmp_path / "a.npy")
    assert status == 0 and len(np.load(tmp_path / "a.npy")) == 24, err
    assert command("fit", "meow", tmp_path / "graph", *words, "-o", tmp_path / "M")[0] == 0
    status, _, err = command("embed", tmp_path / "graph", "-m", tmp_path / "M", "-o", tmp_path / "m.npy")
    assert status == 0, err
    fitted: Any = lw.load(tmp_path / "M")
    assert np.array_equal(np.load(tmp_path / "m.npy"), fitted.model.encoder.vectors.numpy())
    for method, setting, says in (
        (tmp_path / "M", "epochs=3", "is fitted already"), (tmp_path / "M", "task.target=author", "is fitted already"),
        ("meow", "task.valid=0.2", "only -s task.target"), ("meow", "task.target=nobody", "is not a node type"),
    ):  # fmt: skip
        status, _, err = command("embed", tmp_path / "graph", "-m", method, "-s", setting, "-o", tmp_path / "n.npy")
        assert status == 2 and says in " ".join(err.split()), err


def test_embed_by_command(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    write_hetero(academic(), tmp_path / "graph")
    words = ("-s", "clusters=4,9", "-s", "nei_max=8", "-s", "epochs=2", "-s", "paths=paper-author-paper,paper-subject-paper")
    status, _, err = command("embed", tmp_path / "graph", "-m", "meow", *words, "-o", tmp_path / "v.csv")
    assert status == 0, err
    lines = (tmp_path / "v.csv").read_text().splitlines()
    assert len(lines) == 61 and len(lines[1].split(",")) == 65
    status, _, err = command("embed", tmp_path / "graph", "-m", "meow", "-o", tmp_path / "w.csv")
    assert status == 2 and "300 clusters of 60 paper nodes" in " ".join(err.split()) and "Traceback" not in err
    status, _, err = command("embed", tmp_path / "graph", "-m", "meow", "-s", "paths=paper-author", "-o", tmp_path / "w.csv")
    assert status == 2 and "both ends must be the target type 'paper'" in " ".join(err.split()) and "Traceback" not in err
    assert not (tmp_path / "w.csv").exists()
