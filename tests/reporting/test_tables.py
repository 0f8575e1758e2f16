"""Merging, pivoting, CSV and the terminal."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipeline.errors import ConfigError
from pipeline.metrics import compare, summarise
from pipeline.records import Score, Scores
from pipeline.reporting.tables import (
    case_table,
    merge,
    plain_text,
    print_summary,
    regions,
    safe_cell,
    summary_table,
    write_comparisons_csv,
    write_scores_csv,
    write_summary_csv,
)

DIRECTION = {"mae": ("HU", "lower"), "psnr": ("dB", "higher"), "bias": ("HU", "zero")}


def row(method, metric, value, case="c1", region="body", patient="p1", reason=""):
    unit, better = DIRECTION[metric]
    return Score(
        case=case, patient=patient, method=method, region=region, metric=metric,
        value=value, unit=unit, better=better, reason=reason,
    )  # fmt: skip


def result(rows, **profile):
    data = {"name": "ct", "metrics": {}, "regions": {}, **profile}
    return Scores(schema=1, profile=data, scores=rows, summary=summarise(rows))


def test_best_respects_direction():
    rows = [
        row("a", "mae", 5.0), row("b", "mae", 7.0),
        row("a", "psnr", 30.0), row("b", "psnr", 33.0),
        row("a", "bias", -1.0), row("b", "bias", 4.0),
    ]  # fmt: skip
    table = summary_table(result(rows), "body")
    best = {method: [cell.best for cell in cells] for method, cells in table.rows}
    assert best == {"a": [True, False, True], "b": [False, True, False]}


def test_one_method_alone_is_not_the_best_and_undefined_is_counted():
    rows = [row("a", "mae", 5.0), row("a", "mae", None, case="c2", reason="the region is empty")]
    ((_, (cell,)),) = summary_table(result(rows), "body").rows
    assert (cell.text, cell.best, cell.remark) == ("5.0", False, "1 of 2 cases")
    cells = [line[0] for *_, line in case_table(result(rows), "body")]
    assert [(c.text, c.remark) for c in cells] == [("5.0", ""), ("–", "the region is empty")]


def test_a_method_with_fewer_patients_says_how_many():
    rows = [row(m, "mae", 5.0, case=c, patient=c) for m, cases in (("a", "xyz"), ("b", "xy")) for c in cases]
    table = summary_table(result(rows), "body")
    assert [cell.remark for _, (cell,) in table.rows] == ["", "2 patients"]


def test_mask_is_the_first_region_and_body_the_fallback():
    rows = [row("a", "mae", 1.0, region=r) for r in ("whole", "body", "mask")]
    assert regions(result(rows)) == ["mask", "body", "whole"]
    assert regions(result(rows[:2])) == ["body", "whole"]


def test_merge_keeps_the_source_once():
    one = result([row("source", "mae", 9.0), row("a", "mae", 5.0)])
    two = result([row("source", "mae", 9.0), row("source", "mae", 8.0, case="c2"), row("b", "mae", 4.0)])
    both = merge([one, two])
    assert both.methods() == ["source", "a", "b"]
    assert [s.cases for s in both.summary] == [2, 1, 1]


def test_merge_refuses_what_cannot_be_compared():
    one = result([row("source", "mae", 9.0), row("a", "mae", 5.0)])
    with pytest.raises(ConfigError, match=r"data_range: 4095 -> 4024"):
        merge([result([], data_range=4095), result([], data_range=4024)])
    with pytest.raises(ConfigError, match="Method 'a' is in two"):
        merge([one, one])
    with pytest.raises(ConfigError, match="disagree about the source"):
        merge([one, result([row("source", "mae", 3.0)])])
    both = [row(m, "mae", 4.0).model_copy(update={"cohort": c}) for m, c in (("a", "abdomen"), ("b", "thorax"))]
    with pytest.raises(ConfigError, match="Case 'c1' is in two cohorts, 'abdomen' and 'thorax'"):
        merge([result(both[:1]), result(both[1:])])


def test_csv_neutralises_formulas_and_leaves_numbers(tmp_path):
    rows = [row("=cmd()", "mae", -5.25, patient="@p"), row("+a", "mae", None, case="-1")]
    write_scores_csv(tmp_path / "scores.csv", rows)
    with (tmp_path / "scores.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert [(x["case"], x["patient"], x["method"], x["value"]) for x in lines] == [
        ("c1", "'@p", "'=cmd()", "-5.25"),
        ("'-1", "p1", "'+a", ""),
    ]
    write_summary_csv(tmp_path / "summary.csv", summarise(rows))
    with (tmp_path / "summary.csv").open() as stream:
        first, _ = csv.DictReader(stream)
    assert (first["method"], first["mean"], first["sd"], first["n"]) == ("'=cmd()", "-5.25", "", "1")
    assert [safe_cell(t) for t in ("\t=1", "a=1", "", "＝1")] == ["' =1", "a=1", "", "'＝1"]


HOSTILE = st.text(st.sampled_from("=+-@\t\r\n\v\0\u2028\u202e,;\"'\\{}$&#^_~%<>|a1é "), max_size=12)


@given(HOSTILE)
def test_no_text_starts_a_formula_or_a_line(text):
    cell = safe_cell(text)
    assert cell.isprintable() and not cell.lstrip().startswith(("=", "+", "-", "@", "＝"))
    assert cell.removeprefix("'").strip() == plain_text(text).removeprefix("'").strip()


def test_comparisons_csv_has_a_row_per_pair_with_its_reason(tmp_path):
    rows = [row(m, "mae", float(v), case=f"c{v}", patient=f"p{v}") for m in ("=a", "b") for v in range(3)]
    write_comparisons_csv(tmp_path / "comparisons.csv", compare(rows))
    with (tmp_path / "comparisons.csv").open() as stream:
        (line,) = csv.DictReader(stream)
    assert (line["a"], line["b"], line["n"], line["p"], line["p_holm"]) == ("'=a", "b", "3", "", "")
    assert "that differ" in line["note"]


def test_tables_show_all_patients_also_where_cohorts_have_rows_of_their_own():
    rows = [row("a", "mae", v, case=c, patient=c).model_copy(update={"cohort": c}) for c, v in (("x", 1.0), ("y", 3.0))]
    ((_, (cell,)),) = summary_table(result(rows), "body").rows
    assert cell.text == "2.0 ± 1.4"


@pytest.mark.parametrize("terminal", [True, False])
def test_print_shows_markup_as_text(terminal):
    stream = io.StringIO()
    rows = [row("[red]x", "mae", 5.0), row("source", "mae", 6.0)]
    print_summary(Console(file=stream, force_terminal=terminal, width=120), result(rows))
    text = stream.getvalue()
    assert "[red]x" in text and "5.0" in text and "MAE" not in text and "mae ↓ [HU]" in text
    assert ("\x1b[" in text) == terminal
