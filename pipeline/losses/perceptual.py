"""Distance between images in the features of a frozen network.

Source: Johnson et al., ECCV 2016 (arXiv 1603.08155); layers and weights as in pix2pixHD and vid2vid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.errors import ConfigError

LARGEST_WIDTH = 1024  # pixels; wider images are halved, as in vid2vid


class PerceptualLoss(nn.Module):
    """L1 distance of five feature maps, weighted per layer.

    Args:
        extractor: Maps (batch, 3, height, width) in [-1, 1] to a list of feature maps; holds no parameters.
        weights: One per feature map; vid2vid's for VGG19 are 1/32, 1/16, 1/8, 1/4, 1.

    Raises:
        ConfigError: No weight above zero.
    """

    def __init__(self, extractor: nn.Module, weights: list[float] | None = None) -> None:
        super().__init__()
        self.extractor = extractor
        self.weights = [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0] if weights is None else [float(w) for w in weights]
        if not self.weights or min(self.weights) < 0 or max(self.weights) == 0:
            raise ConfigError("The perceptual weights need one above zero", value=self.weights)

    def forward(self, fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Return the distance of ``fake`` from ``real`` (detached), both (batch, channels, height, width).

        The batch of ``fake`` may hold several stacks of the real batch. One channel is repeated to three.
        """
        with torch.no_grad():
            wanted = self.extractor(self._as_colour(real))
        found = self.extractor(self._as_colour(fake))
        if len(found) != len(self.weights):
            raise ConfigError(
                "The perceptual weights do not fit the extractor", value=len(self.weights), allowed=len(found)
            )
        total = torch.zeros((), device=fake.device)
        for weight, fake_map, real_map in zip(self.weights, found, wanted, strict=True):
            stacks = fake_map.float().unflatten(0, (-1, real_map.shape[0]))
            total = total + weight * (stacks - real_map.float()).abs().mean()
        return total

    @staticmethod
    def _as_colour(images: torch.Tensor) -> torch.Tensor:
        while images.shape[-1] > LARGEST_WIDTH:
            images = F.avg_pool2d(images, 2)
        return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
