"""Resampling: exact where it can be, antialiased where it must be, and never shifted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import film_affine
from scipy import ndimage
from scipy.spatial.transform import Rotation

from pipeline.geometry import Grid, Volume, reorder
from pipeline.imaging.resample import resample

SHAPE = (9, 12, 15)
rng = np.random.default_rng(0)
NOISE = rng.integers(-1000, 3000, SHAPE).astype(np.int16)


def volume(array=NOISE, spacing=(2.0, 1.5, 1.0)):
    return Volume(array, film_affine(spacing))


def onto(start, step, shape, base):
    """A grid that starts at index ``start`` of ``base`` and advances by ``step`` of its voxels."""
    affine = base.affine.copy()
    affine[:3, 3] = base.affine[:3, :3] @ np.asarray(start, float) + base.affine[:3, 3]
    affine[:3, :3] = base.affine[:3, :3] * np.asarray(step, float)
    return Grid(tuple(shape), affine)


def centres(grid):
    index = np.indices(grid.shape).reshape(3, -1)
    return (grid.affine[:3, :3] @ index + grid.affine[:3, 3:]).reshape(3, *grid.shape)


def test_the_same_grid_gives_the_same_voxels_in_memory_of_their_own():
    source = volume(NOISE.astype(np.float32))
    out = resample(source, source.grid, outside=0)
    np.testing.assert_array_equal(out.array, source.array)
    assert not np.shares_memory(out.array, source.array)


@given(st.tuples(*[st.integers(-20, 20)] * 3), st.tuples(*[st.integers(1, 20)] * 3))
def test_a_whole_number_of_voxels_is_a_crop_and_a_pad_bit_by_bit(start, shape):
    out = resample(volume(), onto(start, (1, 1, 1), shape, volume()), outside=-7).array
    index = np.stack(np.meshgrid(*[s + np.arange(n) for s, n in zip(start, shape, strict=True)], indexing="ij"))
    inside = np.all([(i >= 0) & (i < n) for i, n in zip(index, SHAPE, strict=True)], axis=0)
    expected = np.full(shape, -7, np.float32)
    expected[inside] = NOISE[tuple(i[inside] for i in index)]
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SPL", "ASR", "IRP"])
def test_axes_in_another_order_and_direction_lose_nothing(axes):
    moved = reorder(volume(), axes)
    np.testing.assert_array_equal(resample(volume(), moved.grid, outside=0).array, moved.array)
    np.testing.assert_array_equal(resample(moved, volume().grid, outside=0).array, NOISE)


@pytest.mark.parametrize("step", [0.3, 0.5, 1.0, 1.7, 2.0, 3.4])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_linear_ramp_is_reproduced_inside_whatever_the_step(step, axis):
    ramp = np.moveaxis(np.broadcast_to(np.arange(40.0), (3, 4, 40)), 2, axis).astype(np.float32)
    source = volume(np.ascontiguousarray(ramp))
    start, steps, shape = np.zeros(3), np.ones(3), list(ramp.shape)
    start[axis], steps[axis], shape[axis] = 5.25, step, int(28 / step)
    out = resample(source, onto(start, steps, shape, source), outside=0).array
    expected = 5.25 + step * np.arange(shape[axis])
    np.testing.assert_allclose(np.moveaxis(out, axis, 2)[0, 0], expected, atol=2e-4 * step)


@settings(max_examples=25)
@given(st.tuples(*[st.floats(0, 4)] * 3), st.tuples(*[st.floats(0.2, 1.0)] * 3), st.sampled_from(["SPL", "RAS", "PLI"]))
def test_upsampling_agrees_with_an_independent_interpolation(start, step, axes):
    target = onto(start, step, (5, 5, 5), volume())
    source = reorder(volume(), axes)
    out = resample(source, target, outside=-9)
    where = np.asarray(start)[:, None] + np.asarray(step)[:, None] * np.arange(5)
    points = np.stack(np.meshgrid(*where, indexing="ij"))
    expected = ndimage.map_coordinates(NOISE.astype(np.float64), points, order=1, mode="nearest")
    np.testing.assert_allclose(out.array, expected, atol=0.01)
    assert out.array.dtype == np.float32


@pytest.mark.parametrize("step", [2.0, 2.7, 4.0])
def test_coarser_means_averaged_the_mean_stays_and_the_noise_falls(step):
    noise = rng.normal(100, 50, (40, 40, 40)).astype(np.float32)
    out = resample(volume(noise), onto((2, 2, 2), (step,) * 3, (int(36 / step),) * 3, volume(noise)), outside=0).array
    assert abs(out.mean() - noise[1:-1, 1:-1, 1:-1].mean()) < 2
    assert out.std() < 50 / step


@pytest.mark.parametrize("start", [8, 8.5])
def test_a_checkerboard_of_single_voxels_vanishes(start):
    board = (np.indices((32, 32, 32)).sum(axis=0) % 2 * 200.0 - 100).astype(np.float32)
    out = resample(volume(board), onto((start,) * 3, (2, 2, 2), (8, 8, 8), volume(board)), outside=0).array
    assert np.abs(out).max() < 1e-4


def test_nearest_keeps_labels_and_the_dtype():
    labels = rng.integers(0, 5, SHAPE).astype(np.uint8)
    grid = onto((0.33, 0.2, -3), (0.4, 1.7, 1.3), (12, 6, 15), volume())
    out = resample(volume(labels), grid, outside=9, order="nearest").array
    assert out.dtype == np.uint8
    assert set(np.unique(out)) <= {0, 1, 2, 3, 4, 9}
    assert (out[:, :, 0] == 9).all()
    assert (out[:, :, 4] == labels[np.round(0.33 + 0.4 * np.arange(12)).astype(int)][:, [0, 2, 4, 5, 7, 9], 2]).all()


def test_halfway_between_voxels_nearest_takes_every_label_once():
    labels = np.arange(10, dtype=np.uint8).reshape(10, 1, 1)
    out = resample(volume(labels), onto((0.5, 0, 0), (1, 1, 1), (9, 1, 1), volume(labels)), outside=99, order="nearest")
    np.testing.assert_array_equal(out.array.ravel(), np.arange(9))


def test_positions_up_to_half_a_voxel_outside_are_still_the_edge():
    source = volume(np.full(SHAPE, 5, np.int16))
    out = resample(source, onto((-0.45, 0, 0), (0.9, 1, 1), (11, 12, 15), source), outside=-1).array
    assert (out[:10] == 5).all()
    assert (out[10] == -1).all()


def turned(degrees, base, shape=(8, 9, 10)):
    """A rotated grid about the volume's centre."""
    middle = base.affine[:3, :3] @ ((np.asarray(base.array.shape) - 1) / 2) + base.affine[:3, 3]
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ base.affine[:3, :3]
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return Grid(shape, affine)


