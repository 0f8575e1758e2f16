"""Joint histograms and Bland-Altman plots: voxels count once, cases add up, limits are those of the voxels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_case import SHAPE, picture

from pipeline.reporting.agreement import Agreement
from pipeline.reporting.style import DARK, LIGHT, rasterise

LIMITS = (-1024.0, 3071.0)


def test_limits_of_agreement_are_those_of_all_voxels_of_all_cases():
    rng = np.random.default_rng(3)
    agreement, merged = Agreement("HU", LIMITS, 500), Agreement("HU", LIMITS, 500)
    differences = []
    for scale in (20, 60):
        target = rng.normal(0, 100, SHAPE).astype(np.float32)
        case = picture(target=target, volumes={"a": target + rng.normal(7, scale, SHAPE).astype(np.float32)})
        agreement.add(case)
        alone = Agreement("HU", LIMITS, 500)
        alone.add(case)
        merged.merge(alone)
        differences.append(case.errors_inside("a"))
    pooled = np.concatenate(differences).astype(float)
    bias, half = agreement.limits("a")
    assert bias == pytest.approx(pooled.mean())
    assert half == pytest.approx(1.96 * pooled.std(ddof=1))
    assert agreement.joint["a"].sum() == agreement.spread["a"].sum() == pooled.size
    assert merged.limits("a") == agreement.limits("a")
    assert np.array_equal(merged.joint["a"], agreement.joint["a"])


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_counts_are_those_of_numpy(seed):
    rng = np.random.default_rng(seed)
    target = rng.uniform(-1000, 3000, SHAPE).astype(np.float32)
    case = picture(np.ones(SHAPE, bool), target=target, volumes={"a": rng.uniform(-1000, 3000, SHAPE).astype("f4")})
    agreement = Agreement("HU", LIMITS, 5000)
    agreement.add(case)
    expected, _, _ = np.histogram2d(target.ravel(), case.volumes["a"].ravel(), [agreement.values] * 2)
    assert np.abs(agreement.joint["a"] - expected).sum() <= 4  # float32 rounds a voxel on an edge to either side


def test_beyond_the_range_counts_in_the_end_bins_and_unknown_voxels_do_not_count():
    target = np.full(SHAPE, 9000.0, np.float32)
    target[:, :10] = np.nan
    case = picture(np.ones(SHAPE, bool), target=target, volumes={"a": np.full(SHAPE, -9000.0, np.float32)})
    agreement = Agreement("HU", LIMITS, 500)
    agreement.add(case)
    assert agreement.joint["a"][-1, 0] == np.isfinite(target).sum() == agreement.joint["a"].sum()


def test_awkward_cases_draw_without_warnings():
    unknown = np.full(SHAPE, np.nan, np.float32)
    odd = {"_under $": np.zeros(SHAPE, np.float32), "模型": unknown}
    for case in (picture(target=unknown), picture(np.zeros(SHAPE, bool)), picture(volumes=odd)):
        agreement = Agreement("HU", LIMITS, 500)
        agreement.add(case)
        for theme in (LIGHT, DARK):
            figure = agreement.draw(theme)
            rasterise(figure)
            assert len(figure.axes) == 2 * len(case.volumes)
