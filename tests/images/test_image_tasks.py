"""Image classification: folds without leaks, budgets, the users' files, judging, and what must be beaten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import latticework as lw
from latticework.common.small_cnn import SmallCNN, SmallCNNMethod, Standardise, as_input, one_cycle
from latticework.common.tiny_vit import TinyViT, TinyViTMethod, chosen_patch, tiny_vit_parameters
from latticework.core.dataset import Dataset, open_data
from latticework.core.errors import UserError
from latticework.core.evaluate import Options, evaluate
from latticework.core.ledger import Ledger
from latticework.core.result import Score
from latticework.core.run import Run
from latticework.data.images import ImageFiles, from_arrays
from latticework.images.baselines import MajorityImages
from latticework.images.tasks import ImageAnswer, ImageClassification, ImageQuery


def stripes(n: int = 60, seed: int = 0, side: int = 8, split: bool = True, channels: int = 1) -> Dataset:
    """Three classes told apart by their stripes, with noise."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    base = np.stack(
        [np.add.outer(np.arange(side), np.zeros(side)), np.add.outer(np.zeros(side), np.arange(side)), np.zeros((side, side))]
    )
    pixels = (base[y] % 2 * 160 + rng.integers(0, 90, (n, side, side))).astype(np.uint8)[..., None].repeat(channels, 3)
    splits = np.repeat([0, 1, 2], [n // 2, n // 6, n - n // 2 - n // 6]) if split else None
    return from_arrays(pixels, y, ("flat", "down", "none"), splits, [f"p{seed}-{i}.png" for i in range(n)])


def judged(method: Any, data: Dataset, task: ImageClassification | None = None, seed: int = 0) -> Any:
    return evaluate(task or ImageClassification(), data, method, "own", seed, Ledger(), Options(debug=True))


# -- folds ---------------------------------------------------------------------------------------------------------------
def test_parts_hold_their_own_pictures_only() -> None:
    data = stripes()
    images = data.read()
    fold = ImageClassification().fold(data, "own")
    assert fold.valid is not None
    for code, part in enumerate((fold.train, fold.valid, fold.test)):
        rows = np.flatnonzero(images.splits == code)
        assert part.data.ids == tuple(images.ids[i] for i in rows)
        assert np.array_equal(part.truth, images.labels[rows]) and np.array_equal(part.data.pixels, images.pixels[rows])
        assert (part.data.labels == (images.labels[rows] if code == 0 else -1)).all()
    assert fold.test.blind().truth is None


def test_data_without_a_split_get_one_fixed_draw_by_class() -> None:
    data = stripes(split=False)
    fold, again = (ImageClassification().fold(data, "own") for _ in range(2))
    sizes = [len(p.query) for p in (fold.train, fold.valid, fold.test)]
    assert sizes == [42, 6, 12] and fold.test.data.ids == again.test.data.ids
    assert np.bincount(fold.test.truth).tolist() == [4, 4, 4] and np.bincount(fold.valid.truth).tolist() == [2, 2, 2]
    whole = ImageClassification().fold(data, "all")
    assert [len(whole.train.query), len(whole.valid.query), len(whole.test.query)] == [54, 6, 0]
    ids = [p.data.ids for p in (fold.train, fold.valid, fold.test)]
    assert len({i for part in ids for i in part}) == 60


def test_all_of_a_given_split_trains_for_use() -> None:
    fold = ImageClassification().fold(stripes(), ImageClassification().final(stripes()))
    assert [len(fold.train.query), len(fold.valid.query), len(fold.test.query)] == [50, 10, 0]


def test_missing_validation_is_cut_from_train() -> None:
    images = stripes().read()
    data = from_arrays(images.pixels, images.labels, images.classes, np.where(images.splits == 1, 0, images.splits))
    fold = ImageClassification().fold(data, "own")
    assert len(fold.train.query) + len(fold.valid.query) == 40 and len(fold.test.query) == 20 and len(fold.valid.query) > 2


def test_data_that_cannot_be_judged_are_refused() -> None:
    pixels = np.zeros((6, 4, 4), np.uint8)
    for labels, splits, says in (
        (None, None, "no image has a label"),
        ([0] * 6, None, "all labelled images have one class"),
        ([0, 1] * 3, [0] * 6, "no test image"),
        ([0, 1] * 3, [2] * 6, "no train image"),
        ([0, 1, 0, 1, 0, 1], [0, 2, 0, 2, 0, 2], "train images are all of class '0'"),
    ):
        with pytest.raises(UserError, match=says):
            ImageClassification().fold(from_arrays(pixels, labels, None, splits), "own")
    with pytest.raises(UserError, match="budgets are positive and rise"):
        ImageClassification.make({"budgets": [2.0, 1.0]})


# -- scores --------------------------------------------------------------------------------------------------------------
def test_scores_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import f1_score

    task, fold = ImageClassification(), ImageClassification().fold(stripes(), "own")
    p = np.random.default_rng(0).dirichlet(np.ones(3), len(fold.test.query))
    scores = task.score(ImageAnswer(p), fold.test, None)
    assert scores[0].value == pytest.approx((p.argmax(1) == fold.test.truth).mean())
    assert scores[1].value == pytest.approx(f1_score(fold.test.truth, p.argmax(1), average="macro"))
    by_class = [s for s in scores if s.at.get("slice") == "class"]
    assert sum(s.value * s.at["images"] for s in by_class) == pytest.approx(scores[0].value * len(p))
    assert task.headline(scores) == scores[0].value


def test_budgets_choose_and_average() -> None:
    task, fold = ImageClassification(budgets=(10.0, 100.0)), ImageClassification().fold(stripes(), "own")
    right = np.eye(3)[fold.test.truth]
    wrong = np.eye(3)[(fold.test.truth + 1) % 3]
    # one net of 50 FLOPs: no answer within 10, so no headline
    scores = task.score(ImageAnswer(right, 50.0), fold.test, None)
    assert [(s.value, s.why) for s in scores if "budget" in s.at] == [(None, "it takes 50 FLOPs"), (1.0, "")]
    assert task.headline(scores) is None
    assert task.headline(task.score(ImageAnswer(right, 5.0), fold.test, None)) == 1.0
    # a net of many points: each id by itself, then one answer a budget
    many = task.score(ImageAnswer(wrong, 5.0, many=True), fold.test, None)
    many += task.score(ImageAnswer(right, 50.0, many=True), fold.test, None)
    assert task.headline(many) == 0.5
    many += task.score(ImageAnswer(wrong, 5.0, 10.0, many=True), fold.test, None)
    many += task.score(ImageAnswer(right, 50.0, 100.0, many=True), fold.test, None)
    assert task.headline(many) == 0.5 and [s.at for s in many if s.metric == "accuracy"][-1] == {"budget": 100.0}
    refused = task.score(ImageAnswer(None, None, 10.0, "too dear", many=True), fold.test, None)
    assert refused == [Score("accuracy", None, {"budget": 10.0}, "too dear")]


def test_answers_are_checked() -> None:
    class Wrong:
        method = MajorityImages()

        def __init__(self, value: Any) -> None:
            self.value = value

        def predict(self, part: Any) -> Any:
            return self.value

    fold, run = ImageClassification().fold(stripes(), "own"), Run(task=None)
    with pytest.raises(UserError, match=r"gave \[2, 3\] instead of class probabilities \[20, 3\]"):
        ImageClassification().answer(Wrong(np.zeros((2, 3))), fold.test, run)
    bad = np.zeros((20, 3))
    bad[4, 1] = np.nan
    with pytest.raises(UserError, match=r"not finite for picture .p0-44\.png."):
        ImageClassification().answer(Wrong(bad), fold.test, run)


# -- methods -------------------------------------------------------------------------------------------------------------
def test_majority_gives_the_shares() -> None:
    result = judged(MajorityImages(), stripes(61, split=False))
    assert result.headline == pytest.approx(1 / 3, abs=0.05)
    assert next(s for s in result.scores if s.metric == "accuracy").at == {"flops": 0.0}


@pytest.mark.parametrize(
    "method",
    [
        SmallCNNMethod(width=4, stages=2, depth=1, epochs=12, batch=8, lr=0.01),
        TinyViTMethod(width=8, heads=2, depth=2, epochs=20, batch=8, lr=0.01),
    ],
    ids=lambda m: m.name,
)
def test_networks_learn_repeat_and_survive_their_file(method: Any, tmp_path: Path) -> None:
    data = stripes(90)
    ledger = Ledger()
    first = evaluate(ImageClassification(), data, method, "own", 0, ledger, Options(debug=True))
    second = judged(method, data)
    assert first.headline > 0.8 and first.scores == second.scores
    fitted = lw.fit(method, data, task="image-classification", device="cpu", fold="own", runs=ledger.root)
    before = fitted.predict(stripes(9, seed=7)).values.probabilities
    fitted.save(tmp_path / "m")
    after = lw.load(tmp_path / "m").predict(stripes(9, seed=7)).values.probabilities
    assert np.array_equal(before, after) and np.allclose(before.sum(1), 1)


def test_networks_are_their_sockets() -> None:
    torch.manual_seed(0)
    for net in (SmallCNN(3, 5, 4, 3, 2), TinyViT(3, (9, 7), 5, 4, 8, 2, 2), TinyViT(3, (9, 7), 5, 4, 8, 2, 2, cls_token=False)):
        net.eval()
        x = torch.rand(2, 3, 9, 7)
        h = net.embed(x)
        for block in net.blocks:
            for part in block if isinstance(block, torch.nn.ModuleList) else [block]:
                h = part(h)
        assert torch.equal(net.head(h), net(x)) and net(x).shape == (2, 5)
    with pytest.raises(ValueError, match="made for images of 7x9"):
        TinyViT(3, (9, 7), 5, 4, 8, 2, 2)(torch.rand(1, 3, 7, 9))
    with pytest.raises(ValueError, match="heads must divide"):
        TinyViT(1, (8, 8), 3, 2, 10, 2, 4)
    with pytest.raises(UserError, match="heads must divide"):
        TinyViTMethod.make({"width": 10, "heads": 4})


def test_attention_is_the_formula() -> None:
    from latticework.common.tiny_vit import Attention

    torch.manual_seed(0)
    layer, x = Attention(6, 2).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    q, k, v = layer.qkv(x).chunk(3, dim=-1)
    heads = []
    for h in range(2):
        a, b, c = (t[..., 3 * h : 3 * h + 3] for t in (q, k, v))
        heads.append(torch.softmax(a @ b.mT / 3**0.5, -1) @ c)
    assert torch.allclose(layer(x), layer.out(torch.cat(heads, -1)))


@pytest.mark.parametrize("cls_token", [True, False])
def test_parameters_are_the_closed_form(cls_token: bool) -> None:
    net = TinyViT(3, (9, 7), 5, 4, 12, 3, 2, 1.5, cls_token)
    parts = tiny_vit_parameters(3, (9, 7), 5, 4, 12, 1.5, cls_token)
    assert parts == tuple(sum(p.numel() for p in m.parameters()) for m in (net.embed, net.blocks[0], net.head))


def test_small_parts() -> None:
    assert [chosen_patch(s, s) for s in (8, 28, 32, 224)] == [2, 4, 4, 28]
    assert one_cycle(0) == pytest.approx(1 / 25) and one_cycle(0.3) == pytest.approx(1) and one_cycle(1) == pytest.approx(1e-4)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 2), np.uint8)
    pixels[..., 1] = 9
    layer = Standardise(2)
    layer.learn(pixels)
    out = layer(as_input(pixels))
    assert out[:, 0].mean().abs() < 1e-5 and (out[:, 0].std(correction=0) - 1).abs() < 1e-5 and out[:, 1].abs().max() < 1e-6
    with pytest.raises(ValueError, match="images are"):
        layer(torch.zeros(1, 3, 4, 4))


