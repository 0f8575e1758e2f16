"""Scores for others to see: every number, and no name that came from a folder."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics import compare, summarise
from pipeline.records import Score, Scores
from pipeline.reporting.anonymous import anonymous, mean_values

NAMES = st.text("abcdefgh", min_size=12, max_size=14)


def score(name, patient, cohort, method, value):
    about = {"region": "mask", "metric": "mae", "unit": "HU", "better": "lower"}
    reason = "" if value is not None else f"case '{name}' has no body"
    return Score(case=name, patient=patient, cohort=cohort, method=method, value=value, reason=reason, **about)


def scores_of(rows):
    return Scores(
        schema=1, profile={}, scores=rows, summary=summarise(rows), comparisons=compare(rows),
        translations=["/data/Doe_John"], notes=["Left out: case 'Doe_John'"],
    )  # fmt: skip


@given(st.lists(NAMES, min_size=3, max_size=6, unique=True), st.lists(NAMES, min_size=2, max_size=3, unique=True))
def test_all_names_go_and_all_numbers_stay(cases, methods):
    value = iter(range(1000))
    rows = [score(c, f"p{c}", f"c{c[0]}{c}", m, float(next(value))) for m in methods for c in cases]
    rows.append(score(cases[0] + "x", cases[0], "", methods[0], None))
    scores = scores_of(rows)
    shown = anonymous(scores, ())
    text = shown.model_dump_json()
    assert not [name for name in (*cases, *methods, "Doe_John") if name in text]
    assert [s.value for s in shown.scores] == [s.value for s in scores.scores]
    assert [(s.mean, s.n) for s in shown.summary] == [(s.mean, s.n) for s in scores.summary]
    assert len({s.patient for s in shown.scores}) == len({s.patient for s in scores.scores})


def test_methods_that_may_keep_their_name_do_and_means_are_keyed_by_what_is_compared():
    rows = [score("a", "p", "", "source", 9.0), score("a", "p", "", "vid2vid", 3.0)]
    assert mean_values(anonymous(scores_of(rows), {"vid2vid"})) == {"source/mask/mae": 9.0, "scores/mask/mae": 3.0}
    rows.append(score("a", "p", "", "Doe_John", 4.0))
    means = mean_values(anonymous(scores_of(rows), {"vid2vid"}))
    assert means == {
        "source/mask/mae": 9.0,
        "scores/mask/mae/vid2vid": 3.0,
        "scores/mask/mae/method 2": 4.0,
    }
