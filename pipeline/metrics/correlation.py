"""Agreement up to a linear map of intensities: normalised cross correlation."""

from __future__ import annotations

import math

import numpy as np

from pipeline.metrics.pair import Pair, Undefined
from pipeline.metrics.registry import metric


@metric(
    title="NCC",
    unit="",
    better="higher",
    definition="Pearson's correlation of the two volumes over the region, not clipped",
)
def ncc(pair: Pair) -> float:
    """Normalised cross correlation: Pearson's r over the region, between -1 and 1.

    Volumes in any unit, not clipped. Source: Pearson 1895; the zero-normalised form (means subtracted), so that air
    at -1000 HU cannot pass for agreement.

    Raises:
        Undefined: The region is empty, or a volume is constant there.
    """
    limits = []
    for what, values in zip(("prediction", "reference"), pair.inside, strict=True):
        if not values.size:
            raise Undefined("the region is empty")
        # Asked before means are subtracted: rounding would leave a small spread of noise.
        if values.min() == values.max():
            raise Undefined(f"the {what} is constant in the region")
        mean = float(values.mean(dtype=np.float64))
        # Scaled by the largest deviation: the squares of tiny or huge intensities would leave float64's range.
        limits.append((mean, max(float(values.max()) - mean, mean - float(values.min()))))
    (mean_p, scale_p), (mean_r, scale_r) = limits
    sums = []
    for p, r in pair.chunks():
        a, b = (p - mean_p) / scale_p, (r - mean_r) / scale_r
        sums.append((float(a @ b), float(a @ a), float(b @ b)))
    both, left, right = (math.fsum(column) for column in zip(*sums, strict=True))
    return min(1.0, max(-1.0, both / math.sqrt(left * right)))
