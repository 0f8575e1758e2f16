"""Lightning's view of a W&B run: what a training logs, at our own step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from pipeline.settings import Config
from pipeline.tracking.wandb_run import WandbRun


class WandbLogger(Logger):
    """``clock`` tells our own step, from which a resumed training goes on in the same W&B run."""

    def __init__(self, config: Config, folder: Path, clock: Callable[[], int]) -> None:
        super().__init__()
        self.clock = clock
        self.run = WandbRun(config, folder, "train", step=clock())

    @property
    def name(self) -> str:
        """Name for Lightning."""
        return "wandb"

    @property
    def version(self) -> str:
        """The run's id."""
        return self.run.id

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send values with our own step."""
        values = {key: value for key, value in metrics.items() if key not in ("epoch", "step")}
        if values:
            self.run.log(values, self.clock())

    @rank_zero_only
    def log_panel(self, image: Path, film: Path) -> None:
        """Send a validation's picture and its film."""
        self.run.log_image("validation/panel", image, self.clock())
        self.run.log_film("validation/film", film, self.clock())

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration was given at the start."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the run."""
        self.run.finish(success=status == "success")
