"""VGG19 features from a weights file that the user gives: no package ships these weights.

Architecture: Simonyan and Zisserman 2015 (arXiv 1409.1556). Layers: relu1_1, relu2_1, relu3_1, relu4_1, relu5_1.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.errors import ArtifactError
from pipeline.networks.weights_file import read_weights

# (number in torchvision's `features`, output channels) of each convolution up to relu5_1; 0 is a pooling.
_LAYERS = (
    *((0, 64), (2, 64), (4, 0), (5, 128), (7, 128), (9, 0), (10, 256), (12, 256), (14, 256), (16, 256), (18, 0)),
    *((19, 512), (21, 512), (23, 512), (25, 512), (27, 0), (28, 512)),
)
_KEPT = (0, 5, 10, 19, 28)


class Vgg19Features(nn.Module):
    """Frozen VGG19 features; the weights are buffers that no checkpoint carries and no optimiser sees.

    Args:
        weights: A state dict file with names ``features.0.weight`` (torchvision) or plain ``0.weight``.

    Raises:
        ArtifactError: The file is missing, damaged, or of another network.
    """

    def __init__(self, weights: str) -> None:
        super().__init__()
        state = read_weights(Path(weights))
        prefix = "features." if "features.0.weight" in state else ""
        before = 3
        for number, channels in _LAYERS:
            if not channels:
                continue
            weight, bias = state.get(f"{prefix}{number}.weight"), state.get(f"{prefix}{number}.bias")
            if weight is None or bias is None or weight.shape != (channels, before, 3, 3):
                raise ArtifactError(
                    "The weights are not VGG19's",
                    value=f"{Path(weights).name}, layer {number}",
                    allowed="a state dict of torchvision's vgg19, whole or only its `features`",
                )
            self.register_buffer(f"weight{number}", weight.float(), persistent=False)
            self.register_buffer(f"bias{number}", bias.float(), persistent=False)
            before = channels

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return five feature maps of (batch, 3, height, width); vid2vid feeds [-1, 1] without normalisation."""
        hidden, kept = images, []
        for number, channels in _LAYERS:
            if channels:
                weight, bias = getattr(self, f"weight{number}"), getattr(self, f"bias{number}")
                hidden = F.relu(F.conv2d(hidden, weight, bias, padding=1))
            else:
                hidden = F.max_pool2d(hidden, 2)
            if number in _KEPT:
                kept.append(hidden)
        return kept
