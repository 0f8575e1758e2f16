"""Stage 3 of latent mapping: the decoder learns to make images of predicted latents.

Source: Liang et al., Medical Physics 2025 (doi 10.1002/mp.17912) for the stage; losses as in stage 1.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.losses.reconstruction import masked_l1
from pipeline.models.judged_images import JudgedImages
from pipeline.models.latents import (
    check_channels,
    fill,
    latents_of,
    map_latents,
    pairs_of,
    refuse_another,
    translate_film,
)
from pipeline.models.translator import Batch
from pipeline.networks.kl_autoencoder import KLAutoencoder
from pipeline.networks.latent_transformer import LatentTransformer
from pipeline.networks.patch_discriminator import MultiScalePatchDiscriminator
from pipeline.networks.weights_file import read_buffer, read_network


class LatentDecoder(JudgedImages):
    """Decode what the transformer predicts, and learn from the target's pixels; encoder and transformer are frozen.

    A prediction errs where an encoded slice does not, and the decoder of stage 1 never saw such latents. They are
    predicted as in ``translate``, windows blended. A batch holds pixels.

    Args:
        autoencoder: In the sizes of stage 1; only its decoder learns.
        transformer: In the sizes of stage 2.
        discriminator: Judges images alone (hinge); None: no adversarial term.
        perceptual: A ``PerceptualLoss``; None: no such term.
        translator_checkpoint: Run folder or checkpoint of stage 2. Only a new training takes its weights; afterwards
            the checkpoint has them, and another run under this name is refused.
        weight_perceptual: Of the perceptual distance, beside the masked L1; all weights: 0 turns a term off.
        weight_gan: Share of the reconstruction's gradient that the adversarial one gets (see ``AdaptiveWeight``).
        gan_start: Share of the budget after which the discriminator learns and judges.
        learning_rate: Of Adam(0.5, 0.9), both networks.
        warm_up: Share of the budget in which the learning rate rises, before it falls along a cosine.
        max_norm: Largest norm of one network's gradients; 0: no limit.
        ema_decay: Of the averaged decoder; 0: none.

    Raises:
        ConfigError: A setting out of range, or networks that do not fit together.
    """

    pairings = ("paired", "every_pair")
    latent_std: torch.Tensor

    def __init__(
        self,
        autoencoder: KLAutoencoder,
        transformer: LatentTransformer,
        discriminator: MultiScalePatchDiscriminator | None = None,
        perceptual: nn.Module | None = None,
        translator_checkpoint: str = "",
        weight_perceptual: float = 0.3,
        weight_gan: float = 0.5,
        gan_start: float = 0.5,
        learning_rate: float = 5e-5,
        warm_up: float = 0.02,
        max_norm: float = 1.0,
        ema_decay: float = 0.999,
    ) -> None:
        super().__init__(
            "decoder",
            autoencoder,
            discriminator,
            perceptual,
            weight_perceptual=weight_perceptual,
            weight_gan=weight_gan,
            gan_start=gan_start,
            learning_rate=learning_rate,
            warm_up=warm_up,
            max_norm=max_norm,
        )
        check_channels(autoencoder, transformer)
        self.transformer = transformer.requires_grad_(False)
        autoencoder.requires_grad_(False)
        autoencoder.decoder.requires_grad_(True)
        self.translator_checkpoint = translator_checkpoint
        self.register_buffer("latent_std", torch.ones(()))
        self.start_ema(autoencoder.decoder, ema_decay)

    def learner(self) -> nn.Module:
        """Return the decoder alone."""
        return self.autoencoder.decoder

    def begin(self) -> dict[str, str]:
        """Take the networks of stage 2; see ``Translator.begin``.

        Raises:
            ConfigError: No ``translator_checkpoint``.
            ArtifactError: It is damaged, or of other sizes.
        """
        place = Path(self.translator_checkpoint)
        if not self.translator_checkpoint:
            raise ConfigError(
                "The latent decoder needs a trained translator",
                remedy="Train model=latent_translator, and set model.module.translator_checkpoint=RUN",
            )
        fill(self.autoencoder, read_network(place, "autoencoder"), "autoencoder")
        fill(self.transformer, read_network(place, "ema.module", "transformer"), "transformer")
        self.latent_std.copy_(read_buffer(place, "latent_std"))
        if self.ema is not None:
            self.ema.module.load_state_dict(self.autoencoder.decoder.state_dict())
        return {"autoencoder and transformer": f"from '{place}'"}

    def on_fit_start(self) -> None:
        """See that stage 2, where it is still there, is the one that the training began with.

        Raises:
            ArtifactError: It is another one.
        """
        place = Path(self.translator_checkpoint)
        if self.translator_checkpoint and place.exists():
            refuse_another(self.transformer, read_network(place, "ema.module", "transformer"), "translator")

    def training_step(self, batch: Batch, step: int) -> None:
        """Learn from all slices of (batch, frames, channels, height, width)."""
        if batch.get("latent", False):
            raise ConfigError(
                "The latent decoder learns from pixels, and these are latents",
                remedy="Give the shards that 'cinevox preprocess' wrote, not those of 'cinevox encode'",
            )
        losses = [self._learn(part) for part in self.parts(batch)]
        self.log_losses(losses, batch["target"].shape[0])

    def _predicted(self, part: Batch) -> torch.Tensor:
        """Return the target's latents of all clips as the transformer predicts them, (slices, channels, ...)."""
        films = latents_of(self.autoencoder, part, "source", self.latent_std)
        pairs = zip(films, *pairs_of(part), strict=True)
        return torch.cat([map_latents(self.transformer, *pair) for pair in pairs]) * self.latent_std

    def _learn(self, part: Batch) -> dict[str, torch.Tensor]:
        """Decode a part's predicted latents, learn from the difference, and return the losses."""
        target = part["target"]
        wanted = target.flatten(0, 1)
        found = self.autoencoder.decode(self._predicted(part))[..., : wanted.shape[-2], : wanted.shape[-1]]
        losses = {"l1_loss": masked_l1(found.unflatten(0, target.shape[:2]), target, part["mask"])}
        return self.learn_from_images(found, wanted, losses)[0]

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
        """Encode a volume, map its latents, and decode them with the tuned decoder; see ``Translator.translate``.

        Raises:
            ConfigError: A modality that is not in the vocabulary.
        """
        self.only_one(samples)
        decoder = self.averaged(self.autoencoder.decoder)
        pair = (source_modality, target_modality)
        return translate_film(self.autoencoder, self.transformer, self.latent_std, source, *pair, decoder)
