"""Perceptual distance of slices in the features of a network: LPIPS, from a weights file that the user gives."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from pipeline.metrics.pair import Pair, Undefined
from pipeline.metrics.registry import metric
from pipeline.metrics.windows import prepared, whole

if TYPE_CHECKING:
    from pipeline.networks.lpips_vgg16 import LpipsVgg16

SMALLEST = 16  # pixels: four poolings leave one


@metric(
    title="LPIPS (VGG16)",
    unit="",
    better="lower",
    definition=(
        "learned perceptual distance of a slice, mean over slices: version 0.1 with VGG16, the profile's range mapped "
        "to [-1, 1] and repeated to three channels (Zhang 2018); trained on photographs"
    ),
    taken="slice",
    own_weights=True,
)
def lpips(pair: Pair, *, clip: tuple[float, float] | None, data_range: float, outside: str, weights: str) -> float:
    """Learned perceptual image patch similarity of one slice; 0 for equal slices.

    Source: Zhang et al. 2018 (arXiv 1801.03924), version 0.1 with VGG16.

    Raises:
        ArtifactError: The file is not LPIPS's with VGG16.
        Undefined: The slice is smaller than 16 pixels.
    """
    rows, columns = pair.reference.shape[1:]
    if min(rows, columns) < SMALLEST:
        raise Undefined(f"a slice of {rows} x {columns} is smaller than {SMALLEST} pixels")
    import torch

    planes = next(prepared(pair, whole(pair), clip, outside))
    a, b = (torch.from_numpy(p * (2 / data_range) - 1).float().expand(1, 3, -1, -1) for p in planes)
    with torch.inference_mode():
        return float(_network(weights)(a, b))


@lru_cache(maxsize=1)
def _network(weights: str) -> LpipsVgg16:
    from pipeline.networks.lpips_vgg16 import LpipsVgg16

    return LpipsVgg16(weights)
