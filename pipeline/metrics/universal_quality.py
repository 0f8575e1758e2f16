"""Wang and Bovik's universal image quality index, by its definition."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.pair import Pair, Undefined
from pipeline.metrics.registry import metric
from pipeline.metrics.windows import prepared, whole

WINDOW = 8
# A variance below this share of the largest square is rounding: running sums leave about a hundredth of it.
_FLAT = 1e-13


@metric(
    title="UQI",
    unit="",
    better="higher",
    definition=(
        "universal quality index, mean over all 8x8 windows of a slice that lie wholly in the region, then over slices "
        "(Wang and Bovik 2002); volumes clipped to the profile's range and shifted to begin at 0; flat windows count "
        "as defined there, not as 0"
    ),
    taken="slice",
)
def uqi(pair: Pair, *, clip: tuple[float, float] | None) -> float:
    """Universal quality index of one slice, between -1 and 1: correlation x luminance x contrast, window by window.

    Not invariant to a shift of intensities, so the range begins at 0. Source: Wang and Bovik 2002 (IEEE SPL 9:81),
    uniform 8 x 8 windows at every position. sewar's ``uqi`` and torchmetrics' are other quantities.

    Raises:
        Undefined: No window lies in the region.
    """
    rows, columns = pair.reference.shape[1:]
    if min(rows, columns) < WINDOW:
        raise Undefined(f"a slice of {rows} x {columns} is smaller than the window of {WINDOW} pixels")
    (p, r) = next(prepared(pair, whole(pair), clip, "lowest"))
    within = np.ones((rows, columns), bool) if pair.mask is None else pair.mask[0]
    chosen = np.flatnonzero(_sums(within.astype(np.float64)) == WINDOW**2)
    if not chosen.size:
        raise Undefined(f"no window of {WINDOW} x {WINDOW} pixels lies in the region")
    fields = _sums(np.stack([p, r, p * p, r * r, p * r], axis=-1)).reshape(-1, 5)
    mean_p, mean_r, square_p, square_r, product = fields.take(chosen, axis=0).T / WINDOW**2
    variances = square_p - mean_p**2 + square_r - mean_r**2
    luminance, power = 2 * mean_p * mean_r, mean_p**2 + mean_r**2
    flat = variances <= _FLAT * max(float(p.max()), float(r.max()), -float(p.min()), -float(r.min())) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        bright = np.where(power > 0, luminance / power, 1.0)
        quality = np.where(flat, bright, 2 * (product - mean_p * mean_r) / variances * bright)
    return float(np.where(power > 0, quality, 1.0).mean())


def _sums(fields: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over all windows that lie in the picture: (rows, columns, ...) to (rows - 7, columns - 7, ...)."""
    parts = [fields] if fields.ndim == 2 else list(np.moveaxis(fields, -1, 0))
    # The anchor in the corner: element (i, j) is the window that begins there.
    found = [cv2.boxFilter(part, -1, (WINDOW, WINDOW), anchor=(0, 0), normalize=False) for part in parts]
    valid = np.stack(found, axis=-1)[: 1 - WINDOW, : 1 - WINDOW]
    return np.ascontiguousarray(valid[..., 0] if fields.ndim == 2 else valid)
