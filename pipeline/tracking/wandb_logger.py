"""Weights & Biases, offline unless told otherwise, without command line, host or code in what it records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only


class WandbLogger(Logger):
    """One W&B run per run folder; a resumed training goes on in the same run."""

    def __init__(
        self,
        folder: Path,
        clock: Callable[[], int],
        *,
        run_id: str,
        project: str,
        name: str,
        mode: str,
        config: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.clock = clock
        import wandb

        # Command line and machine would carry paths, and paths carry patients' names.
        settings = wandb.Settings(
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_stats=True,
            disable_git=True,
            disable_code=True,
            console="off",
            silent=True,
        )
        self._run = wandb.init(
            project=project,
            name=name,
            id=run_id,
            dir=str(folder),
            mode="online" if mode == "online" else "offline",
            resume="allow" if mode == "online" else None,
            config=dict(config),
            settings=settings,
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._id = run_id

    @property
    def name(self) -> str:
        """Name for Lightning."""
        return "wandb"

    @property
    def version(self) -> str:
        """The run's id."""
        return self._id

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send values with our own step."""
        values = {k: float(v) for k, v in metrics.items() if k not in ("epoch", "step")}
        self._run.log({**values, "step": self.clock()})

    @rank_zero_only
    def log_panel(self, path: Path) -> None:
        """Send a panel image."""
        import wandb

        self._run.log({"validation/panel": wandb.Image(str(path)), "step": self.clock()})

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration was given at the start."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the run."""
        self._run.finish(exit_code=0 if status == "success" else 1)
