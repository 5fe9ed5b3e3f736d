"""LightHGNN: its terms by hand and by brute force, its limits, what the student may read, users' commands, a real run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.evaluate import Options, evaluate
from latticework.core.grid import entry_of
from latticework.core.ledger import Ledger
from latticework.core.method import Ref
from latticework.core.run import Run, fitted
from latticework.core.task import Part
from latticework.data.graph import Nodes
from latticework.data.hypergraph import read_hypergraph
from latticework.layers.hypergraph import edge_mean, incidence
from latticework.nodes.hyper_baselines import HGNNMethod
from latticework.nodes.hyper_tasks import HypergraphNodeClassification
from latticework.nodes.light_hgnn import (
    ByName,
    LightHGNN,
    LightHGNNPlus,
    LightStudent,
    high_order_loss,
    hyperedge_entropy,
    mean_of,
    reliability,
    soft_target_loss,
    topology_score,
    undivided,
)

Command = Callable[..., tuple[int, str, str]]
DATA = "digits-hyperedges(images=200)"
TASK = HypergraphNodeClassification()
TEACHER = Ref(method=HGNNMethod(epochs=30))


def fit(method: Any, data: str = DATA, seed: int = 0, task: Any = TASK, fold: str = "draw-0") -> tuple[Any, Any, Run]:
    given_data = open_data(data)
    parts = task.fold(given_data, fold)
    run = Run(task=task, digest=given_data.digest(), fold=fold, seed=seed)
    return fitted(method, parts.train, parts.valid, run), parts, run


def draw(n: int, c: int, seed: int) -> torch.Tensor:
    return torch.softmax(2 * torch.randn(n, c, generator=torch.Generator().manual_seed(seed)), 1)


def means(members: list[list[int]], n: int) -> Any:
    index = np.array([[v, e] for e, held in enumerate(members) for v in held]).T
    return edge_mean(incidence(index, n, len(members)))


# -- terms ---------------------------------------------------------------------------------------------------------------
def test_the_worked_entropy_of_a_hyperedge() -> None:
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    assert hyperedge_entropy(p, means([[0, 1]], 2)).item() == pytest.approx(0.3466, abs=1e-4)


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_terms_by_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    members = [sorted(rng.choice(9, rng.integers(1, 5), replace=False).tolist()) for _ in range(6)]
    mean, teacher = means(members, 9), draw(9, 3, seed)
    logits = torch.randn(9, 3, generator=torch.Generator().manual_seed(seed + 1))
    student = torch.softmax(logits, 1)
    mask = torch.from_numpy(rng.random(6) < 0.5)
    kls = []
    for held, keep in zip(members, mask.tolist(), strict=True):
        if keep:
            t, s = teacher[held].mean(0), student[held].mean(0)
            kls.append(float((t * (t / s).log()).sum()))
    expected = float(np.mean(kls)) if kls else 0.0
    assert float(high_order_loss(teacher, student, mean, mask)) == pytest.approx(expected, abs=1e-6)
    h = [float(-(teacher[held] * teacher[held].log()).sum(1).mean()) for held in members]
    assert torch.allclose(hyperedge_entropy(teacher, mean), torch.tensor(h), atol=1e-6)
    soft = float((teacher * (teacher.log() - student.log())).sum(1).mean())
    assert float(soft_target_loss(teacher, logits)) == pytest.approx(soft, abs=1e-6)
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(seed + 2))
    score = np.mean([float((x[held] - x[held].mean(0)).norm(dim=1).mean()) for held in members])
    found = topology_score(x, mean)
    assert found.raw == pytest.approx(score, abs=1e-5)
    assert found.relative == pytest.approx(topology_score(7 * x, mean).relative, abs=1e-5)  # scaling does not matter


def test_reliability() -> None:
    rho = reliability(torch.tensor([0.1, 0.5, 0.3, 0.2]), torch.tensor([0.1, 0.1, 0.5, 0.3]))
    assert torch.allclose(rho, torch.tensor([1.0, 0.0, 0.5, 0.75]))
    assert torch.equal(reliability(torch.ones(3), torch.ones(3)), torch.ones(3))
    assert reliability(torch.zeros(0), torch.zeros(0)).shape == (0,)


def test_hyperedges_of_one_vertex_give_the_vertex_term() -> None:
    teacher, logits = draw(7, 4, 0), torch.randn(7, 4)
    mean, everything = means([[i] for i in range(7)], 7), torch.ones(7, dtype=torch.bool)
    high = high_order_loss(teacher, torch.softmax(logits, 1), mean, everything)
    assert float(high) == pytest.approx(float(soft_target_loss(teacher, logits)), abs=1e-6)
    official = high_order_loss(teacher, torch.softmax(logits, 1), mean, everything, "official")
    assert float(official) == pytest.approx(float(soft_target_loss(teacher, logits, "official")), abs=1e-5)


def test_an_empty_mask_gives_nothing_and_sure_answers_stay_finite() -> None:
    p = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    nothing = high_order_loss(draw(2, 2, 0), p, means([[0, 1]], 2), torch.zeros(1, dtype=torch.bool))
    nothing.backward()
    assert float(nothing.detach()) == 0 and p.grad is not None and (p.grad == 0).all()
    sure = high_order_loss(torch.tensor([[0.0, 1.0]] * 2), p.detach(), means([[0, 1]], 2), torch.ones(1, dtype=torch.bool))
    assert np.isfinite(float(sure)) and float(sure) > 10


# -- limits of the fit ---------------------------------------------------------------------------------------------------
def test_without_reliable_hyperedges_it_is_light_hgnn(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _, _ = fit(LightHGNN(teacher=TEACHER, epochs=15))
    with monkeypatch.context() as patch:
        patch.setattr(LightHGNNPlus, "reliabilities", lambda self, teacher, part, target, mean, run: torch.zeros(mean.shape[0]))
        none, _, _ = fit(LightHGNNPlus(teacher=TEACHER, epochs=15))
    plus, _, _ = fit(LightHGNNPlus(teacher=TEACHER, epochs=15))
    same = [torch.equal(plain.state()[k], none.state()[k]) for k in plain.state()]
    other = [torch.equal(plain.state()[k], plus.state()[k]) for k in plain.state()]
    assert all(same) and not any(other)


def test_reliabilities_lie_in_the_unit_interval_and_repeat() -> None:
    teacher, parts, run = fit(HGNNMethod(epochs=30))
    everyone = Part(parts.train.data, Nodes(np.arange(200), parts.train.query.ids), None, parts.train.schema)
    method = LightHGNNPlus()
    target, mean = method._target(teacher, everyone), mean_of(everyone, "test")
    before = everyone.data.x.clone()
    rho = method.reliabilities(teacher, everyone, target, mean, run)
    assert rho.min() == 0 and rho.max() <= 1 and rho.max() > 0.5 and torch.equal(everyone.data.x, before)
    assert torch.equal(rho, method.reliabilities(teacher, everyone, target, mean, run))
    other = Run(task=TASK, seed=1)
    assert not torch.equal(rho, method.reliabilities(teacher, everyone, target, mean, other))
    with pytest.raises(UserError, match="noise"):
        LightHGNNPlus.make({"noise": 0})


@pytest.mark.parametrize("bags", [False, True])
def test_reliabilities_by_definition(bags: bool) -> None:
    """What the teacher reads is disturbed: bags of words divided by their sums once, and not again where they no longer look so."""
    source = open_data(DATA).read()
    data = open_data(replace(source, x=(source.x > 0.5).astype(np.float32), _cache={}) if bags else source)
    parts = TASK.fold(data, "draw-0")
    run = Run(task=TASK, digest=data.digest(), fold="draw-0")
    teacher = fitted(HGNNMethod(epochs=30, row_normalise=True), parts.train, parts.valid, run)
    everyone = Part(parts.train.data, Nodes(np.arange(200), parts.train.query.ids), None, parts.train.schema)
    method, mean = LightHGNNPlus(noise=0.7), mean_of(everyone, "test")
    rho = method.reliabilities(teacher, everyone, method._target(teacher, everyone), mean, run)

    x = everyone.data.x
    read = x / x.sum(1, keepdim=True).clamp(min=1e-12) if bags else x
    noise = 1 + torch.randn(x.shape, generator=run.generator("perturbation"))

    def entropies(x: torch.Tensor) -> torch.Tensor:
        seen = everyone.data.clone()
        seen.x = x
        inputs = HGNNMethod(row_normalise=False).inputs(everyone._replace(data=seen), "cpu")
        with torch.no_grad():
            return mean @ torch.special.entr(torch.softmax(teacher.net(*inputs), 1)).sum(1, keepdim=True)

    delta = (entropies(0.7 * noise * read) - entropies(read)).abs().squeeze(1).numpy()
    np.testing.assert_allclose(rho.numpy(), 1 - delta / delta.max(), atol=1e-4)


def test_reliabilities_are_those_of_what_the_teacher_reads() -> None:
    """Of its own columns in its own order, and as its own fit settled whether they are bags of words."""
    source = open_data(DATA).read()
    words = replace(source, x=(source.x > 0.5).astype(np.float32), _cache={})
    order = np.random.default_rng(0).permutation(source.x.shape[1])
    parts = {}
    for name, given_set in (
        ("values", source), ("bags", words),
        ("moved", replace(words, x=words.x[:, order], features=tuple(words.features[i] for i in order), _cache={})),
    ):  # fmt: skip
        parts[name] = TASK.fold(open_data(given_set), "draw-0")
    method = LightHGNNPlus()

    def rho(teacher: Any, name: str) -> torch.Tensor:
        train = parts[name].train
        everyone = Part(train.data, Nodes(np.arange(200), train.query.ids), None, train.schema)
        target = method._target(teacher, everyone)
        return method.reliabilities(teacher, everyone, target, mean_of(everyone, "test"), Run(task=TASK))

    def taught(name: str) -> Any:
        return fitted(
            HGNNMethod(epochs=10, row_normalise=True), parts[name].train, parts[name].valid, Run(task=TASK, digest=name)
        )

    teacher = taught("moved")
    beside = ByName(teacher, [words.features.index(f) for f in teacher.schema["features"]])
    drawn = undivided(beside)
    assert drawn.schema["bags"] is drawn.teacher.schema["bags"] is False and teacher.schema["bags"] is True
    x = parts["bags"].train.data.x
    everyone = Part(
        parts["bags"].train.data, Nodes(np.arange(200), parts["bags"].train.query.ids), None, parts["bags"].train.schema
    )
    data = everyone.data.clone()
    data.x = x / x.sum(1, keepdim=True).clamp(min=1e-12)
    torch.testing.assert_close(method._target(drawn, everyone._replace(data=data)), method._target(beside, everyone))
    # a teacher of plain numbers divides nothing, whatever it is shown: at noise 1 without spread nothing would move
    plain = taught("values")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("latticework.nodes.light_hgnn.perturb", lambda x, noise, generator: x)
        assert bool((rho(plain, "bags") == 1).all())


@pytest.mark.parametrize("name", ["mlp", "logistic-regression", "hgnn", "light-hgnn"])
def test_any_teacher_reads_as_its_fit_settled(name: str) -> None:
    """Features that are disturbed by nothing move nothing, whoever teaches: bags of words are divided by their sums once."""
    source = open_data(DATA).read()
    train = TASK.fold(open_data(replace(source, x=(source.x > 0.5).astype(np.float32), _cache={})), "draw-0").train
    method = LightHGNNPlus()
    teacher = fitted(entry_of(f"{name}(row_normalise=true)"), train, None, Run(task=TASK, digest=name))
    everyone = Part(train.data, Nodes(np.arange(200), train.query.ids), None, train.schema)
    target = method._target(teacher, everyone)
    with pytest.MonkeyPatch.context() as patch:
        # twice a bag divided by its sum shows who divides again
        patch.setattr("latticework.nodes.light_hgnn.perturb", lambda x, noise, generator: 2 * x)
        twice = method.reliabilities(teacher, everyone, target, mean_of(everyone, "test"), Run(task=TASK))
        patch.setattr("latticework.nodes.light_hgnn.perturb", lambda x, noise, generator: x)
        assert bool((method.reliabilities(teacher, everyone, target, mean_of(everyone, "test"), Run(task=TASK)) == 1).all())
    assert float(twice.min()) == 0 and float(twice.max()) > 0


def test_the_labels_alone_make_an_mlp() -> None:
    """With the whole loss on labels the teacher no longer matters."""
    one, _, _ = fit(LightHGNN(teacher=TEACHER, labels_share=1, epochs=10))
    two, _, _ = fit(LightHGNN(teacher=Ref(method=HGNNMethod(epochs=2)), labels_share=1, epochs=10))
    three, _, _ = fit(LightHGNN(teacher=Ref(method=HGNNMethod(epochs=2)), labels_share=0, epochs=10))
    assert all(torch.equal(one.state()[k], two.state()[k]) for k in one.state())
    assert not torch.equal(one.state()["first.weight"], three.state()["first.weight"])


# -- what the student reads ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bags", [False, True])
def test_the_student_reads_its_own_row_alone(bags: bool) -> None:
    model, parts, _ = fit(LightHGNNPlus(teacher=TEACHER, epochs=10))
    if bags:
        model.schema["bags"] = True
    rows = np.arange(50)
    answers = model.predict(parts.test._replace(query=Nodes(rows, parts.test.query.ids)))
    assert np.allclose(answers.sum(1), 1, atol=1e-6)
    altered, bare = parts.test.data.clone(), parts.test.data.clone()
    altered.edge_index = torch.flip(altered.edge_index, [0])
    bare.edge_index, bare.linked, bare.hyperedges = torch.zeros(2, 0, dtype=torch.int64), False, 0
    for data in (altered, bare):
        again = model.predict(parts.test._replace(data=data, query=Nodes(rows, parts.test.query.ids)))
        assert np.array_equal(again, answers)
    for i in (0, 17, 49):  # alone, or beside others whose features have changed
        alone = model.predict(parts.test._replace(query=Nodes(np.array([i]), parts.test.query.ids)))
        assert np.abs(alone - answers[i]).max() < 1e-6
        changed = parts.test.data.clone()
        changed.x = torch.where(torch.arange(200)[:, None] == i, changed.x, 1 - changed.x)
        beside = model.predict(parts.test._replace(data=changed, query=Nodes(rows, parts.test.query.ids)))
        assert np.abs(beside[i] - answers[i]).max() < 1e-6


def test_both_students_and_the_row_share_one_teacher(tmp_path: Path) -> None:
    data, ledger, label = open_data(DATA), Ledger(tmp_path), []

    def log(name: str, step: int, values: Any) -> None:
        label.append(name)

    results = [
        evaluate(TASK, data, entry_of(text), "draw-0", 0, ledger, Options(debug=True), on_log=log)
        for text in ("light-hgnn(epochs=3; teacher.method=hgnn(epochs=4))", "hgnn(epochs=4)", "light-hgnn-plus(epochs=3; teacher.method=hgnn(epochs=4))")
    ]  # fmt: skip
    # four epochs of a teacher, once, and three of each student
    assert label.count("light-hgnn > hgnn") == 4 and label.count("hgnn") == 0 and len(label) == 4 + 3 + 3
    assert results[0].cost.refs_s == results[2].cost.refs_s == results[1].cost.fit_s > 0
    found = results[2].facts["notes"]
    assert any(note.startswith("validation accuracy: teacher") for note in found)


def test_a_teacher_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    from latticework.core.store import save_model

    digits = entry_of("hgnn(epochs=1)")
    model, _, _ = fit(digits, "random-hypergraph(nodes=200; features=64; largest=4)")
    save_model(model, tmp_path / "other")
    with pytest.raises(UserError, match=r"the teacher hgnn knows 4 classes \(0, 1, 2, 3\) and these data have 10"):
        fit(LightHGNN(teacher=Ref(saved=tmp_path / "other"), epochs=1))
    with pytest.raises(UserError, match="a teacher is a method or a saved model"):
        fit(LightHGNN(teacher=Ref(), epochs=1))
    good, _, _ = fit(digits)
    save_model(good, tmp_path / "good")
    student, _, _ = fit(LightHGNN(teacher=Ref(saved=tmp_path / "good"), epochs=1))
    same, _, _ = fit(LightHGNN(teacher=Ref(method=digits), epochs=1))
    assert all(torch.equal(student.state()[k], same.state()[k]) for k in student.state())


def test_a_saved_teacher_reads_columns_by_name(tmp_path: Path) -> None:
    """Columns in another order: the same teaching; others, or fewer: refused, naming one."""
    from dataclasses import replace

    from latticework.core.store import save_model
    from latticework.data.hypergraph_sets import GivenHypergraph

    graph = open_data(DATA).read()
    teacher, parts, _ = fit(entry_of("hgnn(epochs=3)"))
    save_model(teacher, tmp_path / "T")

    def taught(x: Any, names: tuple[str, ...], kind: type[LightHGNN] = LightHGNN) -> Any:
        data = GivenHypergraph.hold(replace(graph, x=x, features=names, _cache={}))
        fold = TASK.fold(data, "draw-0")
        method = kind(teacher=Ref(saved=tmp_path / "T"), epochs=1)
        held = method._teacher(fold.train, fold.valid, Run(task=TASK, digest=data.digest(), fold="draw-0"))
        return held.predict(fold.test.blind()), fitted(method, fold.train, fold.valid, Run(task=TASK, digest=data.digest()))

    wanted = np.asarray(teacher.predict(parts.test.blind()))
    order = np.random.default_rng(0).permutation(len(graph.features))
    names = tuple(graph.features[i] for i in order)
    for kind in (LightHGNN, LightHGNNPlus):
        found, _ = taught(graph.x[:, order], names, kind)
        assert np.allclose(found, wanted, atol=1e-6)
    with pytest.raises(UserError, match=r"reads 64 columns and these data have 63; .* is the teacher's alone"):
        taught(graph.x[:, 1:], graph.features[1:])
    with pytest.raises(UserError, match="'another' is these data's alone"):
        taught(graph.x, ("another", *graph.features[1:]))
    for method in (Ref(method=entry_of("gcn")), Ref(method=entry_of("gin"))):
        with pytest.raises(UserError, match="cannot teach here; it is for"):
            fit(LightHGNN(teacher=method, epochs=1))


def test_a_teacher_that_gives_nan_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from latticework.nodes.network import NodeModel

    monkeypatch.setattr(NodeModel, "predict", lambda self, part: np.full((len(part.query.rows), 10), np.nan))
    with pytest.raises(UserError, match="the teacher hgnn gave a value that is not finite for node 'image-0'"):
        fit(LightHGNN(teacher=Ref(method=HGNNMethod(epochs=1)), epochs=1))


def test_production_trains_on_what_is_observed() -> None:
    """Nothing of the unseen vertices reaches the fit: other features and hyperedges for them leave the student as it is."""
    task = HypergraphNodeClassification(protocol="production")
    model, parts, _ = fit(LightHGNNPlus(teacher=TEACHER, epochs=5), task=task)
    assert model.predict(parts.test.blind()).shape == (len(parts.test.query.rows), 10)
    unseen = parts.test.query.rows[parts.test.truth.slices["vertices"][0] == 1]
    assert not {parts.test.query.ids[i] for i in unseen} & set(parts.train.query.ids)
    assert parts.train.data.x.shape[0] == 200 - len(unseen)
    # the teacher takes the whole hypergraph for the question
    teacher, _, _ = fit(HGNNMethod(epochs=5), task=task)
    assert teacher.predict(parts.test.blind()).shape == (len(parts.test.query.rows), 10)


def test_the_student_net() -> None:
    net, x = LightStudent(6, 3, hidden=8).eval(), torch.randn(5, 6)
    expected = torch.relu(x @ net.first.weight.T + net.first.bias) @ net.second.weight.T + net.second.bias
    assert torch.allclose(net(x), expected, atol=1e-6)
    assert sum(p.numel() for p in net.parameters()) == 6 * 8 + 8 + 8 * 3 + 3
    from latticework.layers.sparse_features import SparseFeatures

    bag = (torch.rand(5, 6) < 0.3).float()
    assert torch.allclose(net(bag), net(SparseFeatures(sp.csr_array(bag.numpy()))), atol=1e-6)


def test_the_probe_compares_two_nets(tmp_path: Path) -> None:
    from latticework.core.store import save_model
    from latticework.nodes.light_hgnn import HypergraphSmoothness

    student, _, _ = fit(LightHGNN(teacher=TEACHER, epochs=5))
    save_model(student, tmp_path / "student")
    data = open_data(DATA)
    probe = HypergraphSmoothness(net=Ref(saved=tmp_path / "student"), against=Ref(method=HGNNMethod(epochs=30)))
    found = probe.measure(data, Run(task=None, digest=data.digest()))
    whole = data.whole()
    teacher, _, _ = fit(HGNNMethod(epochs=30))
    own, other = (topology_score(m.hidden(whole), mean_of(whole, "test")).relative for m in (student, teacher))
    assert found.scalars["score at unit mean norm"] == pytest.approx(own, abs=1e-6)
    assert found.scalars["ratio"] == pytest.approx(own / other, abs=1e-5)
    with pytest.raises(UserError, match="mlp has no hidden embeddings to look at"):
        probe.but(against={"is": "ref", "method": "mlp(epochs=1)"}).measure(data, Run(task=None, digest=data.digest()))


# -- as a person types it ------------------------------------------------------------------------------------------------
def test_fit_then_predict_from_features_alone(tmp_path: Path, command: Command) -> None:
    mine, model, new = tmp_path / "my-hypergraph", tmp_path / "MODEL", tmp_path / "new"
    assert command("data", "export", DATA, mine)[0] == 0
    said = command("data", "check", mine)[1]
    assert "of kind hypergraph" in said and "light-hgnn-plus" in said
    words = ("-s", "teacher.method=hgnn(epochs=40)", "-s", "epochs=40")
    status, said, err = command("fit", "light-hgnn-plus", mine, *words, "-o", model)
    assert status == 0, said + err
    assert "validation accuracy: teacher" in said and "mlp" in said and "student" in said
    assert "a request for 100 nodes: student" in said
    # the student alone: four tensors
    held = 64 * 128 + 128 + 128 * 10 + 10
    assert (model / "weights.safetensors").stat().st_size < 4 * held + 1000
    assert json.loads((model / "model.json").read_text())["method"]["teacher"]["method"]["is"] == "hgnn"
    # a file with features only, other columns beside, in another order, and one node that was never seen
    nodes = pl.read_csv(mine / "nodes.csv", infer_schema=False).drop("label")
    fresh = nodes[:30].with_columns(pl.col("id") + "-again")
    new.mkdir()
    fresh.select(nodes.columns[::-1]).with_columns(pl.lit("7").alias("extra")).write_csv(new / "nodes.csv")
    status, said, err = command("predict", model, new, "-o", tmp_path / "labels.csv")
    assert status == 0, said + err
    status, said, err = command("predict", model, mine, "-o", tmp_path / "with.csv")
    assert status == 0, said + err
    alone, beside = pl.read_csv(tmp_path / "labels.csv"), pl.read_csv(tmp_path / "with.csv")
    assert alone.height == 30 and beside.height == 200
    assert alone["prediction"].to_list() == beside["prediction"].to_list()[:30]
    truth = pl.read_csv(mine / "nodes.csv")["label"].to_list()[:30]
    assert np.mean([a == b for a, b in zip(alone["prediction"].to_list(), truth, strict=True)]) > 0.8
    assert command("score", "hypergraph-node-classification", tmp_path / "with.csv", mine)[0] == 0
    # the teacher says that it needs hyperedges; a file that lacks a column is named
    assert command("fit", "hgnn", mine, "-s", "epochs=2", "-o", tmp_path / "TEACHER")[0] == 0
    status, _, err = command("predict", tmp_path / "TEACHER", new, "-o", tmp_path / "no.csv")
    assert status == 2 and "hgnn reads hyperedges, and none were given" in err and not (tmp_path / "no.csv").exists()
    fresh.drop("pixel_3_3").write_csv(new / "nodes.csv")
    status, _, err = command("predict", model, new, "-o", tmp_path / "no.csv")
    assert status == 2 and "needs the node feature 'pixel_3_3'" in err


def test_bags_of_words_stay_bags_of_words(tmp_path: Path) -> None:
    """Whether rows are divided by their sum is the fit's to say: one row of zeros and ones in other data changes nothing."""
    from latticework.data.hypergraph import write_hypergraph

    source = open_data(DATA).read()
    binary = replace(source, x=(source.x > 0.5).astype(np.float32), _cache={})
    write_hypergraph(binary, tmp_path / "bags")
    data = open_data(str(tmp_path / "bags"))
    parts = TASK.fold(data, "draw-0")
    run = Run(task=TASK, digest=data.digest(), fold="draw-0")
    model = fitted(LightHGNN(teacher=TEACHER, epochs=5, row_normalise=True), parts.train, parts.valid, run)
    assert model.schema["bags"] is True
    rows = Nodes(np.arange(200), parts.test.query.ids)
    answers = model.predict(parts.test._replace(query=rows))
    scaled = parts.test.data.clone()
    scaled.x = 2 * scaled.x  # not all 0 or 1 any more, the same words
    assert np.abs(model.predict(parts.test._replace(data=scaled, query=rows)) - answers).max() < 1e-6
    other, _, _ = fit(LightHGNN(teacher=TEACHER, epochs=5, row_normalise=True))
    assert other.schema["bags"] is False
    assert read_hypergraph(tmp_path / "bags").hyperedges == source.hyperedges


# -- real data -----------------------------------------------------------------------------------------------------------
def test_cora_co_authorship(mirror: Any, tmp_path: Path) -> None:
    """A shorter fit: the student is far above an MLP on the same labels, and about as good as its teacher."""
    mirror("hypergraphs-citation")
    data, ledger = open_data("hypergraphs-citation:cora-coauthorship"), Ledger(tmp_path)
    found = {}
    for name in ("mlp(epochs=60)", "hgnn(epochs=40)", "light-hgnn(epochs=120; teacher.method=hgnn(epochs=40))"):
        result = evaluate(TASK, data, entry_of(name), "draw-0", 0, ledger, Options(debug=True))
        found[name.partition("(")[0]] = result.headline
    assert found["light-hgnn"] > found["mlp"] + 0.05
    assert found["light-hgnn"] > found["hgnn"] - 0.03
