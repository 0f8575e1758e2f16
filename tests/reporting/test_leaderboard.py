"""The leaderboard says n, spread and interval, marks the best by the metric's own direction, and never ranks a gap."""

import pytest
from board_scores import board_scores

from pipeline.records import Score
from pipeline.reporting.leaderboard import boards, families


def entry(board, method, title):
    column = [head.title for head in board.columns].index(title)
    return next(row for row in board.rows if row.method == method).entries[column]


def test_best_follows_the_direction_of_the_metric():
    board = boards(board_scores())[0]
    assert (board.title, [row.method for row in board.rows]) == ("Region mask", ["source", "a", "b"])
    best = {title: [m for m in ("source", "a", "b") if entry(board, m, title).best] for title in ("MAE", "PSNR", "ME")}
    assert best == {"MAE": ["a"], "PSNR": ["a"], "ME": ["b"]}  # the mean error is best near zero


def test_entries_say_spread_interval_quartiles_and_n():
    scores = board_scores()
    board = boards(scores)[0]
    row = next(s for s in scores.summary if (s.method, s.region, s.metric) == ("b", "mask", "me"))
    found = entry(board, "b", "ME")
    assert found.value == row.mean
    assert found.text == f"{row.mean:.1f} ± {row.sd:.1f}".replace("-", "−")
    assert found.interval == f"{row.low:.1f} to {row.high:.1f}".replace("-", "−")
    assert found.quartiles == f"{row.median:.1f} ({row.q1:.1f} to {row.q3:.1f})".replace("-", "−")
    assert [line.n for line in board.rows] == ["8", "8", "8"]


def test_few_patients_have_no_interval_and_one_method_is_not_best():
    board = boards(board_scores(methods=("a",), patients=1))[0]
    found = entry(board, "a", "MAE")
    assert (found.interval, found.best) == ("", False) and "±" not in found.text


def test_undefined_values_are_said_and_not_counted():
    gap = Score(case="c9", patient="p9", method="a", region="mask", metric="mae", value=None, unit="HU",
                better="lower", reason="the mask is empty")  # fmt: skip
    twice = [
        Score(case=f"c8_{i}", patient="p8", method="a", region="mask", metric="mae", value=30.0, unit="HU",
              better="lower") for i in range(2)
    ]  # fmt: skip
    board = boards(board_scores(more=[gap, *twice]))[0]
    line = next(row for row in board.rows if row.method == "a")
    assert line.n == "9 (10 cases)"
    assert entry(board, "a", "MAE").remark == "1 undefined"
    assert entry(board, "a", "PSNR").remark == "n 8"


def test_cohorts_have_boards_of_their_own():
    titles = [board.title for board in boards(board_scores(cohorts=("north", "south")))]
    assert titles[:3] == ["Region mask", "Region mask, cohort north", "Region mask, cohort south"]


def test_verdicts_name_the_pair_and_who_is_lower():
    rows = families(board_scores())[0].rows
    first = next(row for row in rows if (row.metric, row.pair) == ("MAE", "source − a"))
    assert (first.n, first.difference[0], first.significant) == (8, "+", True)
    assert float(first.p_holm) > float(first.p) == pytest.approx(2 / 2**8, abs=5e-4)
    few = families(board_scores(patients=3))[0]
    assert not few.tested and few.note.startswith("no test") and {row.note for row in few.rows} == {""}
