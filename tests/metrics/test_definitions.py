"""Each metric against a naive definition in float64, known values and properties."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.config import compose
from pipeline.errors import ConfigError
from pipeline.metrics import METRICS, Pair, check_metrics, compute

CLIP, RANGE = (-1024.0, 3071.0), 4095.0
SPACING = (2.0, 1.0, 1.0)
PROFILE = compose([]).metrics


def score(name, prediction, reference, mask=None):
    return compute(name, Pair(prediction, reference, mask, SPACING), PROFILE)


def value(name, prediction, reference, mask=None):
    number, reason = score(name, prediction, reference, mask)
    assert reason == "" and number is not None
    return number


@pytest.fixture
def volumes():
    rng = np.random.default_rng(0)
    reference = rng.normal(0, 400, (9, 10, 11))
    prediction = reference + rng.normal(20, 60, reference.shape)
    prediction[3, 3, 3] = 5000  # beyond the clip range
    prediction[4, 4, 4] = -3000
    mask = rng.random(reference.shape) > 0.35
    mask[3:5, 3:5, 3:5] = True
    return prediction, reference, mask


def voxels(mask):
    return [tuple(index) for index in np.argwhere(mask)]


def naive_mae(p, r, mask):
    return sum(abs(p[v] - r[v]) for v in voxels(mask)) / len(voxels(mask))


def naive_psnr(p, r, mask):
    low, high = CLIP
    squares = [(min(max(p[v], low), high) - min(max(r[v], low), high)) ** 2 for v in voxels(mask)]
    return 10 * math.log10(RANGE**2 / (sum(squares) / len(squares)))


def naive_ncc(p, r, mask):
    a, b = [p[v] for v in voxels(mask)], [r[v] for v in voxels(mask)]
    ma, mb = sum(a) / len(a), sum(b) / len(b)
    top = sum((x - ma) * (y - mb) for x, y in zip(a, b, strict=True))
    return top / math.sqrt(sum((x - ma) ** 2 for x in a) * sum((y - mb) ** 2 for y in b))


def naive_near(p, r, mask):
    return 100 * sum(abs(p[v] - r[v]) <= 50 for v in voxels(mask)) / len(voxels(mask))


def naive_continuity(p, r, mask):
    steps = [
        abs((p[k + 1, i, j] - r[k + 1, i, j]) - (p[k, i, j] - r[k, i, j]))
        for k, i, j in np.ndindex(p.shape[0] - 1, *p.shape[1:])
        if mask[k, i, j] and mask[k + 1, i, j]
    ]
    return sum(steps) / len(steps)


def naive_ssim(p, r, mask):
    low, high = CLIP
    p = np.where(mask, np.clip(p, low, high), low) - low
    r = np.where(mask, np.clip(r, low, high), low) - low
    c1, c2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
    found = []
    for k, i, j in voxels(mask):
        if any(not 3 <= x < n - 3 for x, n in zip((k, i, j), p.shape, strict=True)):
            continue
        window = (slice(k - 3, k + 4), slice(i - 3, i + 4), slice(j - 3, j + 4))
        a, b = p[window].ravel(), r[window].ravel()
        cov = np.cov(a, b, ddof=1)
        ma, mb = a.mean(), b.mean()
        top = (2 * ma * mb + c1) * (2 * cov[0, 1] + c2)
        found.append(top / ((ma**2 + mb**2 + c1) * (cov[0, 0] + cov[1, 1] + c2)))
    return sum(found) / len(found)


NAIVE = {
    "mae": naive_mae,
    "psnr": naive_psnr,
    "ncc": naive_ncc,
    "within_50_hu": naive_near,
    "slice_continuity": naive_continuity,
    "ssim": naive_ssim,
}


@pytest.mark.parametrize("name", sorted(NAIVE))
@pytest.mark.parametrize("masked", [True, False])
def test_definition(name, masked, volumes):
    p, r, mask = volumes
    everywhere = np.ones(r.shape, bool)
    expected = NAIVE[name](p, r, mask if masked else everywhere)
    assert value(name, p, r, mask if masked else None) == pytest.approx(expected, rel=1e-9)
    # None and a mask that is true everywhere mean the same.
    assert value(name, p, r) == pytest.approx(value(name, p, r, everywhere), rel=1e-12)


@pytest.mark.parametrize("name", sorted(NAIVE))
def test_outside_the_mask_nothing_counts(name, volumes):
    p, r, mask = volumes
    other = np.where(mask, p, 1e6)
    other[~mask & (np.random.default_rng(1).random(mask.shape) > 0.5)] = np.nan
    assert value(name, other, r, mask) == pytest.approx(value(name, p, r, mask), rel=1e-12)


@pytest.mark.parametrize("name", sorted(NAIVE))
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_dtypes_do_not_overflow(name, dtype):
    rng = np.random.default_rng(2)
    r = rng.integers(-1024, 3000, (8, 8, 8))
    p = np.where(rng.random(r.shape) > 0.5, 32000, -32000)
    assert value(name, p.astype(dtype), r.astype(dtype)) == pytest.approx(value(name, p * 1.0, r * 1.0), rel=1e-9)


def test_known_values():
    r = np.zeros((8, 8, 8))
    assert value("mae", r + 7, r) == 7
    assert value("psnr", r + 4095, r - 1024) == pytest.approx(0.0)
    assert value("psnr", r + 40.95, r) == pytest.approx(40.0)
    assert value("within_50_hu", r + 50, r) == 100
    assert value("within_50_hu", r + 50.001, r) == 0
    assert value("slice_continuity", r + 500, r) == 0  # a constant error does not flicker
    flicker = r + 10 * (-1.0) ** np.arange(8)[:, None, None]
    assert value("slice_continuity", flicker, r) == 20


finite = arrays(np.float64, (7, 7, 8), elements=st.floats(-1000, 2000, width=32))


@settings(max_examples=15)
@given(p=finite, r=finite)
def test_symmetry(p, r):
    for name in NAIVE:
        there, back = score(name, p, r), score(name, r, p)
        assert (there[0] is None) == (back[0] is None)
        if there[0] is not None:
            assert there[0] == pytest.approx(back[0], rel=1e-9, abs=1e-9)


@settings(max_examples=15)
@given(r=finite)
def test_identity(r):
    assert value("mae", r, r) == 0
    assert value("ssim", r, r) == pytest.approx(1)
    assert value("within_50_hu", r, r) == 100
    assert value("slice_continuity", r, r) == 0
    assert score("psnr", r, r) == (None, "the volumes are equal in the region, so the ratio is infinite")
    number, reason = score("ncc", r, r)
    assert number == pytest.approx(1) if np.ptp(r) else "constant" in reason


@settings(max_examples=15)
@given(shift=st.floats(-300, 300), scale=st.floats(0.5, 3))
def test_shift(shift, scale):
    rng = np.random.default_rng(5)
    r = rng.normal(0, 100, (7, 8, 9))
    p = r + rng.normal(0, 30, r.shape)
    for name in ("mae", "within_50_hu", "slice_continuity"):
        assert value(name, p + 100, r + 100) == pytest.approx(value(name, p, r), rel=1e-9)
    assert value("ncc", scale * p + shift, r) == pytest.approx(value("ncc", p, r), abs=1e-9)
    assert value("slice_continuity", p + shift, r) == pytest.approx(value("slice_continuity", p, r), rel=1e-9)
    assert value("mae", r + shift, r) == pytest.approx(abs(shift), abs=1e-9)


@pytest.mark.parametrize("name", sorted(NAIVE))
def test_an_empty_mask_is_undefined_not_zero(name, volumes):
    p, r, mask = volumes
    assert score(name, p, r, np.zeros_like(mask)) == (None, "the region is empty")


@pytest.mark.parametrize("name", sorted(NAIVE))
def test_not_finite_inside_is_undefined(name, volumes):
    p, r, mask = volumes
    p = p.copy()
    p[3, 3, 3] = np.nan
    number, reason = score(name, p, r, mask)
    assert number is None and "prediction holds 1 voxels" in reason


def test_constant_thin_and_single():
    rng = np.random.default_rng(6)
    r = rng.normal(size=(8, 8, 8))
    assert "prediction is constant" in score("ncc", np.full(r.shape, 0.1), r)[1]
    assert "smaller than the window" in score("ssim", r[:6], r[:6])[1]
    assert "3 voxels away" in score("ssim", r, r, np.arange(8)[:, None, None] + 0 * r < 3)[1]
    assert "neighbouring slices" in score("slice_continuity", r[:1], r[:1])[1]
    with pytest.raises(ValueError, match="shapes differ"):
        score("mae", r, r[1:])


def test_registry_states_unit_and_direction():
    stated = {n: (m.unit_for("HU"), m.better) for n, m in METRICS.items()}
    assert stated["mae"] == ("HU", "lower") and stated["psnr"] == ("dB", "higher") and stated["ncc"] == ("", "higher")
    assert stated["mse"] == ("HU²", "lower") and stated["me"] == ("HU", "zero")
    assert all(m.definition for m in METRICS.values())
    assert METRICS["mae"].unit_for("a.u.") == "a.u."
    with pytest.raises(ConfigError, match="Did you mean 'psnr'"):
        check_metrics(PROFILE.model_copy(update={"metrics": ["mae", "pnsr"]}))
