"""Statistics over patients against scipy, hand computations and brute force."""

from itertools import product

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics.statistics import (
    BOOTSTRAP_PATIENTS,
    FEWEST_PATIENTS,
    bootstrap_interval,
    compare,
    holm,
    signed_rank,
    summarise,
)
from pipeline.records import Score

FINITE = st.floats(-1e4, 1e4).map(lambda x: round(x, 3))
PATIENTS = st.lists(FINITE, min_size=FEWEST_PATIENTS, max_size=12)


def row(case, value, method="a", *, patient=None, cohort="", better="lower", metric="mae"):
    return Score(
        case=case, patient=patient or case, cohort=cohort, method=method, region="body", metric=metric, value=value,
        unit="HU", better=better,
    )  # fmt: skip


def rows(values, method="a", **more):
    return [row(f"c{i}", value, method, **more) for i, value in enumerate(values)]


def test_mean_deviation_and_quartiles_by_hand():
    (summary,) = summarise(rows([1.0, 2.0, 4.0, 9.0, None]))
    assert (summary.mean, summary.n, summary.cases, summary.undefined) == (4.0, 4, 4, 1)
    assert summary.sd == pytest.approx((38 / 3) ** 0.5)
    assert (summary.q1, summary.median, summary.q3) == (1.75, 3.0, 5.25)
    assert (summary.low, summary.high, summary.note) == (None, None, "no interval: fewer than 6 patients")


def test_one_case_has_no_deviation_and_none_has_no_mean():
    one, none = summarise([row("1", 5.0), row("1", None, "b")])
    assert (one.mean, one.sd, one.median) == (5.0, None, 5.0)
    assert (none.mean, none.sd, none.median, none.n, none.cases, none.undefined) == (None, None, None, 0, 0, 1)


def test_every_patient_counts_once():
    many = [row(f"c{i}", 10.0, patient="often") for i in range(9)]
    (summary,) = summarise([*many, row("d", 0.0, patient="once")])
    assert (summary.mean, summary.n, summary.cases) == (5.0, 2, 10)


def test_cohorts_follow_the_whole_and_a_patient_of_both_counts_once_in_it():
    scores = [
        row("c1", 1.0, cohort="abdomen", patient="p"),
        row("c2", 3.0, cohort="thorax", patient="p"),
        row("c3", 5.0, cohort="thorax"),
    ]
    found = [(s.cohort, s.mean, s.n, s.cases) for s in summarise(scores)]
    assert found == [("", 3.5, 2, 3), ("abdomen", 1.0, 1, 1), ("thorax", 4.0, 2, 2)]
    assert [s.cohort for s in summarise(scores[1:])] == [""]


@pytest.mark.parametrize("n", [6, 12, 40])
def test_interval_is_that_of_scipy_at_the_levels_of_hesterberg(n):
    values = np.random.default_rng(n).lognormal(3, 0.6, n)
    reach = (n / (n - 1)) ** 0.5 * scipy.stats.t.ppf(0.975, n - 1)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=40_000, method="BCa", rng=np.random.default_rng(5),
        confidence_level=2 * scipy.stats.norm.cdf(reach) - 1,
    ).confidence_interval  # fmt: skip
    # Two bootstraps differ by their draws: some hundredths of the interval's width.
    assert bootstrap_interval(values) == pytest.approx(tuple(theirs), abs=0.06 * (theirs.high - theirs.low))


def test_interval_of_a_normal_sample_is_close_to_students():
    values = np.random.default_rng(2).normal(50, 5, 15)
    students = scipy.stats.t.interval(0.95, 14, values.mean(), scipy.stats.sem(values))
    assert bootstrap_interval(values) == pytest.approx(students, abs=0.1 * (students[1] - students[0]))


def test_the_normal_interval_of_a_thousand_patients_is_that_of_the_bootstrap():
    values = np.random.default_rng(3).lognormal(3, 0.5, BOOTSTRAP_PATIENTS + 1)
    bootstrap = bootstrap_interval(values[:-1])
    assert bootstrap_interval(values) == pytest.approx(bootstrap, abs=0.1 * (bootstrap[1] - bootstrap[0]))


@given(PATIENTS, st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_interval_is_inside_the_values_and_blind_to_their_order(values, random):
    low, high = bootstrap_interval(values)
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) - slack <= low <= high <= max(values) + slack
    assert bootstrap_interval(random.sample(values, len(values))) == (low, high)


def test_equal_values_have_an_interval_without_width_and_few_have_none():
    assert bootstrap_interval([3.5] * 7) == (3.5, 3.5)
    assert bootstrap_interval([204.812] * 6) == (204.812, 204.812)  # their rounded mean is another number
    assert bootstrap_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None
    low, high = bootstrap_interval([-1.0, -1.0, 1.0, 1.0, -2.0, 2.0])  # symmetric: no skewness
    assert low < 0 < high


@pytest.mark.parametrize("n", [6, 11, 40])
def test_signed_rank_is_scipys_without_ties(n):
    d = np.random.default_rng(n).normal(0.4, 1, n)
    p, note = signed_rank(d)
    assert (p, note) == (pytest.approx(scipy.stats.wilcoxon(d, method="exact").pvalue, rel=1e-9), "")


