"""Adam in one pass over memory, for weights in any memory format."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from pipeline.networks.cpu_layers import is_channels_last


class Adam(torch.optim.Adam):
    """``torch.optim.Adam`` with ``fused=True``, and the moments in the memory format of their weights.

    Torch's fused kernel for CPUs walks through weights, gradients and moments as they lie in memory, and does not look
    at their formats. Moments of a checkpoint from a GPU, where weights lie in planes, would go to other weights of a
    channels-last convolution, unseen. And it copies what does not lie in planes, for nothing: as long as the step.
    """

    def __init__(
        self, weights: Iterable[torch.nn.Parameter], learning_rate: float, betas: tuple[float, float] = (0.9, 0.999)
    ) -> None:
        super().__init__(weights, lr=learning_rate, betas=betas, fused=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take moments up in whatever memory format they come."""
        super().load_state_dict(state_dict)
        for weight, state in self.state.items():
            for name, moment in state.items():
                if moment.shape == weight.shape:
                    state[name] = torch.empty_like(weight).copy_(moment)

    def _init_group(self, group: dict[str, Any], *lists: list[torch.Tensor]) -> bool:
        complex_numbers: bool = super()._init_group(group, *lists)
        weights, gradients = lists[:2]
        for place, weight in enumerate(weights):
            if weight.dim() == 4 and is_channels_last(weight):
                for tensors in lists[:4]:  # the first and second moments too
                    tensors[place] = tensors[place].permute(0, 2, 3, 1)
            gradients[place] = gradients[place].contiguous()
        return complex_numbers
