"""The weight that balances an adversarial term against a reconstruction by their gradients.

Source: Esser et al., CVPR 2021 (arXiv 2012.09841), with the clip and the factor of latent diffusion (arXiv 2112.10752).
"""

from __future__ import annotations

import torch
from torch import nn

_EPSILON = 1e-4
_HIGHEST = 1e4
_SCALE = 1024.0  # keeps small gradients in fp16's range on their way back; a power of two changes nothing else


def mean_of_ranks(values: torch.Tensor) -> torch.Tensor:
    """Return the mean over all ranks, which have to ask together; the values themselves where there is one rank."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values
    total = values.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


class AdaptiveWeight(nn.Module):
    """``share`` times the ratio of two gradients' norms at one weight, clipped to 0 .. 1e4, of the step before.

    Published is the ratio of the same step. That of the step before is known when the step's first part comes, and is
    one number for all its parts and ranks, so that a step in parts is the step of the whole. It starts at 0.
    """

    value: torch.Tensor

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.register_buffer("value", torch.zeros(()))
        self._gradients: list[torch.Tensor] = []  # per part: the two gradients, flat

    def measure(self, reconstruction: torch.Tensor, adversarial: torch.Tensor, weight: torch.Tensor) -> None:
        """Note both losses' gradients at ``weight``, the decoder's last; their graphs stay for the step's own pass."""
        pair = [
            torch.autograd.grad(_SCALE * loss, weight, retain_graph=True)[0].detach().flatten() / _SCALE
            for loss in (reconstruction, adversarial)
        ]
        self._gradients.append(torch.stack(pair).float())

    def settle(self, stepped: bool) -> None:
        """Take up the ratio of the step that ended, over its parts and all ranks; none of a step that was skipped."""
        gradients, self._gradients = self._gradients, []
        if not stepped or not gradients:
            return
        mean = mean_of_ranks(torch.stack(gradients).mean(0))
        reconstruction, adversarial = torch.linalg.vector_norm(mean, dim=1)
        ratio = (reconstruction / (adversarial + _EPSILON)).clamp(0, _HIGHEST)
        # Nothing not finite is kept: the weight is part of the checkpoint.
        self.value.copy_(torch.where(torch.isfinite(ratio), self.share * ratio, self.value))
