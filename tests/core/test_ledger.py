"""The ledger and model files: whole or not at all, errors that say what to do."""

from __future__ import annotations

import errno
import json
import os
import stat
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import latticework as lw
from latticework.core import store
from latticework.core.errors import Failure, Held, UserError
from latticework.core.ledger import Ledger, write_folder, write_whole
from latticework.core.result import Cost, Result, Score


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail(draft: Path) -> None:
        (draft / "half").write_text("x")
        raise ValueError("no")

    write_folder(tmp_path / "a", lambda d: (d / "one").write_text("1") and None)
    with pytest.raises(ValueError):
        write_folder(tmp_path / "a", fail)
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a" / "one").read_text() == "1"


def test_what_is_somebody_elses_is_not_replaced(tmp_path: Path) -> None:
    def model(draft: Path) -> None:
        (draft / "model.json").write_text("2")

    theirs = tmp_path / "thesis"
    theirs.mkdir()
    write_folder(theirs, model)  # an empty folder is nobody's
    write_folder(theirs, model)
    (theirs / "model.json").rename(theirs / "chapter.txt")
    with pytest.raises(UserError, match=r"holds something else \('chapter.txt', 1 in all\), which is kept"):
        write_folder(theirs, model)
    with pytest.raises(UserError, match="is a file, and a folder is to be written"):
        write_folder(theirs / "chapter.txt", model)
    assert (theirs / "chapter.txt").read_text() == "2" and [p.name for p in tmp_path.iterdir()] == ["thesis"]


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "kept", "before")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Failure, match="disk is full"):
        write_whole(tmp_path / "kept", "after")
    with pytest.raises(Failure, match="disk is full"):
        Ledger(tmp_path / "runs").put_result(a_result())
    assert (tmp_path / "kept").read_text() == "before"
    assert list((tmp_path / "runs" / "cells").iterdir()) == [] and list((tmp_path / "runs" / "tmp").iterdir()) == []


def test_a_folder_without_permission_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *a: False)
    with pytest.raises(UserError, match="no permission"):
        Ledger(tmp_path)


def a_result() -> Result:
    scores = (Score("accuracy", 0.5, {"slice": "degree"}), Score("roc-auc", None, {}, "one class"))
    return Result("abc", "done", scores, 0.5, Cost(fit_s=1.0), None, {"seed": 0})


def test_a_result_comes_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.put_result(a_result(), {"scalars": {"s": 1}})
    found = ledger.result("abc")
    assert found == a_result() and ledger.findings("abc") == {"scalars": {"s": 1}}
    assert [r.cell for r in ledger.results()] == ["abc"]


def test_a_held_key_is_refused_at_once(tmp_path: Path) -> None:
    with Ledger(tmp_path).hold("k", wait=False), pytest.raises(Held), Ledger(tmp_path).hold("k", wait=False):
        pass


def test_a_checkpoint_tree_comes_back_bit_for_bit() -> None:
    tree = {"a": [torch.arange(3), 1.5, "x", None, True], 5: (torch.ones(2, dtype=torch.float64),)}
    skeleton, tensors = store.flatten(tree)
    again = store.unflatten(json.loads(json.dumps(skeleton)), tensors)
    assert torch.equal(again["a"][0], tree["a"][0]) and again["a"][1:] == tree["a"][1:]  # type: ignore[index]
    assert torch.equal(again[5][0], tree[5][0]) and isinstance(again[5], tuple)  # type: ignore[index]
    with pytest.raises(TypeError):
        store.flatten({"a": object()})


@pytest.fixture
def saved(graph_folder: Path, tmp_path: Path) -> Path:
    return lw.fit("mlp", graph_folder, epochs=3).save(tmp_path / "model")


def test_a_model_file_names_no_code_and_no_pickle(saved: Path) -> None:
    assert sorted(p.name for p in saved.iterdir()) == ["model.json", "weights.safetensors"]
    assert lw.load(saved).method.name == "mlp"


def test_a_cut_model_file_is_refused(saved: Path) -> None:
    path = saved / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="SHA-256 differs"):
        lw.load(saved)


def test_a_tampered_model_file_is_refused(saved: Path) -> None:
    path = saved / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match="SHA-256 differs"):
        lw.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda head: head | {"format": 99}, "newer version"),
        (lambda head: {k: v for k, v in head.items() if k != "format"}, "cut short or not a model"),
        (lambda head: head | {"method": {"is": "nothing"}}, r"model\.json: .*no method is called 'nothing'.*fit again"),
        (lambda head: head | {"method": head["method"] | {"later": 1}}, r"model\.json: .*'later'.*another version"),
        (lambda head: head | {"schema": None}, "schema is NoneType"),
    ],
)
def test_a_model_head_of_another_kind_is_refused(saved: Path, change: Any, message: str) -> None:
    head = json.loads((saved / "model.json").read_text())
    (saved / "model.json").write_text(json.dumps(change(head)))
    with pytest.raises(UserError, match=message):
        lw.load(saved)


