"""What one table pools: folds over patients, each once; cohorts side by side; repeated cases of a patient."""

import pytest
from scored_case import make_translation, settings

from pipeline.errors import ConfigError
from pipeline.records import Scores, Translation
from pipeline.stages import evaluate

OPTIONS = ("metrics.metrics=[mae]", "metrics.extra=[]", "metrics.regions=[body]", "evaluate.source=false")


def translated(folder, cases, *, patients=None, label="net", fold=0, cohort="", error=20.0):
    """A translation of cases; a case is a patient unless ``patients`` says whose it is."""
    make_translation(folder, label, cases=cases, error=error, fov=False)
    record = Translation.load(folder)
    entries = [
        entry.model_copy(update={"patient": patient})
        for entry, patient in zip(record.cases, patients or cases, strict=True)
    ]
    record.model_copy(update={"cases": entries, "fold": fold, "cohort": cohort}).save(folder)
    return folder


def scored(tmp_path, *inputs, options=()):
    evaluate.run(settings(*OPTIONS, *options, input=list(inputs), output=tmp_path / "s"))
    return Scores.load(tmp_path / "s")


def test_folds_are_pooled_over_patients_each_once(tmp_path):
    deal = {1: ("a1", "a2", "b1"), 2: ("c1", "d1"), 3: ("e1", "f1", "g1")}
    inputs = [
        translated(tmp_path / f"{label}{fold}", cases, label=label, fold=fold, error=error + fold,
                   patients=[case[0] for case in cases])
        for label, error in (("net", 10.0), ("other", 30.0)) for fold, cases in deal.items()
    ]  # fmt: skip
    scores = scored(tmp_path, *inputs)
    (net, other) = scores.summary
    # Patient a has two cases and counts once: 2 x 11, 2 x 12, 3 x 13.
    assert (net.method, net.n, net.cases) == ("net", 7, 8)
    assert net.mean == pytest.approx((2 * 11 + 2 * 12 + 3 * 13) / 7)
    assert net.low < net.mean < net.high
    assert (other.n, other.mean) == (7, pytest.approx(net.mean + 20))
    (pair,) = scores.comparisons
    assert (pair.a, pair.b, pair.n, pair.difference) == ("net", "other", 7, pytest.approx(-20))
    assert pair.p == pair.p_holm == 2 / 2**7
    assert "'net' is a cross-validation: folds 1, 2, 3, a run each." in scores.notes


def test_a_patient_in_two_folds_is_refused(tmp_path):
    one = translated(tmp_path / "1", ("a1",), patients=["a"], fold=1)
    two = translated(tmp_path / "2", ("a2",), patients=["a"], fold=2)
    with pytest.raises(ConfigError, match=r"Folds 1 and 2 of 'net' were both tested on the same patients.*1 in common"):
        scored(tmp_path, one, two)


def test_a_fold_joins_no_result_without_folds_and_none_twice(tmp_path):
    fold, whole = translated(tmp_path / "1", ("a",), fold=1), translated(tmp_path / "2", ("b",))
    for second in (whole, fold):
        with pytest.raises(ConfigError, match="Two inputs have the label 'net'"):
            scored(tmp_path, fold, second)


def test_cohorts_of_one_method_stand_side_by_side(tmp_path):
    abdomen = translated(tmp_path / "1", ("a1", "a2"), cohort="abdomen", error=10.0)
    thorax = translated(tmp_path / "2", ("t1", "t2", "t3"), cohort="thorax", error=40.0)
    scores = scored(tmp_path, abdomen, thorax)
    assert [(s.cohort, s.n, s.mean) for s in scores.summary] == [
        ("", 5, 28.0),
        ("abdomen", 2, 10.0),
        ("thorax", 3, 40.0),
    ]
    assert {s.cohort for s in scores.scores} == {"abdomen", "thorax"}


def test_a_case_in_two_cohorts_is_refused(tmp_path):
    one, two = (translated(tmp_path / c, ("a",), patients=[c], cohort=c) for c in ("abdomen", "thorax"))
    with pytest.raises(ConfigError, match="Case 'a' is in two cohorts, 'abdomen' and 'thorax'"):
        scored(tmp_path, one, two)


def test_patients_of_one_name_in_two_cohorts_are_refused_and_not_named(tmp_path):
    one, two = (translated(tmp_path / c, (c,), patients=["p7"], cohort=c) for c in ("abdomen", "thorax"))
    with pytest.raises(ConfigError, match="Cohorts 'abdomen' and 'thorax' have patients of the same names") as error:
        scored(tmp_path, one, two)
    assert "1 in common" in str(error.value) and "p7" not in str(error.value)


def test_a_pattern_reads_the_cohort_from_the_case(tmp_path):
    folder = translated(tmp_path / "1", ("1AB1", "1AB2", "1TH1"), cohort="challenge")
    scores = scored(tmp_path, folder, options=["evaluate.cohort_pattern='^1(AB|TH)'"])
    assert [(s.cohort, s.n) for s in scores.summary] == [("", 3), ("AB", 2), ("TH", 1)]
