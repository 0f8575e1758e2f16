"""From scores of single cases to statements about patients: spread, intervals, and tests between methods.

The unit is the patient: a patient's value is the mean over his or her cases, and every patient counts once.
All of it is a function of the scores alone: the bootstrap draws from a fixed seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtrit

from pipeline.records import Comparison, Score, Summary

LEVEL = 0.95
RESAMPLES = 10_000
BOOTSTRAP_PATIENTS = 1000
SEED = 20_250
# Below six differences that are not zero the exact two-sided p cannot reach 0.05: 2 / 2^5 = 0.0625.
FEWEST_PATIENTS = 6
EXACT_PATIENTS = 200  # up to here the signed-rank distribution is counted, beyond it is approximated
METHOD = (
    f"The unit is the patient (mean over the patient's cases). Interval: {LEVEL:.0%} of the mean, bias-corrected and "
    f"accelerated bootstrap with levels expanded for few patients, {RESAMPLES} samples of patients, seed {SEED}. "
    f"Test: two-sided Wilcoxon signed-rank, exact up to {EXACT_PATIENTS} patients, zero differences left out; Holm's "
    "correction over all pairs of methods of one metric, region and cohort. Metrics whose best is zero are tested by "
    f"their absolute value. Neither interval nor test below {FEWEST_PATIENTS} patients."
)


def summarise(scores: Iterable[Score]) -> list[Summary]:
    """Describe every method, region and metric over patients, in order of appearance; then by cohort.

    Undefined scores are counted, never averaged. Where the scores come from several cohorts, the rows of all
    patients (cohort '') are followed by rows of each. The deviation is the sample's (n - 1); quartiles are
    interpolated linearly; the interval is that of `bootstrap_interval`.
    """
    rows = []
    for cohort, members in _by_cohort(scores).items():
        groups: dict[tuple[str, str, str], list[Score]] = {}
        for score in members:
            groups.setdefault((score.method, score.region, score.metric), []).append(score)
        rows += [_summary(cohort, group) for group in groups.values()]
    return rows


def compare(scores: Iterable[Score]) -> list[Comparison]:
    """Compare every pair of methods by region and metric over the patients that both were scored on; then by cohort.

    ``difference`` is the median of the patients' differences, first method minus second. ``p`` is that of
    `signed_rank`, ``p_holm`` its correction over the pairs of methods of the same metric, region and cohort.
    """
    rows: list[Comparison] = []
    for cohort, members in _by_cohort(scores).items():
        families: dict[tuple[str, str], dict[str, list[Score]]] = {}
        for score in members:
            methods = families.setdefault((score.region, score.metric), {})
            methods.setdefault(score.method, []).append(score)
        for methods in families.values():
            family = [_comparison(cohort, methods[a], methods[b]) for a, b in combinations(methods, 2)]
            corrected = holm([row.p for row in family])
            rows += [row.model_copy(update={"p_holm": p}) for row, p in zip(family, corrected, strict=True)]
    return rows


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean by the bias-corrected and accelerated bootstrap.

    Beyond `BOOTSTRAP_PATIENTS` it is the normal one, which is then the same to the width of a line.

    Args:
        values: One per patient, in any order.

    Returns:
        The ends in the values' unit, or None below `FEWEST_PATIENTS`. Equal values give an interval without width.

    Source: Efron, Better bootstrap confidence intervals, J Am Stat Assoc 82 (1987) 171-185; levels for few patients:
    Hesterberg, What teachers should know about the bootstrap, Am Stat 69 (2015) 371-386.
    """
    n = len(values)
    if n < FEWEST_PATIENTS:
        return None
    # Sorted: the resamples then do not depend on the order of the cases.
    x = np.sort(np.asarray(values, np.float64))
    deviations = x - x.mean()
    # Equal as far as floats can tell: the rounded mean of equal values may lie beside them.
    if not x[0] < x.mean() < x[-1] or not (deviations**3).any():
        return float(x[0]), float(x[-1])
    if n > BOOTSTRAP_PATIENTS:
        reach = float(ndtri((1 + LEVEL) / 2) * x.std(ddof=1) / np.sqrt(n))
        return float(x.mean()) - reach, float(x.mean()) + reach
    means = _resampled_counts(n) @ deviations / n
    bias = ndtri((np.mean(means < 0) + np.mean(means <= 0)) / 2)
    # The jackknife's influence on a mean is the deviation itself.
    acceleration = np.sum(deviations**3) / (6 * np.sum(deviations**2) ** 1.5)
    # Resamples spread less than samples do: levels are as much wider as Student's t and n / (n - 1) say.
    reach = np.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 + LEVEL) / 2)
    z = bias + np.array([-reach, reach])
    low, high = x.mean() + np.quantile(means, ndtr(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


@lru_cache(maxsize=2)  # 80 MB for 1000 patients; all metrics of a table share one
def _resampled_counts(n: int) -> NDArray[np.float64]:
    """Return how often each of n patients is drawn, one row per resample."""
    return np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(np.float64)


def signed_rank(differences: Sequence[float]) -> tuple[float | None, str]:
    """Test whether paired differences are symmetric around zero: Wilcoxon's signed-rank test, two-sided.

    Zero differences are left out (Wilcoxon's rule), equal ones share their mean rank. Up to `EXACT_PATIENTS` the
    distribution over all signs is counted, also with ties; beyond, it is normal with the variance of the ranks.

    Returns:
        The p-value and a remark on zeros, or None and why there is none.

    Source: Wilcoxon, Individual comparisons by ranking methods, Biometrics Bulletin 1 (1945) 80-83.
    """
    # Equal but for rounding is equal: a tie, or no difference.
    scale = max(map(abs, differences), default=0) or 1
    d: NDArray[np.float64] = np.round(np.asarray(differences, np.float64) / scale, 9)
    nonzero = d[d != 0]
    zeros = len(d) - len(nonzero)
    remark = f"{zeros} of {len(d)} differences are zero and left out" if zeros else ""
    if len(nonzero) < FEWEST_PATIENTS:
        few = f"fewer than {FEWEST_PATIENTS} patients{' that differ' if zeros else ''}"
        return None, f"no test: {few}, with which p cannot reach 0.05"
    _, place, ties = np.unique(np.abs(nonzero), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(ties) - (ties - 1) / 2)[place]
    statistic = min(ranks[nonzero > 0].sum(), ranks[nonzero < 0].sum())
    if len(ranks) <= EXACT_PATIENTS:
        below = _exact_share(ranks, statistic)
    else:
        # Each rank has either sign: mean half its size, variance a quarter of its square.
        below = ndtr((statistic - ranks.sum() / 2) / np.sqrt(np.sum(ranks**2) / 4))
    return float(min(1.0, 2 * below)), remark


def _exact_share(ranks: NDArray[np.float64], statistic: float) -> float:
    """Return the probability that the ranks with one sign sum up to ``statistic`` or less, all signs being equal."""
    doubled = np.rint(2 * ranks).astype(int)  # mean ranks are whole or half numbers
    reach = round(2 * statistic)
    share = np.zeros(reach + 1)
    share[0] = 1
    for rank in doubled:
        moved = np.zeros_like(share)
        moved[rank:] = share[: max(len(share) - rank, 0)]
        share = (share + moved) / 2
    return float(share.sum())


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected for their number, in the same order; None is no test and counts for nothing.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scand J Stat 6 (1979) 65-70.
    """
    corrected: list[float | None] = [None] * len(p_values)
    tests = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    highest = 0.0
    for done, (p, place) in enumerate(tests):
        highest = max(highest, min(1.0, (len(tests) - done) * p))
        corrected[place] = highest
    return corrected


def _by_cohort(scores: Iterable[Score]) -> dict[str, list[Score]]:
    """Return all scores under '', followed by those of every cohort where there are several."""
    everything = list(scores)
    cohorts: dict[str, list[Score]] = {}
    for score in everything:
        cohorts.setdefault(score.cohort, []).append(score)
    return {"": everything} | ({name: cohorts[name] for name in cohorts if name} if len(cohorts) > 1 else {})


def _summary(cohort: str, group: Sequence[Score]) -> Summary:
    defined = [(score, score.value) for score in group if score.value is not None]
    values = _over_patients(defined)
    row = Summary(
        method=group[0].method,
        region=group[0].region,
        metric=group[0].metric,
        cohort=cohort,
        mean=None,
        sd=None,
        n=len(values),
        cases=len(defined),
        undefined=len(group) - len(defined),
        unit=group[0].unit,
        better=group[0].better,
    )
    if not values:
        return row
    q1, median, q3 = (float(q) for q in np.quantile(values, [0.25, 0.5, 0.75]))
    low, high = bootstrap_interval(values) or (None, None)
    return row.model_copy(
        update={
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "median": median,
            "q1": q1,
            "q3": q3,
            "low": low,
            "high": high,
            "note": "" if low is not None else f"no interval: fewer than {FEWEST_PATIENTS} patients",
        }
    )


def _comparison(cohort: str, a: Sequence[Score], b: Sequence[Score]) -> Comparison:
    others = {score.case: score.value for score in b}
    signless = abs if a[0].better == "zero" else float
    pairs = [
        (score, signless(score.value) - signless(other))
        for score in a
        if score.value is not None and (other := others.get(score.case)) is not None
    ]
    differences = _over_patients(pairs)
    p, note = signed_rank(differences) if differences else (None, "no test: no patient has both values")
    return Comparison(
        a=a[0].method,
        b=b[0].method,
        region=a[0].region,
        metric=a[0].metric,
        cohort=cohort,
        n=len(differences),
        difference=float(np.median(differences)) if differences else None,
        p=p,
        p_holm=None,
        unit=a[0].unit,
        note=note,
    )


def _over_patients(values: Iterable[tuple[Score, float]]) -> list[float]:
    """Return the mean over each patient's cases; a patient is one in all cohorts."""
    patients: dict[str, list[float]] = {}
    for score, value in values:
        patients.setdefault(score.patient, []).append(value)
    return [float(np.mean(cases)) for cases in patients.values()]
