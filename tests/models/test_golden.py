"""Every method still computes what it did: see tests/golden/measure.py."""

import json
import sys
from pathlib import Path

import pytest
from miniatures import MINIATURE

sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))
from measure import FILE, measure

GOLDEN = json.loads(FILE.read_text())


def test_every_method_that_learns_has_golden_values():
    assert set(GOLDEN) == set(MINIATURE) - {"identity"}


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_losses_and_output_are_the_golden_ones(name):
    found = measure(name)
    first, *later = found["losses"]
    golden = GOLDEN[name]
    assert first == pytest.approx(golden["losses"][0], rel=1e-4)
    # Each step carries the rounding of another processor further; a changed formula is off by far more.
    assert later == pytest.approx(golden["losses"][1:], rel=2e-2)
    assert found["output"] == pytest.approx(golden["output"], rel=5e-2, abs=2e-2)
