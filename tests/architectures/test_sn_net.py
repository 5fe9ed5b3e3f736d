"""SN-Net as a recipe: one fit and many points, the model file, users' own nets, errors before any training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import latticework as lw
from latticework.architectures import sn_net
from latticework.architectures.sn_net import SNNetMethod, SNNetModel
from latticework.architectures.stitchable import select
from latticework.common.tiny_vit import TinyViTMethod
from latticework.core.dataset import Dataset, open_data
from latticework.core.errors import UserError
from latticework.core.evaluate import Options, evaluate
from latticework.core.grid import entry_of, task_of
from latticework.core.ledger import Ledger
from latticework.core.method import Ref
from latticework.data.images import Images, from_arrays

SMALL = [
    {"method": {"is": "tiny-vit", "width": w, "heads": 2, "depth": 2, "epochs": 12, "batch": 16, "lr": 5e-3}} for w in (8, 12, 16)
]
TASK = "image-classification"


def some_digits(n: int = 150, classes: int = 4) -> Dataset:
    """The first digits of a few classes, with a split."""
    images: Images = open_data("digits").read()
    rows = np.flatnonzero(images.labels < classes)[:n]
    splits = np.repeat([0, 1, 2], [n - n // 2, n // 5, n // 2 - n // 5])
    return from_arrays(images.pixels[rows], images.labels[rows], images.classes[:classes], splits)


def method(**fields: Any) -> SNNetMethod:
    return SNNetMethod.make({"anchors": SMALL, "epochs": 3, "batch": 16, "calibration": 50} | fields)


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """Shared, so that the anchors are fitted once."""
    return Ledger(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def fitted(ledger: Ledger) -> Any:
    return lw.fit(method(), some_digits(), task=TASK, device="cpu", runs=ledger.root)


# -- one fit, many points --------------------------------------------------------------------------------------------------
def test_every_id_is_the_stitch_it_names(fitted: Any) -> None:
    model: SNNetModel = fitted.model
    assert len(model.points()) == len(model.table()) == 3 + 2 * 4
    part = fitted.predict(images="all").part
    x = torch.from_numpy(part.data.pixels[part.query].transpose(0, 3, 1, 2).copy()).float() / 255
    for point in model.points():
        said = model.at(**point).predict(part)
        with torch.no_grad():
            expected = model.network(x, point["stitch"]).double().softmax(1).numpy()
        assert np.allclose(said, expected, atol=1e-6)
        alone = model.extract(point["stitch"])
        assert sum(p.numel() for p in alone.parameters()) == model.schema["table"][point["stitch"]]["parameters"]


def test_switching_changes_no_weight_and_no_generator(fitted: Any) -> None:
    model, part = fitted.model, fitted.predict(images="all").part
    weights = {k: v.clone() for k, v in model.state().items()}
    generator = torch.get_rng_state()
    first = model.at(stitch=5).predict(part)
    model.at(stitch=2).predict(part)
    model.at(max_flops=1e9).predict(part)
    assert np.array_equal(model.at(stitch=5).predict(part), first)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(v, weights[k]) for k, v in model.state().items())
    assert model.method.stitch is None


def test_budget_takes_the_best_known_below(fitted: Any) -> None:
    model = fitted.model
    cheap = min(p.flops for p in model.table())
    for budget in (cheap, 1.5 * cheap, 1e9):
        assert model.at(max_flops=budget).chosen() == select(model.table(), budget)
    assert model.chosen() == select(model.table(), float("inf"))
    assert model.at(stitch=4).at(max_flops=1e9).method.stitch is None
    with pytest.raises(UserError, match="no stitch takes at most 1 FLOPs; the cheapest"):
        fitted.at(max_flops=1.0).predict(images="all").write("nowhere.csv")
    with pytest.raises(UserError, match="ids go from 0 to 10"):
        model.at(stitch=11).chosen()


def test_table_is_measured_on_validation(fitted: Any) -> None:
    data, model = some_digits(), fitted.model
    fold = task_of(TASK).fold(data, fitted.run.fold)
    for row in model.schema["table"]:
        said = model.at(stitch=row["id"]).predict(fold.valid).argmax(1)
        assert row["accuracy"] == pytest.approx((said == fold.valid.truth).mean())


def test_evaluation_scores_every_point_and_budget(ledger: Ledger) -> None:
    data = some_digits()
    task = task_of(TASK).but(budgets=(10.0, 1e7))
    # another task means another fit, anchors included, so this one is short
    result = evaluate(task, data, method(epochs=0), "own", 0, ledger, Options(debug=True))
    accuracy = [s for s in result.scores if s.metric == "accuracy"]
    assert [s.at["stitch"] for s in accuracy[:11]] == list(range(11)) and all("flops" in s.at for s in accuracy[:11])
    assert {s.at["anchors"] for s in accuracy[:11]} == {"0", "1", "2", "0-1", "1-2"}
    low, high = accuracy[11:]
    assert low.value is None and "no stitch takes at most 10 FLOPs" in low.why and high.at["budget"] == 1e7
    assert result.headline is None  # a budget that cannot be met has no accuracy
    assert result.cost.refs_s > 0


def test_same_seed_same_numbers(ledger: Ledger, fitted: Any) -> None:
    again = lw.fit(method(), some_digits(), task=TASK, device="cpu", runs=ledger.root / "again")
    for key, value in fitted.model.state().items():
        assert torch.equal(value, again.model.state()[key]), key


def test_model_survives_its_file(fitted: Any, tmp_path: Path) -> None:
    fitted.save(tmp_path / "m")
    back = lw.load(tmp_path / "m")
    for late in ({"stitch": 6}, {"max_flops": 1e7}, {}):
        a, b = (f.at(**late).predict(some_digits(), images="all").values.probabilities for f in (fitted, back))
        assert np.array_equal(a, b)
    names = {k.split(".")[0] for k in back.model.state()}
    assert names == {"anchors", "stitches"} and back.model.parameters() == fitted.model.parameters()


def test_explain_shows_table_and_front(fitted: Any) -> None:
    found = fitted.explain()
    table = found.tables["stitches"]
    assert [row["id"] for row in table] == list(range(11)) and all(row["ms"] > 0 for row in table)
    assert found.scalars["stored over apart"] == pytest.approx(fitted.model.parameters() / sum(r["parameters"] for r in table))
    assert sum(row["on the front"] for row in table) == found.scalars["points on the front"]
    assert found.figures["accuracy against MFLOPs"].lstrip().startswith("<")


# -- how it is fitted --------------------------------------------------------------------------------------------------------
def test_least_squares_start_beats_chance_and_random() -> None:
    """The reproduction on digits, reduced: two anchors of three blocks, no training of the stitches."""
    ledger, task, data = Ledger(), task_of(TASK), open_data("digits")
    anchors = [{"method": {"is": "tiny-vit", "width": w, "heads": 2, "depth": 3, "epochs": 5, "lr": 5e-3}} for w in (16, 32)]
    means = {}
    for init in ("least-squares", "random"):
        made = SNNetMethod.make({"anchors": anchors, "epochs": 0, "init": init})
        result = evaluate(task, data, made, "own", 0, ledger, Options(debug=True))
        means[init] = mean(s.value for s in result.scores if s.metric == "accuracy" and s.at.get("anchors") == "0-1")
    assert means["least-squares"] >= means["random"] + 0.2
    assert means["random"] < 0.25


def test_frozen_anchors_keep_their_bits(ledger: Ledger) -> None:
    frozen = lw.fit(method(freeze=True), some_digits(), task=TASK, device="cpu", runs=ledger.root).model
    start = lw.fit(method(epochs=0), some_digits(), task=TASK, device="cpu", runs=ledger.root).model
    before, after = start.state(), frozen.state()
    moved = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert moved == {"stitches"}
    slow = lw.fit(method(anchor_lr=1e-9), some_digits(), task=TASK, device="cpu", runs=ledger.root).model.state()
    far = {
        part: max((slow[k] - v).abs().max().item() for k, v in before.items() if k.startswith(part)) for part in ("anch", "stit")
    }
    assert far["anch"] < 1e-8 < 1e-5 < far["stit"]


def test_training_helps_the_stitches(ledger: Ledger) -> None:
    trained = lw.fit(method(epochs=30, lr=3e-3), some_digits(), task=TASK, device="cpu", runs=ledger.root)
    start = lw.fit(method(epochs=0), some_digits(), task=TASK, device="cpu", runs=ledger.root).model
    own = lambda model: mean(p.accuracy for p in model.table()[3:])  # noqa: E731
    assert own(trained.model) > own(start) + 0.1
    assert set(trained.run.curve) >= {"loss", "valid"}


def test_unequal_depths_and_other_nets_are_stitched(ledger: Ledger) -> None:
    anchors = [SMALL[0], {"method": {**SMALL[2]["method"], "depth": 5}}]
    model = lw.fit(method(anchors=anchors, epochs=1), some_digits(), task=TASK, device="cpu", runs=ledger.root).model
    assert [(r["j"], r["k"]) for r in model.schema["table"][2:]] == [(0, 1), (0, 2), (1, 3), (1, 4)]
    cnn = [{"method": {"is": "small-cnn", "width": w, "epochs": 2, "depth": 2, "stages": 3}} for w in (4, 6)]
    model = lw.fit(method(anchors=cnn, epochs=1), some_digits(), task=TASK, device="cpu", runs=ledger.root).model
    assert [(r["j"], r["k"]) for r in model.schema["table"][2:]] == [(2, 3), (3, 3)]


def test_a_saved_model_is_an_anchor(ledger: Ledger, tmp_path: Path) -> None:
    small = TinyViTMethod.make({k: v for k, v in SMALL[0]["method"].items() if k != "is"})
    lw.fit(small, some_digits(), task=TASK, device="cpu").save(tmp_path / "small")
    anchors = [{"saved": str(tmp_path / "small")}, *SMALL[1:]]
    made = lw.fit(method(anchors=anchors, epochs=0), some_digits(), task=TASK, device="cpu", runs=ledger.root)
    part = made.predict(images="all").part
    assert np.array_equal(made.model.at(stitch=0).predict(part), lw.load(tmp_path / "small").model.predict(part))
    with pytest.raises(UserError, match=r"anchor 0 was fitted on the classes \['0', '1', '2', '3'\]"):
        lw.fit(method(anchors=anchors, epochs=0), some_digits(classes=3), task=TASK, device="cpu")


# -- users' own nets -----------------------------------------------------------------------------------------------------------
SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width, seed, head=True):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Sequential(nn.Conv2d(1, width, 2, 2), nn.Flatten(2))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(3))
        self.embed.append(nn.Sequential())
        if head:
            self.head = nn.Sequential(nn.Flatten(), nn.Linear(16 * width, 4))

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

def small():
    return Net(4, 0)

def large():
    return Net(4, 1)

def headless():
    return Net(4, 1, head=False)
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of the user's, under a name of its own, and a process that was told nothing yet."""
    name = f"mynets_{abs(hash(str(tmp_path))) % 10**8}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sn_net._TOLD.clear()
    yield name
    sn_net._TOLD.clear()


