"""The budget in steps or minutes; schedules follow the share of it that is used."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl

from pipeline.errors import TrainingError
from pipeline.settings import BudgetSettings
from pipeline.training.ranks import first_ranks_number


class Budget(pl.Callback):
    """Counts our steps (batches) and seconds, tells the share to the method and the datamodule, and ends the fit.

    Lightning's ``global_step`` counts every optimiser's step, so it is not used. Time spent in validation counts.
    ``share`` is what of the budget is used, 0 to 1.
    """

    def __init__(self, settings: BudgetSettings, nan_limit: int, show: Callable[[float], None]) -> None:
        self.settings, self.nan_limit, self.show = settings, nan_limit, show
        self.step = 0
        self.share = 0.0
        self._used_before = 0.0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all restarts."""
        return self._used_before + time.monotonic() - self._started

    def _measure(self) -> None:
        """Take the share of the budget that is used, 0 to 1; the same on all ranks."""
        shares = []
        if self.settings.steps:
            shares.append(self.step / self.settings.steps)
        if self.settings.minutes:
            shares.append(first_ranks_number(self.seconds) / (60 * self.settings.minutes))
        self.share = min(1.0, max(shares))

    def progress(self) -> dict[str, Any]:
        """Return plain numbers for a checkpoint."""
        return {"step": self.step, "seconds": self.seconds}

    def restore(self, progress: dict[str, Any]) -> None:
        """Continue from a checkpoint's numbers."""
        self.step, self._used_before = int(progress["step"]), float(progress["seconds"])
        self._started = time.monotonic()
        self._measure()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()
        self._tell(trainer, pl_module)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Set the share that this step's learning rates follow."""
        self._tell(trainer, pl_module)

    def _tell(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._measure()
        pl_module.budget_share = self.share  # type: ignore[assignment]
        trainer.datamodule.budget_share = self.share  # type: ignore[attr-defined]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Count the step; stop when the budget is used, abort when nothing but non-finite steps comes."""
        self.step += 1
        trainer.datamodule.advance()  # type: ignore[attr-defined]
        self._tell(trainer, pl_module)
        self.show(self.share)
        if int(getattr(pl_module, "skipped_in_a_row", 0)) >= self.nan_limit:
            raise TrainingError(
                f"{self.nan_limit} steps in a row had a loss or gradient that is not finite",
                remedy="A snapshot was kept as checkpoints/not-finite.ckpt; lower the learning rate, or use fp32",
            )
        if self.share >= 1:
            trainer.should_stop = True
