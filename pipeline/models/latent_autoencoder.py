"""Stage 1 of latent mapping: one KL autoencoder for all modalities.

Sources: Rombach et al., CVPR 2022 (arXiv 2112.10752) for network and losses; Liang et al., Medical Physics 2025
(doi 10.1002/mp.17912) for one latent space of all modalities.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.errors import ConfigError, nearest
from pipeline.losses.adaptive_weight import mean_of_ranks
from pipeline.losses.reconstruction import masked_l1
from pipeline.models.judged_images import JudgedImages
from pipeline.models.latents import decode_slices, encode_slices, encoder_hash
from pipeline.models.translator import Batch
from pipeline.networks.kl_autoencoder import KLAutoencoder, divergence
from pipeline.networks.padding import pad_to_multiple
from pipeline.networks.patch_discriminator import MultiScalePatchDiscriminator
from pipeline.networks.weights_file import read_inner_weights

DISTANCES = {"l1": F.l1_loss, "l2": F.mse_loss}
_MEMORY = 0.99  # of the running spread of the latents


class LatentAutoencoder(JudgedImages):
    """Learn to give every slice back, from the ``target`` of clips whose source is the same modality.

    Args:
        autoencoder: The network.
        discriminator: Judges images alone (hinge); None: no adversarial term.
        perceptual: A ``PerceptualLoss``; None: no such term.
        weights: A file with public KL weights to start from, in CompVis' or MAR's layout; empty: random. Only read
            when a training starts.
        distance: ``l1`` or ``l2``, the mean over pixels.
        weight_perceptual: Of the perceptual distance; all weights: 0 turns a term off.
        weight_kl: Of the divergence in nats per pixel. Latent diffusion's 1e-6 weighs sums, of the divergence and of
            three channels' distances; per pixel, beside the mean distance, that is 1e-6 / 3.
        weight_gan: Share of the reconstruction's gradient that the adversarial one gets (see ``AdaptiveWeight``).
        gan_start: Share of the budget after which the discriminator learns and judges.
        learning_rate: Of Adam(0.5, 0.9), both networks.
        warm_up: Share of the budget in which the learning rate rises, before it falls along a cosine.
        max_norm: Largest norm of one network's gradients; 0: no limit.
        ema_decay: Of the averaged autoencoder; 0: none.

    The log variance of the pixels' error, which the public code has as a parameter that no optimiser sees, stays 0
    there; here it is left out.

    Raises:
        ConfigError: A setting out of range, or a discriminator of other images.
    """

    pairings = ("modalities",)
    latent_std: torch.Tensor

    def __init__(
        self,
        autoencoder: KLAutoencoder,
        discriminator: MultiScalePatchDiscriminator | None = None,
        perceptual: nn.Module | None = None,
        weights: str = "",
        distance: str = "l1",
        weight_perceptual: float = 0.3,
        weight_kl: float = 3.3e-7,
        weight_gan: float = 0.5,
        gan_start: float = 0.5,
        learning_rate: float = 1e-4,
        warm_up: float = 0.02,
        max_norm: float = 1.0,
        ema_decay: float = 0.999,
    ) -> None:
        super().__init__(
            "autoencoder",
            autoencoder,
            discriminator,
            perceptual,
            weight_perceptual=weight_perceptual,
            weight_kl=weight_kl,
            weight_gan=weight_gan,
            gan_start=gan_start,
            learning_rate=learning_rate,
            warm_up=warm_up,
            max_norm=max_norm,
        )
        if distance not in DISTANCES:
            known = ", ".join(DISTANCES)
            raise ConfigError("Unknown distance", value=distance, allowed=known, remedy=nearest(distance, DISTANCES))
        self.weights, self.distance, self.weight_kl = weights, distance, weight_kl
        self.register_buffer("latent_std", torch.zeros(()))  # of the posterior means; 0: not known yet
        self._moments: list[torch.Tensor] = []  # of the latents of a step's parts: mean, and mean square
        self._draws = 0  # batches so far, which key the noise
        self.start_ema(autoencoder, ema_decay)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add how many batches drew noise; see ``Translator``."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["draws"] = self._draws

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the noise where it was; see ``Translator``."""
        super().on_load_checkpoint(checkpoint)
        self._draws = int(checkpoint.get("draws", 0))

    def begin(self) -> dict[str, str]:
        """Take the public weights; see ``Translator.begin``."""
        if not self.weights:
            return {}
        public = read_inner_weights(Path(self.weights), ("model", "state_dict"), ("loss.", "logvar"))
        self.autoencoder.take_public(public)
        if self.ema is not None:
            self.ema.module.load_state_dict(self.autoencoder.state_dict())
        return {"autoencoder": f"from '{self.weights}'"}

    def training_step(self, batch: Batch, step: int) -> None:
        """Learn from all slices of (batch, frames, channels, height, width)."""
        losses = [self._learn(part) for part in self.parts({**batch, "noise": self._noise(batch)})]
        self.log_losses(losses, batch["target"].shape[0])

    def _noise(self, batch: Batch) -> torch.Tensor:
        """Return standard normal (batch, frames, latents), keyed by the batch's number and the sample's index."""
        frames, _, height, width = batch["target"].shape[1:]
        factor = self.autoencoder.factor
        shape = (frames, self.autoencoder.latent_channels, -(-height // factor), -(-width // factor))
        drawn: list[torch.Tensor] = []
        for sample in batch["sample_index"].tolist():
            key = int(np.random.SeedSequence([self._draws, sample]).generate_state(1, np.uint64)[0] >> 1)
            drawn.append(torch.randn(shape, generator=torch.Generator().manual_seed(key)))
        self._draws += 1
        return torch.stack(drawn).to(batch["target"].device)

    def _learn(self, part: Batch) -> dict[str, torch.Tensor]:
        """Give a part's slices back, learn from the difference, and return the losses."""
        wanted = part["target"].flatten(0, 1)
        height, width = wanted.shape[-2:]
        padded = pad_to_multiple(wanted, self.autoencoder.factor)
        found, mean, log_variance = self.autoencoder(padded, part["noise"].flatten(0, 1))
        found = found[..., :height, :width]
        nats = divergence(mean, log_variance).mean() / padded.shape[-2:].numel()
        losses, stepped = self.learn_from_images(
            found,
            wanted,
            {f"{self.distance}_loss": DISTANCES[self.distance](found, wanted)},
            beside={"kl_loss": self.weight_kl * nats},
        )
        latents = mean.detach()
        self._moments.append(torch.stack([latents.mean(), latents.square().mean()]))
        if not self._passes:  # the step's last part
            self._note_spread(stepped)
        error = masked_l1(found.detach().unflatten(0, part["target"].shape[:2]), part["target"], part["mask"])
        return losses | {"nats_per_pixel": nats, "masked_l1": error}

    def _note_spread(self, stepped: bool) -> None:
        """Keep a running standard deviation of the posterior means, by which the next stage divides."""
        moments = torch.stack(self._moments).mean(0)
        self._moments.clear()
        if stepped:
            mean, square = mean_of_ranks(moments)
            spread = (square - mean.square()).clamp_min(0).sqrt()
            self.latent_std.copy_(torch.where(self.latent_std > 0, self.latent_std.lerp(spread, 1 - _MEMORY), spread))

    def encode_slices(self, slices: torch.Tensor) -> torch.Tensor:
        """Return the posterior means of (slices, channels, height, width); see ``latents.encode_slices``."""
        return encode_slices(self._averaged(), slices)

    def encoder_hash(self) -> str:
        """Return the hash of the weights that encode; see ``latents.encoder_hash``."""
        return encoder_hash(self._averaged())

    def decode_slices(self, latents: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Return the images of latents, cropped to ``size``; see ``latents.decode_slices``."""
        return decode_slices(self._averaged(), latents, size)

    def _averaged(self) -> KLAutoencoder:
        network = self.averaged(self.autoencoder)
        assert isinstance(network, KLAutoencoder)
        return network

    def translate(
        self,
        source: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        source_modality: str,
        target_modality: str,
        generator: torch.Generator | None = None,
        samples: int = 1,
    ) -> torch.Tensor:
        """Give a volume back from its posterior means; see ``Translator.translate``.

        Raises:
            ConfigError: Source and target are two modalities.
        """
        self.only_one(samples)
        if source_modality != target_modality:
            raise ConfigError(
                "An autoencoder gives a modality back and translates none",
                value=f"{source_modality} to {target_modality}",
                allowed="the same modality as source and target",
                remedy="Train model=latent_translator from this run",
            )
        return self.decode_slices(self.encode_slices(source), (source.shape[-2], source.shape[-1]))
