"""Tiny methods, films and trainings for the tests of methods."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from miniatures import EARLIER, MINIATURE

from pipeline.config import build, compose
from pipeline.models.translator import Translator

MODALITIES = {"source_modality": "cbct", "target_modality": "ct"}


@cache
def composed(name: str, *overrides: str) -> dict[str, Any]:
    """Compose the node of a method's constructor in miniature; composing takes longer than a training step."""
    config = compose([f"model={name}", *MINIATURE[name], *(f"model.module.{override}" for override in overrides)])
    return config.model.module


def make_method(name: str, *overrides: str, seed: int = 0) -> Translator:
    """Build a method of conf/model in miniature; overrides are relative to its constructor's node.

    A method that begins with another one's weights has taken those of ``checkpoint_of`` that other one.
    """
    argument, earlier = EARLIER.get(name, ("", ""))
    begins = f"{argument}={checkpoint_of(earlier)}" if earlier else ""
    node = composed(name, *([begins] if begins else []), *overrides)
    torch.manual_seed(seed)
    method = build(node)
    if begins:
        method.begin()
    return method


@cache
def checkpoint_of(name: str) -> Path:
    """Return the checkpoint of a miniature that was trained for a step; it is gone when the tests end."""
    folder = tempfile.mkdtemp(prefix="cinevox_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder, f"{name}.ckpt")
    with warnings.catch_warnings():
        # Lightning's own, about a class of torch.utils that torch renamed.
        warnings.filterwarnings("ignore", message="`isinstance.treespec, LeafSpec.` is deprecated")
        train(make_method(name, seed=3), [make_batch(2)]).save_checkpoint(path)
    return path


def modalities_of(method: Translator) -> dict[str, str]:
    """Return a translation that the method can be asked for: one that only gives modalities back has no other."""
    if method.pairings == ("modalities",):
        return dict.fromkeys(MODALITIES, "ct")
    return MODALITIES


def make_film(frames: int = 4, size: int = 16, seed: int = 1, batch: int = 1) -> torch.Tensor:
    """Return a smooth film (batch, frames, 1, size, size) in [-1, 1] that drifts by a pixel per frame."""
    noise = torch.randn(batch, 1, size, size, generator=torch.Generator().manual_seed(seed))
    still = torch.tanh(2 * torch.nn.functional.avg_pool2d(noise, 5, 1, 2))
    return torch.stack([still.roll(frame, -1) for frame in range(frames)], 1)


def make_batch(frames: int = 4, size: int = 16, seed: int = 1, batch: int = 1) -> dict[str, Any]:
    """Return a batch as the stream gives it."""
    source = make_film(frames, size, seed, batch)
    return {
        "source": source,
        "target": (0.8 * source + 0.1).clone(),
        "mask": torch.ones_like(source),
        "case_id": ["toy"] * batch,
        **MODALITIES,
        "slice_index": torch.arange(frames).expand(batch, frames),
        "sample_index": torch.arange(batch),
    }


def train(method: Translator, batches: list[dict[str, Any]], resume: Path | None = None, **settings: Any) -> pl.Trainer:
    """Train on the batches once (or for ``max_epochs``), on the CPU, writing nothing."""
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        **({"max_epochs": 1} | settings),
    )
    loader = torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(method, loader, ckpt_path=resume, weights_only=True)
    return trainer


def weights_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of all weights."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Return whether two sets of weights are equal bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def draw_head(method: Translator) -> None:
    """Give a regression's head weights: it starts at zero, and then sees nothing but the source it is added to."""
    for network in (method.network, method.averaged(method.network)):
        torch.nn.init.normal_(network.head[1].weight, 0.0, 0.1)
