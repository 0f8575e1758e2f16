"""Mean and sample standard deviation over cases."""

import pytest

from pipeline.metrics import summarise
from pipeline.records import Score


def row(case, value, method="a"):
    return Score(
        case=case, patient=case, method=method, region="body", metric="mae", value=value, unit="HU", better="lower"
    )


def test_sample_deviation_and_undefined():
    (summary,) = summarise([row("1", 1.0), row("2", 3.0), row("3", None)])
    assert (summary.mean, summary.n, summary.undefined) == (2.0, 2, 1)
    assert summary.sd == pytest.approx(2**0.5)


def test_one_case_has_no_deviation_and_none_has_no_mean():
    one, none = summarise([row("1", 5.0), row("1", None, "b")])
    assert (one.mean, one.sd) == (5.0, None)
    assert (none.mean, none.sd, none.n, none.undefined) == (None, None, 0, 1)