# -- users' files --------------------------------------------------------------------------------------------------------
def save(data: Dataset, to: Path) -> None:
    images = data.read()
    for picture, label, name in zip(images.pixels, images.labels, images.ids, strict=True):
        (to / images.classes[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[..., 0]).save(to / images.classes[label] / name)


def test_fit_predict_and_score_on_a_folder(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    save(stripes(60), tmp_path / "mine")
    save(stripes(12, seed=3), tmp_path / "new")
    fit = ("fit", "small-cnn", tmp_path / "mine", "-s", "epochs=12", "-s", "width=4", "-s", "batch=8", "-s", "lr=0.01")
    status, out, err = command(*fit, "-o", tmp_path / "m", "--device", "cpu")
    assert status == 0, out + err
    status, out, err = command("predict", tmp_path / "m", tmp_path / "new", "-o", tmp_path / "said.csv")
    assert status == 0, out + err
    lines = (tmp_path / "said.csv").read_text().splitlines()
    assert lines[0] == "file,prediction,p(down),p(flat),p(none)" and len(lines) == 13 and lines[1].startswith("down/")
    scores = lw.score("image-classification", tmp_path / "said.csv", tmp_path / "new")
    right = [line.split(",")[0].split("/")[0] == line.split(",")[1] for line in lines[1:]]
    assert scores[0] == Score("accuracy", sum(right) / 12) and scores[0].value > 0.6
    (tmp_path / "truth.csv").write_text("file,label\n" + "\n".join(f"{x.split(',')[0]},none" for x in lines[1:]))
    assert lw.score("image-classification", tmp_path / "said.csv", tmp_path / "truth.csv")[0].value == pytest.approx(
        sum(x.split(",")[1] == "none" for x in lines[1:]) / 12
    )


def test_files_are_matched_to_the_model(tmp_path: Path) -> None:
    grey, colour = MajorityImages(), MajorityImages()
    task, run = ImageClassification(), Run(task=None)
    fits = {c: m.fit(task.fold(stripes(channels=c), "own").train, None, run) for c, m in ((1, grey), (3, colour))}
    ask = lambda c, data: task.ask(data, ImageQuery(), fits[c].schema)  # noqa: E731
    part = ask(3, stripes(9, channels=1))
    assert part.data.pixels.shape[-1] == 3 and list(part.schema["classes"]) == ["flat", "down", "none"] and len(part.query) == 9
    with pytest.raises(UserError, match="fitted on grey pictures"):
        ask(1, stripes(9, channels=3))
    with pytest.raises(UserError, match=r"pictures of 8x8, and these are 6x6; -s data\.side=8"):
        ask(1, stripes(9, side=6))
    images = stripes(9).read()
    some = from_arrays(images.pixels, np.where(np.arange(9) < 4, -1, images.labels), images.classes)
    assert len(ask(1, some).query) == 4 and len(task.ask(some, ImageQuery(images="all"), fits[1].schema).query) == 9
    assert (ask(1, some).data.labels == -1).all()


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("file,prediction\nx,a\nx,a\n", "line 3: 'x' stands more than once"),
        ("file,prediction\nz,a\n", "picture 'z' has no label"),
        ("file,prediction\nx,\n", "picture 'x' has no prediction"),
        ("file,answer\nx,a\n", "no column 'prediction'"),
    ],
)
def test_wrong_answers_are_refused(tmp_path: Path, said: str, says: str) -> None:
    (tmp_path / "said.csv").write_text(said)
    (tmp_path / "truth.csv").write_text("file,label\nx,a\ny,b\n")
    with pytest.raises(UserError, match=says):
        lw.score("image-classification", tmp_path / "said.csv", tmp_path / "truth.csv")


def test_digits_and_a_flat_folder(tmp_path: Path) -> None:
    fitted = lw.fit(MajorityImages(), "digits", task="image-classification")
    (tmp_path / "flat").mkdir()
    for i, p in enumerate(open_data("digits").read().pixels[:3]):
        Image.fromarray(p[..., 0]).save(tmp_path / "flat" / f"{i}.png")
    answers = fitted.predict(ImageFiles(path=tmp_path / "flat"))
    answers.write(tmp_path / "o.csv")
    assert (tmp_path / "o.csv").read_text().splitlines()[1].startswith("0.png,")
