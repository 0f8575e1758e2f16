"""The film's grid and its integers: nothing moves, nothing is truncated."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from makers import film_affine

from pipeline.errors import GeometryError
from pipeline.geometry import Grid, Volume, reorder
from pipeline.imaging.film import bounding_box, film_grid, grid_from, grid_record, to_stored
from pipeline.imaging.normalise import normalise, restore, window_for
from pipeline.imaging.resample import resample

SHAPE, SPACING = (7, 30, 40), (4.0, 2.0, 1.5)


def case(box=(slice(1, 6), slice(4, 15), slice(20, 33)), dtype=np.int16, spacing=SPACING):
    hu = np.full(SHAPE, -1000)
    hu[box] = np.random.default_rng(0).integers(-200, 800, hu[box].shape)
    return Volume(hu.astype(dtype), film_affine(spacing)), hu > -900


def mask_on(mask, volume, grid):
    return resample(Volume(mask.astype(np.uint8), volume.affine), grid, outside=0, order="nearest").array > 0


def test_the_box_of_a_mask():
    _, mask = case()
    assert bounding_box(mask) == (slice(1, 6), slice(4, 15), slice(20, 33))
    assert bounding_box(np.zeros((2, 2, 2), bool)) is None


@pytest.mark.parametrize("axes", ["SPL", "RAS", "LPS", "IRA"])
@pytest.mark.parametrize("size", [(12, 14), (11, 13), (16, 16), (50, 60)])
def test_at_the_same_spacing_voxels_stay_as_they_are_from_inferior_to_superior(axes, size):
    volume, mask = case()
    moved, moved_mask = reorder(volume, axes), reorder(Volume(mask, volume.affine), axes).array
    grid = film_grid(moved, moved_mask, SPACING, size, "a")
    assert grid.axes == "SPL"
    assert grid.shape == (7, *size)
    stored, scale = to_stored(moved, grid)
    assert scale == 1
    inside = mask_on(moved_mask, moved, grid)
    assert inside.sum() == mask.sum()
    np.testing.assert_array_equal(stored[inside], volume.array[mask])
    heights = grid.affine[2, 0] * np.arange(7) + grid.affine[2, 3]
    assert (np.diff(heights) > 0).all()


@pytest.mark.parametrize("spacing", [SPACING, (2.5, 1.0, 1.0), (5.0, 3.0, 2.2)])
def test_the_body_is_in_the_middle(spacing):
    volume, mask = case()
    grid = film_grid(volume, mask, spacing, (40, 40), "a")
    index = np.argwhere(mask_on(mask, volume, grid))
    middle = (index.min(axis=0) + index.max(axis=0)) / 2
    assert np.abs(middle[1:] - 19.5).max() <= 1.01
    np.testing.assert_allclose(grid.spacing_mm, spacing)
    np.testing.assert_allclose(grid.affine[2, 3], volume.affine[2, 3])
    last = (grid.shape[0] - 1) * spacing[0]
    assert 24 - spacing[0] < last <= 24 + 1e-6


def test_spacings_that_differ_by_float32_are_the_same():
    volume, mask = case(spacing=tuple(float(np.float32(s)) for s in (0.7, 0.3, 1.1)))
    grid = film_grid(volume, mask, (0.7, 0.3, 1.1), (11, 13), "a")
    stored, _ = to_stored(volume, grid)
    np.testing.assert_array_equal(stored, volume.array[:, 4:15, 20:33])


@settings(max_examples=40)
@given(st.tuples(*[st.floats(0.7, 4)] * 3), st.tuples(*[st.integers(1, 40)] * 2))
def test_a_body_that_does_not_fit_names_a_size_that_does_and_never_a_smaller_one(spacing, size):
    volume, mask = case()
    try:
        grid = film_grid(volume, mask, spacing, size, "a")
    except GeometryError as error:
        named = re.search(r"preprocess\.size=\[(\d+),(\d+)\]", str(error))
        size_named = (int(named[1]), int(named[2]))
        assert size_named[0] >= size[0]
        assert size_named[1] >= size[1]
        grid = film_grid(volume, mask, spacing, size_named, "a")
    # Everything of the body lies inside the film's field.
    inverse = np.linalg.inv(grid.affine)
    world = volume.affine[:3, :3] @ np.argwhere(mask).T + volume.affine[:3, 3:]
    index = inverse[:3, :3] @ world + inverse[:3, 3:]
    for axis in (1, 2):
        assert index[axis].min() > -0.5 - 0.51
        assert index[axis].max() < grid.shape[axis] - 0.5 + 0.51


def test_an_empty_body_is_an_error_that_says_what_to_look_at():
    volume, mask = case()
    with pytest.raises(GeometryError, match=r"No body was found in case 'x'.*body_threshold_hu"):
        film_grid(volume, np.zeros_like(mask), SPACING, (32, 32), "x")


def test_a_grid_survives_its_record():
    volume, mask = case()
    grid = film_grid(volume, mask, (3.1, 1.7, 1.3), (32, 32), "a")
    again = grid_from(grid_record(grid))
    assert again.shape == grid.shape
    np.testing.assert_array_equal(again.affine, grid.affine)


def line(values, dtype=np.float32, unit="HU"):
    return Volume(np.asarray(values, dtype).reshape(-1, 1, 1), film_affine((1.0, 1.0, 1.0)), unit)


def halves(volume):
    """A grid that lies between the voxels."""
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, 0] / 2
    return Grid((volume.array.shape[0] - 1, 1, 1), affine)


def test_hu_are_rounded_not_truncated():
    volume = line([-0.6, -0.4, 0.6, 99.7, -1000.2])
    stored, _ = to_stored(volume, volume.grid)
    assert stored.ravel().tolist() == [-1, 0, 1, 100, -1000]


def test_padding_below_air_does_not_bleed_into_its_neighbours():
    volume = line([-3024, 0, -2000], np.int16)
    assert to_stored(volume, volume.grid)[0].ravel().tolist() == [-1024, 0, -1024]
    assert to_stored(volume, halves(volume))[0].ravel().tolist() == [-512, -512]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_every_dtype_is_stored_with_its_values(dtype):
    volume = line([0, 100, 7], dtype)
    assert to_stored(volume, volume.grid)[0].ravel().tolist() == [0, 100, 7]


def test_values_beyond_int16_saturate():
    volume = line([1e6, -1e6])
    assert to_stored(volume, volume.grid)[0].ravel().tolist() == [32767, -1024]


def test_outside_the_volume_is_air():
    volume = line([50, 60])
    grid = Grid((4, 2, 1), volume.affine)
    assert to_stored(volume, grid)[0][:, :, 0].tolist() == [[50, -1024], [60, -1024], [-1024, -1024], [-1024, -1024]]


@settings(max_examples=50)
@given(arrays.arrays(np.float32, (5, 3, 2), elements=st.floats(-1e6, 1e6, width=32)), st.floats(1e-3, 1e3))
def test_mr_comes_back_within_half_a_step(values, gain):
    volume = Volume(values * np.float32(gain), film_affine(), "a.u.")
    stored, scale = to_stored(volume, volume.grid)
    back = stored * np.float64(scale)
    assert np.abs(back - volume.array).max() <= scale * 0.5 * 1.01
    assert scale <= max(float(np.abs(volume.array).max()) / 32000, 1.0)


def test_an_mr_film_of_zeros_is_stored_as_zeros():
    volume = line([0, 0], unit="a.u.")
    stored, scale = to_stored(volume, volume.grid)
    assert (stored == 0).all()
    assert scale == 1


# --- Normalisation -------------------------------------------------------------------------------------------------


@given(st.floats(-2000, 2000), st.floats(1, 5000), arrays.arrays(np.float32, 6, elements=st.floats(-1, 1, width=32)))
def test_restoring_is_the_inverse_of_normalising(low, width, values):
    window = (low, low + width)
    np.testing.assert_allclose(normalise(restore(values, window), window), values, atol=4e-3)


def test_the_ends_of_the_window_are_the_ends_of_the_range_and_beyond_is_clipped():
    out = normalise(np.array([-3000, -1024, 512, 2048, 3071], np.int16), (-1024, 2048))
    np.testing.assert_allclose(out, [-1, -1, 0, 1, 1], atol=1e-6)
    assert out.dtype == np.float32
    np.testing.assert_allclose(restore(out, (-1024, 2048)), [-1024, -1024, 512, 2048, 2048], atol=1e-3)


def test_every_hu_survives_normalising_and_restoring():
    hu = np.arange(-1024, 2049, dtype=np.int16)
    np.testing.assert_array_equal(np.rint(restore(normalise(hu, (-1024, 2048)), (-1024, 2048))), hu)


def test_the_window_is_the_configured_one_else_the_cases_percentiles():
    assert window_for("ct", {"ct": (-1, 2)}, {"ct": (5, 6)}) == (-1, 2)
    assert window_for("t1n", {"ct": (-1, 2)}, {"t1n": (5, 6)}) == (5, 6)
    assert window_for("t1n", {}, {"t1n": (5, 5)}) == (5, 6)
