"""The KL autoencoder of latent diffusion, state dict and numbers as in its two public versions.

Source: Rombach et al., CVPR 2022 (arXiv 2112.10752); the KL-16 of Li et al., NeurIPS 2024 (MAR, arXiv 2406.11838) is
the default. CompVis' has attention in the decoder too: ``decoder_attention=[4]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.errors import ArtifactError, ConfigError
from pipeline.networks.cpu_layers import channels_last
from pipeline.networks.kl_blocks import Downsample, ExactConv2d, Level, Middle, Upsample, group_norm

LOWEST, HIGHEST = -30.0, 20.0  # of the log variance
_NAMED = 3  # differences that an error names


class Encoder(nn.Module):
    """Images to the moments of their latents."""

    def __init__(
        self,
        channels: int,
        latent: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        groups: int,
        seen: set[int],
    ) -> None:
        super().__init__()
        widths = [width, *(width * factor for factor in multipliers)]
        last = len(multipliers) - 1
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                [widths[level], *[widths[level + 1]] * blocks],
                groups,
                level in seen,
                Downsample(widths[level + 1]) if level < last else None,
                "downsample",
            )
            for level in range(last + 1)
        )
        self.mid = Middle(widths[-1], groups)
        self.norm_out = group_norm(widths[-1], groups)
        self.conv_out = ExactConv2d(widths[-1], 2 * latent, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map (batch, channels, height, width) to (batch, 2 latent channels, height / f, width / f)."""
        features = self.conv_in(channels_last(images))
        for level in self.down:
            features = level(features)
        moments: torch.Tensor = self.conv_out(F.silu(self.norm_out(self.mid(features))))
        return moments


