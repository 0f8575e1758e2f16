"""A stacked bidirectional transformer from the latents of some slices to those of another modality.

Sources: Liang et al., Medical Physics 2025 (doi 10.1002/mp.17912) for the idea, whose sizes are not public; Peebles and
Xie, ICCV 2023 (arXiv 2212.09748) for guidance by adaptive layer norm that starts at zero. Slices as context are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.errors import ConfigError, nearest
from pipeline.networks.padding import pad_to_multiple

_SPREAD = 0.02  # of positions and embeddings at the start
_EPSILON = 1e-6


class TransformerBlock(nn.Module):
    """Attention over all tokens and a two-layer network, each after a norm that the guidance shifts and scales."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_attention = nn.LayerNorm(width, eps=_EPSILON, elementwise_affine=False)
        self.norm_mlp = nn.LayerNorm(width, eps=_EPSILON, elementwise_affine=False)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, tokens: torch.Tensor, guidance: torch.Tensor) -> torch.Tensor:
        """Return tokens of the same shape (batch, tokens, width); ``guidance`` is (batch, width)."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulation(guidance)[:, None].chunk(6, dim=-1)
        hidden = self.norm_attention(tokens) * (1 + scale) + shift
        query, key, value = self.qkv(hidden).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        drop = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(query, key, value, dropout_p=drop).transpose(1, 2).flatten(2)
        tokens = tokens + gate * F.dropout(self.mix(seen), self.dropout, self.training)
        hidden = self.norm_mlp(tokens) * (1 + scale_mlp) + shift_mlp
        result: torch.Tensor = tokens + gate_mlp * F.dropout(self.mlp(hidden), self.dropout, self.training)
        return result


class LatentTransformer(nn.Module):
    """Every patch of latent vectors of every slice is a token; source and target modality guide each block.

    Positions are learned, per place in the grid and per slice. A grid below the configured one takes the middle of
    them, since films are centred on the body and a token is as many millimetres wide; a larger one is refused. Fewer
    slices take the first.

    Args:
        modalities: The vocabulary; its order belongs to the weights.
        channels: Of a latent vector.
        patch: Latent vectors along a side of a token's square; 1, as published: each is a token of its own.
        width: Of a token.
        depth: Blocks.
        heads: Of the attention; they divide the width.
        mlp_ratio: Hidden width of a block's two-layer network over ``width``.
        grid: Largest rows and columns of tokens.
        frames: Most slices that are seen together (T); 1: each by itself, as published.
        residual: Predict the difference from the source's latents instead of the target's.
        dropout: After attention and after the two-layer network.

    Raises:
        ConfigError: A size out of range, or a name that is there twice.
    """

    def __init__(
        self,
        modalities: list[str],
        channels: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        grid: tuple[int, int] = (16, 16),
        frames: int = 1,
        residual: bool = True,
        dropout: float = 0.0,
        patch: int = 1,
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "width": width, "depth": depth, "heads": heads, "frames": frames, "patch": patch}
        if min(*sizes.values(), *grid) < 1 or width % heads or mlp_ratio <= 0 or not 0 <= dropout < 1:
            raise ConfigError(
                "A size of the transformer is out of range",
                value=", ".join(f"{k}={v}" for k, v in sizes.items())
                + f", grid={list(grid)}, mlp_ratio={mlp_ratio}, dropout={dropout}",
                allowed="sizes from 1, heads that divide the width, mlp_ratio above 0, dropout in [0, 1)",
            )
        if not modalities or len(set(modalities)) < len(modalities):
            raise ConfigError("The modalities need one name each", value=modalities, allowed="different names")
        self.modalities, self.channels, self.frames, self.residual = list(modalities), channels, frames, residual
        self.grid, self.patch = (grid[0], grid[1]), patch
        self.embed = nn.Linear(channels * patch**2, width)
        self.place = nn.Parameter(torch.empty(*self.grid, width))
        self.time = nn.Parameter(torch.empty(frames, width))
        self.source, self.target = nn.Embedding(len(modalities), width), nn.Embedding(len(modalities), width)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, mlp_ratio, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=_EPSILON, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.head = nn.Linear(width, channels * patch**2)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for weight in (self.place, self.time, self.source.weight, self.target.weight):
            nn.init.normal_(weight, 0.0, _SPREAD)
        # Every block starts as the identity, and a residual network as its source.
        for module in self.modules():
            if isinstance(module, (TransformerBlock, LatentTransformer)):
                nn.init.zeros_(module.modulation[1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.head.weight)

    def indices(self, names: Sequence[str]) -> torch.Tensor:
        """Return the places of modalities in the vocabulary, (names,), on the weights' device.

        Raises:
            ConfigError: A name is not in it.
        """
        for name in names:
            if name not in self.modalities:
                known = ", ".join(self.modalities)
                hint = nearest(name, self.modalities)
                raise ConfigError("The model does not know this modality", value=name, allowed=known, remedy=hint)
        return torch.tensor([self.modalities.index(name) for name in names], device=self.place.device)

    def forward(self, latents: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the target's latents in the source's shape, float32.

        Args:
            latents: (batch, frames, channels, rows, columns), of a spread near 1.
            source: Places of the source modalities in the vocabulary, (batch,).
            target: The same for the wanted ones.

        Raises:
            ConfigError: More frames, or a larger grid, than there are positions.
        """
        batch, frames = latents.shape[:2]
        height, width = latents.shape[-2:]
        patches = F.pixel_unshuffle(pad_to_multiple(latents.flatten(0, 1), self.patch), self.patch)
        rows, columns = patches.shape[-2:]
        tokens = self.embed(patches.unflatten(0, (batch, frames)).permute(0, 1, 3, 4, 2).flatten(1, 3))
        tokens = tokens + self._positions(frames, rows, columns)
        guidance = self.source(source) + self.target(target)
        for block in self.blocks:
            tokens = block(tokens, guidance)
        shift, scale = self.modulation(guidance)[:, None].chunk(2, dim=-1)
        tokens = self.norm(tokens) * (1 + scale) + shift
        with torch.autocast(device_type=latents.device.type, enabled=False):
            # In the head's own digits: float32, or more.
            found = self.head(tokens.to(self.head.weight.dtype))
            found = found.unflatten(1, (frames, rows, columns)).permute(0, 1, 4, 2, 3).flatten(0, 1)
            found = F.pixel_shuffle(found, self.patch)[..., :height, :width].unflatten(0, (batch, frames))
            return latents.to(found.dtype) + found if self.residual else found

    def _positions(self, frames: int, rows: int, columns: int) -> torch.Tensor:
        """Return (frames * rows * columns, width), from the middle of the grid."""
        if frames > self.frames or rows > self.grid[0] or columns > self.grid[1]:
            raise ConfigError(
                "The transformer has no positions for so many tokens",
                value=f"{frames} slices of {rows} x {columns} tokens",
                allowed=f"at most {self.frames} of {self.grid[0]} x {self.grid[1]}",
                remedy=f"Set model.module.transformer.grid=[{max(rows, self.grid[0])},{max(columns, self.grid[1])}]"
                if frames <= self.frames
                else "Raise model.module.transformer.frames",
            )
        top, left = (self.grid[0] - rows) // 2, (self.grid[1] - columns) // 2
        place = self.place[top : top + rows, left : left + columns].flatten(0, 1)
        return (self.time[:frames, None] + place).flatten(0, 1)
