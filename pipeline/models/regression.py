"""Masked L1 regression, slice by slice or with neighbouring slices as channels: the strong plain baseline."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.losses.reconstruction import masked_l1
from pipeline.models.adam import Adam
from pipeline.models.neighbours import check_channels, check_clip_length, complete_frames, in_chunks, stacked
from pipeline.models.translator import Batch, Translator, Update, evaluating, total_loss, warm_cosine

SLICES_AT_ONCE = 2  # in translate; bounds the memory, and more were no faster


class Regression(Translator):
    """Predict each slice from itself and its ``neighbours`` on either side.

    Args:
        network: Maps (batch, (2 neighbours + 1) * channels, height, width) to (batch, channels, height, width).
        neighbours: Slices below and above that are given as channels.
        residual: Predict the difference from the source instead of the target itself.
        learning_rate: Of Adam.
        warm_up: Share of the budget in which the learning rate rises, before it falls along a cosine.
        max_norm: Largest norm of the gradients; 0: no limit.
        ema_decay: Of the averaged weights; 0: none.

    Raises:
        ConfigError: A number out of range, or a network with another number of input channels.
    """

    def __init__(
        self,
        network: nn.Module,
        neighbours: int = 0,
        residual: bool = True,
        learning_rate: float = 5e-4,
        warm_up: float = 0.02,
        max_norm: float = 1.0,
        ema_decay: float = 0.999,
    ) -> None:
        super().__init__()
        if neighbours < 0 or learning_rate <= 0 or not 0 <= warm_up < 1 or max_norm < 0:
            raise ConfigError(
                "A setting of the regression is out of range",
                value=f"neighbours={neighbours}, learning_rate={learning_rate}, warm_up={warm_up}, max_norm={max_norm}",
                allowed="neighbours >= 0, learning_rate > 0, warm_up in [0, 1), max_norm >= 0",
            )
        check_channels(network, neighbours, "network")
        self.network = network
        self.neighbours, self.residual = neighbours, residual
        self.learning_rate, self.warm_up, self.max_norm = learning_rate, warm_up, max_norm
        self.start_ema(network, ema_decay)

    def check_stream(self, clip_length: int, longest: int | None = None) -> None:
        """Refuse clips without a single slice that has all its neighbours; see ``Translator.check_stream``."""
        check_clip_length(clip_length, self.neighbours, "network")

    def training_step(self, batch: Batch, step: int) -> None:
        """Learn from the frames of a clip that have all their neighbours."""
        rate = self.learning_rate * warm_cosine(self.budget_share, self.warm_up)
        losses: list[dict[str, torch.Tensor]] = []
        for part in self.parts(batch):
            source, target, mask = part["source"], part["target"], part["mask"]
            centres = complete_frames(source.shape[1], self.neighbours)
            prediction = self._predict(self.network, source, centres)
            losses.append({"l1_loss": masked_l1(prediction, target[:, centres], mask[:, centres])})
            update = Update(self._all_optimizers()[0], total_loss(losses[-1]), rate)
            self.guarded_step([update], self.network, self.max_norm)
        self.log_losses(losses, batch["source"].shape[0])

    def _predict(self, network: nn.Module, film: torch.Tensor, centres: list[int]) -> torch.Tensor:
        """Predict the named frames of (batch, frames, channels, height, width); edges are repeated."""
        stacks = stacked(film, centres, self.neighbours)
        prediction = network(stacks.flatten(0, 1)).float().unflatten(0, stacks.shape[:2])
        return film[:, centres].float() + prediction if self.residual else prediction

    @torch.no_grad()
    def translate(
        self,
        source: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        source_modality: str,
        target_modality: str,
        generator: torch.Generator | None = None,
        samples: int = 1,
    ) -> torch.Tensor:
        """Translate a volume a few slices at a time; see ``Translator.translate``."""
        self.only_one(samples)
        network = self.averaged(self.network)
        with evaluating(network):
            return in_chunks(source, self.neighbours, SLICES_AT_ONCE, self.device, partial(self._predict, network))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam; its learning rate is set before each step."""
        return Adam(self.network.parameters(), self.learning_rate)
