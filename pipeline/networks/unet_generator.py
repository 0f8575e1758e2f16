"""The U-Net generator of pix2pix, with the weights' names and shapes of the public code.

Sources: Ronneberger et al., MICCAI 2015; Isola et al., CVPR 2017 (arXiv 1611.07004) and its public code.
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.networks.cpu_layers import channels_last
from pipeline.networks.initialisation import initialise_normal
from pipeline.networks.padding import pad_to_multiple
from pipeline.networks.residual_blocks import make_norm

FIRST_DROPOUT = 4  # the level from which on dropout is used


class UnetLevel(nn.Module):
    """One halving, the deeper levels, one doubling; the level's own input is handed on beside the result."""

    def __init__(self, outer: int, inner: int, deeper: nn.Module | None, norm: str, dropout: float) -> None:
        super().__init__()
        bias = norm == "instance"
        down: list[nn.Module] = [nn.LeakyReLU(0.2), nn.Conv2d(outer, inner, 4, 2, 1, bias=bias)]
        if deeper is not None:
            down += [make_norm(norm, inner), deeper]
        arriving = inner if deeper is None else 2 * inner
        up: list[nn.Module] = [nn.ReLU(), nn.ConvTranspose2d(arriving, outer, 4, 2, 1, bias=bias)]
        up.append(make_norm(norm, outer))
        if dropout:
            up.append(nn.Dropout(dropout))
        self.model = nn.Sequential(*down, *up)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (batch, outer, height, width) to (batch, 2 outer, height, width)."""
        return torch.cat([features, self.model(features)], 1)


class OutermostLevel(nn.Module):
    """The full resolution: from the image's channels and back to them, without norm."""

    def __init__(self, channels_in: int, channels_out: int, width: int, deeper: nn.Module, bias: bool) -> None:
        super().__init__()
        head = nn.ConvTranspose2d(2 * width, channels_out, 4, 2, 1)
        head.stays_float32 = True  # type: ignore[assignment]
        first = nn.Conv2d(channels_in, width, 4, 2, 1, bias=bias)
        self.model = nn.Sequential(first, deeper, nn.ReLU(), head, nn.Tanh())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map (batch, channels_in, height, width) to (batch, channels_out, height, width), float32."""
        features = self.model[:-2](images)
        # Near the ends of the range one bf16 step is 8 HU, so the head leaves autocast.
        with torch.autocast(device_type=images.device.type, enabled=False):
            result: torch.Tensor = self.model[-2:](features.float())
        return result


class UnetGenerator(nn.Module):
    """A U-Net of ``depth`` halvings with skips at every level; ``unet_256`` of the public code is depth 8.

    Args:
        channels_in: Channels of the input: (2 neighbours + 1) for neighbouring slices.
        channels_out: Channels of the output.
        width: Channels after the first halving, doubled by each further one up to 8 times.
        depth: Halvings; images are padded inside to a multiple of 2^depth.
        norm: As in ``residual_blocks.make_norm``; convolutions before a norm with a shift of its own have no bias.
        dropout: Share of activations left out while training, from the fifth level on, but for the deepest; 0: none.
    """

    def __init__(
        self,
        channels_in: int = 1,
        channels_out: int = 1,
        width: int = 64,
        depth: int = 8,
        norm: str = "instance_affine",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if min(channels_in, channels_out, width) < 1 or depth < 2 or not 0 <= dropout < 1:
            raise ConfigError(
                "The U-Net cannot be built",
                value=f"channels {channels_in} to {channels_out}, width={width}, depth={depth}, dropout={dropout}",
                allowed="channels and width from 1, depth from 2, dropout in [0, 1)",
            )
        self.channels_in, self.channels_out, self.depth = channels_in, channels_out, depth
        widths = [width * 2 ** min(level, 3) for level in range(depth)]
        deeper: UnetLevel | None = None
        for level in range(depth - 1, 0, -1):
            share = dropout if FIRST_DROPOUT <= level < depth - 1 else 0.0
            deeper = UnetLevel(widths[level - 1], widths[level], deeper, norm, share)
        assert deeper is not None
        self.model = OutermostLevel(channels_in, channels_out, width, deeper, norm == "instance")
        initialise_normal(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map (batch, channels_in, height, width) in [-1, 1] to (batch, channels_out, ...), float32, any size."""
        height, width = images.shape[-2:]
        result: torch.Tensor = self.model(channels_last(pad_to_multiple(images, 2**self.depth)))
        return result[..., :height, :width]