def own(name: str, *functions: str) -> list[dict[str, Any]]:
    return [{"net": f"{name}:{f}"} for f in functions]


def test_users_nets_are_given_again(nets: str, tmp_path: Path) -> None:
    made = lw.fit(method(anchors=own(nets, "small", "large")), some_digits(), task=TASK, device="cpu")
    before = made.at(stitch=3).predict(images="all").values.probabilities
    made.save(tmp_path / "m")
    assert "class" not in json.loads((tmp_path / "m" / "model.json").read_text())["schema"]
    sn_net._TOLD.clear()
    forgotten = lw.load(tmp_path / "m")
    with pytest.raises(UserError, match=rf"a model file names no code; give it again: --net {nets}:small={nets}:small"):
        forgotten.predict(some_digits(), images="all")
    told = {f"{nets}:{f}": f"{nets}:{f}" for f in ("small", "large")}
    again = lw.load(tmp_path / "m", told)
    assert np.array_equal(again.at(stitch=3).predict(some_digits(), images="all").values.probabilities, before)
    assert "nets" not in again.model.schema
    swapped = lw.load(tmp_path / "m", {**told, f"{nets}:large": f"{nets}:headless"})
    with pytest.raises(UserError, match="has no head"):
        swapped.predict(some_digits(), images="all")


