"""The command line as a person types it, on a folder of their own."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import latticework as lw

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mine(graph_folder: Path) -> Path:
    """The block graph with the labels of ten nodes missing and a categorical column."""
    nodes = pl.read_csv(graph_folder / "nodes.csv", infer_schema=False)
    label = [("" if i < 10 else text) for i, text in enumerate(nodes["label"])]
    nodes = nodes.with_columns(pl.Series("label", label), pl.Series("shade", ["dark", "light"] * 30))
    (graph_folder / "nodes.csv").write_bytes(b"\xef\xbb\xbf" + nodes.write_csv().replace("\n", "\r\n").encode())
    return graph_folder


def test_check_fit_predict_score(mine: Path, tmp_path: Path, command: Command) -> None:
    status, said, _ = command("data", "check", mine)
    assert status == 0 and "nodes: 60" in said and "10 nodes have no label" in said and "gcn" in said
    model, predictions = tmp_path / "MODEL", tmp_path / "predictions.csv"
    status, said, _ = command("fit", "gcn", mine, "-s", "epochs=60", "-s", "hidden=16", "-o", model)
    assert status == 0 and "chosen on validation loss" in said and f"wrote {model}" in said
    status, said, _ = command("predict", model, mine, "-o", predictions)
    assert status == 0, said
    table = pl.read_csv(predictions)
    assert table.columns == ["id", "prediction", "p(class 0)", "p(class 1)", "p(class 2)"]
    assert table["id"].to_list() == [f"node {i}" for i in range(10)]
    assert np.allclose(table.select(pl.col(r"^p\(.*$")).to_numpy().sum(1), 1, atol=1e-6)
    truth = tmp_path / "truth.csv"
    truth.write_text("id,label\n" + "".join(f"node {i},class {i % 3}\n" for i in range(60)))
    status, said, _ = command("score", "node-classification", predictions, truth)
    assert status == 0 and "accuracy" in said
    # what the command says is what scikit-learn says
    expected = np.mean([f"class {i % 3}" == p for i, p in enumerate(table["prediction"])])
    assert f"{expected:.4f}" in said
    status, said, _ = command("predict", model, mine, "-o", tmp_path / "all.csv", "--nodes", "all")
    assert status == 0 and pl.read_csv(tmp_path / "all.csv").height == 60


def test_a_saved_model_matches_a_new_file_by_name(mine: Path, tmp_path: Path, command: Command) -> None:
    assert command("fit", "mlp", mine, "-s", "epochs=20", "-o", tmp_path / "M")[0] == 0
    other = tmp_path / "other"
    shutil.copytree(mine, other)
    nodes = pl.read_csv(other / "nodes.csv", infer_schema=False)
    nodes.select(nodes.columns[::-1]).with_columns(pl.lit("1").alias("extra")).write_csv(other / "nodes.csv")
    for name, folder, note in (
        ("a.csv", mine, ""),
        ("b.csv", other, "note: 1 node features are none of the model's and left out: 'extra'\n"),
    ):
        status, _, said = command("predict", tmp_path / "M", folder, "-o", tmp_path / name)
        assert status == 0 and said == note
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    nodes.drop("f2").write_csv(other / "nodes.csv")
    status, _, said = command("predict", tmp_path / "M", other, "-o", tmp_path / "c.csv")
    assert status == 2 and "needs the node feature 'f2'; found" in said and not (tmp_path / "c.csv").exists()


def test_what_to_type_next_names_the_settings_of_the_data(tmp_path: Path, command: Command) -> None:
    words = ("-s", "data.clients=2", "-s", "data.of=karate", "-s", "rounds=1")
    status, said, err = command("fit", "fedavg", "partition", *words, "-o", tmp_path / "M")
    assert status == 0, err
    hint = said.splitlines()[-1].partition("use it: latticework ")[2].replace("-o predictions", f"-o {tmp_path / 'p'}")
    status, _, err = command(*shlex.split(hint))
    assert status == 0, err


def test_a_method_of_another_kind_names_its_like(tmp_path: Path, command: Command) -> None:
    status, _, err = command("compare", "rings-and-cliques", "-m", "gcn", "--task", "graph-classification")
    assert status == 2 and "use graph-gcn" in err
    for method in ("gin", "k-path", "wl-svm"):
        status, _, err = command("fit", method, "rings-and-cliques", "-s", "task=node-classification", "-o", tmp_path / "M")
        assert status == 2 and "node-classification is for graph, and this is graph-set" in err


def test_a_list_of_graphs_is_one_data_set() -> None:
    import torch
    from torch_geometric.data import Data

    graphs = [
        Data(edge_index=torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), num_nodes=3 + i % 3, y=torch.tensor([i % 2]))
        for i in range(30)
    ]
    board = lw.compare(graphs, ["graph-majority"], repeats=2, baselines=False)
    assert len(board.cases) == 1 and board.cases[0].rows[0].n == 2
    assert len(lw.compare([graphs, "rings-and-cliques"], ["graph-majority"], repeats=2, baselines=False).cases) == 2


def test_a_model_of_one_graph_says_how_to_refit(mine: Path, tmp_path: Path, command: Command) -> None:
    assert command("fit", "label-propagation", mine, "-o", tmp_path / "M")[0] == 0
    with (mine / "edges.csv").open("a") as file:
        file.write("node 0,node 59\n")
    status, _, said = command("predict", tmp_path / "M", mine, "-o", tmp_path / "p.csv")
    assert status == 2 and "fit again: latticework fit label-propagation" in said


def test_compare_writes_every_form_and_resumes(mine: Path, tmp_path: Path, command: Command) -> None:
    forms = [tmp_path / f"board.{e}" for e in ("html", "csv", "json", "md", "tex")]
    outputs = [w for form in forms for w in ("-o", form)]
    words = (
        "compare", mine, "-m", "mlp,fastrp(dim=16)", "--repeats", "2", "--runs", tmp_path / "runs", "-s", "epochs=5", "--classic", "1", *outputs,
    )  # fmt: skip
    status, said, err = command(*words)
    assert status == 0, said + err
    assert "fastrp(dim=16) + logistic regression" in said and "gcn, tuned [unasked]" in said and "majority [unasked]" in said
    assert all(form.stat().st_size > 200 for form in forms)
    board = json.loads((tmp_path / "board.json").read_text())
    assert {row["label"] for row in board["cases"][0]["rows"]} >= {"majority", "mlp(epochs=5)"}
    one_by_one = [w for word in words for w in (("mlp", "-m", "fastrp(dim=16)") if word == "mlp,fastrp(dim=16)" else (word,))]
    status, _, err = command(*one_by_one)
    assert status == 0 and "8 cells, 8 finished before" in err
    assert command("report", tmp_path / "runs", "-o", tmp_path / "again.html")[0] == 0
    assert (tmp_path / "again.html").stat().st_size > 10_000


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_comparison_keeps_what_is_finished(mine: Path, tmp_path: Path, command: Command, sign: signal.Signals) -> None:
    words = ["compare", str(mine), "-m", "majority,mlp", "--repeats", "500", "--no-baselines", "--runs", str(tmp_path / "runs")]
    child = subprocess.Popen([sys.executable, "-m", "latticework", *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    finished = lambda: len(list((tmp_path / "runs").glob("cells/*/result.json")))  # noqa: E731
    for _ in range(600):
        if finished() >= 3:
            break
        assert child.poll() is None
        time.sleep(0.1)
    child.send_signal(sign)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130 and "what is finished is kept" in said.decode() and finished() >= 3


def test_embed_writes_vectors_with_their_ids(mine: Path, tmp_path: Path, command: Command) -> None:
    for name in ("v.npy", "v.csv", "v.parquet"):
        status, said, err = command("embed", mine / "edges.csv", "-m", "fastrp", "-s", "dim=8", "-o", tmp_path / name)
        assert status == 0, said + err
    vectors, ids = np.load(tmp_path / "v.npy"), pl.read_csv(tmp_path / "v.ids.csv")["id"]
    assert vectors.shape == (60, 8) and len(ids) == 60
    table = pl.read_csv(tmp_path / "v.csv")
    assert table["id"].to_list() == ids.to_list() and np.allclose(table.drop("id").to_numpy(), vectors, atol=1e-5)
    status, _, said = command("embed", mine, "-m", "gcn", "-o", tmp_path / "w.npy")
    assert (
        status == 2
        and "gives no vectors; methods that do: adameow, deepwalk, fastrp, gradco, meow, metapath2vec, netmf, ppmi, svd" in said
    )


def test_probe_show_methods_export(mine: Path, tmp_path: Path, command: Command) -> None:
    status, said, _ = command("probe", "amud", mine, "-s", "data.directed=true", "-o", tmp_path / "amud.json")
    assert status == 0 and "decision" in said and json.loads((tmp_path / "amud.json").read_text())["scalars"]["S"] >= 0
    status, said, _ = command("show", "dagnn")
    assert status == 0 and "Towards Deeper" in said and "hops" in said and "Evidence" in said
    status, said, _ = command("methods", "--search", "heterophily")
    assert status == 0 and "adpa" in said and "dagnn" not in said
    assert command("data", "export", "karate", tmp_path / "karate")[0] == 0
    status, said, _ = command("data", "check", tmp_path / "karate")
    assert status == 0 and "nodes: 34" in said and "pairs joined: 78" in said
    status, _, said = command("data", "export", "karate", tmp_path / "karate")
    assert status == 2 and "exists" in said


def test_a_time_budget_stops_the_fit_and_says_so(mine: Path, tmp_path: Path, command: Command) -> None:
    status, said, _ = command(
        "fit", "gcn", mine, "-s", "epochs=100000", "-s", "patience=100000", "--time", "0.2s", "-o", tmp_path / "M"
    )
    assert status == 0 and "stopped by --time" in said
    assert json.loads((tmp_path / "M" / "model.json").read_text())["provenance"]["stopped"] is True


def test_the_python_face_says_the_same(mine: Path, tmp_path: Path, command: Command) -> None:
    model = lw.fit("mlp", mine, epochs=20)
    model.predict().write(tmp_path / "python.csv")
    assert command("fit", "mlp", mine, "-s", "epochs=20", "-o", tmp_path / "M")[0] == 0
    assert command("predict", tmp_path / "M", mine, "-o", tmp_path / "command.csv")[0] == 0
    assert (tmp_path / "python.csv").read_text() == (tmp_path / "command.csv").read_text()
    board = lw.compare(mine, methods=["mlp(epochs=3)"], repeats=2, baselines=False)
    assert board.cases[0].rows[0].n == 2


def test_debug_shows_the_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    from latticework.cli import run

    assert run(["fit", "gnc", "karate", "-o", "x"], debug=True) == 2
    assert "Traceback" in capfd.readouterr().err


def test_help_explains_arguments_and_shows_an_example(command: Command) -> None:
    from latticework.cli.verbs import app

    for verb in [c.name or c.callback.__name__.removesuffix("_verb") for c in app.registered_commands]:  # type: ignore[union-attr]
        status, said, _ = command(verb, "--help")
        assert status == 0 and "Example: latticework" in said, verb
    assert "NAME or NAME:PRESET" in command("fit", "--help")[1]
