"""Percentiles by counting are numpy's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.imaging.histogram import percentiles


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
@given(data=st.data())
def test_percentiles_are_numpys_however_the_values_are_parted(dtype, data):
    values = data.draw(arrays.arrays(dtype, st.integers(1, 40)))
    percents = data.draw(st.lists(st.floats(0, 100), min_size=1, max_size=3))
    cut = data.draw(st.integers(0, len(values)))
    found = percentiles([values[:cut], values[cut:]], percents)
    # As floats: numpy interpolates integers in their own type, which overflows.
    np.testing.assert_allclose(found, np.percentile(values.astype(np.float64), percents), rtol=1e-12, atol=1e-9)


def test_of_nothing_there_are_none():
    with pytest.raises(ValueError, match="nothing"):
        percentiles([np.zeros(0, np.int16)], [50])
