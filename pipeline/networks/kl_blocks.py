"""The blocks of the KL autoencoder, by the names that public weights have, safe in fp16.

Source: Rombach et al., CVPR 2022 (arXiv 2112.10752). Norms and attention, whose sums leave fp16's range, run in
float32 under autocast, and so does all that reads the sum of the blocks itself, which nothing bounds.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.errors import ConfigError

_EPSILON = 1e-6


def exact(features: torch.Tensor) -> torch.Tensor:
    """Return features in float32, or as they are where they have more digits."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


class ExactConv2d(nn.Conv2d):
    """A convolution in float32, also under autocast; its weights are never rounded."""

    stays_float32 = True

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolve (batch, channels, height, width) in float32 or better."""
        with torch.autocast(device_type=input.device.type, enabled=False):
            return super().forward(exact(input))


class StreamConv2d(nn.Conv2d):
    """A convolution of the blocks' sum: in bf16 under such an autocast, but in float32 instead of fp16."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolve (batch, channels, height, width)."""
        kind = input.device.type
        if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
            with torch.autocast(device_type=kind, enabled=False):
                return super().forward(exact(input))
        return super().forward(input)


class GroupNorm(nn.GroupNorm):
    """Group norm in float32, also under autocast."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise the groups of channels of (batch, channels, height, width)."""
        with torch.autocast(device_type=input.device.type, enabled=False):
            return super().forward(exact(input))


def group_norm(channels: int, groups: int) -> GroupNorm:
    """Return the layout's norm.

    Raises:
        ConfigError: The groups do not divide the channels.
    """
    if groups < 1 or channels % groups:
        raise ConfigError(
            "The norm's groups do not divide the channels",
            value=f"{channels} channels, groups={groups}",
            remedy="Set groups to a divisor of width times every multiplier",
        )
    return GroupNorm(groups, channels, eps=_EPSILON)


class KLResidualBlock(nn.Module):
    """Twice norm, swish and a convolution 3x3, plus the input (through a convolution 1x1 where the width changes)."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels_in, groups)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = group_norm(channels_out, groups)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.nin_shortcut = StreamConv2d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (batch, channels_in, height, width) to (batch, channels_out, height, width), in float32 at least."""
        hidden = self.conv1(F.silu(self.norm1(features)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        kept = features if self.nin_shortcut is None else self.nin_shortcut(features)
        return exact(kept) + exact(hidden)


class AttentionBlock(nn.Module):
    """Self-attention of one head over all pixels, plus the input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.q, self.k, self.v, self.proj_out = (ExactConv2d(channels, channels, 1) for _ in range(4))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return features of the same shape (batch, channels, height, width), in float32 at least."""
        hidden = self.norm(features)
        shape = hidden.shape
        with torch.autocast(device_type=features.device.type, enabled=False):
            query, key, value = (part(hidden).flatten(2).mT[:, None] for part in (self.q, self.k, self.v))
            # (batch, 1 head, pixels, channels); the scale is channels^-0.5
            seen = F.scaled_dot_product_attention(query, key, value)
        mixed: torch.Tensor = self.proj_out(seen[:, 0].mT.reshape(shape))
        return exact(features) + mixed


class Downsample(nn.Module):
    """A convolution 3x3 with stride 2 that sees one zero beyond the lower and right edge."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = StreamConv2d(channels, channels, 3, stride=2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Halve height and width of (batch, channels, height, width)."""
        halved: torch.Tensor = self.conv(F.pad(features, (0, 1, 0, 1)))
        return halved


class Upsample(nn.Module):
    """Every pixel four times, then a convolution 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = StreamConv2d(channels, channels, 3, padding=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Double height and width of (batch, channels, height, width)."""
        doubled: torch.Tensor = self.conv(F.interpolate(features, scale_factor=2.0, mode="nearest"))
        return doubled


class Level(nn.Module):
    """Blocks at one resolution, attention after each where wanted, and the change to the next resolution."""

    def __init__(self, widths: list[int], groups: int, attention: bool, change: nn.Module | None, name: str) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.block = nn.ModuleList(KLResidualBlock(before, after, groups) for before, after in pairs)
        self.attn = nn.ModuleList(AttentionBlock(after, groups) for _, after in pairs if attention)
        self.change = name if change is not None else None
        if change is not None:
            self.add_module(name, change)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (batch, first width, height, width) to the last width, halved or doubled where there is a change."""
        for index, block in enumerate(self.block):
            features = block(features)
            if len(self.attn):
                features = self.attn[index](features)
        return features if self.change is None else getattr(self, self.change)(features)


class Middle(nn.Module):
    """Block, attention, block, at the lowest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = KLResidualBlock(channels, channels, groups)
        self.attn_1 = AttentionBlock(channels, groups)
        self.block_2 = KLResidualBlock(channels, channels, groups)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return features of the same shape."""
        mixed: torch.Tensor = self.block_2(self.attn_1(self.block_1(features)))
        return mixed
