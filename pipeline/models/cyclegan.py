"""CycleGAN: two generators and two discriminators that learn to translate both ways, without pairs.

Source: Zhu et al., ICCV 2017 (arXiv 1703.10593) and its public code. Its generators step before its discriminators,
which judge translations of before that step: so one backward pass for both is the published step.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.errors import ConfigError
from pipeline.losses.adversarial import check_kind, discriminator_loss, generator_loss
from pipeline.losses.gradient_consistency import gradient_consistency
from pipeline.losses.mind import mind_distance
from pipeline.losses.reconstruction import masked_l1
from pipeline.models.adam import Adam
from pipeline.models.image_pool import ImagePool
from pipeline.models.transfer import POLICIES, start_generators
from pipeline.models.translator import Batch, Translator, Update, evaluating, frozen, linear_decay, total_loss
from pipeline.models.unfreezing import check_way, freeze_stages
from pipeline.networks.initialisation import initialise_normal
from pipeline.networks.patchgan import PatchDiscriminator
from pipeline.networks.resnet_generator import ResnetGenerator

SLICES_AT_ONCE = 8  # in translate
Pair = tuple[torch.Tensor, torch.Tensor]


class CycleGAN(Translator):
    """Learn source to target and back; each frame of a clip is an image for itself.

    Args:
        generator: From source to target; one of the same kind is made for the way back.
        discriminator: Of target images; one of the same kind is made for source images.
        source: Name of the source's modality.
        target: Name of the target's modality.
        pool: Translations that each discriminator may see again; 0: none.
        gan: ``lsgan`` (published), ``hinge`` or ``bce``.
        weight_gan: Of the discriminators' verdicts; all weights: 0 turns a term off.
        weight_cycle: Of source to target and back.
        weight_cycle_reverse: Of target to source and back.
        weight_identity: Of images that are given to the generator of their own modality, as a share of the weight of
            that modality's cycle.
        weight_gradient: Of edges that differ from the source's (both ways; not published).
        weight_mind: Of MIND descriptors that differ from the source's (both ways; not published).
        weight_l1: Of the masked distance from the truth (both ways; not published); only with paired batches.
        learning_rate: Of Adam(0.5, 0.999).
        decay_start: Share of the budget after which the learning rate falls linearly to 0.
        fine_tune: Which stages of the generators learn: ``all``, ``decoder`` or ``gradual``.
        unfreeze_share: Share of the budget over which ``gradual`` lets the stages learn one after another.
        ema_decay: Of the averaged generators, both; 0: none.
        init: What the generators begin as in a new training: a published name, a file or a run; empty: at random.
            See ``transfer.start_generators``, also for the other two.
        init_reverse: The way back: ``copy``, ``scratch``, or as ``init``; a file of the reverse name goes before both.
        weights_folder: Of 'cinevox weights', where names are looked up.

    Raises:
        ConfigError: A setting out of range.
    """

    pairings = ("paired", "unpaired")
    both_ways = True

    def __init__(
        self,
        generator: ResnetGenerator,
        discriminator: PatchDiscriminator,
        source: str,
        target: str,
        pool: int = 50,
        gan: str = "lsgan",
        weight_gan: float = 1.0,
        weight_cycle: float = 10.0,
        weight_cycle_reverse: float = 10.0,
        weight_identity: float = 0.5,
        weight_gradient: float = 0.0,
        weight_mind: float = 0.0,
        weight_l1: float = 0.0,
        learning_rate: float = 2e-4,
        decay_start: float = 0.5,
        fine_tune: str = "all",
        unfreeze_share: float = 0.5,
        ema_decay: float = 0.999,
        init: str = "",
        init_reverse: str = "copy",
        weights_folder: str = "weights",
    ) -> None:
        super().__init__()
        check_kind(gan)
        check_way(fine_tune, unfreeze_share)
        self.weights = {
            "gan": weight_gan,
            "cycle": weight_cycle,
            "cycle_reverse": weight_cycle_reverse,
            "identity": weight_identity,
            "gradient": weight_gradient,
            "mind": weight_mind,
            "l1": weight_l1,
        }
        if (
            min(self.weights.values()) < 0
            or not any(self.weights.values())
            or learning_rate <= 0
            or not 0 <= decay_start < 1
        ):
            raise ConfigError(
                "A setting of CycleGAN is out of range",
                value=f"{self.weights}, learning_rate={learning_rate}, decay_start={decay_start}",
                allowed="weights from 0, not all 0, learning_rate > 0, decay_start in [0, 1)",
            )
        self.source, self.target, self.gan = source, target, gan
        self.learning_rate, self.decay_start = learning_rate, decay_start
        self.fine_tune, self.unfreeze_share = fine_tune, unfreeze_share
        # To the target, and back to the source; of target images, and of source images.
        self.generators = nn.ModuleList([generator, copy.deepcopy(generator)])
        self.discriminators = nn.ModuleList([discriminator, copy.deepcopy(discriminator)])
        for network in (self.generators[1], self.discriminators[1]):
            initialise_normal(network)
        self.pools = [ImagePool(pool), ImagePool(pool)]
        self.init, self.init_reverse, self.weights_folder = init, init_reverse, weights_folder
        if not init and init_reverse not in POLICIES:
            raise ConfigError(
                "init_reverse names weights, and init does not",
                value=init_reverse,
                allowed=", ".join(POLICIES),
                remedy="Set model.init too",
            )
        self.start: dict[str, str] = {}  # what the generators began as
        self.start_ema(self.generators, ema_decay)

    def begin(self) -> dict[str, str]:
        """Take the pretrained weights of ``init``; see ``Translator`` and ``start_generators``."""
        if self.init:
            forward, backward = self.generators
            assert isinstance(forward, ResnetGenerator)
            assert isinstance(backward, ResnetGenerator)
            folder = Path(self.weights_folder)
            self.start = start_generators(forward, backward, self.init, self.init_reverse, folder)
            if self.ema is not None:
                self.ema.module.load_state_dict(self.generators.state_dict())
        return self.start

    def check_pairing(self, pairing: str) -> None:
        """Refuse the paired term where nothing is paired; see ``Translator``."""
        super().check_pairing(pairing)
        if self.weights["l1"] and pairing != "paired":
            raise ConfigError(
                "The L1 term needs the truth of each image",
                value=f"stream.pairing={pairing}, weight_l1={self.weights['l1']:g}",
                allowed="stream.pairing=paired",
                remedy="Set model.module.weight_l1=0, or stream.pairing=paired",
            )

    def kept_bytes(self, pixels: int) -> int:
        """Return what the full pools add to a checkpoint; see ``Translator``."""
        return sum(4 * pool.size * pixels for pool in self.pools)

    def training_step(self, batch: Batch, step: int) -> None:
        """Learn from the frames of a batch of clips, paired or not."""
        for network in self.generators:
            assert isinstance(network, ResnetGenerator)
            freeze_stages(network, self.fine_tune, self.budget_share, self.unfreeze_share)
        rate = self.learning_rate * linear_decay(self.budget_share, self.decay_start)
        optimizers = self._all_optimizers()
        losses: list[dict[str, torch.Tensor]] = []
        made: list[Pair] = []
        stepped = False
        for part in self.parts(batch):
            terms, fakes = self._generator_terms(part)
            discriminator = self._discriminator_loss(part, fakes)
            updates = [Update(optimizers[0], total_loss(terms), rate), Update(optimizers[1], discriminator, rate)]
            stepped = self.guarded_step(updates, self.generators)
            made.append(fakes)
            losses.append({name: value.detach() for name, value in terms.items()})
            losses[-1]["discriminator_loss"] = discriminator.detach()
        if stepped:
            for pool, fakes_of_parts in zip(self.pools, zip(*made, strict=True), strict=True):
                pool.take_up(torch.cat(fakes_of_parts), batch["sample_index"])
        self.log_losses(losses, batch["source"].shape[0])

    def _generator_terms(self, part: Batch) -> tuple[dict[str, torch.Tensor], Pair]:
        """Return the generators' weighted terms, and their translations, detached: of source, and of target."""
        source, target = part["source"].flatten(0, 1), part["target"].flatten(0, 1)
        forward, backward = self.generators
        to_target, to_source = self.discriminators
        identity = self.weights["identity"]
        # A generator sees both of its inputs at once.
        fake_target, same_target = _split(forward(torch.cat([source, target]) if identity else source), source)
        fake_source, same_source = _split(backward(torch.cat([target, source]) if identity else target), target)
        terms = {
            "cycle": (backward(fake_target) - source).abs().mean(),
            "cycle_reverse": (forward(fake_source) - target).abs().mean(),
        }
        weights = {name: self.weights[name] for name in terms}
        if identity:
            terms |= {"identity": F.l1_loss(same_target, target), "identity_reverse": F.l1_loss(same_source, source)}
            weights["identity"] = identity * self.weights["cycle_reverse"]
            weights["identity_reverse"] = identity * self.weights["cycle"]
        with frozen(to_target, to_source):
            terms["gan"] = generator_loss(to_target(fake_target), self.gan)
            terms["gan_reverse"] = generator_loss(to_source(fake_source), self.gan)
        for name, distance in (("gradient", gradient_consistency), ("mind", mind_distance)):
            if self.weights[name]:
                terms[name] = distance(fake_target, source)
                terms[f"{name}_reverse"] = distance(fake_source, target)
        if self.weights["l1"]:
            shape = part["source"].shape[:2]
            terms["l1"] = masked_l1(fake_target.unflatten(0, shape), part["target"], part["mask"])
            terms["l1_reverse"] = masked_l1(fake_source.unflatten(0, shape), part["source"], part["mask"])
        for name in terms:
            weights.setdefault(name, self.weights[name.removesuffix("_reverse")])
        losses = {f"{name}_loss": weights[name] * value for name, value in terms.items() if weights[name]}
        return losses, (fake_target.detach(), fake_source.detach())

    def _discriminator_loss(self, part: Batch, fakes: Pair) -> torch.Tensor:
        """Return both discriminators' losses on real images and on translations, some of them from the pools."""
        losses = []
        for network, pool, real, fake in zip(
            self.discriminators, self.pools, (part["target"], part["source"]), fakes, strict=True
        ):
            seen = pool.exchanged(fake, part["sample_index"])
            losses.append(discriminator_loss(network(real.flatten(0, 1)), network(seen), self.gan))
        return torch.stack(losses).sum()

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
        """Translate a volume a few slices at a time, to the target or back; see ``Translator.translate``.

        Raises:
            ConfigError: Neither the run's source to its target nor the way back.
        """
        self.only_one(samples)
        ways = [(self.source, self.target), (self.target, self.source)]
        if (source_modality, target_modality) not in ways:
            raise ConfigError(
                "The run does not translate this way",
                value=f"{source_modality} to {target_modality}",
                allowed=" or ".join(f"{one} to {other}" for one, other in ways),
            )
        both = self.averaged(self.generators)
        assert isinstance(both, nn.ModuleList)
        network = both[ways.index((source_modality, target_modality))]
        with evaluating(network):
            parts = [network(slices.to(self.device)).to(source.device) for slices in source.split(SLICES_AT_ONCE)]
        return torch.cat(parts)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One Adam for both generators, one for both discriminators; learning rates are set before each step."""
        networks = (self.generators, self.discriminators)
        return [Adam(network.parameters(), self.learning_rate, (0.5, 0.999)) for network in networks]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the pools, and what the generators began as; see ``Translator``."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["start"] = self.start
        checkpoint["pools"] = [pool.state() for pool in self.pools]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what was added; see ``Translator``."""
        super().on_load_checkpoint(checkpoint)
        self.start = dict(checkpoint.get("start", {}))
        for pool, state in zip(self.pools, checkpoint.get("pools", []), strict=False):
            pool.restore(state)


def _split(images: torch.Tensor, first: torch.Tensor) -> Pair:
    """Return the results of the first input and those of the second (empty where there was none)."""
    return images[: len(first)], images[len(first) :]
