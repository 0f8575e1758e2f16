"""FSDP: weights, gradients and the optimiser's state of large transformers shared out among GPUs.

Checkpoints stay whole (``state_dict_type='full'``): the first rank gathers them in its RAM, tensors and plain data as
ever, so that ``translate`` reads them on one device. A run goes on with the strategy that it began with.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.strategies import FSDPStrategy

from pipeline.errors import ConfigError
from pipeline.training.precision import Precision

_SHARD_FROM = 10_000_000  # parameters of a block that is gathered and let go by itself
_REMEDY = "Set trainer.strategy=ddp"


def check_sharding(method: LightningModule, device: torch.device, precision: Precision, ranks: int) -> None:
    """Refuse FSDP where it cannot work, before any data is touched.

    Raises:
        ConfigError: No GPU, one rank, fp16, or a method that steps by hand.
    """
    if device.type != "cuda":
        raise ConfigError(
            "FSDP needs GPUs", value=f"trainer.strategy=fsdp on {device.type}", allowed="ddp", remedy=_REMEDY
        )
    if ranks < 2:
        raise ConfigError(
            "FSDP shares a model out among ranks", value=f"{ranks} rank", allowed="at least 2", remedy=_REMEDY
        )
    if precision == "fp16-mixed":
        raise ConfigError(
            "FSDP trains in bf16-mixed or fp32", value="fp16-mixed", remedy="Set trainer.precision=bf16-mixed"
        )
    if not method.automatic_optimization:
        raise ConfigError(
            f"{type(method).__name__} steps its optimisers by hand: it goes backward through several networks at once, "
            "compares norms of whole gradients and averages whole weights, and under FSDP no rank has them",
            value="trainer.strategy=fsdp",
            allowed="methods that leave one optimiser to Lightning",
            remedy=_REMEDY,
        )


def fsdp(backend: str | None = None) -> FSDPStrategy:
    """Return the strategy: every block of so many parameters is a shard of its own, and checkpoints are whole."""
    from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

    policy = partial(size_based_auto_wrap_policy, min_num_params=_SHARD_FROM)
    return FSDPStrategy(auto_wrap_policy=policy, state_dict_type="full", process_group_backend=backend)


def sharded_precision(precision: Precision) -> Any:
    """Return Lightning's precision plugin for FSDP, which casts whole shards instead of single operations."""
    from pytorch_lightning.plugins.precision import FSDPPrecision

    return FSDPPrecision("bf16-mixed" if precision == "bf16-mixed" else "32-true")
