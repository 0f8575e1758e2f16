"""A small U-Net that estimates the flow between two images, for a reference flow that needs no weights of others.

Source: VoxelMorph, Balakrishnan et al., IEEE TMI 2019 (arXiv 1809.05231), in two dimensions.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.errors import ConfigError
from pipeline.networks.padding import pad_to_multiple


class FlowUNet(nn.Module):
    """Estimate the flow that samples ``previous`` so that it looks like ``current``; it starts as no flow at all.

    Args:
        channels: Of one image.
        widths: Channels per level; each level has half the resolution of the one before.

    Raises:
        ConfigError: No second level, or a width below one.
    """

    def __init__(self, channels: int = 1, widths: list[int] | None = None) -> None:
        super().__init__()
        widths = [16, 32, 32, 32] if widths is None else list(widths)
        if channels < 1 or len(widths) < 2 or min(widths) < 1:
            raise ConfigError(
                "The flow network is too small to exist",
                value=f"channels={channels}, widths={widths}",
                allowed="channels from 1, two widths or more, each from 1",
            )
        self.channels = channels
        self.multiple = 2 ** (len(widths) - 1)

        def convolution(before: int, after: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(before, after, 3, stride, padding=1), nn.LeakyReLU(0.2))

        self.entry = convolution(2 * channels, widths[0])
        self.downs = nn.ModuleList(convolution(wide, deep, stride=2) for wide, deep in pairwise(widths))
        self.ups = nn.ModuleList(convolution(deep + wide, wide) for wide, deep in reversed(list(pairwise(widths))))
        self.last = convolution(widths[0], widths[0])
        self.head = nn.Conv2d(widths[0], 2, 3, padding=1)
        nn.init.normal_(self.head.weight, 0.0, 1e-5)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def forward(self, current: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        """Return the flow (batch, 2, height, width) in pixels, float32: ``warp(previous, flow)`` is about ``current``.

        Both images are (batch, channels, height, width) in [-1, 1], of any size.
        """
        height, width = current.shape[-2:]
        levels = [self.entry(pad_to_multiple(torch.cat([current, previous], 1), self.multiple))]
        for down in self.downs:
            levels.append(down(levels[-1]))
        features = levels.pop()
        for up in self.ups:
            features = up(torch.cat([F.interpolate(features, scale_factor=2.0), levels.pop()], 1))
        features = self.last(features)
        with torch.autocast(device_type=current.device.type, enabled=False):
            flow: torch.Tensor = self.head(features.float())
        return flow[..., :height, :width]
