"""vid2vid: a recurrent generator with flow, held by image and temporal discriminators.

Source: Wang et al., Video-to-Video Synthesis, NeurIPS 2018 (arXiv 1808.06601) and its public recipe; adapted to grey
films without a given first frame, so that no target frame is ever shown to the generator.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from pipeline.losses.adversarial import discriminator_loss, generator_loss
from pipeline.losses.feature_matching import feature_matching
from pipeline.losses.flow import FLOW_TERMS, composition_terms
from pipeline.losses.reconstruction import masked_l1
from pipeline.losses.registration import RegistrationLoss
from pipeline.models.adam import Adam
from pipeline.models.film_walk import advance, alone, walk_both_ways
from pipeline.models.reference_flow import References, references
from pipeline.models.translator import Batch, Translator, Update, evaluating, frozen, grown, linear_decay, total_loss
from pipeline.models.vid2vid_checks import check_clips, check_settings
from pipeline.networks.flow_unet import FlowUNet
from pipeline.networks.initialisation import initialise_normal
from pipeline.networks.patch_discriminator import MultiScalePatchDiscriminator, frame_groups
from pipeline.networks.vid2vid_generator import Frame, Vid2VidGenerator
from pipeline.networks.weights_file import read_network

SLICES_AT_ONCE = 8  # of a generator that is not recurrent, in translate


@dataclass
class _Walk:
    """Clips on their way through the windows, (batch, frames, channels, height, width)."""

    source: torch.Tensor
    target: torch.Tensor
    mask: torch.Tensor
    known: References
    done: list[torch.Tensor] = field(default_factory=list)  # generated frames of earlier windows, detached


class Vid2Vid(Translator):
    """Walk a clip in windows; each window takes one step of every optimiser.

    Args:
        generator: From the last source frames and the last generated frames to a frame.
        image_discriminator: Judges source and target frame together.
        temporal_discriminator: Judges groups of ``temporal_frames`` frames and the reference flow between them;
            copied for each temporal scale; None: no temporal terms.
        perceptual: A ``PerceptualLoss``; None: no such term.
        temporal_scales: Scale s judges frames with the stride temporal_frames^s.
        temporal_frames: Frames in a group (tD).
        flow_network: Learns the reference flow from the target frames beside the rest; only with ``learned``.
        reference_flow: ``dis`` or ``learned`` (both from the target frames), or ``none``: then the losses against a
            reference flow and the flow channels of the temporal discriminators fall away, and the flow branch learns
            from warping alone.
        recurrent: False: every frame for itself, its source repeated and zeros as its past (the per-slice twin).
        frames_per_step: Frames of a window.
        frames_growth: Equal parts of the budget; the window doubles at each. 1: constant.
        backpropagate_frames: Generated frames through which gradients flow back inside a window.
        backpropagate_growth: The same as ``frames_growth`` for these.
        fix_coarse_share: Share of the budget in which only the generator's finest scale learns.
        coarse_checkpoint: Checkpoint of a run with one scale less, from which a new training takes the coarser scales;
            empty: they start at random. Only read when a training starts.
        gan: ``lsgan``, ``hinge`` or ``bce``.
        weight_gan: Of the image discriminator's verdict; all weights: 0 turns a term off.
        weight_feature_matching: Of the features in the image discriminator.
        weight_perceptual: Of the perceptual distance.
        weight_generated_warp: Of consecutive generated frames along the reference flow.
        weight_flow: Of the distance between predicted and reference flow.
        weight_flow_warp: Of consecutive real frames along the predicted flow.
        weight_composition: Of the composition mask where the flow is confident.
        weight_temporal_gan: Of the temporal discriminators' verdicts.
        weight_temporal_feature_matching: Of the features in the temporal discriminators.
        weight_l1: Of the masked distance from the target; 0 in the published recipe.
        weight_bending: Of the reference flow's bending energy beside its likeness, in training the flow network.
        learning_rate: Of Adam(0.5, 0.999), generator and discriminators.
        learning_rate_flow: Of Adam(0.9, 0.999), the flow network; never falls.
        two_time_scales: Generator at half the learning rate, discriminators at the double, Adam(0, 0.9).
        decay_start: Share of the budget after which the learning rate falls linearly to 0 (generator and image
            discriminator; the temporal discriminators' never falls, as published).
        ema_decay: Of the averaged generator; 0: none.

    Raises:
        ConfigError: A setting out of range, or settings that contradict one another.
    """

    def __init__(
        self,
        generator: Vid2VidGenerator,
        image_discriminator: MultiScalePatchDiscriminator,
        temporal_discriminator: MultiScalePatchDiscriminator | None = None,
        perceptual: nn.Module | None = None,
        flow_network: FlowUNet | None = None,
        temporal_scales: int = 2,
        temporal_frames: int = 3,
        reference_flow: str = "dis",
        recurrent: bool = True,
        frames_per_step: int = 1,
        frames_growth: int = 1,
        backpropagate_frames: int = 1,
        backpropagate_growth: int = 1,
        fix_coarse_share: float = 0.0,
        coarse_checkpoint: str = "",
        gan: str = "lsgan",
        weight_gan: float = 1.0,
        weight_feature_matching: float = 10.0,
        weight_perceptual: float = 10.0,
        weight_generated_warp: float = 10.0,
        weight_flow: float = 10.0,
        weight_flow_warp: float = 10.0,
        weight_composition: float = 1.0,
        weight_temporal_gan: float = 1.0,
        weight_temporal_feature_matching: float = 10.0,
        weight_l1: float = 0.0,
        weight_bending: float = 1.0,
        learning_rate: float = 2e-4,
        learning_rate_flow: float = 1e-3,
        two_time_scales: bool = False,
        decay_start: float = 0.5,
        ema_decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.weights = {
            "gan": weight_gan,
            "feature_matching": weight_feature_matching,
            "perceptual": weight_perceptual if perceptual is not None else 0.0,
            "generated_warp": weight_generated_warp,
            "flow": weight_flow,
            "flow_warp": weight_flow_warp,
            "composition": weight_composition,
            "temporal_gan": weight_temporal_gan,
            "temporal_feature_matching": weight_temporal_feature_matching,
            "l1": weight_l1,
        }
        self.generator, self.image_discriminator, self.perceptual = generator, image_discriminator, perceptual
        self.temporal_frames, self.reference_flow, self.recurrent = temporal_frames, reference_flow, recurrent
        self.frames_per_step, self.frames_growth = frames_per_step, frames_growth
        self.backpropagate_frames, self.backpropagate_growth = backpropagate_frames, backpropagate_growth
        self.fix_coarse_share, self.gan, self.decay_start = fix_coarse_share, gan, decay_start
        self.learning_rate, self.learning_rate_flow = learning_rate, learning_rate_flow
        self.two_time_scales = two_time_scales
        self.coarse_checkpoint = coarse_checkpoint
        self.temporal_discriminators = nn.ModuleList()
        if temporal_discriminator is not None:
            self.temporal_discriminators.extend(copy.deepcopy(temporal_discriminator) for _ in range(temporal_scales))
            for network in self.temporal_discriminators:
                initialise_normal(network)
        self.flow_network = flow_network
        self.registration = RegistrationLoss(weight_bending)
        check_settings(self, temporal_scales, temporal_discriminator)
        self.start_ema(generator, ema_decay)

    def flow_terms(self) -> list[str]:
        """Return the names of the weights in use that need a previous frame."""
        return [f"weight_{name}" for name in FLOW_TERMS if self.weights[name]]

    def stride(self, scale: int) -> int:
        """Return the distance of the frames that a temporal scale judges."""
        return int(self.temporal_frames**scale)

    def check_stream(self, clip_length: int, longest: int | None = None) -> None:
        """Refuse clips in which the flow or the temporal terms could never be computed; see ``Translator``."""
        check_clips(self, clip_length, longest)

    def begin(self) -> dict[str, str]:
        """Take the coarser scales of ``coarse_checkpoint``; see ``Translator.begin``."""
        if not self.coarse_checkpoint:
            return {}
        self.generator.load_coarser(read_network(Path(self.coarse_checkpoint), "generator"))
        if self.ema is not None:
            self.ema.module.load_state_dict(self.generator.state_dict())
        return {"coarser scales": f"from '{self.coarse_checkpoint}'"}

    def training_step(self, batch: Batch, step: int) -> None:
        """Walk one batch of clips (batch, frames, channels, height, width) in windows and learn from each."""
        window = grown(self.frames_per_step, self.frames_growth, self.budget_share)
        losses: list[dict[str, torch.Tensor]] = []
        with ExitStack() as stack:
            walks = [self._walk_of(part, stack) for part in self.parts(batch)]
            for start in range(0, batch["source"].shape[1], window):
                times = list(range(start, min(start + window, batch["source"].shape[1])))
                losses += [self._learn(walk, times) for walk in walks]
        self.log_losses(losses, batch["source"].shape[0])

    def _walk_of(self, part: Batch, stack: ExitStack) -> _Walk:
        """Begin to walk the clips of a part of the batch."""
        learnt = self.flow_network, self.registration
        known = references(self.reference_flow, part["target"], self.reference_strides(), *learnt)
        return _Walk(part["source"], part["target"], part["mask"], stack.enter_context(known))

    def _learn(self, walk: _Walk, times: Sequence[int]) -> dict[str, torch.Tensor]:
        """Generate a window of frames, learn from it, and return its losses."""
        source, target, mask = (film[:, list(times)] for film in (walk.source, walk.target, walk.mask))
        frames = self._generate(walk.source, walk.done, times)
        registration = walk.known.extend(times[-1] + 1)
        film = [*walk.done, *(frame.image for frame in frames)]
        images = torch.stack([frame.image for frame in frames], 1)
        composed = any(frame.flow is not None for frame in frames)
        raw = torch.stack([frame.raw for frame in frames], 1) if composed else None
        losses, discriminator = self._image_terms(source, target, images, raw)
        terms, temporal = self._temporal_terms(walk.target, film, walk.known, times)
        losses |= terms
        losses |= self._flow_losses(walk.target, film, frames, walk.known, times)
        if self.weights["l1"]:
            losses["l1_loss"] = self.weights["l1"] * masked_l1(images, target, mask)

        self.guarded_step(self._updates(losses, discriminator, temporal, registration), self.generator)
        losses["discriminator_loss"] = discriminator
        losses |= {f"temporal_discriminator_{scale}_loss": loss for scale, loss in temporal.items()}
        if registration is not None:
            losses["registration_loss"] = registration
        losses["masked_l1"] = masked_l1(images.detach(), target, mask)
        # A damaged frame is skipped by the guard; it must not spoil the rest of the clip as its past.
        walk.done.extend(images.detach().nan_to_num(0.0).unbind(1))
        return {name: value.detach() for name, value in losses.items()}

    def _updates(
        self,
        losses: dict[str, torch.Tensor],
        discriminator: torch.Tensor,
        temporal: dict[int, torch.Tensor],
        registration: torch.Tensor | None,
    ) -> list[Update]:
        """Return what each optimiser of ``configure_optimizers`` has to descend, and its learning rate now."""
        optimizers = self._all_optimizers()
        ours, theirs = (0.5, 2.0) if self.two_time_scales else (1.0, 1.0)
        decay = linear_decay(self.budget_share, self.decay_start)
        updates = [
            Update(optimizers[0], total_loss(losses), ours * self.learning_rate * decay),
            Update(optimizers[1], discriminator, theirs * self.learning_rate * decay),
            *(Update(optimizers[2 + scale], loss, theirs * self.learning_rate) for scale, loss in temporal.items()),
        ]
        if registration is not None:
            updates.append(Update(optimizers[-1], registration, self.learning_rate_flow))
        return updates

    def reference_strides(self) -> set[int]:
        """Return the strides at which a reference flow is of use."""
        strides = {1} if self.flow_terms() else set()
        return strides | {self.stride(scale) for scale in range(len(self.temporal_discriminators))}

    def _generate(self, source: torch.Tensor, done: Sequence[torch.Tensor], times: Sequence[int]) -> list[Frame]:
        """Generate the frames of a window, given those of the earlier windows."""
        if not self.recurrent:
            together = alone(self.generator, source[:, list(times)].flatten(0, 1))
            return [Frame(image, image, None, None) for image in together.unflatten(0, (-1, len(times))).unbind(1)]
        past, frames = list(done), []
        fixed = self.budget_share < self.fix_coarse_share
        through = grown(self.backpropagate_frames, self.backpropagate_growth, self.budget_share)
        for index, time in enumerate(times):
            if index % through == 0:
                past = [frame.detach() for frame in past]
            frames.append(advance(self.generator, source, past, time, fix_coarse=fixed))
            past.append(frames[-1].image)
        return frames

    def _image_terms(
        self, source: torch.Tensor, target: torch.Tensor, images: torch.Tensor, raw: torch.Tensor | None
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return the generator's terms on composed and raw frames (added), and the discriminator's loss."""
        source, target, images = (film.flatten(0, 1) for film in (source, target, images))
        # Where nothing was composed, both are one image and are judged once; the mean is doubled either way.
        fakes = images if raw is None else torch.cat([images, raw.flatten(0, 1)])
        stacks = fakes.shape[0] // target.shape[0]
        condition = source.repeat(stacks, 1, 1, 1)
        real, fake = torch.cat([source, target], 1), torch.cat([condition, fakes], 1)
        losses, discriminator = self._adversarial_terms(self.image_discriminator, real, fake)
        losses = {name: 2 * value for name, value in losses.items()}
        if self.perceptual is not None and self.weights["perceptual"]:
            losses["perceptual_loss"] = 2 * self.weights["perceptual"] * self.perceptual(fakes, target)
        return losses, 2 * discriminator

    def _temporal_terms(
        self, target: torch.Tensor, film: Sequence[torch.Tensor], known: References, times: Sequence[int]
    ) -> tuple[dict[str, torch.Tensor], dict[int, torch.Tensor]]:
        """Return the generator's terms, and each discriminator's loss by its temporal scale, where one is awake."""
        losses: dict[str, torch.Tensor] = {}
        discriminators: dict[int, torch.Tensor] = {}
        for scale, network in enumerate(self.temporal_discriminators):
            stride = self.stride(scale)
            ends = [time for time in times if time >= stride * (self.temporal_frames - 1)]
            if ends:  # a scale wakes when the clip has enough frames
                real, fake = (
                    frame_groups(clip, known.flow(stride), ends, stride, self.temporal_frames)
                    for clip in (target.unbind(1), film)
                )
                terms, discriminators[scale] = self._adversarial_terms(network, real, fake, "temporal_", f"_{scale}")
                losses |= terms
        return losses, discriminators

    def _adversarial_terms(
        self, network: nn.Module, real: torch.Tensor, fake: torch.Tensor, kind: str = "", scale: str = ""
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return the generator's weighted terms against one discriminator, and that discriminator's loss."""
        weight, weight_matching = self.weights[f"{kind}gan"], self.weights[f"{kind}feature_matching"]
        real_verdict = network(real)
        discriminator = discriminator_loss(real_verdict, network(fake.detach()), self.gan)
        if not (weight or weight_matching):
            return {}, discriminator
        with frozen(network):
            verdict = network(fake)
        losses = {
            f"{kind}gan{scale}_loss": weight * generator_loss(verdict, self.gan),
            f"{kind}feature_matching{scale}_loss": weight_matching * feature_matching(real_verdict, verdict),
        }
        return losses, discriminator

    def _flow_losses(
        self,
        target: torch.Tensor,
        film: Sequence[torch.Tensor],
        frames: Sequence[Frame],
        known: References,
        times: Sequence[int],
    ) -> dict[str, torch.Tensor]:
        """Return the flow, warping and composition terms, averaged over the window's composed frames."""
        terms: dict[str, list[torch.Tensor]] = {}
        for time, frame in zip(times, frames, strict=True):
            if frame.flow is not None and self.flow_terms():
                reference = known.known[1][time - 1] if 1 in known.known else None
                found = composition_terms(frame, film[time - 1], target[:, time], target[:, time - 1], reference)
                for name, value in found.items():
                    terms.setdefault(name, []).append(value)
        kept = {name: values for name, values in terms.items() if self.weights[name]}
        return {f"{name}_loss": self.weights[name] * torch.stack(values).mean() for name, values in kept.items()}

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
        """Translate a volume by walking its film; see ``Translator.translate``.

        The walk begins at the slice with the most of the mask: where the mask grows from slice to slice, as at the
        ends of a cone beam, the past would bring its dark outside along.
        """
        self.only_one(samples)
        network = self.averaged(self.generator)
        assert isinstance(network, Vid2VidGenerator)
        channels = network.channels_out
        result = torch.empty((source.shape[0], channels, *source.shape[2:]), device=source.device)
        with evaluating(network):
            if self.recurrent:
                start = 0 if mask is None else int(mask.flatten(1).sum(1).argmax())
                for index, frame in walk_both_ways(network, source[None], start, self.device):
                    result[index] = frame.image[0].clamp(-1, 1).to(result.device)
            else:
                for slices, kept in zip(source.split(SLICES_AT_ONCE), result.split(SLICES_AT_ONCE), strict=True):
                    kept.copy_(alone(network, slices.to(self.device)).clamp(-1, 1))
        return result

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for the generator, the image discriminator, each temporal discriminator, and the flow network."""
        networks = [self.generator, self.image_discriminator, *self.temporal_discriminators]
        betas = (0.0, 0.9) if self.two_time_scales else (0.5, 0.999)
        optimizers = [Adam(network.parameters(), self.learning_rate, betas) for network in networks]
        if self.flow_network is not None:
            optimizers.append(Adam(self.flow_network.parameters(), self.learning_rate_flow))
        return list(optimizers)
