"""Statistics of repeated evaluations: intervals, paired comparisons, equivalence, ranks, trends.

All distributions, corrections and rank tests are scipy's, statsmodels' and scikit-posthocs'. What stands here is what
they leave open: the variance where folds overlap, what counts as a pair, what a degenerate case means, and the sentence.

Where the train parts of folds overlap, the n values are not independent, and the variance of their mean is taken as
``(1/n + ratio) s^2`` with ``ratio`` = test size / train size (Nadeau and Bengio, "Inference for the generalization
error", Machine Learning 52, 2003, section 4); without overlap ``ratio`` is none and the variance is ``s^2 / n``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

ALPHA = 0.05
POWER = 0.8
FEW = 5  # repeats to run before the spread says anything
MANY = 10_000  # more repeats than anyone runs

Key = tuple[str, int]  # fold, seed
Word = Literal["better", "worse", "tied", "unsure"]


class Interval(NamedTuple):
    """A mean with its interval; `low`, `high` and `sd` are none where one value says nothing about spread."""

    n: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None


class Paired(NamedTuple):
    """Differences a - b, turned so that positive means a is better.

    `test` says what `p` comes from: "t" (paired t test), "sign" (exact sign test, where all differences are equal and t is
    undefined) or "none" (fewer than two pairs).
    """

    n: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    p: float | None
    test: Literal["t", "sign", "none"]


class Verdict(NamedTuple):
    """What a comparison says; `more` is how many further repeats would settle it, where some number would."""

    word: Word
    sentence: str
    more: int | None = None


class Ranks(NamedTuple):
    """Average ranks over data sets (1 is best), Friedman's test and Nemenyi's critical difference."""

    names: tuple[str, ...]
    average: tuple[float, ...]
    sets: int
    statistic: float | None
    p: float | None
    critical: float | None
    pairwise: tuple[tuple[float, ...], ...]
    cliques: tuple[tuple[str, ...], ...]


class Trend(NamedTuple):
    """Spearman's rank correlation and a straight line, with a 95 % interval of its slope."""

    n: int
    rho: float | None
    p: float | None
    slope: float | None
    low: float | None
    high: float | None
    intercept: float | None


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation; a spread within rounding of the values is none at all."""
    import numpy as np

    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"values must be finite numbers, found {[float(v) for v in array[~np.isfinite(array)]][:3]}")
    if np.ptp(array) <= 8 * np.finfo(float).eps * np.abs(array).max(initial=0.0):
        return float(array[0]), 0.0
    return float(array.mean()), float(array.std(ddof=1))


def standard_error(sd: float, n: int, ratio: float | None = None) -> float:
    """Of a mean of n values: ``sd sqrt(1/n + ratio)``, with Nadeau and Bengio's `ratio` where folds overlap."""
    if n < 1 or sd < 0 or (ratio is not None and ratio < 0):
        raise ValueError(f"n must be positive, sd and ratio not negative; found n={n}, sd={sd}, ratio={ratio}")
    return sd * math.sqrt(1.0 / n + (ratio or 0.0))


def interval(values: Sequence[float], ratio: float | None = None, level: float = 1 - ALPHA) -> Interval:
    """Mean and its t interval with n - 1 degrees of freedom."""
    from scipy import stats

    n = len(values)
    if n == 0:
        return Interval(0, None, None, None, None)
    mean, sd = _spread(values)
    if n == 1:
        return Interval(1, mean, None, None, None)
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * standard_error(sd, n, ratio)
    return Interval(n, mean, sd, mean - half, mean + half)


def pair(
    a: Mapping[Key, float], b: Mapping[Key, float], a_chance: bool = True, b_chance: bool = True
) -> tuple[list[float], list[float]]:
    """Values of a and b that belong together: same fold and seed; a method without chance has one value a fold, for all its seeds.

    A cell that is missing on either side takes its partner out.
    """
    by_fold_a = {} if a_chance else {fold: value for (fold, _), value in a.items()}
    by_fold_b = {} if b_chance else {fold: value for (fold, _), value in b.items()}
    keys = b if not a_chance and b_chance else a
    left, right = [], []
    for fold, seed in keys:
        mine = a.get((fold, seed)) if a_chance else by_fold_a.get(fold)
        other = b.get((fold, seed)) if b_chance else by_fold_b.get(fold)
        if mine is not None and other is not None:
            left.append(mine)
            right.append(other)
    return left, right


