"""What stages 1 and 3 of latent mapping share: images held against real ones, and later judged by a discriminator.

Source: Rombach et al., CVPR 2022 (arXiv 2112.10752) for the losses and their balance.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.losses.adaptive_weight import AdaptiveWeight
from pipeline.losses.adversarial import discriminator_loss, generator_loss
from pipeline.models.adam import Adam
from pipeline.models.translator import Translator, Update, frozen, total_loss, warm_cosine
from pipeline.networks.kl_autoencoder import KLAutoencoder
from pipeline.networks.patch_discriminator import MultiScalePatchDiscriminator


class JudgedImages(Translator):
    """A method whose autoencoder, or its decoder alone, learns from the images that it makes.

    Args:
        what: What is trained, as messages call it.
        autoencoder: The network.
        discriminator: Judges images alone (hinge); None: no adversarial term.
        perceptual: A ``PerceptualLoss``; None: no such term.
        weight_perceptual: Of the perceptual distance; all weights: 0 turns a term off.
        weight_gan: Share of the reconstruction's gradient that the adversarial one gets (see ``AdaptiveWeight``).
        gan_start: Share of the budget after which the discriminator learns and judges.
        learning_rate: Of Adam(0.5, 0.9), both networks.
        warm_up: Share of the budget in which the learning rate rises, before it falls along a cosine.
        max_norm: Largest norm of one network's gradients; 0: no limit.
        weights: Of the method's other terms, by name.

    Raises:
        ConfigError: A setting out of range, or a discriminator of other images.
    """

    def __init__(
        self,
        what: str,
        autoencoder: KLAutoencoder,
        discriminator: MultiScalePatchDiscriminator | None,
        perceptual: nn.Module | None,
        *,
        weight_perceptual: float,
        weight_gan: float,
        gan_start: float,
        learning_rate: float,
        warm_up: float,
        max_norm: float,
        **weights: float,
    ) -> None:
        super().__init__()
        numbers = {
            "weight_perceptual": weight_perceptual,
            **weights,
            "weight_gan": weight_gan,
            "max_norm": max_norm,
        }
        if min(numbers.values()) < 0 or learning_rate <= 0 or not 0 <= warm_up < 1 or not 0 <= gan_start <= 1:
            raise ConfigError(
                f"A setting of the {what}'s training is out of range",
                value=", ".join(f"{k}={v}" for k, v in numbers.items())
                + f", learning_rate={learning_rate}, warm_up={warm_up}, gan_start={gan_start}",
                allowed="weights and max_norm >= 0, learning_rate > 0, warm_up in [0, 1), gan_start in [0, 1]",
            )
        channels = 1 if autoencoder.grey else autoencoder.channels
        if discriminator is not None and discriminator.channels != channels:
            raise ConfigError(
                "The discriminator has the wrong number of input channels",
                value=discriminator.channels,
                allowed=channels,
                remedy=f"Set model.module.discriminator.channels={channels}",
            )
        self.autoencoder, self.discriminator, self.perceptual = autoencoder, discriminator, perceptual
        self.weight_perceptual, self.weight_gan, self.gan_start = weight_perceptual, weight_gan, gan_start
        self.learning_rate, self.warm_up, self.max_norm = learning_rate, warm_up, max_norm
        self.adaptive = AdaptiveWeight(weight_gan)

    def learner(self) -> nn.Module:
        """Return what learns beside the discriminator: the autoencoder, or a part of it."""
        return self.autoencoder

    def learn_from_images(
        self,
        found: torch.Tensor,
        wanted: torch.Tensor,
        losses: Mapping[str, torch.Tensor],
        beside: Mapping[str, torch.Tensor] | None = None,
    ) -> tuple[dict[str, torch.Tensor], bool]:
        """Learn from a part of a step; return its losses, the judge's among them, and whether it was not skipped.

        Args:
            found: Images (slices, channels, height, width).
            wanted: What they should be.
            losses: Their distances, which the adversarial term is balanced against together with the perceptual one.
            beside: Losses of something else than images.
        """
        terms = dict(losses)
        if self.perceptual is not None and self.weight_perceptual:
            terms["perceptual_loss"] = self.weight_perceptual * self.perceptual(found, wanted)
        rate = self.learning_rate * warm_cosine(self.budget_share, self.warm_up)
        optimizers = self._all_optimizers()
        judged, verdict = [], {}
        if self.discriminator is not None and self.weight_gan and self.budget_share >= self.gan_start:
            adversarial, discriminator = _judge(self.discriminator, wanted, found)
            self.adaptive.measure(total_loss(terms), adversarial, self.autoencoder.decoder.conv_out.weight)
            terms["gan_loss"] = self.adaptive.value * adversarial
            judged = [Update(optimizers[1], discriminator, rate)]
            verdict = {"discriminator_loss": discriminator, "adaptive_weight": self.adaptive.value.clone()}
        terms |= beside or {}
        update = Update(optimizers[0], total_loss(terms), rate)
        stepped = self.guarded_step([update, *judged], self.learner(), self.max_norm)
        if not self._passes:  # the step's last part
            self.adaptive.settle(stepped)
        return terms | verdict, stepped

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam(0.5, 0.9) for what learns and for the discriminator, where there is one."""
        networks = [self.learner(), self.discriminator]
        return [Adam(n.parameters(), self.learning_rate, (0.5, 0.9)) for n in networks if n is not None]


def _judge(network: nn.Module, real: torch.Tensor, fake: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the hinge losses of who made ``fake``, through frozen weights, and of the discriminator."""
    discriminator = discriminator_loss(network(real), network(fake.detach()), "hinge")
    with frozen(network):
        return generator_loss(network(fake), "hinge"), discriminator
