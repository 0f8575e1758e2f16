"""Sharpness of edges: is the prediction as steep as the reference where the reference is steep?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.pair import Pair, Undefined
from pipeline.metrics.registry import metric

STEEPEST = 90.0  # percentile of the reference's slopes above which a voxel is an edge


@metric(
    title="edge sharpness",
    unit="%",
    better="zero",
    definition=(
        "slope of the prediction along the reference's gradient over the reference's own, minus 1, at the region's "
        "tenth of voxels where the reference is steepest in the slice: 0 as sharp, below 0 blurred, above 0 sharpened "
        "(this project)"
    ),
)
def edge_sharpness(pair: Pair) -> float:
    """Relative sharpness of the prediction at the reference's edges, in percent: ``100 (sum g_p n / sum |g_r| - 1)``.

    Gradients ``g`` are central differences in the slice per mm, ``n`` is the reference's direction: noise has no
    direction and averages out, and an edge in the wrong place lowers the value. Only voxels whose four neighbours in
    the slice lie in the region count. Source: this project.

    Raises:
        Undefined: No voxel has four neighbours in the region, or the reference has no slope there.
    """
    slopes, along = [], []
    for k in range(pair.reference.shape[0]):
        chosen = _with_neighbours(pair, k)
        if not chosen.size:
            continue
        p = _gradient(pair.prediction[k], pair.spacing_mm, chosen)
        r = _gradient(pair.reference[k], pair.spacing_mm, chosen)
        slope = np.hypot(*r)
        with np.errstate(divide="ignore", invalid="ignore"):
            directed = np.where(slope > 0, (p * r).sum(axis=0) / slope, 0)
        slopes.append(slope.astype(np.float32))
        along.append(directed.astype(np.float32))
    if not slopes:
        raise Undefined("no voxel has its four neighbours of the slice in the region")
    steepness, directed = np.concatenate(slopes), np.concatenate(along)
    edges = steepness >= max(float(np.percentile(steepness, STEEPEST)), np.finfo(np.float32).tiny)
    total = float(steepness[edges].sum(dtype=np.float64))
    if total == 0:
        raise Undefined("the reference has no edges in the region")
    return 100 * (float(directed[edges].sum(dtype=np.float64)) / total - 1)


def _with_neighbours(pair: Pair, k: int) -> NDArray[np.intp]:
    """Return the places in the inner part of a slice whose four neighbours lie in the region, themselves too."""
    if pair.mask is None:
        return np.arange(max(pair.reference.shape[1] - 2, 0) * max(pair.reference.shape[2] - 2, 0))
    m = pair.mask[k]
    inside = m[1:-1, 1:-1] & m[:-2, 1:-1] & m[2:, 1:-1] & m[1:-1, :-2] & m[1:-1, 2:]
    return np.flatnonzero(inside)


def _gradient(plane: NDArray, spacing_mm: tuple[float, float, float], chosen: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the slopes along rows and columns (2, places)."""
    image = plane.astype(np.float64)
    down = ((image[2:, 1:-1] - image[:-2, 1:-1]) / (2 * spacing_mm[1])).take(chosen)
    across = ((image[1:-1, 2:] - image[1:-1, :-2]) / (2 * spacing_mm[2])).take(chosen)
    return np.stack([down, across])
