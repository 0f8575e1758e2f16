"""A finer scale on top of the vid2vid generator. Source: vid2vid (arXiv 1808.06601), after pix2pixHD's enhancer."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.networks.residual_blocks import ResidualBlock, down, stem, up


class LocalEnhancer(nn.Module):
    """Refine the features of a generator of half the resolution.

    Args:
        channels_source: Channels of the stacked source frames.
        channels_past: Channels of the stacked generated frames.
        width: Channels at this resolution: half of the coarser scale's.
        blocks: Residual blocks of each branch.
        norm: As in ``residual_blocks.make_norm``.
        flow: Whether there is a flow branch.
    """

    def __init__(
        self, channels_source: int, channels_past: int, width: int, blocks: int, norm: str, flow: bool
    ) -> None:
        super().__init__()

        def branch() -> nn.Sequential:
            return nn.Sequential(*(ResidualBlock(2 * width, norm) for _ in range(blocks)), up(2 * width, norm))

        self.source_encoder = nn.Sequential(stem(channels_source, width, norm), down(width, norm))
        self.past_encoder = nn.Sequential(stem(channels_past, width, norm), down(width, norm))
        self.image_branch = branch()
        self.flow_branch = branch() if flow else None

    def forward(
        self,
        source: torch.Tensor,
        past: torch.Tensor,
        image_features: torch.Tensor,
        flow_features: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return image and flow features (batch, width, height, width) of this resolution.

        Args:
            source: (batch, channels_source, height, width), both sizes even.
            past: (batch, channels_past, height, width).
            image_features: Of the coarser scale, (batch, 2 * width, height / 2, width / 2).
            flow_features: The same of its flow branch; None: no flow is wanted.
        """
        features = self.source_encoder(source) + self.past_encoder(past)
        image: torch.Tensor = self.image_branch(features + image_features)
        if flow_features is None or self.flow_branch is None:
            return image, None
        return image, self.flow_branch(features + flow_features)
