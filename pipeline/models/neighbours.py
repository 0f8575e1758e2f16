"""Neighbouring slices as channels: what methods share that predict a slice from itself and those around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from pipeline.errors import ConfigError


def stacked(film: torch.Tensor, centres: Sequence[int], neighbours: int) -> torch.Tensor:
    """Return each named frame with its neighbours, from the lowest up, as channels; edges are repeated.

    Args:
        film: (batch, frames, channels, height, width).
        centres: Frames.
        neighbours: Frames below and above.

    Returns:
        (batch, centres, (2 neighbours + 1) * channels, height, width).
    """
    last = film.shape[1] - 1
    offsets = range(-neighbours, neighbours + 1)
    return torch.cat([film[:, [min(max(i + k, 0), last) for i in centres]] for k in offsets], dim=2)


def complete_frames(frames: int, neighbours: int) -> list[int]:
    """Return the frames of a clip that have all their neighbours."""
    return list(range(neighbours, frames - neighbours))


def check_channels(network: nn.Module, neighbours: int, where: str) -> None:
    """Raise ``ConfigError`` where a network's input channels do not fit the neighbours.

    Args:
        network: With ``channels_in``; a network without is not checked.
        neighbours: Below and above.
        where: The network's key in the method's settings.
    """
    channels = getattr(network, "channels_in", None)
    if channels is not None and channels % (2 * neighbours + 1):
        raise ConfigError(
            "The network's input channels do not fit the neighbours",
            value=f"channels_in={channels}, neighbours={neighbours}",
            allowed=f"a multiple of {2 * neighbours + 1}",
            remedy=f"Set model.module.{where}.channels_in={2 * neighbours + 1}",
        )


def check_clip_length(clip_length: int, neighbours: int, where: str) -> None:
    """Raise ``ConfigError`` for clips without a single slice that has all its neighbours; ``where`` as above."""
    if clip_length < 2 * neighbours + 1:
        raise ConfigError(
            f"A clip is too short for {neighbours} neighbours on either side",
            value=f"stream.clip_length={clip_length}",
            allowed=f"at least {2 * neighbours + 1}",
            remedy=f"Raise stream.clip_length, or set model.module.neighbours=0 and {where}.channels_in=1",
        )


def in_chunks(
    source: torch.Tensor,
    neighbours: int,
    size: int,
    device: torch.device,
    predict: Callable[[torch.Tensor, list[int]], torch.Tensor],
) -> torch.Tensor:
    """Translate a volume a few slices at a time, each with its neighbours.

    Args:
        source: (slices, channels, height, width).
        neighbours: Slices below and above.
        size: Slices of a chunk.
        device: Where ``predict`` works.
        predict: From a film (1, frames, channels, height, width) and frames of it to (1, frames, channels, ...).

    Returns:
        (slices, channels, height, width) in [-1, 1], float32, on the source's device.
    """
    result = torch.empty_like(source, dtype=torch.float32)
    slices = source.shape[0]
    for stop in range(size, slices + size, size):
        # The last chunk reaches back: one shape for all, which kernels were prepared for.
        stop = min(stop, slices)
        start = max(stop - size, 0)
        low, high = max(start - neighbours, 0), min(stop + neighbours, slices)
        prediction = predict(source[None, low:high].to(device), list(range(start - low, stop - low)))
        result[start:stop] = prediction[0].clamp(-1, 1).to(result.device)
    return result
