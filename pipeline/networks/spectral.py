"""Spectral normalisation. Source: Miyato et al., ICLR 2018 (arXiv 1802.05957)."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm


def spectral_normalise(*networks: nn.Module) -> None:
    """Divide the weight of every convolution by its largest singular value, kept by one power iteration per pass."""
    for network in networks:
        for module in list(network.modules()):
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                spectral_norm(module)
