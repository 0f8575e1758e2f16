"""The shift between two images of one body is found whatever their contrasts; other bodies are told apart."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pipeline.imaging.alignment import displacement

MM = 3.0
SHAPE = (40, 48, 44)


@cache
def anatomy(seed=0):
    """Return tissues (labels 1 to 4) inside an ellipsoid, 0 outside: structures of some 15 mm."""
    rng = np.random.default_rng(seed)
    lumps = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 2.5)
    tissue = 1 + np.digitize(lumps, np.quantile(lumps, [0.25, 0.5, 0.75]))
    radius = sum(axis**2 for axis in np.meshgrid(*[np.linspace(-1.15, 1.15, n) for n in SHAPE], indexing="ij"))
    return np.where(radius < 1, tissue, 0)


def seen(tissue, values, noise=0.0, seed=1):
    image = ndimage.gaussian_filter(np.asarray(values, float)[tissue], 0.7)
    return (image + np.random.default_rng(seed).normal(0, noise, SHAPE)).astype(np.float32)


CT, MR = (-1000, -100, 20, 60, 300), (0, 800, 350, 500, 60)


def moved(image, shift_mm, order=3):
    return ndimage.shift(image, np.divide(shift_mm, MM), order=order, mode="nearest").astype(np.float32)


@settings(max_examples=8, derandomize=True)
@given(st.tuples(*[st.floats(-9, 9)] * 3), st.booleans())
def test_a_shift_is_found_between_contrasts_to_a_part_of_a_voxel(shift, inverted):
    tissue = anatomy()
    body = tissue > 0
    source = seen(tissue, MR, 20)
    source = moved(-source if inverted else source, shift)
    there = moved(body.astype(np.float32), shift, order=1) > 0.5
    found = displacement(source, seen(tissue, CT, 20), there, body, MM)
    assert np.linalg.norm(np.subtract(found.shift_mm, shift)) < 0.5
    assert found.length_mm == pytest.approx(np.linalg.norm(found.shift_mm))
    assert found.local_mm < 1.5
    assert found.agreement > 0.75


def test_a_rotation_has_no_shift_as_a_whole_but_one_of_its_parts():
    tissue = anatomy()
    turned = ndimage.rotate(tissue, 12, (1, 2), reshape=False, order=0)
    found = displacement(seen(turned, MR), seen(tissue, CT), turned > 0, tissue > 0, MM)
    assert found.length_mm < 2 < 3 < found.local_mm


def test_two_bodies_do_not_agree():
    one, other = anatomy(0), anatomy(1)
    found = displacement(seen(one, MR), seen(other, CT), one > 0, other > 0, MM)
    assert found.agreement < 0.5 and found.local_mm > 5


def test_what_is_unknown_counts_for_nothing():
    tissue = anatomy()
    body = tissue > 0
    source = moved(seen(tissue, MR), (0, 6, 0))
    source[:, :, 30:] = np.nan  # the end of a field of view
    found = displacement(source, seen(tissue, CT), body, body, MM)
    assert np.allclose(found.shift_mm, (0, 6, 0), atol=0.4)


def test_nothing_to_measure_is_none():
    tissue = anatomy()
    image, body = seen(tissue, CT), tissue > 0
    flat = np.zeros(SHAPE, np.float32)
    assert displacement(flat, image, body, body, MM) is None
    assert displacement(image, image, np.zeros(SHAPE, bool), body, MM) is None
    thin = (slice(0, 4), slice(None), slice(None))
    assert displacement(image[thin], image[thin], body[thin], body[thin], MM) is None
