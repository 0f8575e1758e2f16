"""Frechet distances between two sets of slices, each named after the network that sees them.

A metric of sets enters what turns slices into features; `frechet_distance` compares the features of all slices of all
cases. Distances of different extractors cannot be compared, so none is called plain 'FID'.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.pair import Pair, Undefined
from pipeline.metrics.registry import metric
from pipeline.metrics.windows import prepared, whole

if TYPE_CHECKING:
    from pipeline.networks.efficientnet_lite0 import EfficientNetLite0Features

_BATCH = 8


@metric(
    name="frechet_efficientnet_lite0",
    title="Frechet (EfficientNet-Lite0)",
    unit="",
    better="lower",
    definition=(
        "Frechet distance between Gaussians fitted to the 1280 averaged ImageNet features of EfficientNet-Lite0, over "
        "all slices of all cases that meet the region; one value per method. Biased upwards by few slices: compare "
        "equal numbers (Heusel 2017 with another network; not FID)"
    ),
    needs="sets",
)
def efficientnet_lite0(images: NDArray[np.float32], *, weights: str) -> NDArray[np.float32]:
    """Return 1280 features of each image of (n, rows, columns) in [-1, 1]; ``weights`` '' is the packaged file.

    Raises:
        ArtifactError: The weights are missing or of another network.
    """
    import torch

    network = _network(weights)
    with torch.inference_mode():
        batches = torch.from_numpy(images).unsqueeze(1).expand(-1, 3, -1, -1).split(_BATCH)
        return torch.cat([network.pooled(batch) for batch in batches]).numpy()


@lru_cache(maxsize=1)
def _network(weights: str) -> EfficientNetLite0Features:
    # Here, as torch above: its hundreds of megabytes are for those only who ask for a network.
    from pipeline.networks.efficientnet_lite0 import EfficientNetLite0Features

    return EfficientNetLite0Features(weights)


def network_images(
    pair: Pair, clip: tuple[float, float] | None, data_range: float, outside: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the slices of prediction and reference that meet the region, the range mapped to [-1, 1]."""
    films = prepared(pair, whole(pair), clip, outside)
    kept = [
        [(plane * (2 / data_range) - 1).astype(np.float32) for plane in planes]
        for k, planes in enumerate(films)
        if pair.mask is None or pair.mask[k].any()
    ]
    predicted, real = (np.stack(side) for side in zip(*kept, strict=True))
    return predicted, real


def frechet_distance(a: NDArray, b: NDArray) -> float:
    """Squared Frechet distance of the Gaussians with the means and covariances (n - 1) of two sets (n, features).

    ``|m_a - m_b|² + tr(S_a + S_b - 2 (S_a S_b)^½)``. The last trace is the sum of the singular values of
    ``X_a X_bᵀ`` over the roots of n - 1 (X: centred): no root of a matrix, so it is real and stable with fewer slices
    than features. Source: Dowson and Landau 1982; Heusel 2017 (arXiv 1706.08500).

    Raises:
        Undefined: A set has fewer than two slices.
    """
    if min(len(a), len(b)) < 2:
        raise Undefined(f"sets of {len(a)} and {len(b)} slices have no covariance")
    a, b = a.astype(np.float64), b.astype(np.float64)
    gap = a.mean(axis=0) - b.mean(axis=0)
    roots = [(x - x.mean(axis=0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    spread = sum(float(np.square(root).sum()) for root in roots)
    # More slices than features: the triangular factor has the same covariance and fewer rows.
    left, right = (np.asarray(np.linalg.qr(x, mode="r")) if len(x) > x.shape[1] else x for x in roots)
    common = float(np.linalg.svd(left @ right.T, compute_uv=False).sum())
    return max(0.0, float(gap @ gap) + spread - 2 * common)
