"""pix2pix: a conditional GAN on pairs, slice by slice or with neighbouring slices as channels.

Source: Isola et al., CVPR 2017 (arXiv 1611.07004) and its public code. There the discriminator steps first, and the
generator meets it already better; here both descend what one forward pass gave, so that one backward pass serves both.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.losses.adversarial import check_kind, discriminator_loss, generator_loss
from pipeline.losses.reconstruction import masked_l1
from pipeline.models.adam import Adam
from pipeline.models.neighbours import check_channels, check_clip_length, complete_frames, in_chunks, stacked
from pipeline.models.translator import Batch, Translator, Update, evaluating, frozen, linear_decay, total_loss
from pipeline.networks.patchgan import PatchDiscriminator

SLICES_AT_ONCE = 8  # in translate


class Pix2Pix(Translator):
    """Predict each slice from itself and its ``neighbours``, held by L1 and by a discriminator that sees the source.

    Args:
        generator: A ``UnetGenerator`` (published) or a ``ResnetGenerator`` of 2 neighbours + 1 input channels.
        discriminator: Of the generator's input and output channels together.
        neighbours: Slices below and above that are given as channels; published: none.
        gan: ``bce`` (published), ``lsgan`` or ``hinge``.
        weight_gan: Of the discriminator's verdict.
        weight_l1: Of the masked distance from the target.
        learning_rate: Of Adam(0.5, 0.999).
        decay_start: Share of the budget after which the learning rate falls linearly to 0.
        ema_decay: Of the averaged generator; 0: none.

    Raises:
        ConfigError: A setting out of range, or networks that do not fit one another.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: PatchDiscriminator,
        neighbours: int = 0,
        gan: str = "bce",
        weight_gan: float = 1.0,
        weight_l1: float = 100.0,
        learning_rate: float = 2e-4,
        decay_start: float = 0.5,
        ema_decay: float = 0.999,
    ) -> None:
        super().__init__()
        check_kind(gan)
        weights = (weight_gan, weight_l1)
        if neighbours < 0 or min(weights) < 0 or not any(weights) or learning_rate <= 0 or not 0 <= decay_start < 1:
            raise ConfigError(
                "A setting of pix2pix is out of range",
                value=f"neighbours={neighbours}, weight_gan={weight_gan}, weight_l1={weight_l1}, "
                f"learning_rate={learning_rate}, decay_start={decay_start}",
                allowed="neighbours and weights >= 0, not both weights 0, learning_rate > 0, decay_start in [0, 1)",
            )
        check_channels(generator, neighbours, "generator")
        seen = getattr(generator, "channels_in", 0) + getattr(generator, "channels_out", 0)
        if seen and discriminator.channels != seen:
            raise ConfigError(
                "The discriminator does not see the generator's input and output together",
                value=f"discriminator.channels={discriminator.channels}",
                allowed=seen,
                remedy=f"Set model.module.discriminator.channels={seen}",
            )
        self.generator, self.discriminator = generator, discriminator
        self.neighbours, self.gan = neighbours, gan
        self.weight_gan, self.weight_l1 = weight_gan, weight_l1
        self.learning_rate, self.decay_start = learning_rate, decay_start
        self.start_ema(generator, ema_decay)

    def check_stream(self, clip_length: int, longest: int | None = None) -> None:
        """Refuse clips without a single slice that has all its neighbours; see ``Translator.check_stream``."""
        check_clip_length(clip_length, self.neighbours, "generator")

    def training_step(self, batch: Batch, step: int) -> None:
        """Learn from the frames of a clip that have all their neighbours."""
        rate = self.learning_rate * linear_decay(self.budget_share, self.decay_start)
        optimizers = self._all_optimizers()
        losses: list[dict[str, torch.Tensor]] = []
        for part in self.parts(batch):
            terms, discriminator = self._terms(part)
            updates = [Update(optimizers[0], total_loss(terms), rate), Update(optimizers[1], discriminator, rate)]
            self.guarded_step(updates, self.generator)
            losses.append({name: value.detach() for name, value in terms.items()})
            losses[-1]["discriminator_loss"] = discriminator.detach()
        self.log_losses(losses, batch["source"].shape[0])

    def _terms(self, part: Batch) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return the generator's weighted terms, and the discriminator's loss."""
        centres = complete_frames(part["source"].shape[1], self.neighbours)
        condition = stacked(part["source"], centres, self.neighbours)
        target, mask = part["target"][:, centres], part["mask"][:, centres]
        prediction = self.generator(condition.flatten(0, 1)).unflatten(0, condition.shape[:2])
        real, fake = (torch.cat([condition, images], 2).flatten(0, 1) for images in (target, prediction))
        losses: dict[str, torch.Tensor] = {}
        if self.weight_l1:
            losses["l1_loss"] = self.weight_l1 * masked_l1(prediction, target, mask)
        if self.weight_gan:
            with frozen(self.discriminator):
                losses["gan_loss"] = self.weight_gan * generator_loss(self.discriminator(fake), self.gan)
        verdicts = self.discriminator(real), self.discriminator(fake.detach())
        return losses, discriminator_loss(*verdicts, self.gan)

    def _predict(self, network: nn.Module, film: torch.Tensor, centres: list[int]) -> torch.Tensor:
        stacks = stacked(film, centres, self.neighbours)
        prediction: torch.Tensor = network(stacks.flatten(0, 1)).unflatten(0, stacks.shape[:2])
        return prediction

    @torch.no_grad()
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
        """Translate a volume a few slices at a time, without dropout; see ``Translator.translate``."""
        self.only_one(samples)
        network = self.averaged(self.generator)
        with evaluating(network):
            return in_chunks(source, self.neighbours, SLICES_AT_ONCE, self.device, partial(self._predict, network))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for the generator and for the discriminator; learning rates are set before each step."""
        networks = (self.generator, self.discriminator)
        return [Adam(network.parameters(), self.learning_rate, (0.5, 0.999)) for network in networks]
