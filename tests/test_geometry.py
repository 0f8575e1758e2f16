"""Orientation and grids: nothing moves, and what differs is said."""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers import film_affine
from scipy.spatial.transform import Rotation

from pipeline.errors import GeometryError
from pipeline.geometry import FILM_AXES, Grid, Volume, axis_codes, grid_difference, reorder

ORDERS = [
    "".join(letters[i][f] for i, f in zip(order, flips, strict=True))
    for letters in [("RL", "AP", "SI")]
    for order in permutations(range(3))
    for flips in product((0, 1), repeat=3)
]
BASE = np.array([[0, 0, -2.0, 40], [0, -3.0, 0, 30], [4.0, 0, 0, -10], [0, 0, 0, 1]])


def volume():
    return Volume(np.arange(24, dtype=np.int16).reshape(2, 3, 4), BASE)


def positions(v):
    """The world position of every value."""
    index = np.indices(v.array.shape).reshape(3, -1)
    world = v.affine[:3, :3] @ index + v.affine[:3, 3:]
    return world[:, np.argsort(v.array.ravel())]


def test_there_are_48_axis_orders():
    assert len(set(ORDERS)) == 48


@pytest.mark.parametrize("axes", ORDERS)
def test_reorder_keeps_the_place_of_every_voxel_and_comes_back_exactly(axes):
    original = volume()
    moved = reorder(original, axes)
    assert axis_codes(moved.affine) == axes
    np.testing.assert_allclose(positions(moved), positions(original), atol=1e-12)
    back = reorder(moved, axis_codes(original.affine))
    np.testing.assert_array_equal(back.array, original.array)
    np.testing.assert_allclose(back.affine, original.affine, atol=1e-12)


def test_reorder_leaves_its_input_alone():
    original = volume()
    affine = original.affine.copy()
    reorder(original, "RAS")
    np.testing.assert_array_equal(original.affine, affine)


@given(st.tuples(*[st.floats(-25, 25)] * 3), st.sampled_from(ORDERS))
def test_an_oblique_grid_has_three_different_axes_and_is_reordered_without_moving(angles, axes):
    affine = BASE.copy()
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ BASE[:3, :3]
    start = reorder(Volume(volume().array, affine), axes)
    codes = axis_codes(start.affine)
    assert len({"RASLPI".index(c) % 3 for c in codes}) == 3
    film = reorder(start, FILM_AXES)
    assert axis_codes(film.affine) == FILM_AXES
    back = reorder(film, codes)
    np.testing.assert_array_equal(back.array, start.array)
    np.testing.assert_allclose(positions(film), positions(start), atol=1e-9)


@pytest.mark.parametrize(("degrees", "codes"), [(30, "RAS"), (44, "RAS"), (60, "ALS"), (120, "ALS"), (150, "LPS")])
def test_axis_codes_of_oblique_grids_are_the_nearest(degrees, codes):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("z", degrees, degrees=True).as_matrix()
    assert axis_codes(affine) == codes


def grid(affine=None, shape=(20, 30, 40)):
    return Grid(shape, film_affine() if affine is None else affine)


def test_header_noise_is_no_difference():
    noise = np.random.default_rng(0).uniform(-1e-8, 1e-8, (3, 4))
    affine = film_affine()
    affine[:3] += noise
    assert grid_difference(grid(), grid(affine)) == ""


@pytest.mark.parametrize("millimetres", [0.02, 0.5, 100])
def test_a_shift_is_reported_as_origin(millimetres):
    affine = film_affine()
    affine[0, 3] += millimetres
    expected = f"origin (60.0, 50.0, -20.0) and ({60.0 + millimetres}, 50.0, -20.0) mm"
    assert grid_difference(grid(), grid(affine)) == expected


def test_a_shift_below_the_tolerance_is_none():
    affine = film_affine()
    affine[0, 3] += 0.005
    assert grid_difference(grid(), grid(affine)) == ""
    assert grid_difference(grid(), grid(affine), tolerance_mm=0.001) != ""


def test_spacing_direction_and_size_are_reported_by_name():
    assert grid_difference(grid(), grid(shape=(20, 30, 41))) == "size (20, 30, 40) and (20, 30, 41)"
    spacing = grid_difference(grid(), grid(film_affine((4.0, 5.0, 5.1))))
    assert spacing == "spacing (4.0, 5.0, 5.0) and (4.0, 5.0, 5.1) mm"
    turned = film_affine()
    turned[:3, :3] = Rotation.from_euler("z", 2, degrees=True).as_matrix() @ turned[:3, :3]
    assert grid_difference(grid(), grid(turned)).startswith("direction (axes SPL and SPL, up to 2.00 degrees")
    flipped = reorder(Volume(np.zeros((20, 30, 40)), film_affine()), "SAR").grid
    assert "axes SPL and SAR" in grid_difference(grid(), flipped)


def test_a_tiny_rotation_that_moves_a_corner_is_reported_as_a_direction():
    turned = film_affine()
    turned[:3, :3] = Rotation.from_euler("z", 0.04, degrees=True).as_matrix() @ turned[:3, :3]
    message = grid_difference(grid(shape=(20, 300, 400)), grid(turned, (20, 300, 400)))
    assert message == "direction (up to 0.0400 degrees apart)"


def test_a_difference_of_spacing_that_adds_up_over_the_volume_is_seen_and_shown():
    message = grid_difference(grid(), grid(film_affine((4.0, 5.0, 5.001))))
    assert message == "spacing (4.0, 5.0, 5.0) and (4.0, 5.0, 5.001) mm"


def test_a_volume_has_three_axes():
    with pytest.raises(GeometryError, match=r"three axes.*\(2, 3\)"):
        Volume(np.zeros((2, 3)), np.eye(4))


def test_a_grid_describes_itself_in_one_line():
    assert grid().describe() == (
        "size (20, 30, 40), spacing (4, 5, 5) mm, origin (60, 50, -20) mm, axes SPL"
    )  # fmt: skip
