"""Agreement up to a linear map of intensities: normalised cross correlation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.registry import Undefined, inside_mask, metric


@metric(
    title="NCC",
    unit="",
    better="higher",
    definition="Pearson's correlation of the two volumes over the region, not clipped",
)
def ncc(
    prediction: NDArray,
    reference: NDArray,
    mask: NDArray[np.bool_] | None,
    spacing_mm: tuple[float, float, float],
    *,
    clip: tuple[float, float],
    data_range: float,
) -> float:
    """Normalised cross correlation: Pearson's r over the region, between -1 and 1.

    Volumes are (slices, rows, columns) in any unit, not clipped. Source: Pearson 1895; the zero-normalised form
    (means subtracted), so that air at -1000 HU cannot pass for agreement.

    Raises:
        Undefined: The region is empty, or a volume is constant there.
    """
    p, r = inside_mask(prediction, reference, mask)
    for what, values in (("prediction", p), ("reference", r)):
        # Asked before means are subtracted: rounding would leave a small spread of noise.
        if values.min() == values.max():
            raise Undefined(f"the {what} is constant in the region")
    p -= p.mean()
    r -= r.mean()
    # Scaled first: the squares of tiny or huge intensities would leave float64's range.
    p /= np.abs(p).max()
    r /= np.abs(r).max()
    return float(np.clip(np.dot(p, r) / np.sqrt(np.dot(p, p) * np.dot(r, r)), -1.0, 1.0))
