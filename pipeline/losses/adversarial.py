"""Adversarial losses on the logits of patch discriminators.

Least squares: Mao et al., ICCV 2017 (arXiv 1611.04076). Hinge: Lim and Ye 2017 (arXiv 1705.02894). Cross entropy, with
the generator descending the discriminator's error turned around: Goodfellow et al., NIPS 2014 (arXiv 1406.2661).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from pipeline.errors import ConfigError, nearest

KINDS = ("lsgan", "hinge", "bce")


def check_kind(kind: str) -> None:
    """Raise ``ConfigError`` for an adversarial loss that does not exist."""
    if kind not in KINDS:
        raise ConfigError("Unknown adversarial loss", value=kind, allowed=", ".join(KINDS), remedy=nearest(kind, KINDS))


def generator_loss(fake: Sequence[Sequence[torch.Tensor]], kind: str = "lsgan") -> torch.Tensor:
    """Return how far the generator is from deceiving, summed over the discriminator's scales.

    Args:
        fake: Per scale the discriminator's outputs, the last being the logits.
        kind: ``lsgan``: mean (logit - 1)^2; ``hinge``: -mean logit; ``bce``: mean -log sigmoid(logit).
    """
    logits = [scale[-1].float() for scale in fake]
    if kind == "lsgan":
        return torch.stack([F.mse_loss(logit, torch.ones_like(logit)) for logit in logits]).sum()
    if kind == "bce":
        return torch.stack([F.softplus(-logit).mean() for logit in logits]).sum()
    return torch.stack([-logit.mean() for logit in logits]).sum()


def discriminator_loss(
    real: Sequence[Sequence[torch.Tensor]], fake: Sequence[Sequence[torch.Tensor]], kind: str = "lsgan"
) -> torch.Tensor:
    """Return 0.5 * (real + fake), summed over the discriminator's scales.

    Args:
        real: Per scale the outputs for real images, the last being the logits.
        fake: The same for detached generated images.
        kind: ``lsgan``: (real - 1)^2 and fake^2; ``hinge``: relu(1 - real) and relu(1 + fake); ``bce``:
            -log sigmoid(real) and -log(1 - sigmoid(fake)).
    """
    terms: list[torch.Tensor] = []
    for real_scale, fake_scale in zip(real, fake, strict=True):
        on_real, on_fake = real_scale[-1].float(), fake_scale[-1].float()
        if kind == "lsgan":
            terms.append(0.5 * (((on_real - 1) ** 2).mean() + (on_fake**2).mean()))
        elif kind == "bce":
            terms.append(0.5 * (F.softplus(-on_real).mean() + F.softplus(on_fake).mean()))
        else:
            terms.append(0.5 * (F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean()))
    return torch.stack(terms).sum()
