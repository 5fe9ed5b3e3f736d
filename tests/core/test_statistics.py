"""Statistics against independent libraries (pingouin, statsmodels, scikit-posthocs) and cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pingouin
import pytest
import scikit_posthocs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from latticework.core import statistics as ours

RNG = np.random.default_rng(7)
A = [float(v) for v in RNG.normal(0.8, 0.02, 9)]
B = [float(v) for v in RNG.normal(0.79, 0.02, 9)]


def test_interval_agrees_with_scipy_and_by_hand() -> None:
    found = ours.interval(A)
    low, high = stats.t.interval(0.95, len(A) - 1, loc=np.mean(A), scale=stats.sem(A))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    by_hand = ours.interval([1.0, 2.0, 3.0])  # sd 1; with two degrees of freedom t has the closed form q sqrt(2 / (1 - q^2))
    assert by_hand.low == pytest.approx(2 - 0.95 * math.sqrt(2 / (1 - 0.95**2)) / math.sqrt(3), rel=1e-9)


def test_nadeau_bengio_by_hand() -> None:
    # ten folds of ten: train and test are nine to one, so the variance of the mean is (1/10 + 1/9) s^2
    values = [float(v) for v in range(10)]
    found = ours.interval(values, ratio=1 / 9)
    assert found.high is not None and found.mean is not None and found.sd is not None
    half = stats.t.ppf(0.975, 9) * math.sqrt((1 / 10 + 1 / 9) * np.var(values, ddof=1))
    assert found.high - found.mean == pytest.approx(half, rel=1e-12)
    pair = ours.paired(A, B, ratio=0.25)
    d = np.subtract(A, B)
    t = d.mean() / math.sqrt((1 / 9 + 0.25) * d.var(ddof=1))
    assert pair.p == pytest.approx(2 * stats.t.sf(abs(t), 8), rel=1e-10)


@pytest.mark.parametrize(("values", "expected"), [([], (0, None, None)), ([0.5], (1, 0.5, None)), ([0.1] * 4, (4, 0.1, 0.0))])
def test_degenerate_intervals(values: list[float], expected: tuple[int, float | None, float | None]) -> None:
    found = ours.interval(values)
    assert (found.n, found.mean, found.sd) == expected
    assert (found.low, found.high) == ((None, None) if len(values) < 2 else (0.1, 0.1))


def test_values_must_be_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        ours.interval([1.0, float("nan")])
    with pytest.raises(ValueError, match="as many values"):
        ours.paired([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="not negative"):
        ours.standard_error(1.0, 3, -0.1)


def test_paired_agrees_with_pingouin() -> None:
    found, oracle = ours.paired(A, B), pingouin.ttest(A, B, paired=True)
    assert found.p == pytest.approx(float(oracle.filter(regex="^p").iloc[0, 0]), rel=1e-9)
    assert found.p == pytest.approx(stats.ttest_rel(A, B).pvalue, rel=1e-12)
    interval = stats.ttest_rel(A, B).confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-10)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=2, max_size=12), st.floats(0, 2))
def test_direction_and_order_turn_the_sign_alone(pairs: list[tuple[float, float]], ratio: float) -> None:
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    one, other, turned = ours.paired(a, b, "higher", ratio), ours.paired(b, a, "higher", ratio), ours.paired(a, b, "lower", ratio)
    assert one.mean == pytest.approx(-other.mean, abs=1e-12) and other.mean == pytest.approx(turned.mean, abs=1e-12)  # type: ignore[operator]
    assert one.p == pytest.approx(other.p, abs=1e-12) and 0 <= one.p <= 1  # type: ignore[operator]


def test_equal_differences_are_judged_by_their_signs() -> None:
    same = ours.paired([0.5, 0.6], [0.5, 0.6])
    assert (same.mean, same.sd, same.p, same.test) == (0.0, 0.0, 1.0, "sign")
    steady = ours.paired([0.5 + 0.1, 0.6 + 0.1, 0.7 + 0.1], [0.5, 0.6, 0.7])  # rounding is no spread
    assert steady.sd == 0.0 and steady.test == "sign" and steady.p == pytest.approx(0.25)
    assert ours.paired([0.2] * 6, [0.1] * 6).p == pytest.approx(stats.binomtest(6, 6).pvalue)
    assert ours.paired([1.0], [0.5]).test == "none" and ours.paired([], []).mean is None


def test_pairing_broadcasts_methods_without_chance() -> None:
    seeds = {("f", 0): 1.0, ("f", 1): 2.0, ("g", 0): 3.0}
    once = {("f", 0): 10.0, ("g", 0): 20.0}
    assert ours.pair(seeds, once, True, False) == ([1.0, 2.0, 3.0], [10.0, 10.0, 20.0])
    assert ours.pair(once, seeds, False, True) == ([10.0, 10.0, 20.0], [1.0, 2.0, 3.0])
    assert ours.pair(once, once, False, False) == ([10.0, 20.0], [10.0, 20.0])
    assert ours.pair(seeds, {("f", 1): 5.0}) == ([2.0], [5.0])  # a missing cell takes its partner out
    assert ours.pair(seeds, {("f", 0): 10.0}, True, False) == ([1.0, 2.0], [10.0, 10.0])
    # a method without chance on random splits is one value a split, whatever that split's seed
    assert ours.pair({("r-1", 0): 1.0}, {("r-1", 1): 2.0}, False, True) == ([1.0], [2.0])


def test_holm_agrees_with_pingouin_and_leaves_none_alone() -> None:
    ps = [0.01, 0.04, 0.03, 0.5, 0.005]
    assert ours.holm(ps) == pytest.approx(list(pingouin.multicomp(ps, method="holm")[1]), rel=1e-12)
    assert ours.holm([0.02, None, 0.03]) == [pytest.approx(0.04), None, pytest.approx(0.04)]
    assert ours.holm([]) == [] and ours.holm([None]) == [None]
    assert ours.holm(ps) == pytest.approx(list(multipletests(ps, method="holm")[1]))


def test_detectable_agrees_with_statsmodels_and_pingouin() -> None:
    for n in (3, 5, 10, 30):
        effect = TTestPower().solve_power(nobs=n, alpha=0.05, power=0.8)
        found = ours.detectable(0.02, n)
        assert found == pytest.approx(0.02 * effect, rel=1e-6)
        assert pingouin.power_ttest(d=found / 0.02, n=n, alpha=0.05, contrast="paired") == pytest.approx(0.8, abs=1e-6)
    assert ours.detectable(0.02, 10, ratio=0.1) > ours.detectable(0.02, 10)  # type: ignore[operator]
    assert ours.detectable(None, 5) is None and ours.detectable(0.0, 5) is None and ours.detectable(0.1, 1) is None


def test_two_repeats_see_only_the_enormous() -> None:
    found = ours.detectable(1.0, 2)
    assert found is not None and found > 11
    # Holm over many comparisons asks for more still
    assert ours.detectable(1.0, 2, alpha=0.05 / 50) == pytest.approx(815.9 / math.sqrt(2), rel=1e-2)
    # by simulation: with that difference four of five experiments are significant
    rng = np.random.default_rng(0)
    sample = rng.normal(found, 1.0, (40_000, 2))
    share = np.mean(stats.ttest_1samp(sample, 0.0, axis=1).pvalue < 0.05)
    assert share == pytest.approx(0.8, abs=0.01)


def test_repeats_needed_is_the_smallest_that_does() -> None:
    n = ours.repeats_needed(1.0, 0.5)
    assert n == math.ceil(TTestPower().solve_power(effect_size=0.5, alpha=0.05, power=0.8))
    assert n is not None and ours.detectable(1.0, n) <= 0.5 < ours.detectable(1.0, n - 1)  # type: ignore[operator]
    assert ours.repeats_needed(1.0, 0.0) is None and ours.repeats_needed(None, 1.0) is None and ours.repeats_needed(0.0, 1.0) == 2
    # overlapping folds hold the variance above ratio s^2: an effect under about 2.8 sqrt(ratio) stays out of reach
    assert ours.repeats_needed(1.0, 0.5, ratio=0.25) is None
    assert ours.repeats_needed(1.0, 2.0, ratio=0.25) is not None


def test_equivalence_agrees_with_statsmodels_and_pingouin() -> None:
    found = ours.paired(A, B)
    for margin in (0.01, 0.03, 0.1):
        expected = ttost_paired(np.array(A), np.array(B), -margin, margin)[0]
        assert ours.equivalence(found, margin) == pytest.approx(float(expected), rel=1e-9)
        oracle = pingouin.tost(A, B, bound=margin, paired=True).filter(regex="^p").iloc[0, 0]
        assert ours.equivalence(found, margin) == pytest.approx(float(oracle), rel=1e-9)
    assert ours.equivalence(ours.paired([1.0], [1.0]), 0.1) is None
    with pytest.raises(ValueError, match="margin"):
        ours.equivalence(found, -1)


def verdict_of(differences: list[float], margin: float = 0.0, **more: object) -> ours.Verdict:
    return ours.verdict(ours.paired(differences, [0.0] * len(differences)), margin, **more)  # type: ignore[arg-type]


def test_verdicts() -> None:
    assert verdict_of([1.0, 1.1, 0.9, 1.05]).sentence == "better"
    assert verdict_of([-1.0, -1.1, -0.9, -1.05]).sentence == "worse"
    assert verdict_of([0.001, -0.001, 0.0005, -0.0008, 0.0002], 0.01, unit="dB").sentence == "tied (within ±0.01 dB)"
    assert verdict_of([0.0, 0.0]).sentence == "tied (the same value in all 2 repeats)"
    assert verdict_of([0.4]).sentence == "cannot tell yet: run 4 more"
    assert verdict_of([]).word == "unsure"
    assert verdict_of([1.0, 1.1, 0.9, 1.05], p=0.2).word == "unsure"  # the corrected p counts
    assert verdict_of([0.0], repeatable=False).word == "tied"
    alone = verdict_of([0.3], repeatable=False)
    assert alone.word == "unsure" and alone.more is None and "neither has chance" in alone.sentence


def test_cannot_tell_says_how_many_more() -> None:
    differences = [0.5, -0.3, 0.9, 0.1, -0.2]
    found = verdict_of(differences)
    sd, mean = float(np.std(differences, ddof=1)), float(np.mean(differences))
    needed = math.ceil(TTestPower().solve_power(effect_size=mean / sd, alpha=0.05, power=0.8))
    assert found.word == "unsure" and found.more == needed - 5 and found.sentence == f"cannot tell yet: run {needed - 5} more"
    # all differences equal: the exact sign test needs six
    assert verdict_of([0.1, 0.1, 0.1]).more == 3
    # folds that overlap too much never settle it, and the sentence says so
    stuck = verdict_of(differences, ratio=1.0)
    assert stuck.more is None and "overlap" in stuck.sentence


def test_that_many_more_do_settle_it() -> None:
    """Simulation: with the number asked for, a true difference of the observed size is found four times of five."""
    rng = np.random.default_rng(3)
    n = ours.repeats_needed(1.0, 0.8)
    assert n is not None
    sample = rng.normal(0.8, 1.0, (20_000, n))
    assert np.mean(stats.ttest_1samp(sample, 0.0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.03)
    margin, sd = 0.5, 1.0
    m = ours._repeats_to_tie(sd, margin, None, 0.05)
    assert m is not None
    tied = [ours.equivalence(ours.paired(list(row), [0.0] * m), margin) for row in rng.normal(0.0, sd, (1500, m))]
    assert np.mean([p is not None and p < 0.05 for p in tied]) == pytest.approx(0.8, abs=0.05)


TABLE = {
    "a": [0.9, 0.8, 0.7, 0.95, 0.6, 0.81],
    "b": [0.85, 0.82, 0.65, 0.9, 0.55, 0.8],
    "c": [0.5, 0.6, 0.4, 0.7, 0.55, 0.5],
}


def test_ranks_friedman_and_nemenyi_agree_with_others() -> None:
    found = ours.ranks(TABLE)
    frame = pd.DataFrame(TABLE)
    assert found.average == pytest.approx(tuple(frame.rank(axis=1, ascending=False).mean()))
    oracle = pingouin.friedman(frame)
    assert found.p == pytest.approx(float(oracle.filter(regex="^p").iloc[0, 0]), rel=1e-9)
    nemenyi = scikit_posthocs.posthoc_nemenyi_friedman(frame).to_numpy()
    assert np.array(found.pairwise) == pytest.approx(nemenyi, rel=1e-9)
    # Demsar's table 5(a): q(0.05) is 2.343 for three methods, so CD = 2.343 sqrt(3 * 4 / (6 * 6))
    assert found.critical == pytest.approx(2.343 * math.sqrt(12 / 36), abs=1e-3)
    # a pair is further apart than the critical difference exactly where Nemenyi's p is under 0.05
    for i in range(3):
        for j in range(i):
            far = abs(found.average[i] - found.average[j]) > found.critical  # type: ignore[operator]
            assert far == (found.pairwise[i][j] < 0.05)
    assert found.cliques == (("a", "b"), ("b", "c")) or all(len(c) > 1 for c in found.cliques)


def test_critical_values_are_demsars() -> None:
    for k, q in ((2, 1.960), (4, 2.569), (10, 3.164)):
        table = {str(i): [float(i), float(i) + 1] for i in range(k)}
        assert ours.ranks(table).critical == pytest.approx(q * math.sqrt(k * (k + 1) / 12), abs=1e-3)


def test_degenerate_ranks() -> None:
    assert ours.ranks({"a": [1.0]}).average == ()
    tie = ours.ranks({"a": [1.0, 1.0], "b": [1.0, 1.0], "c": [1.0, 1.0]})
    assert tie.average == (2.0, 2.0, 2.0) and tie.statistic is None and tie.cliques == (("a", "b", "c"),)
    missing = ours.ranks({"a": [1.0, 2.0, None], "b": [2.0, 1.0, 5.0]})
    assert missing.sets == 2 and missing.average == (1.5, 1.5)
    assert ours.ranks({"a": [None], "b": [1.0]}).average == ()
    low = ours.ranks({"a": [1.0, 1.0], "b": [2.0, 2.0]}, "lower")
    assert low.average == (1.0, 2.0)
    with pytest.raises(ValueError, match="one value"):
        ours.ranks({"a": [1.0], "b": [1.0, 2.0]})


def test_cliques_are_longest_runs() -> None:
    ordered = [("a", 1.0), ("b", 1.5), ("c", 2.4), ("d", 4.0)]
    assert ours._cliques(ordered, 1.0) == (("a", "b"), ("b", "c"))
    assert ours._cliques(ordered, 10.0) == (("a", "b", "c", "d"),)
    assert ours._cliques(ordered, None) == ()


def test_trends_agree_with_pingouin() -> None:
    x = [1.0, 2.0, 3.0, 5.0, 8.0]
    y = [2.1, 2.0, 3.9, 5.2, 8.3]
    found = ours.trend(x, y)
    assert found.rho == pytest.approx(float(pingouin.corr(x, y, method="spearman")["r"].iloc[0]), rel=1e-9)
    line = pingouin.linear_regression(x, y).set_index("names").loc["x1"]
    bounds = [float(v) for v in line.filter(regex="^CI")]
    assert [found.slope, found.low, found.high] == pytest.approx([float(line["coef"]), *bounds], rel=1e-7)


def test_exponents_and_degenerate_trends() -> None:
    x = [1.0, 2.0, 4.0, 8.0]
    law = ours.exponent(x, [3 * v**1.5 for v in x])
    assert law.slope == pytest.approx(1.5, rel=1e-12) and math.exp(law.intercept or 0) == pytest.approx(3.0, rel=1e-12)
    with pytest.raises(ValueError, match="positive"):
        ours.exponent([0.0, 1.0], [1.0, 2.0])
    flat = ours.trend([1.0, 2.0, 3.0], [5.0, 5.0, 5.0])
    assert flat.rho is None and flat.slope == 0.0
    assert ours.trend([2.0, 2.0], [1.0, 3.0]).slope is None and ours.trend([1.0], [1.0]).slope is None
    two = ours.trend([1.0, 2.0], [1.0, 3.0])
    assert two.slope == pytest.approx(2.0) and two.low is None and two.rho is None
    with pytest.raises(ValueError, match="as many"):
        ours.trend([1.0], [])


def test_more_comparisons_ask_for_more_repeats() -> None:
    differences = [0.5, -0.3, 0.9, 0.1, -0.2]
    one, ten = verdict_of(differences), verdict_of(differences, comparisons=10)
    effect = float(np.mean(differences) / np.std(differences, ddof=1))
    needed = math.ceil(TTestPower().solve_power(effect_size=effect, alpha=0.005, power=0.8))
    assert one.more is not None and ten.more == needed - 5 > one.more
