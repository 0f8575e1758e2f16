"""Stage 2 of latent mapping: one transformer from the latents of any modality to those of any other.

Source: Liang et al., Medical Physics 2025 (doi 10.1002/mp.17912). What is theirs and what is ours:
docs/explanation/latent-mapping.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from pipeline.errors import ArtifactError, ConfigError, nearest
from pipeline.models.latents import (
    check_channels,
    encoder_hash,
    fill,
    latents_of,
    pairs_of,
    refuse_another,
    translate_film,
    windows,
)
from pipeline.models.translator import Batch, Translator, Update, total_loss, warm_cosine
from pipeline.networks.kl_autoencoder import KLAutoencoder
from pipeline.networks.latent_transformer import LatentTransformer
from pipeline.networks.weights_file import read_buffer, read_network

DISTANCES = {"l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}


class LatentTranslator(Translator):
    """Predict the target's latents from the source's, window by window, guided by both modalities.

    A batch holds pixels, which are encoded here, or with ``latent`` true latents that were encoded before, divided by
    their standard deviation. ``source_modality`` and ``target_modality`` are a name for all clips, or one for each.

    Args:
        autoencoder: Frozen; in the sizes of the run that ``autoencoder_checkpoint`` names.
        transformer: The network that learns.
        autoencoder_checkpoint: Run folder or checkpoint of stage 1. Only a new training takes its weights; afterwards
            the checkpoint has them, and another autoencoder under this name is refused.
        distance: ``l1`` or ``smooth_l1``, between latents of a spread near 1.
        learning_rate: Of AdamW(0.9, 0.95).
        weight_decay: Of matrices; biases, positions and embeddings have none.
        warm_up: Share of the budget in which the learning rate rises, before it falls along a cosine.
        max_norm: Largest norm of the gradients; 0: no limit.
        ema_decay: Of the averaged transformer; 0: none.

    Raises:
        ConfigError: A setting out of range, or two networks that do not fit together.
    """

    pairings = ("paired", "every_pair")
    latent_std: torch.Tensor

    def __init__(
        self,
        autoencoder: KLAutoencoder,
        transformer: LatentTransformer,
        autoencoder_checkpoint: str = "",
        distance: str = "l1",
        learning_rate: float = 1e-4,
        weight_decay: float = 0.02,
        warm_up: float = 0.05,
        max_norm: float = 1.0,
        ema_decay: float = 0.999,
    ) -> None:
        super().__init__()
        if distance not in DISTANCES:
            known = ", ".join(DISTANCES)
            raise ConfigError("Unknown distance", value=distance, allowed=known, remedy=nearest(distance, DISTANCES))
        if learning_rate <= 0 or weight_decay < 0 or not 0 <= warm_up < 1 or max_norm < 0:
            raise ConfigError(
                "A setting of the latent translator is out of range",
                value=f"learning_rate={learning_rate}, weight_decay={weight_decay}, warm_up={warm_up}, "
                f"max_norm={max_norm}",
                allowed="learning_rate > 0, weight_decay and max_norm >= 0, warm_up in [0, 1)",
            )
        check_channels(autoencoder, transformer)
        self.autoencoder, self.transformer = autoencoder.requires_grad_(False), transformer
        self.autoencoder_checkpoint = autoencoder_checkpoint
        self.distance, self.learning_rate, self.weight_decay = distance, learning_rate, weight_decay
        self.warm_up, self.max_norm = warm_up, max_norm
        self.register_buffer("latent_std", torch.ones(()))
        self._scale_given = False
        self._encoder = ""  # hash of the one that made the training's latents; empty: it learns from pixels
        self.start_ema(transformer, ema_decay)

    def set_latent_scale(self, value: float) -> None:
        """Divide latents by this standard deviation, for instance that of shards of latents.

        Raises:
            ConfigError: Not above 0.
        """
        if not 0 < value < float("inf"):
            raise ConfigError("The latents' standard deviation is impossible", value=value, allowed="above 0")
        self.latent_std.fill_(value)
        self._scale_given = True

    def learn_from_latents(self, std: float, encoder: str) -> None:
        """Take batches of latents that were divided by ``std``; see ``Translator``."""
        self.set_latent_scale(std)
        self._encoder = encoder

    def _check_encoder(self) -> None:
        """Refuse latents that the autoencoder did not make."""
        found = encoder_hash(self.autoencoder)
        if self._encoder not in ("", found):
            raise ArtifactError(
                "These latents were made by another encoder",
                value=f"encoder {self._encoder[:12]}",
                allowed=f"encoder {found[:12]}, of this run's autoencoder",
                remedy="Run 'cinevox encode' with the run that autoencoder_checkpoint names",
            )

    def check_stream(self, clip_length: int, longest: int | None = None) -> None:
        """Refuse clips that are shorter than a window; see ``Translator.check_stream``."""
        if clip_length < self.transformer.frames:
            raise ConfigError(
                f"A clip is too short for windows of {self.transformer.frames} slices",
                value=f"stream.clip_length={clip_length}",
                allowed=f"at least {self.transformer.frames}",
                remedy="Raise stream.clip_length, or lower model.module.transformer.frames",
            )

    def begin(self) -> dict[str, str]:
        """Take the autoencoder of stage 1; see ``Translator.begin``.

        Raises:
            ConfigError: No ``autoencoder_checkpoint``.
            ArtifactError: It is damaged, of other sizes, or did not make the latents that the training reads.
        """
        place = Path(self.autoencoder_checkpoint)
        if not self.autoencoder_checkpoint:
            raise ConfigError(
                "The latent translator needs a trained autoencoder",
                remedy="Train model=latent_autoencoder, and set model.module.autoencoder_checkpoint=RUN",
            )
        fill(self.autoencoder, read_network(place, "ema.module", "autoencoder"), "autoencoder")
        self._check_encoder()
        spread = read_buffer(place, "latent_std")
        if not self._scale_given and spread > 0:
            self.latent_std.copy_(spread)
        return {"autoencoder": f"from '{place}'"}

    def on_fit_start(self) -> None:
        """See that stage 1, where it is still there, is the one that the training began with, and made the latents.

        Raises:
            ArtifactError: It is another one, or did not.
        """
        place = Path(self.autoencoder_checkpoint)
        if self.autoencoder_checkpoint and place.exists():
            refuse_another(self.autoencoder, read_network(place, "ema.module", "autoencoder"), "autoencoder")
        self._check_encoder()

    def training_step(self, batch: Batch, step: int) -> None:
        """Learn from windows of (batch, frames, channels, height, width), pixels or latents."""
        rate = self.learning_rate * warm_cosine(self.budget_share, self.warm_up)
        losses: list[dict[str, torch.Tensor]] = []
        for part in self.parts(batch):
            source, target = (
                latents_of(self.autoencoder, part, name, self.latent_std) for name in ("source", "target")
            )
            length = self.transformer.frames
            starts = windows(source.shape[1], length, length)
            # A clip's windows stand after one another.
            cut_source, cut_target = (
                torch.stack([film[:, start : start + length] for start in starts], 1).flatten(0, 1)
                for film in (source, target)
            )
            places = (self.transformer.indices(names).repeat_interleave(len(starts)) for names in pairs_of(part))
            found = self.transformer(cut_source, *places)
            losses.append({f"latent_{self.distance}_loss": DISTANCES[self.distance](found, cut_target)})
            update = Update(self._all_optimizers()[0], total_loss(losses[-1]), rate)
            self.guarded_step([update], self.transformer, self.max_norm)
            # What the untranslated source would have: below it something was learnt.
            losses[-1]["source_distance"] = DISTANCES[self.distance](source, target)
        self.log_losses(losses, batch["source"].shape[0])

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
        """Encode a volume, map its latents, and decode them; see ``Translator.translate``.

        Raises:
            ConfigError: A modality that is not in the vocabulary.
        """
        self.only_one(samples)
        transformer = self.averaged(self.transformer)
        assert isinstance(transformer, LatentTransformer)
        return translate_film(self.autoencoder, transformer, self.latent_std, source, source_modality, target_modality)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, with weight decay for the matrices alone; its learning rate is set before each step."""
        decayed = [m.weight for m in self.transformer.modules() if isinstance(m, torch.nn.Linear)]
        ids = {id(weight) for weight in decayed}
        others = [weight for weight in self.transformer.parameters() if id(weight) not in ids]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(
            groups, self.learning_rate, betas=(0.9, 0.95), weight_decay=self.weight_decay, fused=True
        )