def paired(
    a: Sequence[float],
    b: Sequence[float],
    better: Literal["higher", "lower"] = "higher",
    ratio: float | None = None,
    level: float = 1 - ALPHA,
) -> Paired:
    """Two-sided t test on the differences of values that belong together, with its interval."""
    from scipy import stats

    if len(a) != len(b):
        raise ValueError(f"pairs need as many values on both sides, found {len(a)} and {len(b)}")
    sign = 1.0 if better == "higher" else -1.0
    differences = [sign * (x - y) for x, y in zip(a, b, strict=True)]
    n = len(differences)
    if n == 0:
        return Paired(0, None, None, None, None, None, "none")
    mean, sd = _spread(differences)
    # a difference within rounding of the values it comes from is no difference
    noise = 8 * 2.3e-16 * max(*(abs(v) for v in a), *(abs(v) for v in b))
    if all(abs(d) <= noise for d in differences):
        mean, sd = 0.0, 0.0
    elif sd <= noise:
        sd = 0.0
    if n == 1:
        return Paired(1, mean, None, None, None, None, "none")
    if sd == 0.0:
        p = 1.0 if mean == 0.0 else float(stats.binomtest(n if mean > 0 else 0, n).pvalue)
        return Paired(n, mean, 0.0, mean, mean, p, "sign")
    error = standard_error(sd, n, ratio)
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * error
    return Paired(n, mean, sd, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, n - 1)), "t")


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction; a comparison without a p counts as none."""
    known = [p for p in ps if p is not None]
    if not known:
        return list(ps)
    from statsmodels.stats.multitest import multipletests

    corrected = iter(multipletests(known, method="holm")[1])
    return [None if p is None else float(next(corrected)) for p in ps]


def _power(difference: float, sd: float, n: int, ratio: float | None, alpha: float) -> float:
    """Of the two-sided t test on n differences, the correction of the variance put in as a smaller sample."""
    from scipy import stats
    from statsmodels.stats.power import TTestPower

    effective = 1.0 / (1.0 / n + (ratio or 0.0))
    if difference / sd * math.sqrt(effective) > 35.0 + 5 * float(stats.t.isf(alpha / 2, n - 1)):
        return 1.0  # scipy's noncentral t loses its digits further out, where the power has been one for long
    found = float(TTestPower().power(difference / sd, effective, alpha, df=n - 1))
    if math.isnan(found):  # scipy's far tail (significant the wrong way) can be NaN where it is below 1e-8
        found = float(TTestPower().power(difference / sd, effective, alpha / 2, df=n - 1, alternative="larger"))
    return 1.0 if math.isnan(found) else found


def detectable(sd: float | None, n: int, ratio: float | None = None, alpha: float = ALPHA, power: float = POWER) -> float | None:
    """The smallest true difference that n pairs with this spread find with this power; none where no spread is known."""
    if n < 2 or not sd:
        return None
    from scipy.optimize import brentq

    unit = standard_error(sd, n, ratio)
    top = 2.0
    while _power(top * unit, sd, n, ratio, alpha) < power:
        top *= 1.5
        if top > 1e4:
            return None
    return float(brentq(lambda d: _power(d * unit, sd, n, ratio, alpha) - power, 1e-9, top, xtol=1e-12)) * unit


def repeats_needed(
    sd: float | None, difference: float, ratio: float | None = None, alpha: float = ALPHA, power: float = POWER
) -> int | None:
    """How many pairs in all find this difference with this power; none where no number of them does.

    Where folds overlap, the variance of the mean stays above ``ratio sd^2`` however many folds are drawn, so a small
    difference can stay out of reach for good.
    """
    if sd is None or difference == 0 or not math.isfinite(difference):
        return None
    if sd == 0:
        return 2
    return _first(lambda n: _power(abs(difference), sd, n, ratio, alpha) >= power)


def _first(holds: Any) -> int | None:
    """The smallest n from 2 to MANY that holds, of a property that stays once it does."""
    high = 2
    while not holds(high):
        if high >= MANY:
            return None
        high = min(high * 2, MANY)
    low = max(high // 2, 2)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high


def equivalence(found: Paired, margin: float, ratio: float | None = None) -> float | None:
    """p of two one-sided t tests (TOST): small where the difference lies within ±margin; none where it cannot be tested."""
    if margin < 0:
        raise ValueError(f"a margin is not negative, found {margin}")
    if found.n < 2 or found.mean is None or found.sd is None:
        return None
    if found.sd == 0.0:
        # without spread t is undefined; equal everywhere is equal, and a constant difference is decided by its signs
        if found.mean == 0.0:
            return 0.0
        return 0.5**found.n if abs(found.mean) < margin else 1.0
    from scipy import stats

    error = standard_error(found.sd, found.n, ratio)
    below = stats.t.sf((found.mean + margin) / error, found.n - 1)
    above = stats.t.cdf((found.mean - margin) / error, found.n - 1)
    return float(max(below, above))


def _repeats_to_tie(sd: float, margin: float, ratio: float | None, alpha: float) -> int | None:
    """How many pairs show equivalence with the power asked for, when the true difference is nil."""
    from scipy import stats

    def holds(n: int) -> bool:
        error = standard_error(sd, n, ratio)
        reach = margin / error - float(stats.t.ppf(1 - alpha, n - 1))
        return reach > 0 and 2 * float(stats.norm.cdf(reach)) - 1 >= POWER

    return _first(holds)


def verdict(
    found: Paired,
    margin: float = 0.0,
    *,
    p: float | None = None,
    ratio: float | None = None,
    comparisons: int = 1,
    repeatable: bool = True,
    unit: str = "",
) -> Verdict:
    """A plain sentence. `p` is the corrected one (left out: the comparison's own); `repeatable`: more repeats give new values."""
    alpha = ALPHA / max(comparisons, 1)
    p = found.p if p is None else p
    within = f"±{margin:.3g}{' ' + unit if unit else ''}"
    if found.n == 0 or found.mean is None:
        return Verdict("unsure", f"cannot tell yet: run {FEW} more", FEW)
    if not repeatable and found.n == 1:
        if found.mean == 0.0:
            return Verdict("tied", "tied (the same value, and neither has chance)")
        return Verdict("unsure", "cannot tell: neither has chance and there is one fold; more folds or data would")
    if found.n == 1:
        return Verdict("unsure", f"cannot tell yet: run {FEW - 1} more", FEW - 1)
    if found.mean == 0.0 and found.sd == 0.0:
        return Verdict("tied", f"tied (the same value in all {found.n} repeats)")
    if p is not None and p < ALPHA:
        return Verdict("better" if found.mean > 0 else "worse", "better" if found.mean > 0 else "worse")
    tied = equivalence(found, margin, ratio) if margin > 0 else None
    if tied is not None and tied < ALPHA:
        return Verdict("tied", f"tied (within {within})")
    ways = []
    if found.sd:
        ways.append(repeats_needed(found.sd, found.mean, ratio, alpha))
        if margin > 0:
            ways.append(_repeats_to_tie(found.sd, margin, ratio, ALPHA))
    else:  # all differences equal: the sign test decides
        ways.append(_first(lambda n: 2 * 0.5**n < alpha))
    enough = min((n for n in ways if n is not None), default=None)
    if enough is None:
        reason = "folds overlap" if ratio else "the difference is too small for the spread"
        return Verdict("unsure", f"cannot tell: more repeats would not settle it ({reason})")
    more = max(enough - found.n, 1)
    return Verdict("unsure", f"cannot tell yet: run {more} more", more)


def ranks(table: Mapping[str, Sequence[float | None]], better: Literal["higher", "lower"] = "higher") -> Ranks:
    """Average ranks of methods over data sets, ties sharing theirs (Demsar, JMLR 7, 2006, section 3.2.2).

    A data set on which some method has no value is left out for all, since ranks among fewer are not the same ranks.
    """
    import numpy as np
    from scipy import stats

    names = tuple(table)
    if len({len(v) for v in table.values()}) > 1:
        raise ValueError("every method needs one value (or none) for every data set")
    rows = [row for row in zip(*table.values(), strict=True) if all(v is not None for v in row)]
    if not rows or len(names) < 2:
        return Ranks(names, (), len(rows), None, None, None, (), ())
    values = np.asarray(rows, dtype=np.float64)
    turned = -values if better == "higher" else values
    each = stats.rankdata(turned, axis=1)
    average = each.mean(axis=0)
    n, k = each.shape
    statistic = p = critical = None
    pairwise: tuple[tuple[float, ...], ...] = ()
    if n > 1:
        critical = float(stats.studentized_range.ppf(1 - ALPHA, k, np.inf)) / math.sqrt(2) * math.sqrt(k * (k + 1) / (6 * n))
        if k > 2 and not (each == each[:, :1]).all():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the chi-squared form is what Nemenyi's test goes with
                found = stats.friedmanchisquare(*turned.T)
            statistic, p = float(found.statistic), float(found.pvalue)
        import scikit_posthocs

        pairwise = tuple(tuple(float(v) for v in row) for row in scikit_posthocs.posthoc_nemenyi_friedman(turned).to_numpy())
    order = [int(i) for i in np.argsort(average, kind="stable")]
    cliques = _cliques([(names[i], float(average[i])) for i in order], critical)
    return Ranks(names, tuple(float(v) for v in average), n, statistic, p, critical, pairwise, cliques)


def _cliques(ordered: Sequence[tuple[str, float]], critical: float | None) -> tuple[tuple[str, ...], ...]:
    """Longest runs of neighbouring ranks that the critical difference does not tell apart."""
    if critical is None:
        return ()
    found: list[tuple[str, ...]] = []
    last = -1
    for i in range(len(ordered)):
        end = max(j for j in range(i, len(ordered)) if ordered[j][1] - ordered[i][1] < critical)
        if end > i and end > last:
            found.append(tuple(name for name, _ in ordered[i : end + 1]))
            last = end
    return tuple(found)


def trend(x: Sequence[float], y: Sequence[float], level: float = 1 - ALPHA) -> Trend:
    """How y goes with x over a sweep. Constant x or y has neither a correlation nor (for x) a slope."""
    from scipy import stats

    if len(x) != len(y):
        raise ValueError(f"a trend needs as many x as y, found {len(x)} and {len(y)}")
    n = len(x)
    flat_x, flat_y = n < 2 or _spread(x)[1] == 0.0, n < 2 or _spread(y)[1] == 0.0
    if flat_x:
        return Trend(n, None, None, None, None, None, None)
    rho = p = None
    if not flat_y and n > 2:
        found = stats.spearmanr(x, y)
        rho, p = float(found.statistic), float(found.pvalue)
    line = stats.linregress(x, y)
    low = high = None
    if n > 2:
        half = float(stats.t.ppf(0.5 + level / 2, n - 2)) * float(line.stderr)
        low, high = float(line.slope) - half, float(line.slope) + half
    return Trend(n, rho, p, float(line.slope), low, high, float(line.intercept))


def exponent(x: Sequence[float], y: Sequence[float], level: float = 1 - ALPHA) -> Trend:
    """The power law y ~ x^slope: a straight line through the logarithms."""
    for name, values in (("x", x), ("y", y)):
        if any(v <= 0 for v in values):
            raise ValueError(f"a power law needs positive values, found {name} = {min(values)}")
    return trend([math.log(v) for v in x], [math.log(v) for v in y], level)
