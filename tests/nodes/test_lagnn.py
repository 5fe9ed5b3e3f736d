"""LAGNN's recipes: reductions to the backbone, what is drawn and what is kept, errors, the command line, Cora."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latticework.core import store
from latticework.core.dataset import Dataset, open_data
from latticework.core.errors import Cancelled, UserError
from latticework.core.evaluate import Options, evaluate, fit
from latticework.core.grid import entry_of, task_of
from latticework.core.ledger import Ledger
from latticework.core.run import Run, fitted
from latticework.core.task import Fold, Task
from latticework.data.graph import Graph, finish
from latticework.nodes.network import backbones_with
from latticework.testing import check_method, check_value

FINGERPRINTS = Path(__file__).parent / "fingerprints_lagnn.json"
TINY = {"generator.method.epochs": 1, "generator.method.hidden": 16}


def wrapped(text: str = "lagnn:small", backbone: str = "gcn(hidden=8; epochs=6)", **more: Any) -> Any:
    fields = {"backbone": entry_of(backbone).plain()} | TINY | {k.replace("__", "."): v for k, v in more.items()}
    return entry_of(text).with_settings(fields)


def cut(data: Any) -> tuple[Dataset, Task, Fold]:
    given = open_data(data)
    task = task_of("node-classification").for_data(given)
    return given, task, task.fold(given, task.plan(given, 1)[0][0])


def fitted_on(method: Any, data: Any, seed: int = 0, **options: Any) -> tuple[Any, Run, Fold]:
    given, task, fold = cut(data)
    run = Run(task=task, digest=given.digest(), fold="a", seed=seed, **options)
    return fitted(method, fold.train, fold.valid, run), run, fold


def words(
    n: int = 60, words_of: int = 12, seed: int = 0, homophily: float = 0.9, shuffled: bool = False, degree: int = 10
) -> Graph:
    """Two classes whose bags of words differ; `shuffled`: edges that know nothing of the classes."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    chance = np.where(np.arange(words_of) % 2 == y[:, None], 0.8, 0.2)
    x = (rng.random((n, words_of)) < chance).astype(np.float32)
    u = np.repeat(np.arange(n), degree // 2)
    same = rng.random(len(u)) < (0.5 if shuffled else homophily)
    v = (2 * rng.integers(0, n // 2, len(u)) + np.where(same, y[u], 1 - y[u])) % n
    keep = u != v
    return finish(
        Graph(
            np.stack([u, v])[:, keep], tuple(f"n{i}" for i in range(n)), x=x, y=y.astype(np.int64), classes=("even", "odd"),
            features=tuple(f"w{i}" for i in range(words_of)),
        ),
        False,
    )  # fmt: skip


# -- batteries --------------------------------------------------------------------------------------------------------


def test_battery() -> None:
    check_method(wrapped(), "karate", fingerprints=FINGERPRINTS)


def test_battery_of_the_large_variant_and_the_selection(make_blocks: Callable[..., Graph]) -> None:
    fields = {"selection": "bayes", "passes": 3, "warm_up": 0, "update_epochs": 2}
    method = wrapped(
        backbone="gat(hidden=8; heads=2; epochs=6)",
        copies=2,
        draws=2,
        **{f"generator__method__{k}": v for k, v in fields.items()},
    )
    check_method(method, make_blocks(), fingerprints=FINGERPRINTS)


@pytest.mark.parametrize("text", ["neighbour-cvae", "neighbour-cvae:large"])
def test_the_generator_is_a_value_and_survives_its_file(text: str, tmp_path: Path) -> None:
    check_value(entry_of(text))
    method = entry_of(text).but(epochs=1, hidden=8, selection="lowest-loss")
    model, _, fold = fitted_on(method, words())
    store.save_model(model, tmp_path / "generator")
    again = store.load_model(tmp_path / "generator")
    first = model.sample(fold.train, np.random.default_rng(1))
    assert first.shape == (60, 12) and first.dtype == np.float32
    assert np.array_equal(first, again.sample(fold.train, np.random.default_rng(1)))  # type: ignore[attr-defined]
    assert not np.array_equal(first, model.sample(fold.train, np.random.default_rng(2)))
    # another graph with the same features
    assert model.sample(cut(words(20))[2].train, np.random.default_rng(1)).shape == (20, 12)


# -- reductions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", backbones_with("many_inputs"))
def test_without_copies_views_and_consistency_it_is_the_backbone(name: str) -> None:
    for data in ("karate", words()):
        backbone = entry_of(name).with_settings({"epochs": 12})
        bare = entry_of("lagnn(copies=0; forwards=1; consistency=0)").but(backbone=backbone.plain())
        mine, _, fold = fitted_on(bare, data)
        theirs, _, _ = fitted_on(backbone, data)
        assert np.array_equal(mine.predict(fold.test), theirs.predict(fold.test))
        # and one more forward is something else
        other, _, _ = fitted_on(bare.but(forwards=2), data)
        assert not np.array_equal(other.predict(fold.test), theirs.predict(fold.test))


@pytest.mark.parametrize("name", backbones_with("many_inputs"))
def test_any_backbone_with_the_socket_reads_the_samples(name: str) -> None:
    model, _, fold = fitted_on(wrapped(backbone=f"{name}(epochs=6)", copies=2), words())
    before = model.predict(fold.test)
    assert np.allclose(before.sum(1), 1, atol=1e-5)
    model.net.noise.mul_(-3)
    assert not np.allclose(model.predict(fold.test), before)


# -- what is drawn and kept -------------------------------------------------------------------------------------------


def test_the_stored_set_is_the_one_that_was_chosen(tmp_path: Path) -> None:
    model, run, fold = fitted_on(wrapped(backbone__epochs=25, copies=2), words())
    assert fold.valid is not None
    chances = model.predict(fold.valid)
    loss = -np.log(chances[np.arange(len(chances)), fold.valid.truth.y]).mean()
    assert loss == pytest.approx(min(v for _, v in run.curve["valid loss"]), abs=1e-6)
    assert np.array_equal(chances, model.predict(fold.valid))
    store.save_model(model, tmp_path / "model")
    assert np.array_equal(chances, store.load_model(tmp_path / "model").predict(fold.valid))  # type: ignore[attr-defined]
    # its noise counts: another set answers otherwise
    model.net.noise.zero_()
    assert not np.array_equal(chances, model.predict(fold.valid))


def test_draws_are_averaged_and_repeat() -> None:
    model, _, fold = fitted_on(wrapped(), words())
    test = fold.test
    one, two, many = (model.at(draws=k).predict(test) for k in (1, 2, 40))
    assert not np.array_equal(one, model.predict(test)) and not np.array_equal(one, two)
    assert np.array_equal(two, model.at(draws=2).predict(test))
    # another set of 40 lies near: averages settle
    second = 2 * model.at(draws=80).predict(test) - many
    assert np.abs(second - many).max() < np.abs(2 * two - 2 * one).max()


def test_another_graph_gets_samples_of_its_own() -> None:
    model, _, _ = fitted_on(wrapped(), words())
    other = cut(words(44, seed=3))[2].test
    found = model.predict(other)
    assert found.shape == (len(other.query.rows), 2) and np.array_equal(found, model.predict(other))
    assert np.array_equal(found, model.at(draws=1).predict(other))


def test_training_leaves_the_generator_as_it_was(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "runs")
    method = wrapped()
    model, run, fold = fitted_on(method, words(), ledger=ledger)
    generator = run.child().model(method.generator, fold.train._replace(), fold.valid)
    own, _, _ = fitted_on(method.generator.method, words())
    assert run.facts["refs_s"] > 0
    for made in (generator, own):
        for name, value in made.net.state_dict().items():
            assert torch.equal(value, model.generator.state_dict()[name])


def test_one_generator_for_all_seeds_where_its_seed_is_given() -> None:
    states = {}
    for given in (None, 0):
        for seed in (0, 1):
            model, _, _ = fitted_on(wrapped(generator__seed=given), words(), seed=seed)
            states[given, seed] = model.generator.output.weight.detach()
    assert torch.equal(states[0, 0], states[0, 1]) and not torch.equal(states[None, 0], states[None, 1])
    assert torch.equal(states[0, 0], states[None, 0])


@pytest.mark.parametrize(
    "text", ["lagnn:small", "neighbour-cvae(passes=2; warm_up=1; update_epochs=2)", "neighbour-cvae(selection=lowest-loss)"]
)
def test_a_fit_that_was_killed_goes_on_to_the_same_weights(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = Run.keep
    monkeypatch.setattr(Run, "keep", lambda self, step, state: keep(self, step, state, every_s=0))
    method = wrapped(text) if text.startswith("lagnn") else entry_of(text).but(epochs=3, hidden=8)
    ended, whole, _ = fitted_on(method, words())
    steps = len(whole.curve["loss"])

    def kill(label: str, step: int, values: Any) -> None:
        if "loss" in values and step == steps - 2 and label == method.name:
            raise Cancelled(label)

    ledger = Ledger(tmp_path / "runs")
    with pytest.raises(Cancelled):
        fitted_on(method, words(), ledger=ledger, on_log=kill)
    begun: list[int] = []
    again, _, _ = fitted_on(
        method,
        words(),
        ledger=ledger,
        on_log=lambda label, step, v: begun.append(step) if "loss" in v and label == method.name else None,
    )
    assert begun == list(range(steps - 2, steps))
    for name, value in ended.state().items():
        assert torch.equal(value, again.state()[name]), name


# -- the generator ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffled", [False, True])
def test_samples_follow_the_neighbours(shuffled: bool) -> None:
    """Given centres of one class, samples have the mean of their neighbours; edges at random make the condition idle."""
    graph = words(600, 30, degree=12, shuffled=shuffled)
    assert graph.x is not None and graph.y is not None
    model, _, fold = fitted_on(entry_of("neighbour-cvae(selection=none; hidden=64; batch=256)"), graph)
    rng = np.random.default_rng(0)
    mean = np.mean([model.sample(fold.train, rng) for _ in range(10)], 0)
    of = [mean[graph.y == c].mean(0) for c in (0, 1)]
    if shuffled:
        assert np.abs(of[0] - of[1]).mean() < 0.02
        return
    A = np.zeros((600, 600), bool)
    A[graph.edge_index[0], graph.edge_index[1]] = A[graph.edge_index[1], graph.edge_index[0]] = True
    for c in (0, 1):
        true = (A[graph.y == c].astype(float) @ graph.x).sum(0) / A[graph.y == c].sum()
        assert np.abs(of[c] - true).max() < 0.05
    assert np.abs(of[0] - of[1]).mean() > 0.4  # of 0.48 = 0.6 (0.9 - 0.1)


def test_which_state_is_kept() -> None:
    """With a warm-up that never ends, bayes is the last state; without, a step whose score rose."""
    base = entry_of("neighbour-cvae").but(epochs=3, hidden=8, passes=4, batch=32)
    last, run, _ = fitted_on(base.but(selection="none"), words())
    never, asked, _ = fitted_on(base.but(warm_up=10_000), words())
    for name, value in last.state().items():
        assert torch.equal(value, never.state()[name])
    assert asked.notes == ["no score rose: the last generator"] and "U" not in run.curve
    chosen, looked, _ = fitted_on(base.but(warm_up=0), words())
    scores = [v for _, v in looked.curve["U"]]
    at = int(np.argmax(scores)) + 1
    assert looked.notes == [f"generator of step {at}, U = {max(scores):.4g}"]
    assert len(scores) == len(looked.curve["batch loss"]) and max(scores) < 0
    assert at < len(scores) and not torch.equal(chosen.net.output.weight, last.net.output.weight)
    lowest, ran, _ = fitted_on(base.but(selection="lowest-loss"), words())
    losses = [v for _, v in ran.curve["loss"]]
    assert ran.notes == [f"generator of epoch {int(np.argmin(losses)) + 1}, by its loss"] and lowest.net.latent == 10


def test_stage_two_reads_train_labels_alone() -> None:
    """Without labels of the validation part it runs; other train labels change the scores, and no step of the VAE."""
    _, _, fold = cut(words())
    assert fold.valid is not None
    method = entry_of("neighbour-cvae").but(epochs=1, hidden=8, passes=3)
    curves = []
    for y in (fold.train.truth.y, np.roll(fold.train.truth.y, 1)):
        run = Run(task=None, digest="d", fold="a")
        with run.seeded():
            method.fit(fold.train._replace(truth=fold.train.truth._replace(y=y)), fold.valid.blind(), run)
        curves.append(run.curve)
    assert curves[0]["batch loss"] == curves[1]["batch loss"] and curves[0]["U"] != curves[1]["U"]


def test_variant_by_the_data(make_blocks: Callable[..., Graph]) -> None:
    method = entry_of("neighbour-cvae").but(epochs=1, hidden=8, selection="none")
    assert fitted_on(method, words())[0].net.variant == "bernoulli"
    assert fitted_on(method, make_blocks())[0].net.variant == "gaussian"
    assert fitted_on(method.but(variant="gaussian"), words())[0].net.variant == "gaussian"


# -- findings ---------------------------------------------------------------------------------------------------------


def test_explain_shows_the_gain_over_degree() -> None:
    method = wrapped(backbone__epochs=30)
    graph = words(degree=2)
    model, _, fold = fitted_on(method, graph)
    alone, _, _ = fitted_on(method.backbone, graph)
    found = model.explain(fold.test.blind())
    json.dumps([dict(found.scalars), dict(found.tables)], allow_nan=False)
    valid = fold.valid
    assert valid is not None and set(found.figures) == set(found.tables)
    right = [float((m.predict(valid).argmax(1) == valid.truth.y).mean()) for m in (model, alone)]
    assert found.scalars["gain on validation nodes"] == pytest.approx(right[0] - right[1])
    rows = found.tables["gain over node degree"]
    assert sum(r["validation nodes"] for r in rows) == len(valid.query.rows)
    assert sum(r["validation nodes"] * r["gain"] for r in rows) / len(valid.query.rows) == pytest.approx(right[0] - right[1])
    changes = found.tables["change over node degree"]
    assert sum(r["nodes"] for r in changes) == len(fold.test.query.rows)
    moved = np.abs(model.predict(fold.test) - alone.predict(fold.test)).sum(1).mean() / 2
    weighted = sum(r["nodes"] * r["probability moved"] for r in changes) / len(fold.test.query.rows)
    assert weighted == pytest.approx(float(moved), abs=1e-6)
    # left out on request, and with it the fit of the backbone
    bare, run, _ = fitted_on(method.but(gain=False, copies=0), graph)
    assert not bare.explain(fold.test.blind()).tables and run.refs_s == 0


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lagnn(forwards=0)", "lagnn.forwards"),
        ("lagnn(sharpen=0)", "lagnn.sharpen"),
        ("lagnn(copies=-1)", "lagnn.copies"),
        ("lagnn(backbone=svd)", "lagnn.backbone: 'svd' cannot stand here; what can: adpa, appnp"),
        ("neighbour-cvae(passes=0)", "neighbour-cvae.passes"),
        ("neighbour-cvae(batch=1)", "neighbour-cvae.batch"),
    ],
)
def test_fields_out_of_bounds(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        entry_of(text)


def refusal(method: Any, data: Any) -> str:
    given, task, _ = cut(data)
    with pytest.raises(UserError) as raised:
        fit(method, given, task)
    return str(raised.value)


def test_refusals_come_before_any_training() -> None:
    assert "dagnn reads one; those that can: gat, gcn" in refusal(entry_of("lagnn(backbone=dagnn)"), "karate")
    assert "two layers or more" in refusal(entry_of("lagnn(backbone=gcn(layers=1))"), "karate")
    assert "names nothing" in refusal(entry_of("lagnn").but(generator={"is": "ref"}), "karate")
    assert "must be a neighbour-cvae, not gcn" in refusal(entry_of("lagnn").but(generator__method="gcn"), "karate")
    graph = words()
    many = Graph(**{**graph.__dict__, "y": np.stack([graph.y == 0, graph.y == 1], 1), "_cache": {}})
    assert "one label a node" in refusal(entry_of("lagnn"), many)
    lone = Graph(**{**graph.__dict__, "edge_index": np.empty((2, 0), np.int64), "_cache": {}})
    assert "no edge" in refusal(entry_of("lagnn"), lone)
    # the control needs neither edges nor a socket
    model, _, _ = fitted_on(entry_of("lagnn(copies=0; backbone=dagnn(epochs=3))"), lone)
    assert model.generator is None


def test_features_that_do_not_fit(make_blocks: Callable[..., Graph], tmp_path: Path) -> None:
    bernoulli = wrapped(generator__method__variant="bernoulli")
    said = refusal(bernoulli, make_blocks())
    assert "feature 'f" in said and "of node 'node" in said and "use variant=gaussian or auto" in said
    graph = words()
    assert graph.x is not None
    x = graph.x.copy()
    x[7, 2] = np.nan
    with pytest.raises(UserError, match="feature 'w2' of node 'n7' is nan"):
        refusal(wrapped(), Graph(**{**graph.__dict__, "x": x, "_cache": {}}))
    generator, _, _ = fitted_on(entry_of("neighbour-cvae").but(epochs=1, hidden=8, selection="none"), words(40, 5))
    store.save_model(generator, tmp_path / "other")
    said = refusal(entry_of("lagnn").but(generator={"is": "ref", "saved": str(tmp_path / "other")}), graph)
    assert "fitted on 5 features, and the data have 12" in said


def test_a_saved_generator_serves(tmp_path: Path) -> None:
    generator, _, _ = fitted_on(entry_of("neighbour-cvae").but(epochs=1, hidden=8, selection="none"), words(seed=4))
    store.save_model(generator, tmp_path / "generator")
    ref = {"is": "ref", "saved": str(tmp_path / "generator")}
    model, _, fold = fitted_on(wrapped().but(generator=ref), words())
    assert torch.equal(model.generator.output.weight, generator.net.output.weight)
    store.save_model(model, tmp_path / "model")
    loaded: Any = store.load_model(tmp_path / "model")
    assert np.array_equal(loaded.predict(fold.test), model.predict(fold.test))


# -- as a user types it -----------------------------------------------------------------------------------------------


def test_commands(command: Callable[..., tuple[int, str, str]], graph_folder: Path, tmp_path: Path) -> None:
    short = ["-s", "generator.method=neighbour-cvae(epochs=1; selection=none)"]
    model = tmp_path / "MODEL"
    status, out, err = command("fit", "lagnn", graph_folder, "-s", "backbone=gcn(epochs=8)", *short, "-o", model)
    assert status == 0, out + err
    status, out, err = command("predict", model, graph_folder, "-s", "draws=8", "-o", tmp_path / "predictions.csv")
    assert status == 0, out + err
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert lines[0] == "id,prediction,p(class 0),p(class 1),p(class 2)" and len(lines) == 61
    status, out, err = command("fit", "lagnn", graph_folder, "-s", "backbone=appnp", "-o", tmp_path / "none")
    assert status == 2 and "those that can: gat, gcn" in out + err and not (tmp_path / "none").exists()


# -- real data --------------------------------------------------------------------------------------------------------


def test_cora_in_a_short_fit(mirror: Callable[[str], Path], tmp_path: Path) -> None:
    """One pass over the pairs and 25 epochs: far above the 32 per cent of the largest class."""
    mirror("planetoid-cora")
    data = open_data("planetoid-cora")
    task = task_of("node-classification").for_data(data)
    method = wrapped(backbone="gcn(hidden=16; epochs=25)", forwards=2, gain=False)
    result = evaluate(task, data, method, "fixed", 0, Ledger(tmp_path), Options(debug=True))
    assert result.headline is not None and result.headline > 0.6
