"""Feature matching in the layers of a discriminator. Source: Wang et al., CVPR 2018 (arXiv 1711.11585)."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def feature_matching(real: Sequence[Sequence[torch.Tensor]], fake: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
    """Return the L1 distance per layer (all but the logits), times 4 / (layers + 1) and 1 / scales.

    Args:
        real: Per scale the outputs (batch, channels, height, width) for real images; detached here.
        fake: The same for generated images. Its batch may hold several stacks of the real batch (composed and raw
            images after one another); each is compared with the real one.

    With n strided layers a network has n + 2 outputs, and 4 / (n + 1) is 1 for the usual n = 3 (vid2vid's weights).
    """
    total = torch.zeros((), device=fake[0][0].device)
    for real_scale, fake_scale in zip(real, fake, strict=True):
        weight = 4 / (len(fake_scale) - 1) / len(fake)
        for real_layer, fake_layer in zip(real_scale[:-1], fake_scale[:-1], strict=True):
            stacks = fake_layer.float().unflatten(0, (-1, real_layer.shape[0]))
            total = total + weight * (stacks - real_layer.detach().float()).abs().mean()
    return total
