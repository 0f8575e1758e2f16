"""vid2vid: a recurrent generator with flow, held by image and temporal discriminators.

Source: Wang et al., Video-to-Video Synthesis, NeurIPS 2018 (arXiv 1808.06601), its coarsest scale and its public
recipe; adapted to grey films without a given first frame, so that no target frame is ever shown to the generator.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from pipeline.errors import ConfigError, nearest
from pipeline.losses import flow as flow_losses
from pipeline.losses.adversarial import check_kind, discriminator_loss, generator_loss
from pipeline.losses.feature_matching import feature_matching
from pipeline.losses.reconstruction import masked_l1
from pipeline.models.translator import Batch, Translator, Update, evaluating, frozen, linear_decay, total_loss
from pipeline.networks.initialisation import initialise_normal
from pipeline.networks.patch_discriminator import MultiScalePatchDiscriminator, frame_groups
from pipeline.networks.vid2vid_generator import Frame, Vid2VidGenerator

FLOWS = ("dis", "none")
FLOW_TERMS = ("generated_warp", "flow", "flow_warp", "composition")
SLICES_AT_ONCE = 8  # of a generator that is not recurrent, in translate


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
        reference_flow: ``dis`` (from the target frames) or ``none``: then the losses against a reference flow and the
            flow channels of the temporal discriminators fall away, and the flow branch learns from warping alone.
        recurrent: False: every frame for itself, its source repeated and zeros as its past (the per-slice twin).
        frames_per_step: Frames of a window.
        backpropagate_frames: Generated frames through which gradients flow back inside a window.
        gan: ``lsgan`` or ``hinge``.
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
        learning_rate: Of Adam(0.5, 0.999), all networks.
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
        temporal_scales: int = 2,
        temporal_frames: int = 3,
        reference_flow: str = "dis",
        recurrent: bool = True,
        frames_per_step: int = 1,
        backpropagate_frames: int = 1,
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
        learning_rate: float = 2e-4,
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
        self.frames_per_step, self.backpropagate_frames, self.gan = frames_per_step, backpropagate_frames, gan
        self.learning_rate, self.decay_start = learning_rate, decay_start
        self.temporal_discriminators = nn.ModuleList()
        if temporal_discriminator is not None:
            self.temporal_discriminators.extend(copy.deepcopy(temporal_discriminator) for _ in range(temporal_scales))
            for network in self.temporal_discriminators:
                initialise_normal(network)
        self._check(temporal_scales, temporal_discriminator)
        self.start_ema(generator, ema_decay)

    def _check(self, temporal_scales: int, temporal: MultiScalePatchDiscriminator | None) -> None:
        """Raise ``ConfigError`` for settings that are out of range or contradict one another."""
        check_kind(self.gan)
        if self.reference_flow not in FLOWS:
            hint = nearest(self.reference_flow, FLOWS)
            raise ConfigError(
                "Unknown reference flow", value=self.reference_flow, allowed=", ".join(FLOWS), remedy=hint
            )
        counts = (temporal_scales, self.frames_per_step, self.backpropagate_frames, self.temporal_frames - 1)
        if min(counts) < 1 or self.learning_rate <= 0 or not 0 <= self.decay_start < 1:
            raise ConfigError(
                "A setting of vid2vid is out of range",
                value=f"temporal_scales={temporal_scales}, frames_per_step={self.frames_per_step}, "
                f"backpropagate_frames={self.backpropagate_frames}, temporal_frames={self.temporal_frames}, "
                f"learning_rate={self.learning_rate}, decay_start={self.decay_start}",
                allowed="counts from 1, temporal_frames from 2, learning_rate > 0, decay_start in [0, 1)",
            )
        negative = {name: weight for name, weight in self.weights.items() if weight < 0}
        if negative:
            raise ConfigError("A loss weight is negative", value=negative, allowed="0 (off) or more")
        if not self.recurrent and (self._flow_terms() or len(self.temporal_discriminators)):
            raise ConfigError(
                "A generator that is not recurrent has no flow and no time",
                value=", ".join(
                    [*self._flow_terms(), *["temporal_discriminator"] * bool(self.temporal_discriminators)]
                ),
                remedy="Set these weights to 0 and temporal_discriminator=null, or recurrent=true",
            )
        if self.recurrent and self.generator.flow_head is None and self._flow_terms():
            raise ConfigError(
                "The generator has no flow branch",
                value=", ".join(self._flow_terms()),
                remedy="Set these weights to 0, or generator.flow=true",
            )
        frames, channels = self.temporal_frames, self.generator.channels_out
        wanted = {"image": self.generator.channels_in + channels}
        found = {"image": self.image_discriminator.channels}
        if temporal is not None:
            wanted["temporal"] = frames * channels + (2 * (frames - 1) if self.reference_flow != "none" else 0)
            found["temporal"] = temporal.channels
        for name in wanted:
            if wanted[name] != found[name]:
                raise ConfigError(
                    f"The {name} discriminator has the wrong number of input channels",
                    value=found[name],
                    allowed=wanted[name],
                    remedy=f"Set model.module.{name}_discriminator.channels={wanted[name]}",
                )

    def _flow_terms(self) -> list[str]:
        """Return the names of the weights that need a previous frame."""
        return [f"weight_{name}" for name in FLOW_TERMS if self.weights[name]]

    def check_stream(self, clip_length: int, longest: int | None = None) -> None:
        """Refuse clips in which the flow or the temporal terms could never be computed; see ``Translator``.

        The finest temporal scale must fit the first clips, the coarser ones the longest.
        """
        if clip_length < 2 and self._flow_terms():
            raise ConfigError(
                "The flow terms need two frames",
                value=f"stream.clip_length={clip_length}",
                remedy="Raise stream.clip_length, take model=vid2vid_slice, or set to 0: "
                + ", ".join(self._flow_terms()),
            )
        for scale in range(len(self.temporal_discriminators)):
            needed = self._stride(scale) * (self.temporal_frames - 1) + 1
            available = clip_length if scale == 0 else max(clip_length, longest or needed)
            if available < needed:
                raise ConfigError(
                    f"Temporal scale {scale} needs {needed} frames",
                    value=f"clips of {available} frames",
                    remedy=f"Raise stream.clip_length to {needed}, or set model.module."
                    + (f"temporal_scales={scale}" if scale else "temporal_discriminator=null"),
                )

    def _stride(self, scale: int) -> int:
        return self.temporal_frames**scale

    def training_step(self, batch: Batch, step: int) -> None:
        """Walk one batch of clips (batch, frames, channels, height, width) in windows and learn from each."""
        source, target, mask = batch["source"], batch["target"], batch["mask"]
        references = self._references(target)
        optimizers = self._all_optimizers()
        decayed = self.learning_rate * linear_decay(self.budget_share, self.decay_start)
        done: list[torch.Tensor] = []  # generated frames of earlier windows, detached: (batch, channels, h, w)
        windows: list[dict[str, torch.Tensor]] = []
        for start in range(0, source.shape[1], self.frames_per_step):
            times = list(range(start, min(start + self.frames_per_step, source.shape[1])))
            frames = self._generate(source, done, times)
            film = [*done, *(frame.image for frame in frames)]
            images = torch.stack([frame.image for frame in frames], 1)
            composed = any(frame.flow is not None for frame in frames)
            raw = torch.stack([frame.raw for frame in frames], 1) if composed else None
            losses, discriminator = self._image_terms(source[:, times], target[:, times], images, raw)
            temporal: dict[int, torch.Tensor] = {}
            for scale in range(len(self.temporal_discriminators)):
                stride = self._stride(scale)
                ends = [time for time in times if time >= stride * (self.temporal_frames - 1)]
                if ends:  # a scale wakes when the clip has enough frames
                    flow = references[stride].flow.unbind(1) if references else None
                    real, fake = (
                        frame_groups(clip, flow, ends, stride, self.temporal_frames)
                        for clip in (target.unbind(1), film)
                    )
                    terms, temporal[scale] = self._temporal_terms(real, fake, scale)
                    losses |= terms
            losses |= self._flow_losses(target, film, frames, references, times)
            if self.weights["l1"]:
                losses["l1_loss"] = self.weights["l1"] * masked_l1(images, target[:, times], mask[:, times])

            updates = [
                Update(optimizers[0], total_loss(losses), decayed),
                Update(optimizers[1], discriminator, decayed),
                *(Update(optimizers[2 + scale], loss, self.learning_rate) for scale, loss in temporal.items()),
            ]
            self.guarded_step(updates, self.generator)
            losses["discriminator_loss"] = discriminator
            losses |= {f"temporal_discriminator_{scale}_loss": loss for scale, loss in temporal.items()}
            losses["masked_l1"] = masked_l1(images.detach(), target[:, times], mask[:, times])
            windows.append({name: value.detach() for name, value in losses.items()})
            # A damaged frame is skipped by the guard; it must not spoil the rest of the clip as its past.
            done.extend(images.detach().nan_to_num(0.0).unbind(1))
        self.log_losses(windows, source.shape[0])

    def _references(self, target: torch.Tensor) -> dict[int, flow_losses.Reference]:
        """Return the reference flow of a clip per stride; empty without a reference or without use for it."""
        strides = {1} if self._flow_terms() else set()
        strides |= {self._stride(scale) for scale in range(len(self.temporal_discriminators))}
        if self.reference_flow == "none":
            return {}
        return {n: flow_losses.reference_flow(target, n) for n in sorted(strides) if n < target.shape[1]}

    def _generate(self, source: torch.Tensor, done: Sequence[torch.Tensor], times: Sequence[int]) -> list[Frame]:
        """Generate the frames of a window, given those of the earlier windows."""
        if not self.recurrent:
            together = self._alone(self.generator, source[:, list(times)].flatten(0, 1))
            return [Frame(image, image, None, None) for image in together.unflatten(0, (-1, len(times))).unbind(1)]
        past, frames = list(done), []
        for index, time in enumerate(times):
            if index % self.backpropagate_frames == 0:
                past = [frame.detach() for frame in past]
            frames.append(self._advance(self.generator, source, past, time))
            past.append(frames[-1].image)
        return frames

    def _advance(self, network: nn.Module, source: torch.Tensor, past: Sequence[torch.Tensor], time: int) -> Frame:
        """Generate frame ``time`` of (batch, frames, channels, height, width); before the first, it is repeated."""
        count = self.generator.past
        stack = source[:, [max(time - back, 0) for back in range(count, -1, -1)]].flatten(1, 2)
        shape = (source.shape[0], self.generator.channels_out, *source.shape[-2:])
        recent = list(past[-count:])
        zeros = [torch.zeros(shape, device=source.device)] * (count - len(recent))
        frame: Frame = network(stack, torch.cat([*zeros, *recent], 1), compose=bool(recent))
        return frame

    def _alone(self, network: nn.Module, slices: torch.Tensor) -> torch.Tensor:
        """Generate slices (batch, channels, height, width) that know nothing of one another."""
        count = self.generator.past
        channels = count * self.generator.channels_out
        zeros = torch.zeros((slices.shape[0], channels, *slices.shape[-2:]), device=slices.device)
        image: torch.Tensor = network(slices.repeat(1, count + 1, 1, 1), zeros, compose=False).image
        return image

    def _image_terms(
        self, source: torch.Tensor, target: torch.Tensor, images: torch.Tensor, raw: torch.Tensor | None
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return the generator's terms on composed and raw frames (added), and the discriminator's loss."""
        source, target, images = (film.flatten(0, 1) for film in (source, target, images))
        # Where nothing was composed, both are one image and are judged once; the mean is doubled either way.
        fakes = images if raw is None else torch.cat([images, raw.flatten(0, 1)])
        stacks = fakes.shape[0] // target.shape[0]
        condition = source.repeat(stacks, 1, 1, 1)
        losses: dict[str, torch.Tensor] = {}
        real_verdict = self.image_discriminator(torch.cat([source, target], 1))
        fake_verdict = self.image_discriminator(torch.cat([condition, fakes.detach()], 1))
        discriminator = 2 * discriminator_loss(real_verdict, fake_verdict, self.gan)
        if self.weights["gan"] or self.weights["feature_matching"]:
            with frozen(self.image_discriminator):
                verdict = self.image_discriminator(torch.cat([condition, fakes], 1))
            losses["gan_loss"] = 2 * self.weights["gan"] * generator_loss(verdict, self.gan)
            matching = feature_matching(real_verdict, verdict)
            losses["feature_matching_loss"] = 2 * self.weights["feature_matching"] * matching
        if self.perceptual is not None and self.weights["perceptual"]:
            losses["perceptual_loss"] = 2 * self.weights["perceptual"] * self.perceptual(fakes, target)
        return losses, discriminator

    def _temporal_terms(
        self, real: torch.Tensor, fake: torch.Tensor, scale: int
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return the generator's terms at one temporal scale, and that discriminator's loss."""
        network = self.temporal_discriminators[scale]
        real_verdict = network(real)
        discriminator = discriminator_loss(real_verdict, network(fake.detach()), self.gan)
        with frozen(network):
            verdict = network(fake)
        matching = feature_matching(real_verdict, verdict)
        losses = {
            f"temporal_gan_{scale}_loss": self.weights["temporal_gan"] * generator_loss(verdict, self.gan),
            f"temporal_feature_matching_{scale}_loss": self.weights["temporal_feature_matching"] * matching,
        }
        return losses, discriminator

    def _flow_losses(
        self,
        target: torch.Tensor,
        film: Sequence[torch.Tensor],
        frames: Sequence[Frame],
        references: dict[int, flow_losses.Reference],
        times: Sequence[int],
    ) -> dict[str, torch.Tensor]:
        """Return the flow, warping and composition terms, averaged over the window's composed frames."""
        terms: dict[str, list[torch.Tensor]] = {}
        for time, frame in zip(times, frames, strict=True):
            if frame.flow is None or frame.weight is None or not self._flow_terms():
                continue
            now, before = target[:, time], target[:, time - 1]
            if references:
                reference, confident = (field[:, time - 1] for field in references[1])
                generated = flow_losses.generated_warp_l1(frame.image, film[time - 1], reference, confident)
                terms.setdefault("generated_warp", []).append(generated)
                terms.setdefault("flow", []).append(flow_losses.flow_l1(frame.flow, reference, confident))
                terms.setdefault("flow_warp", []).append(flow_losses.warp_l1(now, before, frame.flow, confident))
            else:
                # Every pixel teaches the flow, but only where it explains the frame may it replace the raw image.
                confident = flow_losses.confidence(now, before, frame.flow)
                terms.setdefault("flow_warp", []).append(flow_losses.warp_l1(now, before, frame.flow))
            terms.setdefault("composition", []).append(flow_losses.weight_l1(frame.weight, confident))
        kept = {name: values for name, values in terms.items() if self.weights[name]}
        return {f"{name}_loss": self.weights[name] * torch.stack(values).mean() for name, values in kept.items()}

    def _walk(self, network: nn.Module, source: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the frames of (batch, frames, channels, height, width) one by one, keeping only the last few."""
        count = self.generator.past
        past: list[torch.Tensor] = []
        for time in range(source.shape[1]):
            low = max(time - count, 0)
            window = source[:, low : time + 1].to(self.device)
            past = [*past, self._advance(network, window, past, time - low).image][-count:]
            yield past[-1]

    @torch.no_grad()
    def validation_step(self, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        """Return ``prediction`` for every frame of a clip (batch, frames, channels, height, width)."""
        source = batch["source"]
        network = self.averaged(self.generator)
        with evaluating(network):
            if self.recurrent:
                return {"prediction": torch.stack(list(self._walk(network, source)), 1).clamp(-1, 1)}
            return {
                "prediction": self._alone(network, source.flatten(0, 1)).unflatten(0, source.shape[:2]).clamp(-1, 1)
            }

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
        """Translate a volume by walking its film from the first slice; see ``Translator.translate``."""
        self.only_one(samples)
        network = self.averaged(self.generator)
        channels = self.generator.channels_out
        result = torch.empty((source.shape[0], channels, *source.shape[2:]), device=source.device)
        with evaluating(network):
            if self.recurrent:
                for index, frame in enumerate(self._walk(network, source[None])):
                    result[index] = frame[0].clamp(-1, 1).to(result.device)
            else:
                for slices, kept in zip(source.split(SLICES_AT_ONCE), result.split(SLICES_AT_ONCE), strict=True):
                    kept.copy_(self._alone(network, slices.to(self.device)).clamp(-1, 1))
        return result

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam(0.5, 0.999) for the generator, the image discriminator, and each temporal discriminator."""
        networks = [self.generator, self.image_discriminator, *self.temporal_discriminators]
        return [torch.optim.Adam(n.parameters(), lr=self.learning_rate, betas=(0.5, 0.999)) for n in networks]
