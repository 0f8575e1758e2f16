"""What an unsupervised flow network descends: likeness after warping, and smoothness of the flow.

Sources: VoxelMorph, Balakrishnan et al., IEEE TMI 2019 (arXiv 1809.05231), with MONAI's local correlation; bending
energy: Rueckert et al., IEEE TMI 1999 (MONAI 1.6's indexes in a way that torch is giving up).
"""

from __future__ import annotations

import torch
from monai.losses.image_dissimilarity import LocalNormalizedCrossCorrelationLoss
from torch import nn

from pipeline.networks.warp import warp

WINDOW = 9  # pixels
# Standard deviation inside a window below which images count as flat: 15 HU where the range spans 3072. Without it
# the rounding of air, divided by itself, correlates.
FLAT = 0.01


def bending_energy(flow: torch.Tensor) -> torch.Tensor:
    """Return the mean of u_xx^2 + u_yy^2 + 2 u_xy^2 of a flow (batch, 2, height, width); 0 for any affine one.

    In pixels, so the spacing plays no part. Images below three pixels have no such derivatives: 0.
    """
    if min(flow.shape[-2:]) < 3:
        return flow.sum() * 0.0
    along_x = flow.diff(2, dim=-1)[..., 1:-1, :]
    along_y = flow.diff(2, dim=-2)[..., 1:-1]
    mixed = (flow[..., 2:, 2:] - flow[..., 2:, :-2] - flow[..., :-2, 2:] + flow[..., :-2, :-2]) / 4
    return (along_x**2 + along_y**2 + 2 * mixed**2).mean()


class RegistrationLoss(nn.Module):
    """Squared local correlation of warped and current image, negated, and the bending energy of the flow.

    Args:
        bending: Weight of the mean squared second derivatives of the flow in pixels.
    """

    def __init__(self, bending: float = 1.0) -> None:
        super().__init__()
        self.bending = bending
        self.likeness = LocalNormalizedCrossCorrelationLoss(2, WINDOW, smooth_dr=(WINDOW * FLAT) ** 2)

    def forward(self, current: torch.Tensor, previous: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
        """Return the loss, a scalar from -1, of images (batch, channels, height, width) and a flow in pixels."""
        warped = warp(previous, flow)
        # In bf16 a window's variance, a difference of sums of squares, is rounding alone.
        with torch.autocast(device_type=current.device.type, enabled=False):
            # MONAI pads with 0, so air has to be 0: else the border correlates for nothing.
            likeness: torch.Tensor = self.likeness(warped + 1, current.float() + 1)
            return likeness + self.bending * bending_energy(flow.float())