def test_json_cut_short_and_a_missing_file_are_refused(saved: Path) -> None:
    text = (saved / "model.json").read_text()
    (saved / "weights.safetensors").unlink()
    with pytest.raises(UserError, match="is missing"):
        lw.load(saved)
    (saved / "model.json").write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match="cut short"):
        lw.load(saved)
    with pytest.raises(UserError, match="not a saved model"):
        lw.load(saved.parent)


def test_a_folder_of_runs_with_a_file_in_its_place_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "cells").write_text("x")
    with pytest.raises(UserError, match="cells is a file where a folder is to be; choose another folder"):
        Ledger(tmp_path)
    with pytest.raises(UserError, match="is a file where a folder is to be"):
        Ledger(tmp_path / "cells" / "runs")


def test_a_folder_in_the_place_of_a_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "answers").mkdir()
    with pytest.raises(
        UserError, match=r"answers is a folder where a file is to be; name the file too, as .*answers/answers.csv"
    ):
        write_whole(tmp_path / "answers", "x")
    assert [*tmp_path.iterdir()] == [tmp_path / "answers"]


def test_a_report_leaves_a_strangers_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="is no folder of runs"):
        lw.report(tmp_path)
    assert [*tmp_path.iterdir()] == [tmp_path / "mine.txt"]


DAMAGE: list[tuple[str, Any, str]] = [
    ("cells/*/result.json", lambda data: data[:40], r"result\.json is cut short.*counts as not finished"),
    ("cells/*/result.json", lambda data: b"null", r"result\.json is not what was written.*counts as not finished"),
    ("cells/*/result.json", lambda data: b"{}", r"result\.json is no cell's result.*counts as not finished"),
    ("fits/*/weights.safetensors", lambda data: data[:-10], r"SHA-256 differs.*is made again"),
    ("fits/*/weights.safetensors", None, r"weights\.safetensors is missing.*is made again"),
    ("fits/*/model.json", lambda data: data[:40], r"model\.json is cut short.*is made again"),
    ("fits/*/fit.json", lambda data: b"\0" * len(data), r"fit\.json is cut short or no JSON.*is made again"),
    ("grids/*.json", lambda data: b"", r"json is cut short or no JSON"),
]


@pytest.mark.parametrize(("pattern", "change", "said"), DAMAGE)
def test_what_is_damaged_in_a_folder_of_runs_is_made_again(
    pattern: str, change: Any, said: str, graph_folder: Path, tmp_path: Path
) -> None:
    def board() -> Any:
        return lw.compare(graph_folder, ["mlp(epochs=3)"], repeats=1, baselines=False, runs=tmp_path)

    (row,) = board().cases[0].rows
    (path,) = tmp_path.glob(pattern)
    path.unlink() if change is None else path.write_bytes(change(path.read_bytes()))
    if path.name != "result.json":  # a finished cell asks for none of its fit's files
        for cell in (tmp_path / "cells").iterdir():
            (cell / "result.json").unlink()
    if pattern.startswith("grids"):
        with pytest.warns(UserWarning, match=said), pytest.raises(UserError):
            lw.report(tmp_path)
    else:
        with pytest.warns(UserWarning, match=said):
            (again,) = board().cases[0].rows
        assert again.mean == row.mean
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (healed,) = board().cases[0].rows  # nothing damaged is left
    assert healed.mean == row.mean


def test_a_damaged_checkpoint_starts_the_fit_anew(tmp_path: Path) -> None:
    from latticework.core.run import Run

    for name, cut in (("state.json", 5), ("state.safetensors", 5)):
        run = Run(task=None, ledger=Ledger(tmp_path / name))
        run.fit_key = "k"
        folder = run.ledger.work_folder("k")
        folder.mkdir(parents=True)
        store.write_tree(folder, {"step": 3, "state": {"w": torch.ones(2)}, "curve": {}})
        step, _ = run.last() or (0, None)
        assert step == 3
        (folder / name).write_bytes((folder / name).read_bytes()[:cut])
        with pytest.warns(UserWarning, match=f"{name} .*the fit starts anew"):
            assert run.last() is None


def test_a_skops_file_with_foreign_code_is_not_loaded(graph_folder: Path, tmp_path: Path) -> None:
    import hashlib

    import skops.io
    from sklearn.preprocessing import FunctionTransformer

    folder = lw.fit("logistic-regression", graph_folder).save(tmp_path / "m")
    evil = skops.io.dumps(FunctionTransformer(os.system))
    (folder / "estimator.skops").write_bytes(evil)
    head = json.loads((folder / "model.json").read_text())
    head["files"]["estimator.skops"] = hashlib.sha256(evil).hexdigest()
    (folder / "model.json").write_text(json.dumps(head))
    with pytest.raises(UserError, match="outside scikit-learn"):
        lw.load(folder)


def test_files_have_the_permissions_of_others_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    write_whole(tmp_path / "whole", "x")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "whole")}
    assert len(modes) == 1
