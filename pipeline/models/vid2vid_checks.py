"""Settings of vid2vid that are out of range or contradict one another, found before any data is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, nearest
from pipeline.losses.adversarial import check_kind
from pipeline.models.reference_flow import FLOWS

if TYPE_CHECKING:
    from pipeline.models.vid2vid import Vid2Vid
    from pipeline.networks.patch_discriminator import MultiScalePatchDiscriminator


def check_settings(method: Vid2Vid, temporal_scales: int, temporal: MultiScalePatchDiscriminator | None) -> None:
    """Raise ``ConfigError`` for a method that cannot be trained as it was put together.

    Args:
        method: With all its networks and settings.
        temporal_scales: As given, also where there is no temporal discriminator.
        temporal: The temporal discriminator that was copied for each scale.
    """
    check_kind(method.gan)
    _check_ranges(method, temporal_scales)
    _check_reference_flow(method)
    terms = method.flow_terms()
    if not method.recurrent and (terms or len(method.temporal_discriminators)):
        raise ConfigError(
            "A generator that is not recurrent has no flow and no time",
            value=", ".join([*terms, *["temporal_discriminator"] * bool(method.temporal_discriminators)]),
            remedy="Set these weights to 0 and temporal_discriminator=null, or recurrent=true",
        )
    if method.recurrent and method.generator.flow_head is None and terms:
        raise ConfigError(
            "The generator has no flow branch",
            value=", ".join(terms),
            remedy="Set these weights to 0, or generator.flow=true",
        )
    if (method.fix_coarse_share or method.coarse_checkpoint) and not len(method.generator.enhancers):
        raise ConfigError(
            "The generator has one scale only, and no coarser one",
            value=f"fix_coarse_share={method.fix_coarse_share}, coarse_checkpoint={bool(method.coarse_checkpoint)}",
            remedy='Set fix_coarse_share=0 and coarse_checkpoint="", or generator.finer_scales=1',
        )
    _check_channels(method, temporal)


def _check_ranges(method: Vid2Vid, temporal_scales: int) -> None:
    counts = {
        "temporal_scales": temporal_scales,
        "frames_per_step": method.frames_per_step,
        "frames_growth": method.frames_growth,
        "backpropagate_frames": method.backpropagate_frames,
        "backpropagate_growth": method.backpropagate_growth,
    }
    rates = {"learning_rate": method.learning_rate, "learning_rate_flow": method.learning_rate_flow}
    shares = {"decay_start": method.decay_start, "fix_coarse_share": method.fix_coarse_share}
    wrong = {
        **{name: value for name, value in counts.items() if value < 1},
        **({"temporal_frames": method.temporal_frames} if method.temporal_frames < 2 else {}),
        **{name: value for name, value in rates.items() if value <= 0},
        **{name: value for name, value in shares.items() if not 0 <= value < 1},
    }
    if wrong:
        raise ConfigError(
            "A setting of vid2vid is out of range",
            value=", ".join(f"{name}={value}" for name, value in wrong.items()),
            allowed="counts from 1, temporal_frames from 2, learning rates above 0, shares in [0, 1)",
        )
    weights = {**method.weights, "bending": method.registration.bending}
    negative = {name: weight for name, weight in weights.items() if weight < 0}
    if negative:
        raise ConfigError("A loss weight is negative", value=negative, allowed="0 (off) or more")


def _check_reference_flow(method: Vid2Vid) -> None:
    kind, network = method.reference_flow, method.flow_network
    if kind not in FLOWS:
        raise ConfigError("Unknown reference flow", value=kind, allowed=", ".join(FLOWS), remedy=nearest(kind, FLOWS))
    if kind == "learned" and network is None:
        raise ConfigError(
            "A learned reference flow needs a network",
            value="flow_network=null",
            remedy="Take model=vid2vid_learned_flow, or give model.module.flow_network",
        )
    if kind != "learned" and network is not None:
        raise ConfigError(
            "The flow network would never learn nor be used",
            value=f"reference_flow={kind}",
            remedy="Set reference_flow=learned, or flow_network=null",
        )
    if network is not None and not method.reference_strides():
        raise ConfigError(
            "Nothing asks for a reference flow",
            value="reference_flow=learned, no flow term, no temporal discriminator",
            remedy="Set reference_flow=none and flow_network=null",
        )
    if network is not None and network.channels != method.generator.channels_out:
        raise ConfigError(
            "The flow network has the wrong number of image channels",
            value=network.channels,
            allowed=method.generator.channels_out,
            remedy=f"Set model.module.flow_network.channels={method.generator.channels_out}",
        )


def _check_channels(method: Vid2Vid, temporal: MultiScalePatchDiscriminator | None) -> None:
    frames, channels = method.temporal_frames, method.generator.channels_out
    wanted = {"image": method.generator.channels_in + channels}
    found = {"image": method.image_discriminator.channels}
    if temporal is not None:
        wanted["temporal"] = frames * channels + (2 * (frames - 1) if method.reference_flow != "none" else 0)
        found["temporal"] = temporal.channels
    for name in wanted:
        if wanted[name] != found[name]:
            raise ConfigError(
                f"The {name} discriminator has the wrong number of input channels",
                value=found[name],
                allowed=wanted[name],
                remedy=f"Set model.module.{name}_discriminator.channels={wanted[name]}",
            )


def check_clips(method: Vid2Vid, clip_length: int, longest: int | None) -> None:
    """Raise ``ConfigError`` for clips in which the flow or the temporal terms could never be computed.

    The finest temporal scale must fit the first clips, the coarser ones the longest.
    """
    if clip_length < 2 and method.flow_terms():
        raise ConfigError(
            "The flow terms need two frames",
            value=f"stream.clip_length={clip_length}",
            remedy="Raise stream.clip_length, take model=vid2vid_slice, or set to 0: " + ", ".join(method.flow_terms()),
        )
    for scale in range(len(method.temporal_discriminators)):
        needed = method.stride(scale) * (method.temporal_frames - 1) + 1
        available = clip_length if scale == 0 else max(clip_length, longest or needed)
        if available < needed:
            raise ConfigError(
                f"Temporal scale {scale} needs {needed} frames",
                value=f"clips of {available} frames",
                remedy=f"Raise stream.clip_length to {needed}, or set model.module."
                + (f"temporal_scales={scale}" if scale else "temporal_discriminator=null"),
            )
