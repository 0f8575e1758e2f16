"""MIND: what surrounds a pixel, whatever the contrast. Source: Heinrich et al., Medical Image Analysis 16 (2012) 1423.

Used against anatomy shift in CycleGANs by Yang et al., DLMIA 2018 (arXiv 1809.04536).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

OFFSETS = ((0, 1), (1, 0), (0, -1), (-1, 0))  # four neighbours in the plane
PATCH = 3  # pixels
# Variance below which a place counts as flat: about 3 HU where the range spans 3072. Else noise would be structure.
_FLAT = 4e-6


def mind(images: torch.Tensor, distance: int = 2) -> torch.Tensor:
    """Describe each pixel by how much its patch differs from those of its neighbours.

    exp(-D / V): D is the mean squared difference of the two patches, V the mean of D over the neighbours, so that gain
    and offset fall away; the largest entry is 1.

    Args:
        images: (batch, channels, height, width).
        distance: Pixels between a patch and its neighbours.

    Returns:
        (batch, channels * 4, height, width) in [0, 1].
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (distance,) * 4, mode="replicate")
    differences: list[torch.Tensor] = []
    for row, column in OFFSETS:
        top, left = distance * (1 + row), distance * (1 + column)
        squared = (padded[..., top : top + height, left : left + width] - images) ** 2
        differences.append(F.avg_pool2d(F.pad(squared, (PATCH // 2,) * 4, mode="replicate"), PATCH, 1))
    stacked = torch.stack(differences, 2)
    described = torch.exp(-stacked / stacked.mean(2, keepdim=True).clamp_min(_FLAT))
    return (described / described.amax(2, keepdim=True)).flatten(1, 2)


def mind_distance(prediction: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute difference of the descriptors, 0 to 1, of (batch, channels, height, width)."""
    with torch.autocast(device_type=prediction.device.type, enabled=False):
        return (mind(prediction.float()) - mind(source.float())).abs().mean()
