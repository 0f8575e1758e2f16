"""Physical values to [-1, 1]: the stated formula to the last bit, into the caller's memory."""

import numpy as np
import pytest

from pipeline.imaging.normalise import normalise, restore

WINDOWS = [(-1024.0, 2048.0), (-160.0, 240.0), (0.1, 1000.3)]


def step_by_step(physical, window):
    low, high = window
    out = physical.astype(np.float32) - np.float32(low)
    return np.clip(out * np.float32(2.0 / (high - low)) - np.float32(1.0), -1.0, 1.0)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("window", WINDOWS)
def test_into_given_memory_or_not_the_bits_are_those_of_the_formula(dtype, window):
    physical = np.random.default_rng(0).uniform(-3024, 5000, (3, 17, 19)).astype(dtype)
    given = np.full(physical.shape, np.nan, np.float32)
    assert normalise(physical, window, given) is given
    for found in (given, normalise(physical, window)):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, step_by_step(physical, window))


def test_every_int16_is_mapped_and_comes_back_inside_the_window():
    every = np.arange(-32768, 32768).astype(np.int16)
    mapped = normalise(every, (-1024, 2048))
    assert (mapped.min(), mapped.max()) == (-1, 1)
    inside = (every >= -1024) & (every <= 2048)
    np.testing.assert_array_equal(np.rint(restore(mapped, (-1024, 2048))[inside]), every[inside])
