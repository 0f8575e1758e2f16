"""The body without couch and air, whatever the orientation."""

import numpy as np
import pytest
from makers import film_affine

from pipeline.geometry import Volume, axis_codes, reorder
from pipeline.imaging.mask import body_mask, foreground_mask

SHAPE = (6, 80, 90)
SPACING = (5.0, 4.0, 4.0)


def patient():
    """A cylinder with lungs on a couch: HU, and the ellipse of the body."""
    _, y, x = np.indices(SHAPE)
    body = ((x - 45) / 30) ** 2 + ((y - 35) / 20) ** 2 < 1
    lung = ((x - 35) / 6) ** 2 + ((y - 35) / 8) ** 2 < 1
    hu = np.full(SHAPE, -1000, np.int16)
    hu[body] = 40
    hu[lung] = -850
    hu[:, 62:63, 5:85] = 300  # a thin couch top below the back
    hu[:, 62:70, 10:11] = 300
    return Volume(hu, film_affine(SPACING)), body, lung


def test_the_couch_is_removed_and_the_lungs_are_filled():
    volume, body, lung = patient()
    mask = body_mask(volume, -300)
    assert mask.dtype == bool
    assert not mask[:, 60:].any()
    assert mask[lung].all()
    overlap = 2 * (mask & body).sum() / (mask.sum() + body.sum())
    assert overlap > 0.98


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SPL", "SAR", "IAR", "PIL"])
def test_orientation_does_not_matter(axes):
    volume, _, _ = patient()
    expected = reorder(Volume(body_mask(volume, -300), volume.affine), axes).array
    moved = reorder(volume, axes)
    assert axis_codes(moved.affine) == axes
    np.testing.assert_array_equal(body_mask(moved, -300), expected)


def test_nothing_above_the_threshold_is_an_empty_mask():
    volume, _, _ = patient()
    empty = body_mask(volume.with_array(np.full(SHAPE, -1000, np.int16)), -300)
    assert empty.shape == SHAPE
    assert not empty.any()


def test_a_body_that_fills_the_picture_is_whole():
    volume, _, _ = patient()
    assert body_mask(volume.with_array(np.full(SHAPE, 40, np.int16)), -300).all()


def test_a_lung_that_is_open_at_the_top_slice_is_filled():
    volume, body, lung = patient()
    assert body_mask(volume, -300)[0][lung[0] & body[0]].all()


def test_the_input_is_left_alone():
    volume, _, _ = patient()
    before = volume.array.copy()
    body_mask(volume, -300)
    np.testing.assert_array_equal(volume.array, before)


def test_the_foreground_of_mr_does_not_depend_on_its_scale():
    volume, body, _ = patient()
    mr = np.where(body, 500, 3).astype(np.float32)
    one, many = (foreground_mask(Volume(mr * gain, volume.affine, "a.u.")) for gain in (1, 1000))
    np.testing.assert_array_equal(one, many)
    assert 2 * (one & body).sum() / (one.sum() + body.sum()) > 0.98
