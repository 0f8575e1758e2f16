"""The multi-scale patch discriminator of pix2pixHD and vid2vid, for images and for groups of frames.

Sources: Wang et al., CVPR 2018 (arXiv 1711.11585); arXiv 1808.06601. MONAI's ``MultiScalePatchDiscriminator`` is
another network (no image pyramid, 181.7 M parameters at two scales).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.networks.cpu_layers import channels_last
from pipeline.networks.initialisation import initialise_normal
from pipeline.networks.pyramid import halve
from pipeline.networks.residual_blocks import make_norm
from pipeline.networks.spectral import spectral_normalise

Features = list[list[torch.Tensor]]  # per scale: the layers' outputs, the last being the patch logits


FLOW_DIVISOR = 20.0  # pixels of flow per unit of a temporal discriminator's input


def frame_groups(
    film: Sequence[torch.Tensor],
    flow: Sequence[torch.Tensor] | None,
    ends: Sequence[int],
    stride: int,
    frames: int,
) -> torch.Tensor:
    """Return what a temporal discriminator judges: groups of frames and the reference flow between them.

    Args:
        film: Frames (batch, channels, height, width), the clip's first at 0.
        flow: Reference flow (batch, 2, height, width) in pixels, entry t leading from frame t to t + stride; None:
            the discriminator sees frames only.
        ends: Last frame of each group, at least ``stride * (frames - 1)``.
        stride: Distance of a group's frames.
        frames: Frames of a group.

    Returns:
        (groups * batch, frames * channels + 2 (frames - 1), height, width): frames oldest first, then flow / 20.
    """
    groups: list[torch.Tensor] = []
    for end in ends:
        members = range(end - stride * (frames - 1), end + 1, stride)
        flows = [flow[member] / FLOW_DIVISOR for member in members[:-1]] if flow is not None else []
        groups.append(torch.cat([*(film[member].float() for member in members), *flows], 1))
    return torch.cat(groups)


class MultiScalePatchDiscriminator(nn.Module):
    """``scales`` equal patch networks on an image pyramid.

    Args:
        channels: Input channels: source + target channels for images; for groups of tD frames
            tD target channels + 2 (tD - 1) flow channels.
        width: Channels of the first layer (ndf), doubled by each layer up to 512.
        layers: Convolutions with stride 2 in each network.
        scales: Levels of the pyramid.
        norm: As in ``residual_blocks.make_norm``.
        spectral: Bound every convolution by its largest singular value (not published for vid2vid).
    """

    def __init__(
        self,
        channels: int = 2,
        width: int = 64,
        layers: int = 3,
        scales: int = 2,
        norm: str = "instance",
        spectral: bool = False,
    ) -> None:
        super().__init__()
        if min(channels, width, layers, scales) < 1:
            raise ConfigError(
                "The discriminator is too small to exist",
                value=f"channels={channels}, width={width}, layers={layers}, scales={scales}",
                allowed="each from 1",
            )
        self.channels, self.layers, self.scales = channels, layers, scales
        self.networks = nn.ModuleList(self._patch_network(channels, width, layers, norm) for _ in range(scales))
        initialise_normal(self)
        if spectral:
            spectral_normalise(self)

    @staticmethod
    def _patch_network(channels: int, width: int, layers: int, norm: str) -> nn.ModuleList:
        """Return the layers one by one, because their outputs are kept for feature matching."""
        stages = [nn.Sequential(nn.Conv2d(channels, width, 4, stride=2, padding=2), nn.LeakyReLU(0.2))]
        narrow = width
        for index in range(1, layers + 1):
            wide = min(2 * narrow, 512)
            convolution = nn.Conv2d(narrow, wide, 4, stride=2 if index < layers else 1, padding=2)
            stages.append(nn.Sequential(convolution, make_norm(norm, wide), nn.LeakyReLU(0.2)))
            narrow = wide
        stages.append(nn.Sequential(nn.Conv2d(narrow, 1, 4, padding=2)))
        return nn.ModuleList(stages)

    def forward(self, images: torch.Tensor) -> Features:
        """Judge (batch, channels, height, width); per scale the outputs of all layers, full resolution first."""
        results: Features = []
        for level, network in enumerate(self.networks):
            if level:
                images = halve(images)
            outputs: list[torch.Tensor] = []
            hidden = channels_last(images)
            assert isinstance(network, nn.ModuleList)
            for stage in network:
                hidden = stage(hidden)
                outputs.append(hidden)
            results.append(outputs)
        return results
