"""Backward warping of images by a flow in pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def warp(image: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Sample ``image`` at ``x + flow(x)``: bilinear, border values outside, always in float32.

    Pixel centres of the first and last column lie at -1 and 1 (``align_corners=True``), so that one unit of flow is
    exactly one pixel. In bf16 a grid coordinate rounds to a quarter of a pixel, hence float32 under autocast too.

    Args:
        image: (batch, channels, height, width), any floating type.
        flow: (batch, 2, height, width), pixels; channel 0 points along the columns (x), 1 along the rows (y).

    Returns:
        (batch, channels, height, width), float32.
    """
    height, width = image.shape[-2:]
    with torch.autocast(device_type=image.device.type, enabled=False):
        flow = flow.float()
        x = torch.linspace(-1, 1, width, device=flow.device) + flow[:, 0] * (2 / max(width - 1, 1))
        y = torch.linspace(-1, 1, height, device=flow.device)[:, None] + flow[:, 1] * (2 / max(height - 1, 1))
        grid = torch.stack([x, y], dim=-1)
        # On the CPU the backward pass of a grid with NaN reads out of bounds and kills the process.
        grid = grid.nan_to_num()
        warped = F.grid_sample(image.float(), grid, mode="bilinear", padding_mode="border", align_corners=True)
        fixed = flow.detach()
        return warped + (fixed - fixed).sum(1, keepdim=True)  # 0, or NaN again, for the guard to see
