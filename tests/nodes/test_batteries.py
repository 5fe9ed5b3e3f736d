"""Every node method, its task, data and probes through the batteries."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import latticework as lw
from latticework.core import registry
from latticework.core.grid import entry_of
from latticework.core.task import Part
from latticework.nodes.tasks import NodeClassification
from latticework.testing import check_data, check_method, check_probe, check_task

FINGERPRINTS = Path(__file__).parent / "fingerprints.json"
SMALL: dict[str, dict[str, Any]] = {
    "deepwalk": {"walks": 2, "length": 10, "dim": 8}, "svd": {"dim": 8}, "fastrp": {"dim": 16},
    "lagnn": {"backbone.epochs": 6, "generator.method.epochs": 1, "generator.method.selection": "none"},
    "gradco": {"dim": 8}, "ppmi": {"dim": 8}, "netmf": {"dim": 8},
}  # fmt: skip
METHODS = [
    e.name for e in registry.entries("method")
    if "node-classification" in e.facts["tasks"] and e.facts["class"].startswith("latticework.nodes.") and e.name != "logistic-readout"
]  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_method(name: str) -> None:
    method = entry_of(name)
    fields = SMALL.get(name, {"epochs": 6} if "epochs" in type(method).model_fields else {})
    check_method(method.with_settings(fields) if fields else method, "karate", fingerprints=FINGERPRINTS)


def test_tuned_and_the_readout() -> None:
    check_method(entry_of("tuned(method=mlp(epochs=3); trials=2)"), "karate", "node-classification")
    check_method(entry_of("logistic-readout(encoder=svd(dim=4))"), "karate")


@pytest.mark.parametrize("protocol", ["random", "fixed", "given"])
def test_task(protocol: str, mirror: Any) -> None:
    data = "digits-knn"
    if protocol != "random":
        mirror("planetoid-cora")
        data = "planetoid-cora"
    check_task(NodeClassification(protocol=protocol), data)  # type: ignore[arg-type]


class Leaky(NodeClassification):
    """A task that leaves the labels of all nodes in what a method sees."""

    name: ClassVar[str] = "node-classification"
    where: ClassVar[str] = "schema"

    def _part(self, graph: Any, index: Any, schema: Any, slices: Any) -> Part:
        part = super()._part(graph, index, schema, slices)
        if self.where == "schema":
            return part._replace(schema={**part.schema, "y": graph.y.tolist()})
        data = part.data.clone()
        data.y = __import__("torch").from_numpy(graph.y)
        return part._replace(data=data)


@pytest.mark.parametrize("where", ["schema", "data"])
def test_a_planted_leak_is_caught(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leaky, "where", where)
    with pytest.raises(AssertionError, match="the truth of the test part can be read"):
        check_task(Leaky(), "karate")


@pytest.mark.parametrize("name", ["karate", "digits-knn", "largest-component(of=karate)", "barabasi-albert(nodes=50)"])
def test_data(name: str) -> None:
    check_data(name)


@pytest.mark.parametrize("name", ["amud(bootstrap=20)", "over-smoothing(hops=20)"])
def test_probe(name: str) -> None:
    check_probe(name, "karate")


def test_a_forgotten_revision_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stored.json"
    monkeypatch.setenv("LATTICEWORK_RECORD", "1")
    check_method(entry_of("majority"), "karate", fingerprints=path)
    monkeypatch.delenv("LATTICEWORK_RECORD")
    check_method(entry_of("majority"), "karate", fingerprints=path)
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({key: {m: v + 0.1 for m, v in scores.items()} for key, scores in stored.items()}))
    with pytest.raises(AssertionError, match="raise its `revision`"):
        check_method(entry_of("majority"), "karate", fingerprints=path)
    monkeypatch.setenv("LATTICEWORK_RECORD", "other-cpu")  # another kind of CPU is stored beside, and hides no third value
    check_method(entry_of("majority"), "karate", fingerprints=path)
    monkeypatch.delenv("LATTICEWORK_RECORD")
    check_method(entry_of("majority"), "karate", fingerprints=path)
    both = json.loads(path.read_text())
    assert len(both) == 2 * len(stored) and all(both[f"{key} @other-cpu"] == scores for key, scores in stored.items())
    path.write_text(json.dumps({key: {m: v + 0.1 for m, v in scores.items()} for key, scores in both.items()}))
    with pytest.raises(AssertionError, match="raise its `revision`"):
        check_method(entry_of("majority"), "karate", fingerprints=path)


@pytest.mark.parametrize("name", ["gcn", "mlp", "logistic-regression", "dagnn", "lagnn"])
def test_whether_features_are_bags_is_settled_by_the_fit(name: str, make_blocks: Any, tmp_path: Path) -> None:
    """A cell of 2 at a node without links, in later data, leaves the answers for all other nodes alone."""
    graph = make_blocks()
    apart = graph.edge_index[:, (graph.edge_index != 0).all(0)]
    bag = replace(graph, x=(graph.x > 0).astype(np.float32), edge_index=apart, _cache={})
    fields = SMALL.get(name, {} if name == "logistic-regression" else {"epochs": 5})
    model = lw.fit(name, bag, settings=fields)
    model.save(tmp_path / "M")
    x = bag.x.copy()
    x[0, 0] = 2.0
    for held in (model, lw.load(tmp_path / "M")):
        wanted = np.asarray(held.predict(bag, nodes="all").values)
        found = np.asarray(held.predict(replace(bag, x=x, _cache={}), nodes="all").values)
        assert np.allclose(found[1:], wanted[1:], atol=1e-6) and not np.allclose(found[0], wanted[0], atol=1e-6)