def test_signed_rank_of_many_is_the_normal_approximation():
    d = np.round(np.random.default_rng(0).normal(0.1, 1, 300), 1)
    theirs = scipy.stats.wilcoxon(d, zero_method="wilcox", correction=False, method="asymptotic").pvalue
    assert signed_rank(d)[0] == pytest.approx(theirs, rel=1e-9)


def brute_force(differences):
    """Over every assignment of signs: the share that is at least as far from the middle."""
    d = np.array([x for x in differences if x])
    ranks = scipy.stats.rankdata(np.abs(d))
    sums = [ranks[np.array(signs)].sum() for signs in product([False, True], repeat=len(d))]
    middle = ranks.sum() / 2
    return np.mean(np.abs(np.array(sums) - middle) >= abs(ranks[d > 0].sum() - middle))


@given(st.lists(st.integers(-4, 4), min_size=6, max_size=10))
@settings(max_examples=40)
def test_signed_rank_is_exact_with_ties_and_zeros(differences):
    p, note = signed_rank(differences)
    zeros = differences.count(0)
    assert (f"{zeros} of {len(differences)} differences are zero" in note) == (0 < zeros <= len(differences) - 6)
    if len(differences) - zeros < 6:
        assert p is None and "no test: fewer than 6 patients that differ" in note
    else:
        assert p == pytest.approx(brute_force(differences))
        assert signed_rank([-x for x in differences])[0] == pytest.approx(p)


def test_six_is_the_least_with_which_a_test_can_tell():
    assert signed_rank([1.0, 2.0, 3.0, 4.0, 5.0]) == (
        None,
        "no test: fewer than 6 patients, with which p cannot reach 0.05",
    )
    assert signed_rank([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])[0] == 2 / 2**6 < 0.05 < 2 / 2**5


def test_differences_that_are_equal_but_for_rounding_are_ties():
    rounded = [0.3 - 0.2, 0.1, 0.7 - 0.6, 0.5, -0.4, 0.2, 0.9]
    assert signed_rank(rounded) == signed_rank([0.1, 0.1, 0.1, 0.5, -0.4, 0.2, 0.9])


def test_holm_by_hand():
    # 4 tests: 0.01 x 4, 0.02 x 3, 0.03 x 2 (not below the one before), 0.6 x 1.
    assert holm([0.03, None, 0.01, 0.6, 0.02]) == pytest.approx([0.06, None, 0.04, 0.6, 0.06], nan_ok=True)
    assert holm([]) == [] and holm([None]) == [None] and holm([0.7, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_none_and_bonferroni_and_keeps_the_order(p):
    corrected = holm(p)
    assert all(a <= b <= min(1.0, a * len(p)) or b == pytest.approx(a) for a, b in zip(p, corrected, strict=True))
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()


def test_methods_are_compared_pair_by_pair_within_a_metric():
    base = [10.0, 12.0, 9.0, 14.0, 11.0, 13.0, 8.0]
    scores = [
        *rows(base), *rows([x + 1 + i / 10 for i, x in enumerate(base)], "b"), *rows([x - 2 for x in base], "c"),
        *rows(base, metric="mse"), *rows(base, "b", metric="mse"),
    ]  # fmt: skip
    found = {(c.metric, c.a, c.b): c for c in compare(scores)}
    assert list(found) == [("mae", "a", "b"), ("mae", "a", "c"), ("mae", "b", "c"), ("mse", "a", "b")]
    ab = found["mae", "a", "b"]
    assert (ab.n, ab.difference, ab.p) == (7, pytest.approx(-1.3), 2 / 2**7)
    assert ab.p_holm == 3 * ab.p  # three pairs are the family
    same = found["mse", "a", "b"]
    assert (same.difference, same.p, same.p_holm) == (0, None, None) and "that differ" in same.note


def test_pairs_are_cases_that_both_have_and_patients_count_once():
    a = [row("c1", 5.0, patient="p"), row("c2", 7.0, patient="p"), row("c3", None, patient="q"), row("c4", 1.0)]
    b = [row("c1", 4.0, "b", patient="p"), row("c2", 4.0, "b", patient="p"), row("c3", 1.0, "b", patient="q")]
    (found,) = compare([*a, *b])
    assert (found.n, found.difference) == (1, 2.0)
    (none,) = compare([row("c1", 1.0), row("c2", 1.0, "b")])
    assert (none.n, none.difference, none.p, none.note) == (0, None, None, "no test: no patient has both values")


def test_a_bias_is_compared_by_its_distance_from_zero():
    scores = [*rows([-5.0] * 6, better="zero"), *rows([1.0, 2.0, 3.0, -1.0, -2.0, -3.0], "b", better="zero")]
    (found,) = compare(scores)
    assert found.difference == 3.0 and found.p == 2 / 2**6


def test_a_cohort_is_a_family_of_its_own():
    scores = [
        row(f"{c}{i}", float(i + shift), m, cohort=c)
        for c in ("x", "y") for m, shift in (("a", 0), ("b", 1)) for i in range(6)
    ]  # fmt: skip
    assert [(c.cohort, c.n) for c in compare(scores)] == [("", 12), ("x", 6), ("y", 6)]


@given(PATIENTS, st.floats(1, 100))
@settings(max_examples=25)
def test_the_same_shift_of_both_methods_changes_no_test(values, shift):
    other = list(reversed(values))

    def p(by):
        scores = [*rows([v + by for v in values]), *rows([v + by for v in other], "b")]
        return compare(scores)[0].p

    assert p(0) == p(round(shift))
