"""Dice and HD95 against counting and MONAI, and what has no value."""

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance
from scipy.ndimage import gaussian_filter

from pipeline.metrics import Pair, Undefined
from pipeline.metrics.segmentation import dice, hd95

SPACING = (3.0, 1.0, 1.5)


def blob(seed, shape=(12, 30, 26)):
    field = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3)
    return field > np.quantile(field, 0.8)


def pair(a, b):
    return Pair(a, b, None, SPACING)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's own call
@pytest.mark.parametrize("seed", range(3))
def test_as_monai(seed):
    a, b = blob(seed), np.roll(blob(seed), (1, 2, -1), (0, 1, 2)) & blob(seed + 9) | blob(seed)[::-1]
    tensors = [torch.from_numpy(m)[None, None].float() for m in (a, b)]
    assert dice(pair(a, b)) == pytest.approx(float(compute_dice(*tensors)), rel=1e-6)
    expected = compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=SPACING)
    assert hd95(pair(a, b)) == pytest.approx(float(expected), rel=1e-5)


def test_known_values():
    a = np.zeros((8, 8, 8), bool)
    a[2:4, 2:4, 2:4] = True
    assert dice(pair(a, a)) == 1 and hd95(pair(a, a)) == 0
    b = np.roll(a, 1, axis=0)
    assert dice(pair(b, a)) == 0.5
    assert hd95(pair(b, a)) == pytest.approx(3.0)  # one slice of 3 mm
    edge = np.zeros_like(a)
    edge[0, 0, 0] = True  # the volume's edge ends a surface too
    assert hd95(pair(edge, np.roll(edge, 2, axis=2))) == pytest.approx(3.0)


def test_what_has_no_value():
    a = blob(0)
    nothing = np.zeros_like(a)
    assert dice(pair(nothing, a)) == 0
    for metric in (dice, hd95):
        with pytest.raises(Undefined, match="reference does not hold"):
            metric(pair(a, nothing))
    with pytest.raises(Undefined, match="prediction does not hold"):
        hd95(pair(nothing, a))
