"""What the three stages of latent mapping share: slices to latents and back, and the names of a batch's modalities."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.losses.adversarial import discriminator_loss, generator_loss
from pipeline.models.translator import evaluating, frozen
from pipeline.networks.kl_autoencoder import KLAutoencoder
from pipeline.networks.padding import pad_to_multiple
from pipeline.networks.patch_discriminator import MultiScalePatchDiscriminator

SLICES_AT_ONCE = 4  # in translate; bounds the memory


@torch.no_grad()
def encode_slices(network: KLAutoencoder, slices: torch.Tensor) -> torch.Tensor:
    """Return the posterior means of slices, a few at a time.

    Args:
        network: Its device is where the work is done.
        slices: (slices, channels, height, width) in [-1, 1], of any size: padded at the lower and right edge.

    Returns:
        (slices, latent channels, rows, columns), float32, on the slices' device, not divided by any scale.
    """
    device = next(network.parameters()).device
    with evaluating(network):
        means = [
            network.encode(pad_to_multiple(chunk.to(device), network.factor))[0].to(slices.device)
            for chunk in slices.split(SLICES_AT_ONCE)
        ]
    return torch.cat(means)


@torch.no_grad()
def decode_slices(
    network: KLAutoencoder, latents: torch.Tensor, size: Sequence[int], decoder: nn.Module | None = None
) -> torch.Tensor:
    """Return the images of latents, clipped to [-1, 1], a few at a time.

    Args:
        network: Its device is where the work is done.
        latents: (slices, latent channels, rows, columns), not divided by any scale.
        size: Height and width to which the images are cropped.
        decoder: Used instead of the network's own.

    Returns:
        (slices, channels, height, width), float32, on the latents' device.
    """
    device = next(network.parameters()).device
    with evaluating(network), evaluating(network.decoder if decoder is None else decoder):
        images = [
            network.decode(chunk.to(device), decoder)[..., : size[0], : size[1]].clamp(-1, 1).to(latents.device)
            for chunk in latents.split(SLICES_AT_ONCE)
        ]
    return torch.cat(images)


def encoder_hash(network: KLAutoencoder) -> str:
    """Return the SHA-256 of what decides a latent: the encoder's weights, whatever device and memory format."""
    digest = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(name.encode())
            digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def per_clip(modality: str | Sequence[str], clips: int) -> list[str]:
    """Return a modality's name for each clip of a batch, given one for all or one for each."""
    names = [modality] * clips if isinstance(modality, str) else list(modality)
    if len(names) != clips:
        raise ValueError(f"{len(names)} modalities for {clips} clips")
    return names


def check_judge(discriminator: MultiScalePatchDiscriminator | None, autoencoder: KLAutoencoder) -> None:
    """Raise ``ConfigError`` for a discriminator that does not take the autoencoder's images."""
    channels = 1 if autoencoder.grey else autoencoder.channels
    if discriminator is not None and discriminator.channels != channels:
        raise ConfigError(
            "The discriminator has the wrong number of input channels",
            value=discriminator.channels,
            allowed=channels,
            remedy=f"Set model.module.discriminator.channels={channels}",
        )


def judge(network: nn.Module, real: torch.Tensor, fake: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the hinge losses of who made ``fake``, through frozen weights, and of the discriminator.

    Both are images (batch, channels, height, width).
    """
    discriminator = discriminator_loss(network(real), network(fake.detach()), "hinge")
    with frozen(network):
        return generator_loss(network(fake), "hinge"), discriminator
