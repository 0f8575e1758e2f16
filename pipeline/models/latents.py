"""What the three stages of latent mapping share: slices to latents and back, and the names of a batch's modalities."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from pipeline.errors import ArtifactError, ConfigError
from pipeline.models.translator import Batch, evaluating
from pipeline.networks.kl_autoencoder import KLAutoencoder
from pipeline.networks.latent_transformer import LatentTransformer
from pipeline.networks.padding import pad_to_multiple

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


def windows(frames: int, length: int, step: int) -> list[int]:
    """Return where windows of ``length`` slices begin so that they cover a film; the last reaches back."""
    length = min(length, frames)
    return [*range(0, frames - length, step), frames - length]


@torch.no_grad()
def map_latents(
    transformer: LatentTransformer, latents: torch.Tensor, source_modality: str, target_modality: str
) -> torch.Tensor:
    """Return a film's latents in another modality, (slices, channels, rows, columns), of a spread near 1 as given.

    Windows of as many slices as the transformer sees together overlap by half; where they do, the mean is taken, in
    which a slice counts the more the further it is from its window's ends.
    """
    length = min(transformer.frames, len(latents))
    starts = windows(len(latents), length, max(1, length - length // 2))
    ramp = torch.arange(1.0, length + 1)
    weight = torch.minimum(ramp, ramp.flip(0)).to(latents.device)[:, None, None, None]
    total, weights = torch.zeros_like(latents, dtype=torch.float32), torch.zeros(len(latents), 1, 1, 1).to(weight)
    source, target = (transformer.indices([name]) for name in (source_modality, target_modality))
    at_once = max(1, SLICES_AT_ONCE // length)
    with evaluating(transformer):
        for group in (starts[i : i + at_once] for i in range(0, len(starts), at_once)):
            stack = torch.stack([latents[start : start + length] for start in group]).to(source.device)
            found = transformer(stack, source.expand(len(group)), target.expand(len(group))).to(latents.device)
            for start, window in zip(group, found, strict=True):
                total[start : start + length] += weight * window
                weights[start : start + length] += weight
    return total / weights


def translate_film(
    autoencoder: KLAutoencoder,
    transformer: LatentTransformer,
    latent_std: torch.Tensor,
    source: torch.Tensor,
    source_modality: str,
    target_modality: str,
    decoder: nn.Module | None = None,
) -> torch.Tensor:
    """Encode (slices, channels, height, width), map its latents, and decode them, with another decoder where given."""
    spread = latent_std.to(source.device)
    mapped = map_latents(transformer, encode_slices(autoencoder, source) / spread, source_modality, target_modality)
    return decode_slices(autoencoder, mapped * spread, (source.shape[-2], source.shape[-1]), decoder)


def latents_of(autoencoder: KLAutoencoder, batch: Batch, name: str, latent_std: torch.Tensor) -> torch.Tensor:
    """Return the latents of a batch's clips, of a spread near 1: those it holds, or its pixels encoded."""
    film: torch.Tensor = batch[name]
    if batch.get("latent", False):
        return film.float()
    return encode_slices(autoencoder, film.flatten(0, 1)).unflatten(0, film.shape[:2]) / latent_std


def pairs_of(batch: Batch) -> tuple[list[str], list[str]]:
    """Return each clip's source modality, and each clip's target modality."""
    clips = batch["source"].shape[0]
    return per_clip(batch["source_modality"], clips), per_clip(batch["target_modality"], clips)


def fill(network: nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    """Give a network the weights of an earlier stage.

    Raises:
        ArtifactError: They are of another network.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ArtifactError(
            f"The weights of the stage before do not fit this {what}",
            value="; ".join(line.strip() for line in str(error).split("\n")[1:4]),
            remedy=f"Give model.module.{what} the sizes that the run before had, or name another run",
        ) from None


def refuse_another(network: nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    """Raise ``ArtifactError`` where the stage before has other weights now than those that a run was begun with."""
    own = network.state_dict()
    if own.keys() != state.keys() or any(not torch.equal(value, own[name].cpu()) for name, value in state.items()):
        raise ArtifactError(
            f"This run was begun with another {what}",
            value="other weights in the run of the stage before",
            remedy="Give the run that it was begun with, or begin a new one in another folder",
        )


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


def check_channels(autoencoder: KLAutoencoder, transformer: LatentTransformer) -> None:
    """Raise ``ConfigError`` for a transformer of other latents."""
    if autoencoder.latent_channels != transformer.channels:
        raise ConfigError(
            "The transformer's latents have another number of channels than the autoencoder's",
            value=transformer.channels,
            allowed=autoencoder.latent_channels,
            remedy=f"Set model.module.transformer.channels={autoencoder.latent_channels}",
        )
