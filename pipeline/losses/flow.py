"""Losses of the flow and of the composition mask. Source: vid2vid (arXiv 1808.06601).

Shapes everywhere: images (batch, channels, height, width) in [-1, 1]; flows (batch, 2, height, width) in pixels;
confidence and weight (batch, 1, height, width). A mean is over *all* pixels, not only over confident ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from pipeline.imaging.optical_flow import dis_flow
from pipeline.networks.warp import warp

# vid2vid's 0.02 is a sum over three colour channels.
THRESHOLD_PER_CHANNEL = 0.02 / 3


class Reference(NamedTuple):
    """Reference flow of a clip at one stride, from frame t - stride to t; entry 0 belongs to frame ``stride``."""

    flow: torch.Tensor  # (batch, frames - stride, 2, height, width), pixels
    confident: torch.Tensor  # (batch, frames - stride, 1, height, width), 0 or 1


@torch.no_grad()
def reference_flow(clip: torch.Tensor, stride: int) -> Reference:
    """Return the DIS flow between frames of (batch, frames, channels, height, width) that lie ``stride`` apart."""
    now, before = clip[:, stride:].float(), clip[:, :-stride].float()
    current, previous = now.flatten(0, 1), before.flatten(0, 1)
    grey = [images.mean(1).cpu().numpy() for images in (current, previous)]
    flow = torch.from_numpy(dis_flow(grey[0], grey[1])).to(clip.device)
    confident = confidence(current, previous, flow)
    return Reference(flow.unflatten(0, now.shape[:2]), confident.unflatten(0, now.shape[:2]))


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
