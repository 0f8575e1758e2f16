"""Gradient consistency: edges of the translation where the source has them.

Source: Hiasa et al., SASHIMI 2018 (arXiv 1803.06629): cross-correlation of the images' gradients. Their signs turn
around between MR and CT (bone), so that by default strengths alone are compared, which is not published.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_FLAT = 1e-6  # mean product of gradients below which an image has none


def gradient_consistency(prediction: torch.Tensor, source: torch.Tensor, signed: bool = False) -> torch.Tensor:
    """Return 1 minus the correlation of the images' Sobel gradients, averaged over both directions and the batch.

    0: the same edges up to contrast; 1: unrelated ones; 2 (signed only): the same with turned contrast. Images without
    any edge correlate with none.

    Args:
        prediction: (batch, channels, height, width), at least 3 pixels wide and high.
        source: The same shape.
        signed: Whether an edge from dark to bright has to stay one.
    """
    with torch.autocast(device_type=prediction.device.type, enabled=False):
        ours, theirs = _gradients(prediction.float()), _gradients(source.float())
        if not signed:
            ours, theirs = ours.abs(), theirs.abs()
        ours, theirs = (part - part.mean((-2, -1), keepdim=True) for part in (ours, theirs))
        joint = (ours * theirs).mean((-2, -1))
        spread = (ours**2).mean((-2, -1)) * (theirs**2).mean((-2, -1))
        return 1 - (joint / (spread + _FLAT**2).sqrt()).mean()


def _gradients(images: torch.Tensor) -> torch.Tensor:
    """Return (batch * channels, 2, height - 2, width - 2): Sobel derivatives along rows and columns."""
    along = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=images.device) / 8
    return F.conv2d(images.flatten(0, 1)[:, None], torch.stack([along.T, along])[:, None])
