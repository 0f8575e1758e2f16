"""The patch discriminator of pix2pix and CycleGAN, with the weights' names and shapes of the public code.

Sources: Isola et al., CVPR 2017 (arXiv 1611.07004); Zhu et al., ICCV 2017 (arXiv 1703.10593). It differs from a scale
of ``patch_discriminator`` in its padding (30x30 verdicts at 256x256, not 35x35) and keeps no features.
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.networks.cpu_layers import channels_last
from pipeline.networks.initialisation import initialise_normal
from pipeline.networks.residual_blocks import make_norm


class PatchDiscriminator(nn.Module):
    """Judge overlapping patches; with three halvings each verdict sees 70x70 pixels.

    With width 64 and three halvings it has 2,764,737 parameters for 3 channels.

    Args:
        channels: Of the images: 1 or 3, or source and target together.
        width: Channels of the first layer, doubled by each further one up to 8 times.
        layers: Convolutions with stride 2.
        norm: As in ``residual_blocks.make_norm``; convolutions before a norm with a shift of its own have no bias.
    """

    def __init__(self, channels: int = 1, width: int = 64, layers: int = 3, norm: str = "instance") -> None:
        super().__init__()
        if min(channels, width, layers) < 1:
            raise ConfigError(
                "The discriminator is too small to exist",
                value=f"channels={channels}, width={width}, layers={layers}",
                allowed="each from 1",
            )
        self.channels, self.layers = channels, layers
        stages: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2, True)]
        narrow = width
        for index in range(1, layers + 1):
            wide = width * 2 ** min(index, 3)
            stride = 2 if index < layers else 1
            stages.append(nn.Conv2d(narrow, wide, 4, stride=stride, padding=1, bias=norm == "instance"))
            stages += [make_norm(norm, wide), nn.LeakyReLU(0.2, True)]
            narrow = wide
        self.model = nn.Sequential(*stages, nn.Conv2d(narrow, 1, 4, padding=1))
        initialise_normal(self)

    def forward(self, images: torch.Tensor) -> list[list[torch.Tensor]]:
        """Judge (batch, channels, height, width): one scale with one entry, the logits, as the losses take them.

        Raises:
            ConfigError: The images are smaller than the network.
        """
        smallest = 3 * 2**self.layers
        if min(images.shape[-2:]) < smallest:
            raise ConfigError(
                "The images are too small for the discriminator",
                value=" x ".join(str(side) for side in images.shape[-2:]),
                allowed=f"from {smallest} x {smallest} with layers={self.layers}",
                remedy="Lower the discriminator's layers, or raise preprocess.size",
            )
        return [[self.model(channels_last(images))]]
