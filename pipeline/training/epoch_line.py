"""One line per epoch: where the time went, how fast it was, how much memory it took."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import pytorch_lightning as pl
import torch

from pipeline.models.translator import Translator
from pipeline.progress import duration, say
from pipeline.training.budget import Budget
from pipeline.training.validation import Validation


class EpochLine(pl.Callback):
    """Sums seconds of loader, forward, backward, optimiser and validation between two lines."""

    def __init__(self, budget: Budget, validation: Validation, log_every: int) -> None:
        self.budget, self.validation, self.log_every = budget, validation, log_every
        self._reset()

    def _reset(self) -> None:
        self._start = time.perf_counter()
        self._step_seconds, self._steps, self._frames = 0.0, 0, 0
        self._validated = self.validation.seconds

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clocks."""
        self._reset()
        if isinstance(pl_module, Translator):
            pl_module.seconds.update(dict.fromkeys(pl_module.seconds, 0.0))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Start of a step."""
        self._batch_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """End of a step: log throughput, memory, learning rates and gradient norms now and then."""
        self._step_seconds += time.perf_counter() - self._batch_start
        self._steps += 1
        self._frames += trainer.world_size * batch["source"].shape[0] * batch["source"].shape[1]
        if self.budget.step % self.log_every == 0:
            used = time.perf_counter() - self._start
            values = {
                "speed/slices_per_s": self._frames / used,
                "speed/steps_per_s": self._steps / used,
                "speed/loader_wait_share": trainer.datamodule.loader.wait_seconds / used,  # type: ignore[attr-defined]
                "memory/peak_gb": peak_gb(),
                "progress/budget_share": self.budget.share,
                "progress/skipped_steps": float(getattr(pl_module, "skipped_steps", 0)),
            }
            if isinstance(pl_module, Translator):
                values |= {name: float(value) for name, value in pl_module.signals.items()}
            for logger in trainer.loggers:
                logger.log_metrics(values, step=self.budget.step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the line."""
        loader = trainer.datamodule.loader  # type: ignore[attr-defined]
        total = max(time.perf_counter() - self._start, 1e-9)
        validation = self.validation.seconds - self._validated
        inside = pl_module.seconds if isinstance(pl_module, Translator) else {}
        parts = {"loader": loader.wait_seconds, "forward": self._step_seconds - sum(inside.values()), **inside}
        parts |= {"validation": validation}
        parts["other"] = total - sum(parts.values())
        shares = ", ".join(f"{name} {100 * value / total:.1f} %" for name, value in parts.items())
        last = self.validation.last
        error = f"validation MAE {last:.1f} {self.validation.unit}; " if last is not None else ""
        share = self.budget.share
        left = self.budget.seconds / share * (1 - share) if share > 0 else 0.0
        skipped = int(getattr(pl_module, "skipped_steps", 0))
        say(
            f"epoch {loader.sequence.epoch}: {self._steps} steps of {loader.sequence.clip_length} slices in "
            f"{duration(total)} ({shares}); {error}{self._frames / total:.1f} slices/s, peak {peak_gb():.2f} GB"
            + (f", {skipped} steps skipped" if skipped else "")
            + f"; step {self.budget.step}, {100 * share:.0f} % of the budget, {duration(left)} left"
        )


def peak_gb() -> float:
    """Return the peak memory in GB: of the GPU where one is used, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
