"""Distances between a prediction and its reference."""

from __future__ import annotations

import torch


def masked_l1(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute error inside the mask, in the images' unit; 0 for an empty mask.

    All three are of one shape, or broadcast to the prediction's; ``mask`` is 0 or 1.
    """
    mask = mask.float().expand_as(prediction)
    return (mask * (prediction.float() - target.float()).abs()).sum() / mask.sum().clamp_min(1)
