"""The recipe of Sheaf4Rec: the battery, its settings, its errors, and a short fit of real data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.evaluate import evaluate
from latticework.core.grid import entry_of, task_of
from latticework.core.ledger import Ledger
from latticework.core.run import Run
from latticework.links.recommendation import Recommendation
from latticework.testing import check_method, check_revision

FINGERPRINTS = Path(__file__).parent / "fingerprints_recommendation.json"


@pytest.mark.parametrize("maps", ["scalar", "orthogonal"])
def test_method(maps: str) -> None:
    stalk = 1 if maps == "scalar" else 4
    method = entry_of(f"sheaf(epochs=3; width=16; maps={maps}; stalk={stalk})")
    result = check_method(method, "taste-groups")
    if maps == "scalar":
        data = open_data("taste-groups")
        named = [s._replace(metric=f"{s.metric}@{s.at['top']}", at={}) for s in result.scores if set(s.at) == {"top"}]
        check_revision(method, data, Recommendation().for_data(data), result._replace(scores=named), FINGERPRINTS)


@pytest.mark.parametrize("maps", ["diagonal", "general"])
def test_other_maps_learn(maps: str) -> None:
    task, data = Recommendation(), open_data("taste-groups")
    method = entry_of(f"sheaf(epochs=4; width=16; maps={maps}; stalk=2; lr=0.01)")
    result = evaluate(task, data, method, "random-0", 0, Ledger())
    assert result.status == "done", result.error
    losses = [value for _, value in result.curve["loss"]]
    assert losses[-1] < losses[0] and result.headline is not None and result.headline > 0


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="width 64 is no multiple of stalk 5"):
        entry_of("sheaf(stalk=5; maps=general)")
    with pytest.raises(UserError, match="maps=scalar needs stalk=1, not 2; use diagonal, orthogonal or general"):
        entry_of("sheaf(stalk=2)")
    with pytest.raises(UserError, match="maps"):
        entry_of("sheaf(maps=wavy)")
    assert entry_of("sheaf:official").layers == 5  # type: ignore[attr-defined]


def test_recorded_parameters_are_those_of_the_formula() -> None:
    task, data = Recommendation(), open_data("taste-groups")
    fold = task.fold(data, "random-0")
    run = Run(task=task)
    with run.seeded():
        model = entry_of("sheaf(epochs=1; width=16; layers=3)").fit(fold.train, fold.valid, run)
    n, D, L = fold.train.data.users + fold.train.data.items, 16, 3
    assert model.parameters() == n * D + L * (D * D + D + 2 * D)
    assert model.state()["users"].shape == (fold.train.data.users, (L + 1) * D)


def test_one_step_of_the_loss_by_hand() -> None:
    """The first loss is that of the formula on the first triples: ranking plus reg / 2 |X|^2 / B."""
    from latticework.links.recommendation_baselines import Pairs, PairSampler

    task, data = Recommendation(), open_data("taste-groups")
    fold = task.fold(data, "random-0")
    method: Any = entry_of("sheaf(epochs=1; width=16; reg=0.7; batch=300)")
    run = Run(task=task)
    with run.seeded():
        method.fit(fold.train, None, run)
    pairs = Pairs.of(fold.train.data)
    with run.seeded():
        net = method.module(pairs)
    user, positive, negative = PairSampler(pairs).draw(300, run.generator("pairs of epoch 0"))
    out, X = net().detach(), net.X.detach()
    p, q = positive + pairs.users, negative + pairs.users
    lead = (out[user] * out[p]).sum(1) - (out[user] * out[q]).sum(1)
    penalty = 0.7 / 2 * sum(float((X[rows] ** 2).sum()) for rows in (user, p, q)) / 300
    wanted = float(-torch.log(torch.sigmoid(lead)).mean()) + penalty
    assert len(fold.train.data.user) // 300 == 1, "one step an epoch, so the epoch's loss is this step's"
    assert run.curve["loss"][0][1] == pytest.approx(wanted, rel=1e-5)


def test_facebook_in_short(mirror: Callable[[str], Path]) -> None:
    """A few epochs on the real interactions: above chance by far, and at the card's bar for correctness."""
    mirror("facebook-items")
    data = open_data("facebook-items")
    task = task_of("recommendation").for_data(data)
    result = evaluate(task, data, entry_of("sheaf(epochs=4)"), "random-0", 0, Ledger())
    assert result.headline is not None and result.headline >= 0.018
