"""Masked L1 regression, slice by slice or with neighbouring slices as channels: the strong plain baseline."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.losses.reconstruction import masked_l1
from pipeline.models.adam import Adam
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
        channels = getattr(network, "channels_in", None)
        if channels is not None and channels % (2 * neighbours + 1):
            raise ConfigError(
                "The network's input channels do not fit the neighbours",
                value=f"channels_in={channels}, neighbours={neighbours}",
                allowed=f"a multiple of {2 * neighbours + 1}",
                remedy=f"Set model.module.network.channels_in={2 * neighbours + 1}",
            )
        self.network = network
        self.neighbours, self.residual = neighbours, residual
        self.learning_rate, self.warm_up, self.max_norm = learning_rate, warm_up, max_norm
        self.start_ema(network, ema_decay)

    def check_stream(self, clip_length: int, longest: int | None = None) -> None:
        """Refuse clips without a single slice that has all its neighbours; see ``Translator.check_stream``."""
        if clip_length < 2 * self.neighbours + 1:
            raise ConfigError(
                f"A clip is too short for {self.neighbours} neighbours on either side",
                value=f"stream.clip_length={clip_length}",
                allowed=f"at least {2 * self.neighbours + 1}",
                remedy="Raise stream.clip_length, or set model.module.neighbours=0 and network.channels_in=1",
            )

    def training_step(self, batch: Batch, step: int) -> None:
        """Learn from the frames of a clip that have all their neighbours."""
        rate = self.learning_rate * warm_cosine(self.budget_share, self.warm_up)
        losses: list[dict[str, torch.Tensor]] = []
        for part in self.parts(batch):
            source, target, mask = part["source"], part["target"], part["mask"]
            centres = list(range(self.neighbours, source.shape[1] - self.neighbours))
            prediction = self._predict(self.network, source, centres)
            losses.append({"l1_loss": masked_l1(prediction, target[:, centres], mask[:, centres])})
            update = Update(self._all_optimizers()[0], total_loss(losses[-1]), rate)
            self.guarded_step([update], self.network, self.max_norm)
        self.log_losses(losses, batch["source"].shape[0])

    def _predict(self, network: nn.Module, film: torch.Tensor, centres: list[int]) -> torch.Tensor:
        """Predict the named frames of (batch, frames, channels, height, width); edges are repeated."""
        last = film.shape[1] - 1
        offsets = range(-self.neighbours, self.neighbours + 1)
        stacks = torch.cat([film[:, [min(max(i + k, 0), last) for i in centres]] for k in offsets], dim=2)
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
        result = torch.empty_like(source, dtype=torch.float32)
        slices = source.shape[0]
        with evaluating(network):
            for stop in range(SLICES_AT_ONCE, slices + SLICES_AT_ONCE, SLICES_AT_ONCE):
                # The last chunk reaches back: one shape for all, which kernels were prepared for.
                stop = min(stop, slices)
                start = max(stop - SLICES_AT_ONCE, 0)
                low, high = max(start - self.neighbours, 0), min(stop + self.neighbours, slices)
                film = source[None, low:high].to(self.device)
                prediction = self._predict(network, film, list(range(start - low, stop - low)))
                result[start:stop] = prediction[0].clamp(-1, 1).to(result.device)
        return result

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam; its learning rate is set before each step."""
        return Adam(self.network.parameters(), self.learning_rate)
