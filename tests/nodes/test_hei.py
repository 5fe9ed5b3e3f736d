"""The recipe of HEI: plain training bit for bit where there is no penalty, phases, resuming, refusals, the generator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.grid import entry_of, task_of
from latticework.core.ledger import Ledger
from latticework.core.run import Run
from latticework.nodes.hei import EnvironmentNet, Environments, HEIModel
from latticework.testing import check_method, first_fit

FINGERPRINTS = Path(__file__).parent / "fingerprints_hei.json"
MLP = "mlp(hidden=16; dropout=0; lr=0.005; weight_decay=0; epochs=1700)"
GENERATOR = f"backbone={MLP}; environments=2; warm_up=300; infer_epochs=400; strength=1000; environment_lr=0.01"


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    inner = model.inner if isinstance(model, HEIModel) else model
    return dict(inner.net.state_dict())


BACKBONES = [
    "linkx(epochs=12; hidden=8)",
    "gcn(epochs=12; hidden=8; norm=batch)",
    "mlp(epochs=12; hidden=8)",
    "appnp(epochs=12; hidden=8)",
]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("off", ["strength=0", "environments=1"])
@pytest.mark.parametrize("penalty", ["irm", "gap"])
def test_without_a_penalty_it_is_plain_training(backbone: str, off: str, penalty: str, make_blocks: Any) -> None:
    plain = first_fit(backbone, make_blocks())[0]
    model, parts, _ = first_fit(f"hei(backbone={backbone}; penalty={penalty}; warm_up=2; infer_epochs=3; {off})", make_blocks())
    assert all(torch.equal(value, weights_of(model)[name]) for name, value in weights_of(plain).items())
    assert np.array_equal(plain.predict(parts.test), model.predict(parts.test))
    with_it = first_fit(f"hei(backbone={backbone}; penalty={penalty}; warm_up=2; infer_epochs=3)", make_blocks())[0]
    assert any(not torch.equal(value, weights_of(with_it)[name]) for name, value in weights_of(plain).items())


def test_it_is_plain_training_until_the_penalty_sets_in(make_blocks: Any) -> None:
    """The losses of warm-up and inference are those of the backbone alone, with dropout."""
    plain = first_fit("linkx(epochs=12; hidden=8)", make_blocks())[2].curve["loss"]
    found = first_fit("hei(backbone=linkx(epochs=12; hidden=8); warm_up=4; infer_epochs=4; strength=5)", make_blocks())[2].curve[
        "loss"
    ]
    # the ninth loss holds the penalty already
    assert found[:8] == plain[:8] and all(a != b for a, b in zip(found[8:], plain[8:], strict=True))


def test_the_epoch_is_chosen_among_those_with_the_penalty(make_blocks: Any) -> None:
    entry = "hei(backbone=linkx(epochs=30; hidden=8; patience=5); warm_up=8; infer_epochs=8; strength=5)"
    _, _, run = first_fit(entry, make_blocks())
    chosen = int(run.notes[-1].split()[3].rstrip(","))
    assert chosen > 16 and run.curve["loss"][-1][0] >= 16  # a patience shorter than the first phases does not end them


def test_environments_ascend_the_penalty_and_then_stay(make_blocks: Any) -> None:
    def shares(infer: int, more: int) -> np.ndarray:
        entry = f"hei(backbone=mlp(epochs={5 + infer + more}; hidden=8); warm_up=5; infer_epochs={infer}; environment_lr=0.05)"
        model, parts, _ = first_fit(entry, make_blocks(), validate=False)
        return model.environments(model.method.pattern(parts.train))

    start, short, long = shares(0, 3), shares(40, 1), shares(40, 30)
    assert np.array_equal(short, long) and np.ptp(long, axis=0).max() > np.ptp(start, axis=0).max() + 0.1


def test_heads_of_the_environments(make_blocks: Any) -> None:
    """Copies share the encoder, start as the shared head, and learn apart from it."""
    given = open_data(make_blocks())
    part = task_of("node-classification").for_data(given).fold(given, "random-0").train
    method: Any = entry_of("linkx(hidden=8)")
    torch.manual_seed(0)
    net = method.module(4, 3, part.schema)
    around = Environments(net, EnvironmentNet(2), 2, method.inputs(part, "cpu"))
    assert around.names == {n for n, _ in net.named_parameters() if n.startswith("final.")}
    assert all(head.weight_a is net.weight_a for head in around.heads)
    assert len(around.head_weights()) == 2 * len(around.names)
    with torch.no_grad():
        net.final.maps[0].weight.add_(1)
    around.start_heads()
    assert all(torch.equal(h.final.maps[0].weight, net.final.maps[0].weight) for h in around.heads)
    assert all(h.final.maps[0].weight is not net.final.maps[0].weight for h in around.heads)
    entry = "hei(backbone=linkx(epochs=30; hidden=8); penalty=gap; strength=1; warm_up=5; infer_epochs=5)"
    losses = [v for _, v in first_fit(entry, make_blocks())[2].curve["loss"]]
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("penalty", ["irm", "gap", "official"])
def test_a_fit_that_was_killed_goes_on_with_the_same_bits(penalty: str, make_blocks: Any, tmp_path: Path) -> None:
    entry = f"hei(backbone=linkx(epochs=16; hidden=8); penalty={penalty}; strength=2; warm_up=3; infer_epochs=5)"
    whole = first_fit(entry, make_blocks())[0]

    class Killed(Exception):
        pass

    def kill(label: str, step: int, values: Any) -> None:
        if step == 6:  # in the midst of the inference
            raise Killed

    given = open_data(make_blocks())
    task = task_of("node-classification").for_data(given)
    parts = task.fold(given, "random-0")
    for on_log in (kill, None):
        run = Run(task=task, digest=given.digest(), fold="random-0", ledger=Ledger(tmp_path), on_log=on_log, label=entry)
        run.fit_key, keep = "f", run.keep
        run.keep = lambda step, state, keep=keep: keep(step, state, 0.0)  # type: ignore[method-assign]
        with run.seeded():
            if on_log is not None:
                with pytest.raises(Killed):
                    entry_of(entry).fit(parts.train, parts.valid, run)
            else:
                again = entry_of(entry).fit(parts.train, parts.valid, run)
    assert all(torch.equal(value, weights_of(again)[name]) for name, value in weights_of(whole).items())
    assert np.array_equal(whole.environments(np.ones(3)), again.environments(np.ones(3)))


def test_a_pattern_that_does_not_vary_is_plain_training(make_blocks: Any) -> None:
    from dataclasses import replace

    n = 24
    ring = np.stack([np.arange(n), (np.arange(n) + 1) % n])
    both = np.concatenate([ring, ring[::-1]], 1)
    graph = replace(make_blocks(n=n), edge_index=both, x=np.ones((n, 4), np.float32), _cache={})
    model, parts, run = first_fit("hei(backbone=linkx(epochs=8; hidden=4); warm_up=1; infer_epochs=1)", graph)
    plain = first_fit("linkx(epochs=8; hidden=4)", graph)[0]
    assert "plain training" in run.notes[0] and np.array_equal(plain.predict(parts.test), model.predict(parts.test))
    assert np.allclose(model.environments(np.zeros(2)), 0.25)


@pytest.mark.parametrize("seed", [0])
def test_the_generator(seed: int) -> None:
    """Plain training falls for the spurious feature and fails on the shifted test; with the environments it does not."""
    data = f"shifted-environments(graph=true; seed={seed})"

    def accuracy(model: Any, part: Any) -> float:
        return float((model.predict(part).argmax(1) == part.truth.y).mean())

    plain, parts, _ = first_fit(MLP, data, fold="fixed")
    assert accuracy(plain, parts.train) > 0.87 and accuracy(plain, parts.test) <= 0.2
    model, parts, _ = first_fit(f"hei({GENERATOR})", data, fold="fixed")
    assert accuracy(model, parts.test) >= 0.75 and accuracy(model, parts.train) < 0.84
    z = model.method.pattern(parts.train)[parts.train.query.rows]
    rho = model.environments(z)
    assert abs(rho[z < 0.5, 0].mean() - rho[z >= 0.5, 0].mean()) > 0.8


def test_explain_says_whether_there_is_a_shift(make_blocks: Any) -> None:
    """The labelled half is wired within classes, the other between: the histogram sees it."""
    from dataclasses import replace

    rng = np.random.default_rng(0)
    n = 200
    y = np.arange(n) % 2
    u = np.repeat(np.arange(n), 6)
    step = 2 * rng.integers(1, 24, len(u)) + (u >= n // 2)  # an odd step leads to the other class
    v = np.where(u < n // 2, (u + step) % (n // 2), n // 2 + (u - n // 2 + step) % (n // 2))
    x = np.eye(2, dtype=np.float32)[y] * 4 + rng.normal(size=(n, 2)).astype(np.float32)
    fixed = np.where(np.arange(n) < n // 2, 0, 2).astype(np.int8)
    graph = replace(
        make_blocks(n=n, classes=2),
        edge_index=np.stack([u, v]),
        x=x,
        y=y.astype(np.int64),
        fixed=fixed,
        features=("a", "b"),
        _cache={},
    )
    model, parts, _ = first_fit("hei(backbone=mlp(epochs=60); warm_up=5; infer_epochs=5)", graph, fold="fixed")
    found = model.explain(parts.test.blind())
    assert (
        found.scalars["mean homophily of labelled nodes"]
        > 0.9
        > 0.2
        > found.scalars["mean homophily of the others, as predicted"]
    )
    assert found.scalars["shift"] == "yes: the others look less homophilic"
    assert len(found.tables["environments"]) == 4 and all("<svg" in f for f in found.figures.values()) and len(found.figures) == 2


def test_refusals(make_blocks: Any) -> None:
    given = open_data(make_blocks())
    task = task_of("node-classification").for_data(given)
    words = entry_of("hei(backbone=majority)").refuses(task, given.facts())
    assert words is not None and "majority has no stages encode and head" in words and "linkx" in words and "gcn" in words
    assert "gps" not in words and "graph-mamba" not in words  # theirs are for whole graphs
    bare = open_data("shifted-environments(n=10)")
    assert "no node has a neighbour" in str(entry_of("hei").refuses(task, bare.facts()))
    assert entry_of("hei").refuses(task, given.facts()) is None
    assert "features" in str(entry_of("hei").refuses(task, {**given.facts(), "features": 0}))
    for text, says in (("environments=0", "environments"), ("strength=-1", "strength")):
        with pytest.raises(UserError, match=says):
            entry_of(f"hei({text})")
    with pytest.raises(UserError, match="leave none"):
        first_fit("hei(backbone=linkx(epochs=10))", make_blocks())


def test_bad_parts(make_blocks: Any) -> None:
    given = open_data(make_blocks())
    task = task_of("node-classification").for_data(given)
    part = task.fold(given, "random-0").train
    run = Run(task=task, fold="x", label="hei")
    data = part.data.clone()
    data.x[7, 1] = float("nan")
    with pytest.raises(UserError, match="row 7"):
        entry_of("hei").fit(part._replace(data=data), None, run)
    one = part._replace(query=part.query._replace(rows=part.query.rows[:1]), truth=part.truth._replace(y=part.truth.y[:1]))
    with pytest.raises(UserError, match="2 or more"):
        entry_of("hei").fit(one, None, run)


@pytest.mark.parametrize("penalty", ["irm", "gap"])
def test_battery(penalty: str) -> None:
    entry = f"hei(backbone=linkx(epochs=9; hidden=8); penalty={penalty}; warm_up=3; infer_epochs=3)"
    check_method(entry_of(entry), "karate", fingerprints=FINGERPRINTS if penalty == "irm" else None)


def test_as_a_user(command: Callable[..., tuple[int, str, str]], graph_folder: Path, tmp_path: Path) -> None:
    settings = ["-s", "backbone=linkx(epochs=12)", "-s", "environments=4", "-s", "warm_up=4", "-s", "infer_epochs=4"]
    status, out, err = command("fit", "hei", graph_folder, *settings, "-o", tmp_path / "model", "--runs", tmp_path / "runs")
    assert status == 0, out + err
    status, out, err = command("predict", tmp_path / "model", graph_folder, "-o", tmp_path / "answers.csv")
    assert status == 0 and (tmp_path / "answers.csv").read_text().startswith("id,prediction"), out + err


def test_filtered_chameleon(mirror: Any) -> None:
    """One split, few epochs: above the share of the largest class, in both halves."""
    mirror("heterophilous")
    entry = "hei(backbone=linkx(hidden=64; epochs=60); warm_up=20; infer_epochs=20)"
    model, parts, run = first_fit(entry, "heterophilous:chameleon", fold="given-0")
    task = task_of("node-classification")
    scores = task.score(task.answer(model, parts.test, run), parts.test, run)
    halves = {s.at["range"]: s.value for s in scores if s.at.get("slice") == "homophily"}
    assert task.headline(scores) > 0.3 and set(halves) == {"low", "high"}
