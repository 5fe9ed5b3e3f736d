"""GRADCO's recipes: the vectors and their late orbit, choosing it on validation, the probe's files, what the user types."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp

import latticework as lw
from latticework.core import registry, store
from latticework.core.dataset import open_data
from latticework.core.errors import Cancelled, UserError
from latticework.core.evaluate import suited
from latticework.core.grid import entry_of, task_of
from latticework.core.ledger import Ledger
from latticework.core.run import Run, fitted
from latticework.core.tuning import Tuned
from latticework.data.graph import Graph, finish, write_graph
from latticework.data.graph_sets import GivenGraph
from latticework.layers import memory
from latticework.nodes.gradco.counts import DEGREE_ORBITS, ORBITS, OrbitCounts, orbit_adjacencies, orbit_name
from latticework.nodes.gradco.method import DISTINCT, Gradco, GradcoModel, simple_adjacency
from latticework.nodes.gradco.probe import CsrFile, OrbitAdjacencies
from latticework.testing import check_method, check_probe

FINGERPRINTS = Path(__file__).parent / "fingerprints_gradco.json"
Command = Callable[..., tuple[int, str, str]]


def fit(method: Gradco, data: Any = "karate", ledger: Ledger | None = None) -> GradcoModel:
    given = open_data(data)
    run = Run(task=None, digest=given.digest(), fold="all", ledger=ledger)
    return fitted(method, given.whole(), None, run)  # type: ignore[return-value]


def adjacency_of(data: Any) -> sp.csr_array:
    graph = open_data(data).read()
    return simple_adjacency(graph.edge_index, graph.nodes)[0]


# -- vectors -----------------------------------------------------------------------------------------------------------------
def test_batteries() -> None:
    check_method(entry_of("gradco(dim=16)"), "karate", fingerprints=FINGERPRINTS)
    check_method(entry_of("gradco(dim=15; orbit=1:12-13; orientation=both; weights=counts)"), "karate")


def test_vectors_are_the_factors_of_the_information() -> None:
    A = adjacency_of("karate")
    M = orbit_adjacencies(A, [(1, 1, 2)])[1, 1, 2].toarray().astype(float)
    for weights, orientation in (("ppmi", "symmetric"), ("counts", "symmetric"), ("ppmi", "both")):
        V = fit(Gradco(orbit="1:1-2", dim=68, weights=weights, orientation=orientation)).vectors.numpy().astype(float)  # type: ignore[arg-type]
        N = M + M.T if orientation == "symmetric" else M
        if weights == "ppmi":
            with np.errstate(divide="ignore", invalid="ignore"):
                information = np.log(N * N.sum() / np.outer(N.sum(1), N.sum(0)))
            N = np.where(N > 0, np.maximum(information, 0), 0)
        assert V.shape == (34, 68) and np.mean(V**2) == pytest.approx(1, rel=1e-5)
        if orientation == "both":
            product = V[:, :34] @ V[:, 34:].T
        else:  # U √Σ alone: its squares are those of the matrix's square root
            product, N = V @ V.T, _root(N @ N.T)
        assert np.allclose(product / np.abs(product).max(), N / np.abs(N).max(), atol=1e-4)


def _root(M: np.ndarray) -> np.ndarray:
    values, U = np.linalg.eigh(M)
    return (U * np.sqrt(np.maximum(values, 0))) @ U.T


def test_the_orbit_is_late_and_the_graph_goes_with_the_model(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "runs")
    model = fit(Gradco(dim=8), ledger=ledger)
    assert model.method.key(late=False) == Gradco(dim=8, orbit="1:3-3").key(late=False)
    part = open_data("karate").whole()
    for orbit in ("1:3-3", (3, 4, 4), "(2,1,1)"):
        direct = Gradco(dim=8, orbit=orbit).vectors(adjacency_of("karate")).numpy()  # type: ignore[arg-type]
        moved = model.at(orbit=orbit)
        assert np.array_equal(moved.embed(part), direct)
        # one fit for all of them, also from another process's ledger, and through the moved model's own file
        assert np.array_equal(fit(Gradco(dim=8, orbit=orbit), ledger=ledger).embed(part), direct)  # type: ignore[arg-type]
        store.save_model(moved, tmp_path / "model")
        loaded = store.load_model(tmp_path / "model")
        assert np.array_equal(loaded.embed(part), direct) and loaded.method.orbit == moved.method.orbit  # type: ignore[attr-defined]
        assert np.array_equal(loaded.at(orbit="2:1-1").embed(part), model.embed(part))  # type: ignore[attr-defined]
        shutil.rmtree(tmp_path / "model")
    assert len(list((tmp_path / "runs").rglob("model.json"))) == 1
    with pytest.raises(UserError, match="'dim' cannot change after the fit"):
        model.at(dim=4)
    assert model.parameters() == 34 * 8


def test_points_list_each_orbit_once_its_own_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fit(Gradco(dim=4, orbit="1:5-4"))
    names = [point["orbit"] for point in model.points()]
    assert names[0] == "1:5-4" and "1:4-5" not in names and len(names) == len(set(names)) == len(DISTINCT) == 20
    both = [np.array(Gradco(dim=6, orbit=o, orientation="both").vectors(adjacency_of("karate"))) for o in ("1:4-5", "1:5-4")]  # type: ignore[arg-type]
    # the transpose swaps the halves: columns up to their sign
    assert np.allclose(np.abs(both[0][:, :3]), np.abs(both[1][:, 3:]), atol=1e-4)
    monkeypatch.setattr("latticework.nodes.gradco.method.free_memory", lambda: 30_000)
    assert "3:4-4" not in [point["orbit"] for point in model.points()]


def test_tuning_chooses_the_orbit_on_validation(tmp_path: Path, make_blocks: Any) -> None:
    data = GivenGraph.hold(make_blocks(n=90, seed=3))
    task = task_of("node-classification").for_data(data)
    fold = task.fold(data, "random-0")
    ledger = Ledger(tmp_path)
    run = Run(task=task, digest=data.digest(), fold="random-0", ledger=ledger, label="t")
    start = Gradco(dim=8, orbit="1:14-14")
    tuned = Tuned(method=suited(task, start), trials=15)
    assert list(tuned.space()) == ["encoder.orbit"] and len(tuned.space()["encoder.orbit"]) == 20
    model: Any = fitted(tuned, fold.train, fold.valid, run)
    chosen = model.method.encoder
    assert chosen.orbit != (1, 14, 14) and chosen.dim == 8
    direct = chosen.vectors(adjacency_of(data)).numpy()
    assert np.array_equal(model.encoder.embed(fold.test), direct)
    # it is the best of what was tried, by validation alone: the curve is that of validation scores
    values = [value for _, value in run.curve["valid"]]
    check = Run(task=task, digest=data.digest(), fold="random-0", ledger=ledger)
    check._valid = fold.valid
    assert len(values) == 15 and check.validate(model) == pytest.approx(max(values))
    # the encoder was fitted once for all trials
    heads = [json.loads(p.read_text())["method"]["is"] for p in tmp_path.rglob("model.json")]
    assert heads.count("gradco") == 1 and heads.count("logistic-readout") > 1


def test_orbits_nobody_sits_on_give_zeros_and_say_so() -> None:
    star = finish(Graph(np.array([[0, 0, 0, 0], [1, 2, 3, 4]]), tuple("abcde")), False)
    data = GivenGraph.hold(star)
    run = Run(task=None, digest=data.digest(), fold="all")
    model = fitted(Gradco(dim=4, orbit="1:14-14"), data.whole(), None, run)  # type: ignore[arg-type]
    assert not model.vectors.any() and run.notes == ["no pair of nodes sits on 1:14-14: all vectors are zero"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("trials", [0, 2])
def test_what_an_encoder_notes_stands_in_the_record_of_the_whole(tmp_path: Path, make_blocks: Any, trials: int) -> None:
    """Through a read-out, through tuning, and where the fit comes from the ledger."""
    graph = make_blocks()
    loops = np.concatenate([graph.edge_index, np.arange(3)[None].repeat(2, 0)], 1)
    data = GivenGraph.hold(finish(replace(graph, edge_index=loops, _cache={}), False))
    task = task_of("node-classification").for_data(data)
    fold = task.fold(data, task.plan(data, 1)[0][0])
    method: Any = entry_of("logistic-readout(encoder=gradco(dim=4))")
    if trials:
        method = Tuned(method=method, trials=trials)
    for _ in range(2):
        run = Run(task=task, digest=data.digest(), fold="a", ledger=Ledger(tmp_path))
        fitted(method, fold.train, fold.valid, run)
        assert sum(note.startswith("gradco: ") and "loop" in note for note in run.notes) == 1, run.notes
        assert (f"chosen of {trials} trials" in run.notes[0]) == bool(trials)


def test_time_that_is_up_gives_the_edges_and_says_so() -> None:
    data = open_data("karate")
    run = Run(task=None, digest=data.digest(), fold="all", deadline=0.0)
    model: Any = fitted(Gradco(dim=4, orbit="3:4-4"), data.whole(), None, run)  # type: ignore[arg-type]
    assert run.stopped and "before 3:4-4 was counted" in run.notes[-1] and model.method.orbit == (1, 0, 0)
    assert np.array_equal(model.vectors, Gradco(dim=4, orbit="1:0-0").vectors(adjacency_of("karate")))  # type: ignore[arg-type]


def test_a_saved_model_says_which_orbit_the_time_left(tmp_path: Path) -> None:
    fitted_model = lw.fit("gradco", "karate", time=1e-6)
    fitted_model.save(tmp_path / "M")
    model: Any = lw.load(tmp_path / "M").model
    assert model.encoder.method.orbit == (1, 0, 0) and model.method.encoder.orbit == (1, 0, 0)
    assert np.array_equal(model.encoder.vectors, Gradco(orbit="1:0-0").vectors(adjacency_of("karate")))  # type: ignore[arg-type]


def test_graphs_that_are_not_simple() -> None:
    edges = np.array([[0, 1, 1, 2, 2, 2], [1, 0, 2, 2, 0, 0]])
    A, notes = simple_adjacency(edges, 4)
    assert A.toarray().tolist() == [[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert notes == [
        "directed edges taken both ways: 2 reverse edges added",
        "1 self-loops dropped: a simple graph has none",
        "1 repeated edges count once",
    ]
    weighted = Graph(edges, tuple("abcd"), weight=np.full(6, 2, np.float32))
    data = GivenGraph.hold(finish(weighted, False))
    assert "edges have weights" in str(Gradco().refuses(task_of("node-classification"), data.facts()))
    with pytest.raises(UserError, match="orbits cannot be counted on this graph: its edges have weights"):
        fit(Gradco(dim=2), data)
    ones = GivenGraph.hold(finish(Graph(edges, tuple("abcd"), weight=np.ones(6, np.float32)), False))
    assert Gradco().refuses(task_of("node-classification"), ones.facts()) is None  # 1 says no more than that the edge is there
    assert fit(Gradco(dim=2), ones).embed(ones.whole()).shape == (4, 2)


def test_too_large_for_the_memory_is_said_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latticework.nodes.gradco.method.free_memory", lambda: 10_000)
    with pytest.raises(UserError, match=r"the vectors of 3:4-4 may take 0\.0 GB on this graph, and 0\.0 GB are free"):
        fit(Gradco(dim=4, orbit="3:4-4"))
    monkeypatch.setattr("latticework.nodes.gradco.probe.free_memory", lambda: 10_000)
    with pytest.raises(UserError, match=r"may take .* GB of memory and 0\.0 GB are free"):
        OrbitAdjacencies().measure(open_data("karate"), Run(task=None))


def test_free_memory_reads_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   2048 kB\n"}

    def read(path: Path, *_: Any, **__: Any) -> str:
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read)
    assert memory.free_memory() == 2048 * 1024
    files |= {"/sys/fs/cgroup/memory.max": "1000000\n", "/sys/fs/cgroup/memory.current": "400000\n"}
    assert memory.free_memory() == 600_000
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert memory.free_memory() == 2048 * 1024
    files.clear()
    assert memory.free_memory() is None


# -- the probe ---------------------------------------------------------------------------------------------------------------
def probe(folder: Path | None, data: Any = "karate", **fields: Any) -> Any:
    run = Run(task=None, label="orbit-adjacencies")
    run.folder = folder  # type: ignore[attr-defined]
    return OrbitAdjacencies(**fields).measure(open_data(data), run)


def test_probe_battery() -> None:
    check_probe("orbit-adjacencies", "karate")
    check_probe("orbit-adjacencies(orbits=1:0-0,2:1-1; block=2)", "karate")


@pytest.mark.parametrize("compress", [True, False])
def test_files_are_the_matrices(tmp_path: Path, compress: bool) -> None:
    found = probe(tmp_path / "out", compress=compress, block=1)
    expected = orbit_adjacencies(adjacency_of("karate"))
    names = {"orbit-{}-{}-{}.npz".format(*orbit) for orbit in ORBITS}
    assert {p.name for p in found.files} == names | {"graphlet-degrees.csv"} == {p.name for p in (tmp_path / "out").iterdir()}
    for orbit, row in zip(ORBITS, found.tables["orbit adjacencies"], strict=True):
        matrix = sp.load_npz(tmp_path / "out" / "orbit-{}-{}-{}.npz".format(*orbit))
        assert isinstance(matrix, sp.csr_array) and matrix.dtype == np.int64 and matrix.has_sorted_indices
        assert np.array_equal(matrix.toarray(), expected[orbit].toarray())
        assert (row["orbits"], row["entries"], row["sum"]) == (orbit_name(orbit), matrix.nnz, matrix.sum())
        assert row["largest"] == matrix.max() and row["density"] == pytest.approx(matrix.nnz / (34 * 33))
    degrees = pl.read_csv(tmp_path / "out" / "graphlet-degrees.csv")
    assert degrees.shape == (34, 16) and degrees["orbit 3"].sum() == 3 * 45
    assert found.scalars["graphlets: triangle"] == 45 and found.scalars["edges"] == 78
    assert found.scalars["disk at most, MB"] * 1e6 >= sum(12 * m.nnz for m in expected.values())


def test_some_orbits_and_no_folder(tmp_path: Path) -> None:
    found = probe(None, orbits="2:1-1,3:4-4")
    assert [row["orbits"] for row in found.tables["orbit adjacencies"]] == ["2:1-1", "3:4-4"] and not found.files
    assert "graphlets: path of four" not in found.scalars and found.scalars["disk at most, MB"] == 0


def test_graphlet_degrees_are_left_out_where_their_memory_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = OrbitCounts(adjacency_of("karate"))
    few, all_degrees = counts.need([(1, 1, 2)]).memory, counts.need(DEGREE_ORBITS).memory
    assert few < all_degrees
    assert probe(tmp_path / "all", orbits="1:1-2").scalars["memory at most, MB"] == round(all_degrees / 1e6, 1)
    monkeypatch.setattr("latticework.nodes.gradco.probe.free_memory", lambda: few)
    monkeypatch.setattr(OrbitCounts, "node_orbits", lambda self: pytest.fail("counted beyond the memory"))
    found = probe(tmp_path / "few", orbits="1:1-2")
    assert found.scalars["graphlet degrees"].startswith("left out: they may take") and list(found.tables) == ["orbit adjacencies"]
    assert sorted(p.name for p in tmp_path.glob("*/*")) == ["graphlet-degrees.csv", "orbit-1-1-2.npz", "orbit-1-1-2.npz"]


def test_a_cancelled_probe_leaves_no_file(tmp_path: Path) -> None:
    run = Run(task=None, cancelled=lambda: True)
    run.folder = tmp_path  # type: ignore[attr-defined]
    with pytest.raises(Cancelled):
        OrbitAdjacencies().measure(open_data("karate"), run)
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_is_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 5_000))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"may take 0\.0 GB in .* while they are written \(3:4-4 up to \d+ entries"):
        probe(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_progress_is_logged(tmp_path: Path) -> None:
    heard: list[Any] = []
    run = Run(task=None, on_log=lambda label, step, values: heard.append(values))
    run.folder = tmp_path  # type: ignore[attr-defined]
    OrbitAdjacencies(block=1).measure(open_data("barabasi-albert(nodes=400; edges=5)"), run)
    rows = [v["rows"] for v in heard if "rows" in v]
    assert "memory at most, MB" in heard[0] and "disk at most, MB" in heard[0]  # said before the work
    assert len(rows) > 3 and [v["files"] for v in heard if "files" in v] == list(range(1, 29))


def test_a_file_of_rows_as_they_come(tmp_path: Path) -> None:
    matrix = sp.random_array((60, 60), density=0.2, rng=np.random.default_rng(0), format="csr", dtype=np.float64)
    whole = sp.csr_array((matrix * 1e12).astype(np.int64))
    whole.sort_indices()
    with CsrFile(tmp_path / "m.npz", 60) as file:
        for start in range(0, 60, 7):
            file.append(whole[start : start + 7])
        assert not (tmp_path / "m.npz").exists()
        file.close()
    assert [p.name for p in tmp_path.iterdir()] == ["m.npz"]
    loaded = sp.load_npz(tmp_path / "m.npz")
    assert (loaded != whole).nnz == 0 and loaded.indices.dtype == np.int32
    with pytest.raises(RuntimeError), CsrFile(tmp_path / "n.npz", 60) as file:
        file.append(whole[:7])
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["m.npz"]


# -- as a user types it ------------------------------------------------------------------------------------------------------
def test_commands(graph_folder: Path, tmp_path: Path, command: Command) -> None:
    edges = graph_folder / "edges.csv"
    for orbit in ("2:1-1", "(2,1,1)", "2,1,1"):
        status, said, err = command(
            "embed", edges, "-m", "gradco", "-s", f"orbit={orbit}", "-s", "dim=8", "-o", tmp_path / "v.npy"
        )
        assert status == 0, said + err
        vectors = np.load(tmp_path / "v.npy")
        assert vectors.shape == (60, 8) and np.array_equal(vectors, Gradco(dim=8).vectors(adjacency_of(edges)).numpy())
    status, _, err = command("embed", edges, "-m", "gradco", "-s", "orbit=2:1-7", "-o", tmp_path / "w.npy")
    assert status == 2 and not (tmp_path / "w.npy").exists()
    said = " ".join(err.split())
    assert "no pair of orbits is called 2:1-7" in said and all(orbit_name(o) in said for o in ORBITS)
    status, said, err = command("probe", "orbit-adjacencies", edges)
    assert status == 0 and "graphlets: clique of four" in said and "3:4-4" in said, err
    status, _, err = command("probe", "orbit-adjacencies", edges, "-s", "orbits=2:1-1,5:1-1")
    assert status == 2 and "no pair of orbits is called 5:1-1" in " ".join(err.split())
    status, said, err = command(
        "compare", graph_folder, "-m", "ppmi,netmf,gradco(orbit=1:1-2)", "--repeats", "2", "--runs", tmp_path / "runs", "--no-baselines",
        "-s", "dim=8", "-s", "task.protocol=folds", "-s", "task.rank_by=macro-f1",
    )  # fmt: skip
    assert status == 0 and "gradco(orbit=1,1,2; dim=8) + logistic regression" in said, said + err


def test_weights_are_refused_before_the_work(tmp_path: Path, make_blocks: Any, command: Command) -> None:
    graph = make_blocks()
    weighted = Graph(
        graph.edge_index, graph.ids, weight=np.full(graph.edge_index.shape[1], 2, np.float32), y=graph.y, classes=graph.classes
    )
    write_graph(weighted, tmp_path / "g")
    status, said, _ = command("data", "check", tmp_path / "g")
    assert status == 0 and "gradco (its edges have weights" in said
    for words in (
        ("probe", "orbit-adjacencies", tmp_path / "g"),
        ("embed", tmp_path / "g", "-m", "gradco", "-o", tmp_path / "v.npy"),
    ):
        status, _, err = command(*words)
        assert status == 2 and "its edges have weights" in " ".join(err.split())


def test_the_paper_is_listed() -> None:
    assert registry.paper("gradco").facts["title"].startswith("Graphlets correct")
    for noun, name in (("method", "gradco"), ("method", "ppmi"), ("method", "netmf"), ("probe", "orbit-adjacencies")):
        assert registry.find(noun, name).load().name == name
