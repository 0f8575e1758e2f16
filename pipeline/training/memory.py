"""Memory: activations that are computed again, and what to lower when there is not enough."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from monai.networks.blocks import ResidualUnit
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from pipeline.errors import ConfigError, TrainingError
from pipeline.networks.kl_blocks import AttentionBlock, KLResidualBlock
from pipeline.networks.latent_transformer import TransformerBlock
from pipeline.networks.residual_blocks import ResidualBlock
from pipeline.networks.resnet_generator import ResnetBlock

BLOCKS = (ResidualBlock, ResidualUnit, ResnetBlock, KLResidualBlock, AttentionBlock, TransformerBlock)


def recompute_activations(method: nn.Module) -> None:
    """Keep only the inputs of a method's residual blocks; what is inside is computed again going backward.

    The numbers stay the same; a step takes about a third longer.

    Raises:
        ConfigError: The method has no such block, or one whose weights change as they are used (spectral norm).
    """
    blocks = [b for b in method.modules() if isinstance(b, BLOCKS) and any(p.requires_grad for p in b.parameters())]
    if not blocks:
        raise ConfigError("The method has no residual block to recompute", remedy="Set trainer.recompute=false")
    if any(parametrize.is_parametrized(inner) for block in blocks for inner in block.modules()):
        raise ConfigError("Blocks with spectral norm cannot be recomputed", remedy="Set trainer.recompute=false")
    for block in blocks:
        block.forward = functools.partial(_recomputed, block.forward)  # type: ignore[method-assign]


def _recomputed(forward: Callable[..., torch.Tensor], *inputs: Any) -> torch.Tensor:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    result: torch.Tensor = checkpoint(forward, *inputs, use_reentrant=False)
    return result


@contextmanager
def telling_what_to_lower() -> Iterator[None]:
    """Turn a failed allocation into an error that names the settings that help."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "t allocate memory" not in str(error):
            raise
        raise TrainingError(
            "The memory does not suffice for a step",
            remedy="Raise stream.accumulate or lower stream.global_batch, set trainer.recompute=true, lower "
            "stream.clip_limit, or take a narrower model; what was written stays",
        ) from error
