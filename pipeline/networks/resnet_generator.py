"""The ResNet generator of CycleGAN, with the weights' names and shapes of the public checkpoints.

Sources: Johnson et al., ECCV 2016 (arXiv 1603.08155); Zhu et al., ICCV 2017 (arXiv 1703.10593) and its public code.
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.networks.cpu_layers import channels_last
from pipeline.networks.initialisation import initialise_normal
from pipeline.networks.padding import pad_to_multiple
from pipeline.networks.residual_blocks import make_norm

HALVINGS = 2
STAGES = ("encoder", "blocks", "decoder")


class ResnetBlock(nn.Module):
    """Two reflection-padded convolutions 3x3 with norm, a ReLU between them, plus the identity.

    The layers of ``residual_blocks.ResidualBlock``, under the names of the public checkpoints.
    """

    def __init__(self, channels: int, norm: str, dropout: float) -> None:
        super().__init__()
        bias = norm == "instance"  # the others shift by themselves
        layers: list[nn.Module] = []
        for last in (False, True):
            convolution = nn.Conv2d(channels, channels, 3, bias=bias)
            layers += [nn.ReflectionPad2d(1), convolution, make_norm(norm, channels)]
            if not last:
                layers.append(nn.ReLU(True))
                if dropout:
                    layers.append(nn.Dropout(dropout))
        self.conv_block = nn.Sequential(*layers)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return features of the same shape (batch, channels, height, width)."""
        return features + self.conv_block(features)


class ResnetGenerator(nn.Module):
    """Convolution 7x7, two halvings, residual blocks, two doublings, convolution 7x7, tanh.

    With 9 blocks, width 64 and no dropout it has 11,378,179 parameters from 3 channels to 3, 11,365,633 from 1 to 1.

    Args:
        channels_in: Channels of the input. Where they are 3 and an image has 1, it is repeated.
        channels_out: Channels of the output; of several, a repeated image gets the mean.
        width: Channels at full resolution, doubled by each halving.
        blocks: Residual blocks.
        norm: As in ``residual_blocks.make_norm``; convolutions before a norm with a shift of its own have no bias.
        dropout: Share of activations left out inside the blocks while training; 0: no such layers.
    """

    def __init__(
        self,
        channels_in: int = 1,
        channels_out: int = 1,
        width: int = 64,
        blocks: int = 9,
        norm: str = "instance",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min(channels_in, channels_out, width) < 1 or blocks < 0 or not 0 <= dropout < 1:
            raise ConfigError(
                "The generator cannot be built",
                value=f"channels {channels_in} to {channels_out}, width={width}, blocks={blocks}, dropout={dropout}",
                allowed="channels and width from 1, blocks from 0, dropout in [0, 1)",
            )
        self.channels_in, self.channels_out, self.blocks = channels_in, channels_out, blocks
        bias = norm == "instance"
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(channels_in, width, 7, bias=bias)]
        layers += [make_norm(norm, width), nn.ReLU(True)]
        for level in range(HALVINGS):
            wide = width * 2 ** (level + 1)
            layers += [nn.Conv2d(wide // 2, wide, 3, stride=2, padding=1, bias=bias), make_norm(norm, wide)]
            layers.append(nn.ReLU(True))
        layers += [ResnetBlock(width * 2**HALVINGS, norm, dropout) for _ in range(blocks)]
        for level in reversed(range(HALVINGS)):
            narrow = width * 2**level
            doubling = nn.ConvTranspose2d(2 * narrow, narrow, 3, stride=2, padding=1, output_padding=1, bias=bias)
            layers += [doubling, make_norm(norm, narrow), nn.ReLU(True)]
        head = nn.Conv2d(width, channels_out, 7)
        head.stays_float32 = True  # type: ignore[assignment]
        layers += [nn.ReflectionPad2d(3), head, nn.Tanh()]
        self.model = nn.Sequential(*layers)
        initialise_normal(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map (batch, channels_in or 1, height, width) in [-1, 1] to (batch, channels_out or 1, ...), float32.

        Any height and width: padded inside to a multiple of 4, and at least 8.
        """
        height, width = images.shape[-2:]
        repeated = images.shape[1] == 1 < self.channels_in
        if repeated:
            images = images.expand(-1, self.channels_in, -1, -1)
        features = self.model[:-3](channels_last(pad_to_multiple(images, 2**HALVINGS, 2 * 2**HALVINGS)))
        # Near the ends of the range one bf16 step is 8 HU, so the head leaves autocast.
        with torch.autocast(device_type=images.device.type, enabled=False):
            result: torch.Tensor = self.model[-3:](features.float())[..., :height, :width]
        return result.mean(1, keepdim=True) if repeated else result

    def stages(self) -> list[nn.Sequential]:
        """Return the layers as encoder, residual blocks and decoder, in this order (``STAGES``)."""
        layers, first = list(self.model), 1 + 3 * (HALVINGS + 1)
        last = first + self.blocks
        return [nn.Sequential(*part) for part in (layers[:first], layers[first:last], layers[last:])]
