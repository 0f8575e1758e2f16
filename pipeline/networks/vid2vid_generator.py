"""The recurrent vid2vid generator: image branch, flow branch, and their composition.

Source: Wang et al., Video-to-Video Synthesis, NeurIPS 2018 (arXiv 1808.06601). Written from the published facts, with
images of any number of channels. The past that a coarser scale sees are the final frames, halved: published are that
scale's own outputs, which no loss holds once the finer scale is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.networks.initialisation import initialise_normal
from pipeline.networks.local_enhancer import LocalEnhancer
from pipeline.networks.padding import pad_to_multiple
from pipeline.networks.pyramid import halve
from pipeline.networks.residual_blocks import ResidualBlock, Shortcut, down, stem, up
from pipeline.networks.spectral import spectral_normalise
from pipeline.networks.warp import warp


class Frame(NamedTuple):
    """One generated frame, all float32; ``flow`` and ``weight`` are None where nothing was composed."""

    image: torch.Tensor  # (batch, channels, height, width), what the method puts out
    raw: torch.Tensor  # the image branch alone, the same shape
    flow: torch.Tensor | None  # (batch, 2, height, width), pixels: where the last frame is sampled
    weight: torch.Tensor | None  # (batch, 1, height, width) in [0, 1]: 1 takes the raw image, 0 the warped one


class Vid2VidGenerator(nn.Module):
    """Generate a frame from the last source frames and the last *generated* frames.

    Args:
        channels_in: Channels of a source frame.
        channels_out: Channels of a target frame.
        past: Number of past frames looked at (tG - 1).
        width: Channels at the coarsest scale's full resolution (ngf); each finer scale has half of the one before.
        downsamplings: Halvings of the resolution in the coarsest scale.
        blocks: Residual blocks; the larger half stands in the encoders, the rest in each branch.
        norm: ``instance``, ``instance_affine`` or ``batch``.
        flow: Whether there is a flow branch; without one the raw image is the output.
        flow_scale: Pixels of flow per unit of the flow head, at the coarsest scale; each finer one has the double.
        residual: Add the current source frame to the image head's output, which starts at zero (not published).
            Instance norm forgets absolute values, which a source that is calibrated like the target still has.
        finer_scales: Local enhancers on top: the network above then sees images of half the size for each.
        local_blocks: Residual blocks in each branch of an enhancer.
        skip: Join the source encoder's features to the image branch's at every resolution of the coarsest scale, with a
            residual block each, as a U-Net does (not published). Without it the finest detail passes the bottleneck.
        shortcuts: Add a linear path without norm around the stem, every halving and every doubling between source and
            image, as residual U-Nets have (not published): HU pass, which a ``residual`` generator needs in order to
            see by how much the source is too bright or too dark.
        spectral: Bound every convolution but the heads' by its largest singular value (not published).

    Raises:
        ConfigError: A size that leaves no network.
    """

    def __init__(
        self,
        channels_in: int = 1,
        channels_out: int = 1,
        past: int = 2,
        width: int = 64,
        downsamplings: int = 3,
        blocks: int = 9,
        norm: str = "instance",
        flow: bool = True,
        flow_scale: float = 20.0,
        residual: bool = False,
        finer_scales: int = 0,
        local_blocks: int = 3,
        skip: bool = False,
        shortcuts: bool = False,
        spectral: bool = False,
    ) -> None:
        super().__init__()
        if min(channels_in, channels_out, past, width, downsamplings, local_blocks) < 1 or blocks < 2:
            raise ConfigError(
                "The vid2vid generator is too small to exist",
                value=f"past={past}, width={width}, downsamplings={downsamplings}, blocks={blocks}, "
                f"local_blocks={local_blocks}",
                allowed="past, width, downsamplings and local_blocks from 1, blocks from 2",
            )
        if finer_scales < 0 or width % 2**finer_scales:
            raise ConfigError(
                "The generator's width cannot be halved for each finer scale",
                value=f"width={width}, finer_scales={finer_scales}",
                allowed="finer_scales from 0, width a multiple of 2^finer_scales",
            )
        if residual and channels_in != channels_out:
            raise ConfigError(
                "A residual generator adds the source to its output",
                value=f"channels_in={channels_in}, channels_out={channels_out}",
                allowed="equal numbers of channels",
            )
        self.residual = residual
        self.channels_in, self.channels_out, self.past = channels_in, channels_out, past
        self.flow_scale = flow_scale * 2**finer_scales
        self.multiple = 2 ** (downsamplings + finer_scales)
        deep = width * 2**downsamplings
        branch_blocks = blocks // 2

        def encoder(channels: int, around: Callable[[nn.Sequential], nn.Module]) -> nn.Sequential:
            halvings = [around(down(width * 2**i, norm)) for i in range(downsamplings)]
            residual = [ResidualBlock(deep, norm) for _ in range(blocks - branch_blocks)]
            return nn.Sequential(around(stem(channels, width, norm)), *halvings, *residual)

        def branch(around: Callable[[nn.Sequential], nn.Module]) -> nn.Sequential:
            residual = [ResidualBlock(deep, norm) for _ in range(branch_blocks)]
            doublings = [around(up(deep // 2**i, norm)) for i in range(downsamplings)]
            return nn.Sequential(*residual, *doublings)

        def head(channels: int) -> nn.Conv2d:
            return nn.Conv2d(width // 2**finer_scales, channels, 7, padding=3, padding_mode="reflect")

        stacked, generated = (past + 1) * channels_in, past * channels_out
        around: Callable[[nn.Sequential], nn.Module] = Shortcut if shortcuts else _as_it_is
        self.source_encoder = encoder(stacked, around)
        self.past_encoder = encoder(generated, _as_it_is)
        self.image_branch, self.image_head = branch(around), head(channels_out)
        self.joints = nn.ModuleList(
            ResidualBlock(width * 2**level, norm) for level in reversed(range(downsamplings)) if skip
        )
        self.flow_branch = branch(_as_it_is) if flow else None
        self.flow_head = head(2) if flow else None
        self.weight_head = head(1) if flow else None
        self.enhancers = nn.ModuleList(
            LocalEnhancer(stacked, generated, width // 2**scale, local_blocks, norm, flow)
            for scale in range(1, finer_scales + 1)
        )
        initialise_normal(self)
        if spectral:
            heads = {self.image_head, self.flow_head, self.weight_head}
            spectral_normalise(*(part for part in self.children() if part not in heads))
        if residual:  # the first output is the source, not the source under noise of hundreds of HU
            nn.init.zeros_(self.image_head.weight)

    def forward(
        self, source: torch.Tensor, past: torch.Tensor, compose: bool = True, fix_coarse: bool = False
    ) -> Frame:
        """Generate one frame.

        Args:
            source: (batch, (past + 1) * channels_in, height, width) in [-1, 1]; the current frame last.
            past: (batch, past * channels_out, height, width): generated frames, the most recent last; zeros where
                there is none.
            compose: False for a film's first frame: there is nothing to warp and the raw image is the output.
            fix_coarse: Whether only the finest scale learns.

        Returns:
            The frame at the source's size; any height and width (padded inside).
        """
        height, width = source.shape[-2:]
        # Reflection needs two pixels at the deepest level and four at full resolution.
        size = {"multiple": self.multiple, "minimum": max(2 * self.multiple, 4)}
        pyramid = [(pad_to_multiple(source, **size), pad_to_multiple(past, **size))]
        for _ in self.enhancers:
            pyramid.append((halve(pyramid[-1][0]), halve(pyramid[-1][1])))
        learning = torch.is_grad_enabled()
        with torch.set_grad_enabled(learning and not (fix_coarse and len(self.enhancers))):
            image_features, flow_features = self._coarsest(*pyramid.pop(), compose)
        for scale, enhancer in enumerate(self.enhancers, start=1):
            with torch.set_grad_enabled(learning and not (fix_coarse and scale < len(self.enhancers))):
                image_features, flow_features = enhancer(*pyramid.pop(), image_features, flow_features)
        # Near the ends of the range one bf16 step is 8 HU, so heads and composition leave autocast.
        with torch.autocast(device_type=source.device.type, enabled=False):
            raw = torch.tanh(self.image_head(image_features.float()))[..., :height, :width]
            if self.residual:
                raw = raw + source[:, -self.channels_in :].float()
            if flow_features is None or self.flow_head is None or self.weight_head is None:
                return Frame(raw, raw, None, None)
            flow_features = flow_features.float()
            flow = self.flow_scale * self.flow_head(flow_features)[..., :height, :width]
            weight = torch.sigmoid(self.weight_head(flow_features))[..., :height, :width]
            return Frame(compose_frame(raw, past[:, -self.channels_out :], flow, weight), raw, flow, weight)

    def load_coarser(self, state: dict[str, torch.Tensor]) -> None:
        """Take all but the finest scale from the weights of a generator with one scale less.

        Its heads fit another number of channels and are left: each scale has its own.

        Raises:
            ConfigError: Weights are missing or have another shape: the two generators do not belong together.
        """
        finest = f"enhancers.{len(self.enhancers) - 1}."
        heads = ("image_head.", "flow_head.", "weight_head.")
        mine = {key: value for key, value in self.state_dict().items() if not key.startswith((finest, *heads))}
        theirs = {key: value for key, value in state.items() if not key.startswith(heads)}
        if {key: value.shape for key, value in mine.items()} != {key: value.shape for key, value in theirs.items()}:
            raise ConfigError(
                "The coarser generator is not this one without its finest scale",
                value=f"{len(theirs)} weights",
                allowed=f"{len(mine)} weights of the same shapes",
                remedy="Train it with the same generator settings and one of generator.finer_scales less",
            )
        self.load_state_dict(theirs, strict=False)

    def _coarsest(
        self, source: torch.Tensor, past: torch.Tensor, compose: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return image and flow features at the coarsest scale."""
        seen, finer = source, []
        for part in self.source_encoder:
            seen = part(seen)
            finer.append(seen)
        features = seen + self.past_encoder(past)
        blocks = len(self.image_branch) - len(self.joints)
        image: torch.Tensor = self.image_branch[:blocks](features)
        # The encoder's stem and halvings, but for the deepest, are met again from the deepest to the finest.
        for level, joint in enumerate(self.joints):
            image = joint(self.image_branch[blocks + level](image) + finer[len(self.joints) - 1 - level])
        return image, self.flow_branch(features) if compose and self.flow_branch is not None else None


def _as_it_is(layer: nn.Sequential) -> nn.Module:
    return layer


def compose_frame(raw: torch.Tensor, last: torch.Tensor, flow: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return ``weight * raw + (1 - weight) * warp(last, flow)``; shapes as in ``Frame``, float32."""
    return weight * raw + (1 - weight) * warp(last, flow)
