"""Checkpoints: atomic, tensors and plain data only, and self-describing.

A checkpoint never chooses code: it names a method and its settings, which the installed version builds through the
same allow-list as a configuration file.
"""

from __future__ import annotations

import math
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from pipeline import __version__
from pipeline.artifacts import atomic_path, write_json
from pipeline.config import build, public
from pipeline.errors import CheckpointError, ConfigError, TrainingError
from pipeline.progress import say
from pipeline.settings import Config
from pipeline.stream.sampler import Pair
from pipeline.stream.store import SliceStore
from pipeline.training.arithmetic import arithmetic
from pipeline.training.budget import Budget

SCHEMA = 1
FOLDER = "checkpoints"
LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
BEST = "best.ckpt"
SNAPSHOT = "not-finite.ckpt"
PROGRESS = "progress.json"  # of last.ckpt, for those who only want to know how far it is
_COPIES = 4  # last, previous, best, and the one that is being written


def describe(config: Config, store: SliceStore, pairs: Sequence[Pair], shards: str) -> dict[str, Any]:
    """Return what a checkpoint says of itself: method, settings, and the preprocessing that its inputs had.

    Args:
        config: Of the training.
        store: The slices that it translates: those that it is trained on, or those that its latents were made from.
        pairs: Source and target modality, of all that it is trained on.
        shards: Hash of what it is trained on.
    """
    index = store.index
    return {
        "schema": SCHEMA,
        "cinevox": __version__,
        "method": config.model.name,
        "label": config.label or config.model.name,
        "source": config.source,
        "target": config.target,
        "pairs": [list(pair) for pair in pairs],
        "config": public(config),
        "preprocessing": {
            "axes": index.axes,
            "spacing_mm": list(index.spacing_mm),
            "spacings_mm": {name: list(store.spacing_mm(name)) for name in index.modalities},
            "size": list(index.size),
            "body_threshold_hu": config.preprocess.body_threshold_hu,
            "modalities": {name: item.model_dump() for name, item in index.modalities.items()},
            "window": {name: list(window) for name, window in config.stream.window.items()},
            "outside_mask": config.stream.outside_mask,
        },
        "shards": shards,
    }


def record_for(record: dict[str, Any], source: str, target: str) -> dict[str, Any]:
    """Return a checkpoint's record as that of a run from ``source`` to ``target``; '' is the run's own.

    Raises:
        ConfigError: The run was not trained on this pair.
    """
    pair = (source or record["source"], target or record["target"])
    trained = sorted(tuple(known) for known in record.get("pairs", [[record["source"], record["target"]]]))
    if (source or target) and pair not in trained:
        raise ConfigError(
            "The run was not trained to translate this pair of modalities",
            value=":".join(pair),
            allowed=", ".join(map(":".join, trained)),
            remedy="Set source_modality and target_modality to one of these",
        )
    preparation = record["preprocessing"]
    spacing = preparation.get("spacings_mm", {}).get(pair[0], preparation["spacing_mm"])
    return {**record, "source": pair[0], "target": pair[1], "preprocessing": {**preparation, "spacing_mm": spacing}}


def checkpoint_bytes(method: nn.Module) -> int:
    """Return the size of a method's checkpoint: its weights in fp32, and Adam's two moments of those that learn."""
    return 4 * sum(p.numel() * (3 if p.requires_grad else 1) for p in method.parameters())


def copies_to_come(run: Path) -> int:
    """Return how many more checkpoints a run folder will hold, not counting those of ``trainer.keep_every``."""
    files = {path.stat().st_ino for path in (run / FOLDER).glob("*.ckpt")}  # some are links to one another
    return max(1, _COPIES - len(files))


def load_checkpoint(place: Path) -> dict[str, Any]:
    """Read a checkpoint from its file, or the last one of a run folder.

    Raises:
        CheckpointError: Missing, damaged, holding code instead of tensors, or of another schema.
    """
    path = place / FOLDER / LAST if place.is_dir() else place
    if not path.is_file():
        raise CheckpointError(
            f"No checkpoint at '{path}'", remedy="Give a run folder or a .ckpt file of 'cinevox train'"
        )
    if not zipfile.is_zipfile(path):
        # Cut short, or a bare pickle of old: torch would warn and try.
        raise CheckpointError(
            f"Checkpoint '{path.name}' is damaged or no checkpoint at all; it was not opened",
            value=f"{path.stat().st_size} bytes",
            remedy=f"Use another one in '{path.parent}'",
        )
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"Checkpoint '{path.name}' holds more than tensors and plain data, or is damaged; it was not opened",
            remedy="Use a checkpoint that 'cinevox train' wrote",
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(
            f"Checkpoint '{path.name}' is damaged ({type(error).__name__})",
            remedy=f"Use another one in '{path.parent}'",
        ) from None
    record = data.get("cinevox") if isinstance(data, dict) else None
    if not isinstance(record, dict) or "state_dict" not in data:
        raise CheckpointError(f"'{path.name}' is not a Cinevox checkpoint", remedy="Use one that 'cinevox train' wrote")
    if record.get("schema") != SCHEMA:
        raise CheckpointError(
            f"Checkpoint '{path.name}' was written by Cinevox {record.get('cinevox', '(unknown)')}",
            value=f"schema {record.get('schema')}",
            allowed=f"schema {SCHEMA}, of Cinevox {__version__}",
            remedy="Install the version that wrote it, or train again",
        )
    return data


