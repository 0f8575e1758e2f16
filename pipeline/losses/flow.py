"""Losses of the flow and of the composition mask. Source: vid2vid (arXiv 1808.06601).

Shapes everywhere: images (batch, channels, height, width) in [-1, 1]; flows (batch, 2, height, width) in pixels;
confidence and weight (batch, 1, height, width). A mean is over *all* pixels, not only over confident ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from pipeline.networks.vid2vid_generator import Frame
from pipeline.networks.warp import warp

# vid2vid's 0.02 is a sum over three colour channels.
THRESHOLD_PER_CHANNEL = 0.02 / 3
FLOW_TERMS = ("generated_warp", "flow", "flow_warp", "composition")


class Reference(NamedTuple):
    """Reference flow between two frames, and where it explains the current one; both constants."""

    flow: torch.Tensor  # (batch, 2, height, width), pixels
    confident: torch.Tensor  # (batch, 1, height, width), 0 or 1


@torch.no_grad()
def confidence(current: torch.Tensor, previous: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Return 1 where the flow explains the current image: squared error below 0.02 / 3 per channel, else 0."""
    error = ((current.float() - warp(previous, flow)) ** 2).sum(dim=1, keepdim=True)
    return (error < THRESHOLD_PER_CHANNEL * current.shape[1]).float()


def flow_l1(flow: torch.Tensor, reference: torch.Tensor, confident: torch.Tensor) -> torch.Tensor:
    """F_Flow: mean |c (f - f*)| on the finest scale."""
    return (confident * (flow.float() - reference)).abs().mean()


def warp_l1(
    current: torch.Tensor, previous: torch.Tensor, flow: torch.Tensor, confident: torch.Tensor | None = None
) -> torch.Tensor:
    """F_Warp: mean |c (warp(x_previous, f) - x_current)|, real images and the predicted flow."""
    error = (warp(previous, flow) - current.float()).abs()
    return (error if confident is None else confident * error).mean()


def generated_warp_l1(
    current: torch.Tensor, previous: torch.Tensor, reference: torch.Tensor, confident: torch.Tensor
) -> torch.Tensor:
    """G_Warp: mean |c (y_current - warp(y_previous, f*))| on generated images; the warped one is a fixed target."""
    return (confident * (current.float() - warp(previous, reference).detach())).abs().mean()


def weight_l1(weight: torch.Tensor, confident: torch.Tensor) -> torch.Tensor:
    """W: mean |c w|; where the flow is trustworthy the warped image should be taken (w = 0)."""
    return (confident * weight.float()).abs().mean()


def composition_terms(
    frame: Frame, last: torch.Tensor, current: torch.Tensor, previous: torch.Tensor, reference: Reference | None
) -> dict[str, torch.Tensor]:
    """Return the terms of one composed frame by name; without a reference, those that need none.

    Args:
        frame: The generated frame, with flow and weight.
        last: The generated frame before it.
        current: The real frame.
        previous: The real frame before it.
        reference: Flow from the previous to the current real frame.
    """
    assert frame.flow is not None
    assert frame.weight is not None
    if reference is None:
        # Every pixel teaches the flow, but only where it explains the frame may it replace the raw image.
        return {
            "flow_warp": warp_l1(current, previous, frame.flow),
            "composition": weight_l1(frame.weight, confidence(current, previous, frame.flow)),
        }
    flow, confident = reference
    return {
        "generated_warp": generated_warp_l1(frame.image, last, flow, confident),
        "flow": flow_l1(frame.flow, flow, confident),
        "flow_warp": warp_l1(current, previous, frame.flow, confident),
        "composition": weight_l1(frame.weight, confident),
    }
