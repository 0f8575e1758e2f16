"""The building blocks of ResNet-style translation networks."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.errors import ConfigError, nearest
from pipeline.networks.cpu_layers import InstanceNorm2d, channels_last

NORMS = ("instance", "instance_affine", "batch")


def make_norm(kind: str, channels: int) -> nn.Module:
    """Return a norm layer: ``instance`` (no weights, no running statistics), ``instance_affine`` or ``batch``.

    Batch norm over the single frames of a recurrent walk takes its statistics from one frame; it is offered because
    vid2vid's published default is batch norm.

    Raises:
        ConfigError: An unknown name.
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind in NORMS:
        return InstanceNorm2d(channels, affine=kind == "instance_affine")
    raise ConfigError("Unknown norm", value=kind, allowed=", ".join(NORMS), remedy=nearest(kind, NORMS))


class Stem(nn.Sequential):
    """The first layers of a network, which decide the memory format of all that follow."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (batch, channels_in, height, width) to (batch, width, height, width)."""
        features: torch.Tensor = super().forward(channels_last(input))
        return features


def stem(channels_in: int, width: int, norm: str) -> Stem:
    """Convolution 7x7 at full resolution, norm, ReLU."""
    return Stem(
        nn.Conv2d(channels_in, width, 7, padding=3, padding_mode="reflect"), make_norm(norm, width), nn.ReLU(True)
    )


def down(channels: int, norm: str) -> nn.Sequential:
    """Convolution 3x3 with stride 2 that doubles the channels, norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1), make_norm(norm, 2 * channels), nn.ReLU(True)
    )


def up(channels: int, norm: str) -> nn.Sequential:
    """Transposed convolution 3x3 with stride 2 that halves the channels, norm, ReLU."""
    return nn.Sequential(
        nn.ConvTranspose2d(channels, channels // 2, 3, stride=2, padding=1, output_padding=1),
        make_norm(norm, channels // 2),
        nn.ReLU(True),
    )


class Shortcut(nn.Module):
    """A layer of ``stem``, ``down`` or ``up`` plus a linear path around it, with a convolution 1x1 and without a norm.

    Instance norm takes a constant from every channel: how bright a body is shows only in its contrast with the air
    around it, over the spread of that slice. HU mean something: along these paths they pass.
    """

    def __init__(self, layer: nn.Sequential) -> None:
        super().__init__()
        self.layer = layer
        first = layer[0]
        assert isinstance(first, (nn.Conv2d, nn.ConvTranspose2d))
        doubles = isinstance(first, nn.ConvTranspose2d)
        stride = 1 if doubles else first.stride[0]
        self.linear = nn.Conv2d(first.in_channels, first.out_channels, 1, stride=stride)
        self.enlarge = nn.Upsample(scale_factor=2) if doubles else nn.Identity()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the layer's result and the linear one, added."""
        features = channels_last(features)
        added: torch.Tensor = self.layer(features) + self.enlarge(self.linear(features))
        return added


class ResidualBlock(nn.Module):
    """Two reflection-padded convolutions 3x3 with norm, a ReLU between them, plus the identity."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect"),
            make_norm(norm, channels),
            nn.ReLU(True),
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect"),
            make_norm(norm, channels),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return features of the same shape (batch, channels, height, width)."""
        return features + self.body(features)