def to_go_on_from(run: Path) -> list[Path]:
    """Return the checkpoints that a run can go on from, the furthest first; the best one is none of them."""
    folder = run / FOLDER
    kept = sorted(folder.glob("step-*.ckpt"), reverse=True)
    return [path for path in (folder / LAST, folder / PREVIOUS, *kept) if path.exists()]


def newest_valid(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the furthest checkpoint of a run that can be read, with its content; None where there is none at all.

    A damaged ``last.ckpt`` is passed over aloud: the one before it is kept for this.

    Raises:
        CheckpointError: There are checkpoints, and none can be read.
    """
    refused: CheckpointError | None = None
    for path in to_go_on_from(run):
        try:
            data = load_checkpoint(path)
        except CheckpointError as error:
            say(f"{error} Passed over")
            refused = refused or error
            continue
        return path, data
    if refused is not None:
        raise refused
    return None


def load_method(data: dict[str, Any], allowed: Sequence[str] = ()) -> pl.LightningModule:
    """Build the method that a checkpoint names, through the allow-list, with its weights; in eval mode."""
    module = build(data["cinevox"]["config"]["model"]["module"], allowed, where="checkpoint: model.module")
    try:
        module.load_state_dict(data["state_dict"])
    except RuntimeError as error:
        raise CheckpointError(
            "The checkpoint's weights do not fit the method that it names", value=str(error).split("\n")[0]
        ) from None
    return module.eval()


def _read_back(path: Path) -> None:
    """Compare what was written with its checksums, before it takes the place of what is good.

    Raises:
        CheckpointError: It came out differently.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(
            "A checkpoint was not written as it is in memory; the last good one stays",
            value=f"'{damaged}' has another checksum",
            remedy="Check the disk; the same command continues from the last good one",
        )


class Checkpoints(pl.Callback):
    """Writes last, best and every N steps, at the end of a step; keeps what a resume needs beside Lightning's state."""

    def __init__(self, folder: Path, record: dict[str, Any], budget: Budget, *, every: int, keep_every: int) -> None:
        self.folder, self.record, self.budget = folder / FOLDER, record, budget
        self.every, self.keep_every = every, keep_every
        self.best = math.inf
        self._saved: int | None = None  # the step that last.ckpt holds
        self._random: dict[str, torch.Tensor] | None = None  # of the checkpoint that the run continues from

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add our record, progress, random state and how sums were rounded; drop Lightning's own loop counters.

        The position in the sample sequence is the datamodule's. Lightning's counters (a batch behind at this point,
        one per optimiser) would only fight with it after a restart in mid-epoch.
        """
        checkpoint.pop("loops", None)
        checkpoint["cinevox"] = self.record
        checkpoint["progress"] = {**self.budget.progress(), "best": self.best}
        checkpoint["arithmetic"] = arithmetic(pl_module.device)
        checkpoint["random"] = {"torch": torch.get_rng_state()}
        if pl_module.device.type == "cuda":  # this rank's own GPU: a resume may have fewer of them, or more
            checkpoint["random"]["gpu"] = torch.cuda.get_rng_state(pl_module.device)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take budget and best value back."""
        self.budget.restore(checkpoint["progress"])
        self.best = float(checkpoint["progress"]["best"])
        self._random = checkpoint["random"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the random state last, when nothing before the first step can draw from it."""
        if (random := self._random) is not None:
            torch.set_rng_state(random["torch"])
            if "gpu" in random and pl_module.device.type == "cuda":
                torch.cuda.set_rng_state(random["gpu"], pl_module.device)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Save every N steps."""
        step = self.budget.step
        if self.every and step % self.every == 0:
            self.save(trainer)
        if self.keep_every and step % self.keep_every == 0:
            self.save(trainer)
            if trainer.is_global_zero:
                self._link(f"step-{step:08d}.ckpt")

    def save(self, trainer: pl.Trainer) -> None:
        """Write ``last.ckpt``, once a step: a new file takes its place only when it is whole and synced.

        Every rank takes part (the state is gathered together), the first writes. The one before stays beside it.
        """
        if self._saved == self.budget.step:  # by the validation, or for good
            return
        self._write(trainer, LAST, before=lambda: self._link(PREVIOUS))
        self._saved = self.budget.step
        if trainer.is_global_zero:
            progress = {"schema": 1, **self.budget.progress(), "share": self.budget.share}
            write_json(self.folder.parent / PROGRESS, progress)

    def _write(self, trainer: pl.Trainer, name: str, before: Callable[[], None] = lambda: None) -> None:
        if not trainer.is_global_zero:
            trainer.save_checkpoint(self.folder / name, weights_only=False)  # writes on the first rank only
            return
        with atomic_path(self.folder / name) as partial:
            trainer.save_checkpoint(partial, weights_only=False)
            _read_back(partial)
            before()

    def save_if_best(self, trainer: pl.Trainer, value: float) -> bool:
        """Save, and keep as ``best.ckpt`` when ``value`` is the lowest so far."""
        better = value < self.best
        self.best = min(value, self.best)
        self.save(trainer)
        if better and trainer.is_global_zero:
            self._link(BEST)
        return better

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end of the budget."""
        self.save(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keep a snapshot of what went wrong, without touching the last good checkpoint."""
        if isinstance(exception, TrainingError):
            self._write(trainer, SNAPSHOT)

    def _link(self, name: str) -> None:
        if not (self.folder / LAST).exists():
            return
        # A hard link costs nothing ('last' is replaced, never written into); some file systems have none.
        link = self.folder / f".partial.{name}"
        link.unlink(missing_ok=True)
        try:
            os.link(self.folder / LAST, link)
        except OSError:
            shutil.copyfile(self.folder / LAST, link)
        link.replace(self.folder / name)
