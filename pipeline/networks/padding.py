"""Padding of images to the multiple that a network's strides need."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def pad_to_multiple(images: torch.Tensor, multiple: int, minimum: int = 1) -> torch.Tensor:
    """Pad (batch, channels, height, width) at the lower and right edge by replication.

    Args:
        images: Any real tensor of that shape.
        multiple: Height and width of the result are multiples of it.
        minimum: Height and width of the result are at least this.

    Returns:
        The padded images; crop with ``[..., :height, :width]``. Replication works for any size, where reflection
        needs an image larger than the padding.
    """
    height, width = images.shape[-2:]
    bottom = max(-(-height // multiple) * multiple, minimum) - height
    right = max(-(-width // multiple) * multiple, minimum) - width
    if not bottom and not right:
        return images
    return F.pad(images, (0, right, 0, bottom), mode="replicate")
