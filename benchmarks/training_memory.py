"""Memory of one training step, in bytes per pixel: the 'memory' of conf/model/*.yaml.

  python benchmarks/training_memory.py model=vid2vid [model.module.generator.width=32 ...]

Trains one step on the CPU on clips of two lengths and counts what autograd keeps (weights left out) at its highest,
and the clip with its targets. 'step' is what a step holds whatever the clip's length, 'frame' what each slice adds.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any

import pytorch_lightning as pl
import torch

from pipeline.config import build, compose

SIZE, LENGTHS = 64, (9, 12)  # the second temporal scale of vid2vid is awake in both


class Kept:
    """Counts the bytes of tensors that autograd keeps; each storage once."""

    def __init__(self, weights: set[int]) -> None:
        self.now = self.highest = 0
        self._weights, self._count = weights, {}

    def keep(self, tensor: torch.Tensor) -> Any:
        """Note a saved tensor."""
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        holder = Holder(tensor)
        if place in self._weights:
            return holder
        self._count[place] = self._count.get(place, 0) + 1
        if self._count[place] == 1:
            self.now += storage.nbytes()
            self.highest = max(self.highest, self.now)
        weakref.finalize(holder, self._let_go, place, storage.nbytes())
        return holder

    def _let_go(self, place: int, size: int) -> None:
        self._count[place] -= 1
        if not self._count[place]:
            del self._count[place]
            self.now -= size


class Holder:
    """Keeps one tensor alive."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def bytes_per_pixel(words: list[str], frames: int) -> float:
    """Return the highest count of one step on a clip."""
    torch.manual_seed(0)
    method = build(compose(words).model.module)
    film = torch.rand(1, frames, 1, SIZE, SIZE) * 2 - 1
    batch = {"source": film, "target": film.roll(1, -1), "mask": torch.ones_like(film), "case_id": ["a"]}
    batch |= {"slice_index": torch.arange(frames)[None], "sample_index": torch.zeros(1, dtype=torch.int64)}
    kept = Kept({p.untyped_storage().data_ptr() for p in method.parameters()})
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=-1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    with torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda holder: holder.tensor):
        trainer.fit(method, torch.utils.data.DataLoader([batch], batch_size=None))
    clip = sum(value.nbytes for value in batch.values() if isinstance(value, torch.Tensor))
    return (kept.highest + clip) / SIZE**2


def main() -> None:
    """Print the two numbers."""
    short, long = (bytes_per_pixel(sys.argv[1:], frames) for frames in LENGTHS)
    frame = (long - short) / (LENGTHS[1] - LENGTHS[0])
    print(f"memory: {{step: {max(short - LENGTHS[0] * frame, 0):.0f}, frame: {frame:.0f}}}")


if __name__ == "__main__":
    main()
