"""The baseline: MONAI's U-Net with residual units, in two dimensions."""

from __future__ import annotations

import torch
from monai.networks.nets import UNet
from torch import nn

from pipeline.errors import ConfigError, nearest
from pipeline.networks.cpu_layers import PReLU, channels_last, with_cpu_layers
from pipeline.networks.padding import pad_to_multiple

NORMS = ("instance", "none")


class ResidualUNet(nn.Module):
    """A 2D residual U-Net with a convolution head in float32 that starts at zero.

    A head of random weights would begin hundreds of HU away from a source that is added to it.

    ``body`` has the names, shapes and results of MONAI's ``UNet``; only its norms and activations are ours.

    Args:
        channels_in: Input channels, e.g. 2k + 1 neighbouring slices.
        channels_out: Output channels.
        widths: Channels of each level; each further level halves the resolution.
        residual_units: Convolutions with a skip connection in each level.
        first_stride: 2 halves the resolution at once, as MONAI's examples do; 1 keeps the finest level's detail.
        norm: ``instance``, whose statistics change with the body's share of the frame, or ``none``.
    """

    def __init__(
        self,
        channels_in: int = 1,
        channels_out: int = 1,
        widths: list[int] | None = None,
        residual_units: int = 2,
        first_stride: int = 2,
        norm: str = "instance",
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ConfigError("Unknown norm", value=norm, allowed=", ".join(NORMS), remedy=nearest(norm, NORMS))
        widths = [32, 64, 128, 256, 512] if widths is None else list(widths)
        if len(widths) < 2 or min(widths) < 1:
            raise ConfigError("The U-Net needs two levels", value=widths, allowed="two or more positive widths")
        self.channels_in, self.channels_out = channels_in, channels_out
        self.multiple = first_stride * 2 ** (len(widths) - 2)
        body = UNet(
            spatial_dims=2,
            in_channels=channels_in,
            out_channels=widths[0],
            channels=widths,
            strides=[first_stride, *[2] * (len(widths) - 2)],
            num_res_units=residual_units,
            norm="" if norm == "none" else norm,
        )
        self.body = with_cpu_layers(body)
        last = nn.Conv2d(widths[0], channels_out, 3, padding=1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.head = nn.Sequential(PReLU(), last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map (batch, channels_in, height, width) to (batch, channels_out, height, width), float32, any size."""
        height, width = images.shape[-2:]
        # Instance norm refuses a single pixel, so the deepest level keeps at least two by two.
        features = self.body(channels_last(pad_to_multiple(images, self.multiple, 2 * self.multiple)))
        with torch.autocast(device_type=images.device.type, enabled=False):
            return self.head(features.float())[..., :height, :width]