def test_sockets_are_checked_before_anything_is_fitted(nets: str) -> None:
    ledger = Ledger()
    anchors = [SMALL[0], *own(nets, "headless")]
    with pytest.raises(UserError, match=r"anchor 1 \(Net\) has no head; a stitchable net has `embed`"):
        lw.fit(method(anchors=anchors), some_digits(), task=TASK, device="cpu", runs=ledger.root)
    assert not list((ledger.root / "fits").iterdir())


def test_stitch_command(nets: str, tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    images = some_digits(60).read()
    for i, (picture, label) in enumerate(zip(images.pixels, images.labels, strict=True)):
        (tmp_path / "mine" / f"class {label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[..., 0]).save(tmp_path / "mine" / f"class {label}" / f"{i}.png")
    words = ["nets", "stitch", tmp_path / "mine", "-s", "epochs=1", "-s", "anchors.2.method.epochs=1"]
    words += [
        "-s",
        f"anchors.0.net={nets}:small",
        "-s",
        f"anchors.1.net={nets}:large",
        "-s",
        f"anchors.2.net={nets}:large",
    ]
    status, out, err = command(*words, "-o", tmp_path / "m", "--device", "cpu")
    assert status == 0, out + err
    given = ("--net", f"{nets}:small", "--net", f"{nets}:large")
    status, out, err = command(
        "predict", tmp_path / "m", tmp_path / "mine", "-s", "max_flops=2e9", *given, "-o", tmp_path / "o.csv"
    )
    assert status == 0, out + err
    assert (tmp_path / "o.csv").read_text().startswith("file,prediction,p(class 0),")
    sn_net._TOLD.clear()
    status, out, err = command("predict", tmp_path / "m", tmp_path / "mine", "-o", tmp_path / "o2.csv")
    assert status == 2 and "names no code" in " ".join((out + err).split()) and not (tmp_path / "o2.csv").exists()


# -- errors --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"anchors": SMALL[:1]}, "at least two anchors, not 1"),
        ({"stitch": 1, "max_flops": 5.0}, "stitch or max_flops, not both"),
        ({"window": 0}, "window"),
        ({"init": "zeros"}, "init"),
        ({"anchors": [SMALL[0], {"method": {"is": "no-such-net"}}]}, "no-such-net"),
    ],
)
def test_wrong_fields_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        method(**fields)


def test_anchors_out_of_order_and_without_a_net_are_refused(ledger: Ledger) -> None:
    with pytest.raises(UserError, match="sn-net: anchors go from small to large"):
        lw.fit(method(anchors=SMALL[::-1]), some_digits(), task=TASK, device="cpu", runs=ledger.root)
    with pytest.raises(UserError, match="majority-images holds no network"):
        lw.fit(
            method(anchors=[SMALL[0], {"method": {"is": "majority-images"}}]), some_digits(), task=TASK, device="cpu",
            runs=ledger.root,
        )  # fmt: skip


def test_defaults_and_dotted_settings() -> None:
    value = entry_of("sn-net")
    assert [ref.method.width for ref in value.anchors] == [16, 32, 64] and all(isinstance(r, Ref) for r in value.anchors)
    assert value.with_settings({"anchors.0.net": "small:build"}).anchors[0].net == "small:build"
    assert value.late_fields() == ("stitch", "max_flops")
    assert value.key(late=False) == value.but(stitch=4).key(late=False) != value.but(window=3).key(late=False)
