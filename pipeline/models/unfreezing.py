"""Which stages of a pretrained generator learn, as a function of the share of the budget alone."""

from __future__ import annotations

from torch import nn

from pipeline.errors import ConfigError, nearest
from pipeline.networks.resnet_generator import ResnetGenerator

WAYS = ("all", "decoder", "gradual")


def check_way(way: str, unfreeze_share: float) -> None:
    """Raise ``ConfigError`` for a way of fine-tuning that does not exist."""
    if way not in WAYS:
        raise ConfigError("Unknown way of fine-tuning", value=way, allowed=", ".join(WAYS), remedy=nearest(way, WAYS))
    if not 0 < unfreeze_share <= 1:
        raise ConfigError("unfreeze_share is out of range", value=unfreeze_share, allowed="above 0, up to 1")


def freeze_stages(generator: ResnetGenerator, way: str, share: float, unfreeze_share: float) -> None:
    """Let weights learn or not, before a step.

    Args:
        generator: Its decoder always learns.
        way: ``all``; ``decoder`` alone; ``gradual``: residual blocks follow one by one from the last to the first, the
            encoder comes last, at equal parts of ``unfreeze_share``.
        share: Of the budget that is used.
        unfreeze_share: Of the budget, after which all learn.
    """
    if way == "all":
        return
    encoder, blocks, _ = generator.stages()
    assert isinstance(blocks, nn.Sequential)
    waiting = [*reversed(list(blocks)), encoder]
    awake = int(share / unfreeze_share * len(waiting)) if way == "gradual" else 0
    for place, stage in enumerate(waiting):
        stage.requires_grad_(place < awake)
