"""Validation: stretches of validation films, translated as in earnest, with the error in physical units."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.artifacts import atomic_path
from pipeline.imaging.normalise import restore, window_for
from pipeline.progress import say
from pipeline.records import ShardCase
from pipeline.settings import Config
from pipeline.stream.loader import physical_frames
from pipeline.stream.store import SliceStore
from pipeline.training.budget import Budget
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.ranks import summed, this_rank

PANELS = "panels"
# Level and width of the panels, in the middle between soft tissue and bone; MR uses its own window.
_PANEL_HU = (40.0, 800.0)
_FRAME_MS = 120


class Validation(pl.Callback):
    """Runs at equal parts of the budget; saves a checkpoint each time, and the best one for good."""

    def __init__(self, store: SliceStore, config: Config, run: Path, budget: Budget, checkpoints: Checkpoints) -> None:
        self.store, self.config, self.run = store, config, run
        self.budget, self.checkpoints = budget, checkpoints
        self.seconds = 0.0
        self.last: float | None = None
        cases = store.index.select("validation", config.fold)
        self.segments = _segments(
            [case for case in cases if {config.source, config.target} <= {*case.modalities}],
            config.trainer.validation_segments,
            config.trainer.validation_slices,
        )
        if not self.segments:
            say("No validation case with source and target: no validation error, and 'best' is never written")

    @property
    def unit(self) -> str:
        """Unit of its error."""
        return self.store.index.modalities[self.config.target].unit

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note which parts of the budget were validated before a restart."""
        self._done = int(self.budget.share * self.config.trainer.validations)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Validate when another part of the budget is used."""
        part = int(self.budget.share * self.config.trainer.validations)
        if part > self._done:
            self._done = part
            self.validate(trainer, pl_module)

    def validate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Translate the segments, log the error, draw a panel, save."""
        start = time.perf_counter()
        if not self.segments:
            self.checkpoints.save(trainer)
            return
        here = this_rank()
        errors, voxels, shown = 0.0, 0, None
        training = pl_module.training
        pl_module.eval()
        # No random state is touched: a validated run and another one end with the same weights.
        own = [pl_module.device] if pl_module.device.type == "cuda" else []  # the other GPUs are other ranks'
        with torch.inference_mode(), torch.random.fork_rng(own), trainer.precision_plugin.forward_context():
            for case, first, count in self.segments[here.rank :: here.count]:
                source, target, mask = self._frames(case, first, count)
                prediction = pl_module.translate(  # type: ignore[operator]
                    torch.from_numpy(source).unsqueeze(1).to(pl_module.device),
                    torch.from_numpy(mask).unsqueeze(1).to(pl_module.device),
                    source_modality=self.config.source,
                    target_modality=self.config.target,
                )
                predicted = restore(prediction.squeeze(1).float().cpu().numpy(), self._window(case, self.config.target))
                inside = mask > 0
                errors += float(np.abs(predicted - target)[inside].sum())
                voxels += int(inside.sum())
                if shown is None or case.case_id != shown[0].case_id:
                    shown = (case, source, predicted, target)
        pl_module.train(training)
        error, inside_all = summed([errors, voxels])
        self.last = error / max(inside_all, 1)
        better = self.checkpoints.save_if_best(trainer, self.last)
        if shown is not None and self.config.trainer.panels and here.first:
            self._panel(trainer, *shown)
        for logger in trainer.loggers:
            logger.log_metrics(
                {f"validation/mae_{self.unit.lower().replace('.', '')}": self.last}, step=self.budget.step
            )
        self.seconds += time.perf_counter() - start
        say(f"step {self.budget.step}: validation MAE {self.last:.1f} {self.unit}{' (best so far)' if better else ''}")

    def _frames(self, case: ShardCase, first: int, count: int) -> tuple[NDArray, NDArray, NDArray]:
        """Return source (normalised), target (physical) and mask of a segment."""
        shape = (count, *self.store.index.size)
        stored = {n: np.empty(shape, np.int16) for n in (self.config.source, self.config.target)}
        mask = np.empty(shape, np.uint8)
        self.store.read(case.case_id, first, count, {**stored, "mask": mask})
        source = np.empty(shape, np.float32)
        settings = self.config.stream
        physical_frames(self.store, case.case_id, self.config.source, settings, stored[self.config.source], source)
        if settings.outside_mask == "lowest":
            source[mask == 0] = -1
        target = stored[self.config.target].astype(np.float32) * case.scale.get(self.config.target, 1.0)
        return source, target, mask.astype(np.float32)

    def _window(self, case: ShardCase, modality: str) -> tuple[float, float]:
        return window_for(modality, self.config.stream.window, case.percentiles)

    def _panel(
        self, trainer: pl.Trainer, case: ShardCase, source: NDArray, predicted: NDArray, target: NDArray
    ) -> None:
        """Draw a segment's source, prediction, target and difference side by side: a film, and its middle slice."""
        low, high = self._window(case, self.config.target)
        if self.store.index.modalities[self.config.target].unit == "HU":
            low, high = _PANEL_HU[0] - _PANEL_HU[1] / 2, _PANEL_HU[0] + _PANEL_HU[1] / 2
        physical = restore(source, self._window(case, self.config.source))
        grey = [np.clip((x - low) / (high - low), 0, 1) * 255 for x in (physical, predicted, target)]
        grey.append(np.clip((predicted - target) / (high - low) + 0.5, 0, 1) * 255)
        frames = [Image.fromarray(frame) for frame in np.concatenate(grey, axis=2).astype(np.uint8)]
        path = self.run / PANELS / f"step-{self.budget.step:08d}.png"
        with atomic_path(path) as partial:
            frames[len(frames) // 2].save(partial)
        film = path.with_suffix(".gif")  # 256 greys: exact, and every browser plays it
        with atomic_path(film) as partial:
            frames[0].save(partial, save_all=True, append_images=frames[1:], duration=_FRAME_MS, loop=0, optimize=False)
        for logger in trainer.loggers:
            if hasattr(logger, "log_panel"):
                logger.log_panel(path, film)


def _segments(cases: list[ShardCase], count: int, length: int) -> list[tuple[ShardCase, int, int]]:
    """Spread ``count`` stretches of ``length`` slices evenly over the films, end to end."""
    if not cases:
        return []
    total = sum(case.slices for case in cases)
    out: list[tuple[ShardCase, int, int]] = []
    for case in cases:
        share = max(1, round(count * case.slices / total))
        slices = min(length, case.slices)
        firsts = np.linspace(0, case.slices - slices, share + 2)[1:-1] if share > 1 else [(case.slices - slices) / 2]
        out += [(case, round(float(first)), slices) for first in firsts]
    return out
