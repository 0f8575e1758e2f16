"""A film made frame by frame by vid2vid's generator: each from the last source slices and the last generated frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from pipeline.networks.vid2vid_generator import Frame, Vid2VidGenerator


def advance(
    network: Vid2VidGenerator,
    source: torch.Tensor,
    past: Sequence[torch.Tensor],
    time: int,
    *,
    fix_coarse: bool = False,
) -> Frame:
    """Generate frame ``time`` of (batch, frames, channels, height, width); before the first, it is repeated.

    Args:
        network: The generator.
        source: In the order of the walk; what comes after ``time`` is not looked at.
        past: The frames before, (batch, channels, height, width) each; missing ones are zeros, and without any
            nothing is composed.
        time: Index in ``source``.
        fix_coarse: Only the finest scale learns.
    """
    count = network.past
    stack = source[:, [max(time - back, 0) for back in range(count, -1, -1)]].flatten(1, 2)
    shape = (source.shape[0], network.channels_out, *source.shape[-2:])
    recent = list(past[-count:])
    zeros = [torch.zeros(shape, device=source.device)] * (count - len(recent))
    frame: Frame = network(stack, torch.cat([*zeros, *recent], 1), compose=bool(recent), fix_coarse=fix_coarse)
    return frame


def alone(network: Vid2VidGenerator, slices: torch.Tensor) -> torch.Tensor:
    """Generate slices (batch, channels, height, width) that know nothing of one another."""
    zeros = torch.zeros((len(slices), network.past * network.channels_out, *slices.shape[-2:]), device=slices.device)
    image: torch.Tensor = network(slices.repeat(1, network.past + 1, 1, 1), zeros, compose=False).image
    return image


def walk(
    network: Vid2VidGenerator, source: torch.Tensor, device: torch.device, known: Sequence[torch.Tensor] = ()
) -> Iterator[Frame]:
    """Yield the frames of (batch, frames, channels, height, width) one by one, keeping only the last few.

    Args:
        network: The generator, on ``device``.
        source: Anywhere; a few slices at a time are brought to the device.
        device: Where the work is done.
        known: Frames of the first slices: the past of the others, not made again.
    """
    past = [*known][-network.past :]
    for time in range(len(known), source.shape[1]):
        low = max(time - network.past, 0)
        frame = advance(network, source[:, low : time + 1].to(device), past, time - low)
        past = [*past, frame.image][-network.past :]
        yield frame


def walk_both_ways(
    network: Vid2VidGenerator, source: torch.Tensor, start: int, device: torch.device
) -> Iterator[tuple[int, Frame]]:
    """Yield each frame of a film and its index: from ``start`` up to the last, then down to the first.

    The way down knows the frames that the way up began with, so that the film does not break at ``start``.
    """
    first: list[torch.Tensor] = []
    for index, frame in enumerate(walk(network, source[:, start:], device), start):
        if len(first) < network.past:
            first.append(frame.image)
        yield index, frame
    down = source[:, : start + len(first)].flip(1)
    for index, frame in enumerate(walk(network, down, device, first[::-1]), 1):
        yield start - index, frame
