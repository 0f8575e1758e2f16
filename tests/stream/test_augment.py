"""One draw per sample moves source, target and mask alike."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stream.augment import Augmentation
from pipeline.stream_settings import AugmentSettings

SIZE = (20, 24)
NO_FAULTS = {"source_offset_hu": 0, "source_gain": 0, "source_shading_hu": 0}
STRONG = {"flip": 0.5, "rotate_degrees": 15, "scale": 0.1, "shift_pixels": 3, "intensity": 0.2, **NO_FAULTS}
STILL = {"flip": 0, "rotate_degrees": 0, "scale": 0, "shift_pixels": 0, "intensity": 0, **NO_FAULTS}


def draw(index=0, *, seed=1, epoch=0, **changes):
    return Augmentation(AugmentSettings(**{**STRONG, **changes}), SIZE, seed, epoch, index)


def frames(seed=0, count=3):
    return np.random.default_rng(seed).uniform(-1, 1, (count, *SIZE)).astype(np.float32)


def square():
    mask = np.zeros((3, *SIZE), np.float32)
    mask[:, 5:12, 6:16] = 1
    return mask


@pytest.mark.parametrize("index", range(8))
def test_source_target_and_mask_are_moved_by_the_same_transform(index):
    image = square() * 2 - 1
    once = draw(index)
    source, target = once.move(image.copy()), once.move(image.copy())
    mask = once.move(square(), nearest=True, outside=0.0)
    np.testing.assert_array_equal(source, target)
    assert set(np.unique(mask)) <= {0.0, 1.0}
    # The moved mask is where the moved image is bright, but for its interpolated edge.
    assert np.mean((source > 0) != (mask > 0.5)) < 0.02
    assert mask.sum() > 30


@pytest.mark.parametrize("index", range(4))
def test_every_frame_of_a_clip_is_moved_alike(index):
    film = np.repeat(frames(count=1), 4, axis=0)
    moved = draw(index).move(film)
    assert all(np.array_equal(moved[0], frame) for frame in moved)


def test_the_draw_depends_on_the_sample_and_not_on_the_order():
    forwards = [draw(i).move(frames()) for i in range(5)]
    backwards = [draw(i).move(frames()) for i in reversed(range(5))][::-1]
    np.testing.assert_array_equal(forwards, backwards)
    assert all(not np.array_equal(forwards[0], other) for other in forwards[1:])


@pytest.mark.parametrize("change", [{"seed": 2}, {"epoch": 1}, {"index": 1}])
def test_seed_epoch_and_index_change_the_draw(change):
    assert not np.array_equal(draw().move(frames()), draw(**change).move(frames()))


def test_settings_of_zero_change_nothing_bit_by_bit():
    once = draw(**STILL)
    np.testing.assert_array_equal(once.move(frames()), frames())
    np.testing.assert_allclose(once.intensify(frames()), frames(), atol=1e-6)


def test_a_flip_is_exact_and_happens_as_often_as_it_is_asked_for():
    still = {**STILL, "flip": 1}
    np.testing.assert_array_equal(draw(**still).move(frames()), frames()[:, :, ::-1])
    flips = [draw(i, flip=0.3).flip for i in range(1000)]
    assert 0.24 < np.mean(flips) < 0.36
    assert not any(draw(i, flip=0).flip for i in range(50))


def test_a_shift_brings_in_what_lies_outside():
    still = {**STILL, "shift_pixels": 10}
    moved = next(m for m in (draw(i, **still).move(frames(), outside=-1.0) for i in range(9)) if (m == -1).any())
    assert moved.min() >= -1


@pytest.mark.parametrize("index", range(10))
def test_intensity_stays_in_the_range_and_keeps_the_lowest(index):
    image = frames()
    image[:, :3] = -1
    changed = draw(index).intensify(image)
    assert changed.min() >= -1
    assert changed.max() <= 1
    assert (changed[:, :3] == -1).all()
    assert np.isfinite(changed).all()


WINDOW = (-1024.0, 2048.0)
FAULTS = {"source_offset_hu": 60, "source_gain": 0.03, "source_shading_hu": 40}


def hu(frames):
    return (frames + 1) * 1536 - 1024


def tissue(count=3):
    """Soft tissue of 40 HU inside the square, air outside."""
    return np.where(square()[:count] > 0, (40 + 1024) / 1536 - 1, -1).astype(np.float32)


@pytest.mark.parametrize("index", range(12))
def test_faults_stay_in_the_mask_and_below_what_was_asked_for(index):
    mask = square()
    fault = hu(draw(index, **FAULTS).distort(tissue(), mask, WINDOW)) - hu(tissue())
    assert (fault[mask == 0] == 0).all()
    assert 0 < np.abs(fault).max() <= 60 + 40 + 0.03 * 1040 + 0.01
    assert all(np.array_equal(fault[0], frame) for frame in fault), "a film stays a film"


@pytest.mark.parametrize(
    ("fault", "expected"),
    [({"source_offset_hu": 60}, 60), ({"source_gain": 0.03}, 31.2), ({"source_shading_hu": 40}, 40)],
)
def test_each_fault_reaches_its_size_and_not_more(fault, expected):
    mask = np.ones((1, *SIZE), np.float32)
    flat = np.full((1, *SIZE), (40 + 1024) / 1536 - 1, np.float32)
    sizes = [np.abs(hu(draw(i, **fault).distort(flat.copy(), mask, WINDOW)) - 40).max() for i in range(60)]
    assert 0.8 * expected < max(sizes) <= expected + 0.01


def test_a_gain_leaves_air_where_it_is():
    air = np.full((1, *SIZE), (-1000 + 1024) / 1536 - 1, np.float32)
    once = draw(3, source_gain=0.1)
    assert abs(once.source_gain - 1) > 0.01
    np.testing.assert_allclose(hu(once.distort(air, np.ones_like(air), WINDOW)), -1000, atol=0.01)


def test_shading_is_smooth_and_has_no_offset():
    once = draw(5, source_shading_hu=40)
    steps = [np.abs(np.diff(once.shading_hu, axis=axis)).max() for axis in (0, 1)]
    assert max(steps) < 0.6 * np.abs(once.shading_hu).max()
    assert abs(once.shading_hu.mean()) < 1e-3


@settings(max_examples=30)
@given(
    offset=st.floats(0, 500),
    gain=st.floats(0, 0.5),
    shading=st.floats(0, 500),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 9),
)
def test_faults_are_a_function_of_the_sample_and_stay_in_the_window(offset, gain, shading, seed, epoch):
    fault = {"source_offset_hu": offset, "source_gain": gain, "source_shading_hu": shading}
    mask = square()
    one, again = (draw(1, seed=seed, epoch=epoch, **fault).distort(frames(), mask, WINDOW) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one).max() <= 1
    np.testing.assert_array_equal(one[mask == 0], frames()[mask == 0])


def test_faults_leave_every_other_draw_as_it_was():
    without, with_faults = draw(4), draw(4, **FAULTS)
    np.testing.assert_array_equal(without.move(frames()), with_faults.move(frames()))
    np.testing.assert_array_equal(without.intensify(frames()), with_faults.intensify(frames()))
