"""Shared information: normalised mutual information, and visual information fidelity in the pixel domain."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.pair import Pair, Undefined
from pipeline.metrics.registry import metric
from pipeline.metrics.windows import prepared, whole

BINS = 64
NOISE = 2.0  # variance of the visual noise, on intensities from 0 to 255
SMALLEST = 41  # pixels: the fourth scale still holds its window
_EPSILON = 1e-10


@metric(
    title="NMI",
    unit="",
    better="higher",
    definition=(
        "normalised mutual information (H(P) + H(R)) / H(P, R) over the region, from 1 (independent) to 2 (each "
        "determines the other): 64 equal bins over the profile's range, without one over each volume's own (Studholme "
        "1999)"
    ),
)
def nmi(pair: Pair, *, clip: tuple[float, float] | None) -> float:
    """Normalised mutual information of the joint histogram, between 1 and 2; values beyond the range are clipped.

    Source: Studholme et al. 1999 (Pattern Recognition 32:71).

    Raises:
        Undefined: The region is empty, or both volumes fall into one bin.
    """
    if not pair.count:
        raise Undefined("the region is empty")
    limits = [clip or (float(v.min()), float(v.max())) for v in pair.inside]
    scales = [BINS / (high - low) if high > low else 0.0 for low, high in limits]
    joint = np.zeros(BINS * BINS, np.int64)
    for values in pair.chunks():
        p, r = (
            np.clip((v - low) * scale, 0, BINS - 1).astype(np.intp)
            for v, (low, _), scale in zip(values, limits, scales, strict=True)
        )
        joint += np.bincount(p * BINS + r, minlength=BINS * BINS)
    table = joint.reshape(BINS, BINS) / pair.count
    together = _entropy(table)
    if together == 0:
        raise Undefined("both volumes fall into one bin of the histogram")
    return (_entropy(table.sum(axis=0)) + _entropy(table.sum(axis=1))) / together


def _entropy(shares: NDArray[np.float64]) -> float:
    shares = shares[shares > 0]
    return -float(shares @ np.log(shares))


@metric(
    title="VIF",
    unit="",
    better="higher",
    definition=(
        "visual information fidelity in the pixel domain, slice by slice, then the mean over slices: four scales, "
        "Gaussian windows of 17, 9, 5 and 3 pixels, noise variance 2 on intensities of the profile's range mapped to 0 "
        "to 255; above 1 where contrast was added (Sheikh and Bovik 2006)"
    ),
    taken="slice",
)
def vif(pair: Pair, *, clip: tuple[float, float] | None, data_range: float, outside: str) -> float:
    """Visual information fidelity of one slice (VIFp): what the prediction keeps of the reference's information.

    Not symmetric. The whole slice counts, with ``outside`` 'lowest' flat outside the region, where it holds no
    information. Source: Sheikh and Bovik 2006 (IEEE TIP 15:430), the authors' pixel domain version.

    Raises:
        Undefined: The slice is smaller than 41 pixels, or the reference holds no information.
    """
    rows, columns = pair.reference.shape[1:]
    if min(rows, columns) < SMALLEST:
        raise Undefined(f"a slice of {rows} x {columns} is smaller than {SMALLEST} pixels")
    planes = next(prepared(pair, whole(pair), clip, outside))
    distorted, reference = (plane * (255 / data_range) for plane in planes)
    kept, there = [], []
    for scale in range(1, 5):
        taps = _bell(2 ** (5 - scale) + 1)
        if scale > 1:
            reference, distorted = (_valid(image, taps)[::2, ::2] for image in (reference, distorted))
        mean_r, mean_d = _valid(reference, taps), _valid(distorted, taps)
        var_r = np.maximum(_valid(reference**2, taps) - mean_r**2, 0)
        var_d = np.maximum(_valid(distorted**2, taps) - mean_d**2, 0)
        both = _valid(reference * distorted, taps) - mean_r * mean_d
        gain = both / (var_r + _EPSILON)
        rest = var_d - gain * both
        without = var_r < _EPSILON
        gain[without], rest[without], var_r[without] = 0, var_d[without], 0
        flat = var_d < _EPSILON
        gain[flat], rest[flat] = 0, 0
        turned = gain < 0
        rest[turned], gain[turned] = var_d[turned], 0
        rest = np.maximum(rest, _EPSILON)
        kept.append(float(np.log10(1 + gain**2 * var_r / (rest + NOISE)).sum()))
        there.append(float(np.log10(1 + var_r / NOISE).sum()))
    if math.fsum(there) <= 0:
        raise Undefined("the reference holds no information in the region")
    return math.fsum(kept) / math.fsum(there)


def _bell(size: int) -> NDArray[np.float64]:
    weights = np.exp(-0.5 * ((np.arange(size) - size // 2) / (size / 5)) ** 2)
    return weights / weights.sum()


def _valid(image: NDArray[np.float64], taps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Filter with a separable window where it lies wholly in the image."""
    border = len(taps) // 2
    whole = cv2.sepFilter2D(image, cv2.CV_64F, taps, taps)
    return np.asarray(whole[border:-border, border:-border], np.float64)
