"""LPIPS's VGG16 with its linear heads, from a weights file that the user gives: no package ships the backbone.

Source: Zhang et al. 2018 (arXiv 1801.03924), version 0.1.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.errors import ArtifactError
from pipeline.networks.weights_file import read_weights

# Per stage: (number in VGG16's `features`, output channels) of its convolutions; a pooling lies between stages.
_STAGES = (
    ((0, 64), (2, 64)),
    ((5, 128), (7, 128)),
    ((10, 256), (12, 256), (14, 256)),
    ((17, 512), (19, 512), (21, 512)),
    ((24, 512), (26, 512), (28, 512)),
)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-10


class LpipsVgg16(nn.Module):
    """A frozen LPIPS network; the weights are buffers.

    Args:
        weights: The state dict of ``lpips.LPIPS(net='vgg')``: names ``net.slice1.0.weight``, ``lin0.model.1.weight``.

    Raises:
        ArtifactError: The file is missing, damaged, or of another network.
    """

    def __init__(self, weights: str) -> None:
        super().__init__()
        state = read_weights(Path(weights))
        before = 3
        for stage, layers in enumerate(_STAGES):
            for number, channels in layers:
                self._take(state, f"net.slice{stage + 1}.{number}.weight", (channels, before, 3, 3), f"weight{number}")
                self._take(state, f"net.slice{stage + 1}.{number}.bias", (channels,), f"bias{number}")
                before = channels
            self._take(state, f"lin{stage}.model.1.weight", (1, before, 1, 1), f"head{stage}")

    def _take(self, state: dict[str, torch.Tensor], key: str, shape: tuple[int, ...], name: str) -> None:
        if key not in state or tuple(state[key].shape) != shape:
            raise ArtifactError(
                "The weights are not those of LPIPS with VGG16",
                value=f"{key}: {tuple(state[key].shape) if key in state else 'missing'}",
                allowed="the state dict of lpips.LPIPS(net='vgg')",
            )
        self.register_buffer(name, state[key].float(), persistent=False)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return the distance (batch) of images (batch, 3, height, width) in [-1, 1]."""
        shift, scale = (a.new_tensor(values).view(1, 3, 1, 1) for values in (_SHIFT, _SCALE))
        hidden = [(images - shift) / scale for images in (a, b)]
        total = torch.zeros(len(a), device=a.device)
        for stage, layers in enumerate(_STAGES):
            if stage:
                hidden = [F.max_pool2d(x, 2) for x in hidden]
            for number, _ in layers:
                weight, bias = getattr(self, f"weight{number}"), getattr(self, f"bias{number}")
                hidden = [F.relu(F.conv2d(x, weight, bias, padding=1)) for x in hidden]
            left, right = (x / (x.square().sum(dim=1, keepdim=True).sqrt() + _EPSILON) for x in hidden)
            total = total + F.conv2d((left - right).square(), getattr(self, f"head{stage}")).mean(dim=(1, 2, 3))
        return total
