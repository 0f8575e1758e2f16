"""What an unsupervised flow network descends: likeness after warping, and smoothness of the flow.

Source: VoxelMorph, Balakrishnan et al., IEEE TMI 2019 (arXiv 1809.05231), with MONAI's losses.
"""

from __future__ import annotations

import torch
from monai.losses.deform import BendingEnergyLoss
from monai.losses.image_dissimilarity import LocalNormalizedCrossCorrelationLoss
from torch import nn

from pipeline.networks.warp import warp

WINDOW = 9  # pixels
# Standard deviation inside a window below which images count as flat: 15 HU where the range spans 3072. Without it
# the rounding of air, divided by itself, correlates.
FLAT = 0.01


class RegistrationLoss(nn.Module):
    """Squared local correlation of warped and current image, negated, and the bending energy of the flow.

    Args:
        bending: Weight of the mean squared second derivatives of the flow in pixels.
    """

    def __init__(self, bending: float = 1.0) -> None:
        super().__init__()
        self.bending = bending
        self.likeness = LocalNormalizedCrossCorrelationLoss(2, WINDOW, smooth_dr=(WINDOW * FLAT) ** 2)
        self.bend = BendingEnergyLoss()

    def forward(self, current: torch.Tensor, previous: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
        """Return the loss, a scalar from -1, of images (batch, channels, height, width) and a flow in pixels."""
        warped = warp(previous, flow)
        # In bf16 a window's variance, a difference of sums of squares, is rounding alone.
        with torch.autocast(device_type=current.device.type, enabled=False):
            loss: torch.Tensor = self.likeness(warped, current.float()) + self.bending * self.bend(flow.float())
        return loss
