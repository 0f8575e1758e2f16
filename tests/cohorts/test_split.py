"""Splits: by patient, reproducible, lists first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cohorts.split import assign_splits, deal_folds, shares
from pipeline.errors import ConfigError
from pipeline.settings import SplitSettings

names = st.sets(st.text("abcdef0123", min_size=1, max_size=6), max_size=40)
FRACTIONS = {"train": 0.7, "validation": 0.1, "test": 0.2}


def settings(**lists):
    return SplitSettings(**{"fractions": FRACTIONS, "train": [], "validation": [], "test": [], "folds": 0, **lists})


@given(names, st.integers(0, 9), st.randoms())
def test_order_does_not_matter_and_everyone_has_a_split(patients, seed, random):
    shuffled = [*patients, *patients]
    random.shuffle(shuffled)
    result = assign_splits(shuffled, settings(), seed)
    assert result == assign_splits(sorted(patients), settings(), seed)
    assert set(result) == patients
    if len(patients) >= 3:
        assert set(result.values()) == set(FRACTIONS)


@given(st.integers(0, 300), st.lists(st.integers(0, 10), min_size=3, max_size=3).filter(any))
def test_shares_add_up_and_stay_close(count, weights):
    fractions = [weight / sum(weights) for weight in weights]
    parts = shares(count, fractions)
    assert sum(parts) == count and min(parts) >= 0
    for part, fraction in zip(parts, fractions, strict=True):
        assert abs(part - count * fraction) < 1 or part == 1 or (count >= 3 and part + 2 > count * fraction - 1)
        assert fraction > 0 or part == 0
        assert count < 3 or fraction == 0 or part > 0


def test_shares_of_ten():
    assert shares(10, [0.7, 0.1, 0.2]) == [7, 1, 2]
    assert shares(1, [0.7, 0.1, 0.2]) == [1, 0, 0]


def test_seed_matters():
    patients = [f"p{i}" for i in range(30)]
    assert assign_splits(patients, settings(), 0) != assign_splits(patients, settings(), 1)


def test_lists_come_first_then_the_table_then_fractions():
    patients = [f"p{i}" for i in range(12)]
    result = assign_splits(patients, settings(test=["p3", "p4"]), 0, given={"p3": "train", "p5": "validation"})
    assert (result["p3"], result["p4"], result["p5"]) == ("test", "test", "validation")


def test_one_more_patient_moves_few():
    patients = [f"p{i}" for i in range(40)]
    before, after = assign_splits(patients, settings(), 0), assign_splits([*patients, "new"], settings(), 0)
    assert sum(before[p] != after[p] for p in patients) <= 3


def test_unknown_patient_gets_a_hint():
    with pytest.raises(ConfigError, match="Did you mean 'p10'"):
        assign_splits(["p10", "q7"], settings(train=["p1O"]), 0)
    with pytest.raises(ConfigError) as caught:
        assign_splits(["p10"], settings(train=["Müller, Ä"]), 0)
    assert "ller" not in str(caught.value)


def test_original_names_work_in_lists():
    result = assign_splits(["patient_ab", "x", "y"], settings(test=["Müller"]), 0, names={"Müller": "patient_ab"})
    assert result["patient_ab"] == "test"


@given(names, st.integers(3, 7), st.integers(0, 9), st.randoms())
def test_every_patient_has_one_fold_and_folds_differ_by_one_patient_at_most(patients, folds, seed, random):
    shuffled = [*patients, *patients]
    random.shuffle(shuffled)
    if len(patients) < folds:
        with pytest.raises(ConfigError, match=rf"Found: {folds}. Allowed: at most {len(patients)}"):
            deal_folds(shuffled, folds, seed)
        return
    dealt = deal_folds(shuffled, folds, seed)
    assert dealt == deal_folds(sorted(patients), folds, seed)
    assert set(dealt) == patients
    sizes = [list(dealt.values()).count(fold) for fold in range(1, folds + 1)]
    assert sum(sizes) == len(patients)
    assert max(sizes) - min(sizes) <= 1


@given(names.filter(lambda patients: len(patients) >= 7), st.integers(3, 7), st.integers(0, 9))
def test_one_more_patient_moves_fewer_others_than_there_are_folds(patients, folds, seed):
    before, after = deal_folds(patients, folds, seed), deal_folds([*patients, "new"], folds, seed)
    moves = [abs(before[patient] - after[patient]) for patient in patients]
    assert sum(moves) < folds
    assert max(moves) <= 1


def test_folds_follow_the_seed_and_no_folds_are_fold_0():
    patients = [f"p{i}" for i in range(30)]
    assert deal_folds(patients, 5, 0) != deal_folds(patients, 5, 1)
    assert set(deal_folds(patients, 0, 0).values()) == {0}
