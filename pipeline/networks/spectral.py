"""Spectral normalisation. Source: Miyato et al., ICLR 2018 (arXiv 1802.05957)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

FIRST_ITERATIONS = 15  # of the power method, as torch takes for a new weight


def spectral_normalise(*networks: nn.Module) -> None:
    """Divide the weight of every convolution by its largest singular value, kept by one power iteration per pass."""
    for network in networks:
        for module in list(network.modules()):
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                spectral_norm(module)


@torch.no_grad()
def draw_anew(module: Any, spread: float) -> None:
    """Draw the weight under a convolution's spectral norm from N(0, spread), and find its singular vectors."""
    module.weight = torch.empty_like(module.parametrizations.weight.original).normal_(0.0, spread)
    norm = module.parametrizations.weight[0]
    for _ in range(FIRST_ITERATIONS):
        norm(module.parametrizations.weight.original)