@pytest.mark.parametrize("degrees", [(10, 0, 0), (5, -7, 20), (0, 0, 40), (1, 1, 1)])
def test_a_rotated_grid_agrees_with_a_function_of_the_world(degrees):
    fine = Grid((30, 34, 38), film_affine((1.0, 1.0, 1.0), (20, 15, -15)))

    def function(world):
        return 100 + 3 * world[0] - 2 * world[1] + 5 * world[2]

    source = Volume(function(centres(fine)).astype(np.float32), fine.affine)
    target = turned(degrees, source, (10, 11, 12))
    np.testing.assert_allclose(resample(source, target, outside=0).array, function(centres(target)), atol=0.01)


def test_a_rotated_grid_has_the_same_edge_as_a_straight_one():
    source = volume(np.full((20, 20, 20), 5, np.int16), (1.0, 1.0, 1.0))
    target = turned((0, 0, 30), source, (22, 30, 30))
    index = np.einsum("ij,jabc->iabc", np.linalg.inv(source.affine)[:3, :3], centres(target))
    index += np.linalg.inv(source.affine)[:3, 3][:, None, None, None]
    inside = ((index > -0.5) & (index < 19.5)).all(axis=0)
    for order in ("linear", "nearest"):
        out = resample(source, target, outside=-1, order=order).array
        np.testing.assert_array_equal(out == 5, inside)
        np.testing.assert_array_equal(out == -1, ~inside)


def test_a_rotated_mask_keeps_its_labels_and_dtype():
    labels = rng.integers(0, 3, (20, 20, 20)).astype(np.uint8)
    out = resample(volume(labels), turned((3, 4, 5), volume(labels)), outside=0, order="nearest").array
    assert out.dtype == np.uint8
    assert set(np.unique(out)) == {0, 1, 2}


def test_header_noise_in_the_direction_stays_on_the_exact_path():
    affine = volume().affine.copy()
    affine[:3, :3] += np.random.default_rng(1).uniform(-1e-8, 1e-8, (3, 3))
    np.testing.assert_array_equal(resample(volume(), Grid(SHAPE, affine), outside=0).array, NOISE)