class Decoder(nn.Module):
    """Latents to images; one block more than the encoder at each resolution."""

    def __init__(
        self,
        channels: int,
        latent: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        groups: int,
        seen: set[int],
    ) -> None:
        super().__init__()
        widths = [*(width * factor for factor in multipliers), width * multipliers[-1]]
        self.conv_in = nn.Conv2d(latent, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], groups)
        # The finest resolution is the first of the list and the last to run.
        self.up = nn.ModuleList(
            Level(
                [widths[level + 1], *[widths[level]] * (blocks + 1)],
                groups,
                level in seen,
                Upsample(widths[level]) if level else None,
                "upsample",
            )
            for level in range(len(multipliers))
        )
        self.norm_out = group_norm(widths[0], groups)
        self.conv_out = ExactConv2d(widths[0], channels, 3, padding=1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Map (batch, latent channels, height / f, width / f) to (batch, channels, height, width), float32."""
        features = self.mid(self.conv_in(channels_last(latents)))
        for level in reversed(self.up):
            features = level(features)
        images: torch.Tensor = self.conv_out(F.silu(self.norm_out(features)))
        return images


class KLAutoencoder(nn.Module):
    """Images to Gaussian latents and back; the image is ``factor`` times as high and wide as its latents.

    Args:
        channels: Image channels inside: 1, or the 3 of public weights.
        latent_channels: Of a latent vector.
        width: Channels at full resolution.
        multipliers: Of ``width``, per resolution; each further one halves it (KL-16: 1, 1, 2, 2, 4; KL-8: 1, 2, 4, 4;
            KL-4: 1, 2, 4).
        blocks: Residual blocks of the encoder per resolution; the decoder has one more.
        groups: Of the group norms. With one channel per group a norm takes the mean of every channel away.
        encoder_attention: Resolutions with attention, 0 being full; the middle always has it.
        decoder_attention: The same for the decoder.
        grey: With 3 channels: a grey image is repeated, and the mean of the three is the result.

    Raises:
        ConfigError: A size out of range, groups that do not divide a width.
    """

    def __init__(
        self,
        channels: int = 1,
        latent_channels: int = 16,
        width: int = 128,
        multipliers: list[int] | None = None,
        blocks: int = 2,
        groups: int = 32,
        encoder_attention: list[int] | None = None,
        decoder_attention: list[int] | None = None,
        grey: bool = True,
    ) -> None:
        super().__init__()
        multipliers = [1, 1, 2, 2, 4] if multipliers is None else list(multipliers)
        levels = len(multipliers)
        inside = {levels - 1} if encoder_attention is None else set(encoder_attention)
        outside = set(decoder_attention or ())
        if min([channels, latent_channels, width, blocks, *multipliers, levels]) < 1:
            raise ConfigError(
                "The autoencoder is too small to exist",
                value=f"channels={channels}, latent_channels={latent_channels}, width={width}, blocks={blocks}, "
                f"multipliers={multipliers}",
                allowed="each from 1",
            )
        if not inside | outside <= set(range(levels)):
            raise ConfigError(
                "Attention is wanted at a resolution that the autoencoder does not have",
                value=f"encoder_attention={sorted(inside)}, decoder_attention={sorted(outside)}",
                allowed=f"0 (full resolution) to {levels - 1}",
            )
        self.channels, self.latent_channels, self.grey = channels, latent_channels, grey
        self.factor = 2 ** (levels - 1)
        sizes = (channels, latent_channels, width, multipliers, blocks, groups)
        self.encoder, self.decoder = Encoder(*sizes, inside), Decoder(*sizes, outside)
        self.quant_conv = ExactConv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = ExactConv2d(latent_channels, latent_channels, 1)

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log variance, each (batch, latent channels, height / factor, width / factor), float32.

        Args:
            images: (batch, channels or 1, height, width) in [-1, 1]; height and width are multiples of ``factor``.

        Raises:
            ConfigError: Another size or number of channels.
        """
        height, width = images.shape[-2:]
        if height % self.factor or width % self.factor or images.shape[1] not in (1, self.channels):
            raise ConfigError(
                "The autoencoder does not take such an image",
                value=f"{images.shape[1]} channel(s), {height} x {width}",
                allowed=f"{self.channels} channel(s), or 1; multiples of {self.factor}",
            )
        moments: torch.Tensor = self.quant_conv(self.encoder(images.expand(-1, self.channels, -1, -1)))
        mean, log_variance = moments.chunk(2, dim=1)
        return mean, log_variance.clamp(LOWEST, HIGHEST)

    def decode(self, latents: torch.Tensor, decoder: nn.Module | None = None) -> torch.Tensor:
        """Return images (batch, channels, height, width), float32, not clipped; one channel where ``grey``.

        Args:
            latents: (batch, latent channels, height / factor, width / factor).
            decoder: Used instead of the autoencoder's own, for instance its average.
        """
        images: torch.Tensor = (self.decoder if decoder is None else decoder)(self.post_quant_conv(latents))
        return images.mean(dim=1, keepdim=True) if self.grey else images

    def forward(
        self, images: torch.Tensor, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return reconstruction, mean and log variance.

        Args:
            images: As for ``encode``.
            noise: Standard normal, of the mean's shape: a sample is decoded; None: the mean is.
        """
        mean, log_variance = self.encode(images)
        latents = mean if noise is None else draw(mean, log_variance, noise)
        return self.decode(latents), mean, log_variance

    def take_public(self, state: Mapping[str, torch.Tensor]) -> None:
        """Load weights of the public layout, adapted from three channels to one where this network has one.

        Then the first convolution sums its weights over the input channels, and the last takes their mean over the
        output channels: exactly what a grey image, repeated, and the mean of the result would give.

        Raises:
            ArtifactError: Names or shapes differ; the message says which.
        """
        given = dict(state)
        if self.channels == 1 and given.get("encoder.conv_in.weight", torch.empty(0, 1)).shape[1] == 3:
            given["encoder.conv_in.weight"] = given["encoder.conv_in.weight"].sum(1, keepdim=True)
            for name in ("decoder.conv_out.weight", "decoder.conv_out.bias"):
                if name in given:
                    given[name] = given[name].mean(0, keepdim=True)
        own = self.state_dict()
        foreign, missing = sorted(given.keys() - own.keys()), sorted(own.keys() - given.keys())
        changed = [
            f"{name} {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
            for name in sorted(own.keys() & given.keys())
            if own[name].shape != given[name].shape
        ]
        found = [
            f"{len(names)} {what} ({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"
            for what, names in (("missing", missing), ("not of this layout", foreign), ("of other shapes", changed))
            if names
        ]
        if found:
            in_decoder = sorted(
                {int(n.split(".")[2]) for n in foreign if n.startswith("decoder.up.") and ".attn." in n}
            )
            raise ArtifactError(
                "The weights are not of this autoencoder",
                value="; ".join(found),
                allowed=f"the KL layout with {len(own)} tensors",
                remedy=f"Set model.module.autoencoder.decoder_attention={in_decoder} (CompVis' version)"
                if in_decoder
                else "Give model.module.autoencoder the sizes that the weights have",
            )
        self.load_state_dict(given)


def draw(mean: torch.Tensor, log_variance: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return a sample of the Gaussian with these moments; ``noise`` is standard normal, of their shape."""
    return mean + torch.exp(0.5 * log_variance) * noise


def divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Return the Kullback-Leibler divergence from the standard normal in nats, summed per image: (batch,)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)
