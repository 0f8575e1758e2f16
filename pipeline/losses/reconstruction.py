"""Distances between a prediction and its reference."""

from __future__ import annotations

import torch


def masked_l1(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute error inside the mask, per sample, then over the batch; 0 for an empty mask.

    Each sample of the batch (axis 0) counts the same, however large its mask: so a batch that is split among ranks
    or accumulated in parts has the loss of the whole. All three are of one shape, or broadcast to the prediction's;
    ``mask`` is 0 or 1.
    """
    mask = mask.float().expand_as(prediction)
    error = (mask * (prediction.float() - target.float()).abs()).flatten(1).sum(1)
    return (error / mask.flatten(1).sum(1).clamp_min(1)).mean()
