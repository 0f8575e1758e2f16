"""The threaded reader: clips of slices into reused buffers, in the training process.

Worker processes are not used: handing batches over costs more than decoding them. A batch is valid until the next
one is asked for; what survives a step must be cloned.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.imaging.normalise import normalise, window_for
from pipeline.stream.augment import Augmentation
from pipeline.stream.codec import MASK
from pipeline.stream.sampler import ClipSequence, rank_share
from pipeline.stream.store import SliceStore
from pipeline.stream_settings import StreamSettings


@dataclass(frozen=True)
class _Read:
    """What a sample takes from one case: which of 'source' and 'target', and of which modality where all have one."""

    sequence: ClipSequence
    frames: dict[str, str]
    mask: str  # its name in the batch
    stream: str  # of its augmentation's draws

    def modalities(self, index: int) -> dict[str, str]:
        """Return the modality of each name of a sample."""
        if not self.sequence.pairs:
            return self.frames
        return dict(zip(("source", "target"), self.sequence.pairs[index], strict=True))


@dataclass
class _Slot:
    """One batch's memory by name: float frames that the training sees, and stored integers to decode into."""

    frames: dict[str, NDArray[np.float32]]
    stored: dict[str, NDArray]
    pending: list[Future] = field(default_factory=list)


class ClipLoader:
    """Iterates over one epoch's batches of this rank, from ``first_sample`` (of all ranks) on.

    ``len()`` is what is left of the epoch: Lightning prefetches from loaders without a length, which would
    overwrite a buffer that is in use. ``wait_seconds`` sums the time in which the training waited for data.
    """

    def __init__(
        self,
        store: SliceStore,
        sequence: ClipSequence,
        settings: StreamSettings,
        *,
        source: str,
        target: str,
        batch: int,
        rank: int = 0,
        ranks: int = 1,
        seed: int = 0,
        first_sample: int = 0,
        augment: bool = True,
        targets: ClipSequence | None = None,
    ) -> None:
        """Read ``sequence``, with the targets of the same clips, or unpaired ones from ``targets``."""
        self.store, self.sequence, self.settings = store, sequence, settings
        self.source, self.target, self.seed = source, target, seed
        self.batch, self.rank, self.ranks = batch, rank, ranks
        self.augment = augment
        self.first_sample = first_sample
        left = max(0, len(sequence) - first_sample)
        if left % self.samples_per_step:
            raise ValueError(f"{left} samples are no whole number of steps of {ranks} x {batch}")
        self.wait_seconds = 0.0
        self.targets = targets
        if targets is None:
            self._reads = [_Read(sequence, {"source": source, "target": target}, "mask", "augment")]
        else:
            self._reads = [
                _Read(sequence, {"source": source}, "mask", "augment"),
                _Read(targets, {"target": target}, "target_mask", "augment_target"),
            ]
        self._lowest = np.full(store.index.size, -1.0, np.float32)
        shape = (batch, sequence.clip_length, *store.index.size)
        self._slots = [self._slot(shape) for _ in range(settings.prefetch + 1)]

    def _slot(self, shape: tuple[int, ...]) -> _Slot:
        stored: dict[str, NDArray] = {}
        for read in self._reads:
            stored |= {name: np.zeros(shape, np.int16) for name in read.frames}
            stored[read.mask] = np.zeros(shape, np.uint8)
        return _Slot({name: np.zeros(shape, np.float32) for name in stored}, stored)

    @property
    def samples_per_step(self) -> int:
        """Samples that all ranks read together at each step."""
        return self.ranks * self.batch

    def __len__(self) -> int:
        return max(0, len(self.sequence) - self.first_sample) // self.samples_per_step

    def __iter__(self) -> Iterator[dict[str, Any]]:
        slots = self._slots
        with ThreadPoolExecutor(self.settings.threads, thread_name_prefix="reader") as pool:
            for ahead in range(min(len(slots) - 1, len(self))):
                self._submit(pool, slots[ahead], ahead)
            for step in range(len(self)):
                # The slot that is filled now held the batch before this one: its user has moved on.
                ahead = step + len(slots) - 1
                if ahead < len(self):
                    self._submit(pool, slots[ahead % len(slots)], ahead)
                slot = slots[step % len(slots)]
                start = time.perf_counter()
                for future in slot.pending:
                    future.result()
                self.wait_seconds += time.perf_counter() - start
                yield self._collate(slot, step)

    def _indices(self, step: int) -> NDArray[np.int64]:
        sample = self.first_sample + step * self.samples_per_step
        return rank_share(sample, rank=self.rank, ranks=self.ranks, batch=self.batch)

    def _submit(self, pool: ThreadPoolExecutor, slot: _Slot, step: int) -> None:
        slot.pending = [pool.submit(self._read, slot, b, int(i)) for b, i in enumerate(self._indices(step))]

    def _read(self, slot: _Slot, b: int, index: int) -> None:
        for read in self._reads:
            self._read_case(read, slot, b, index)

    def _read_case(self, read: _Read, slot: _Slot, b: int, index: int) -> None:
        case_id, start = read.sequence.case_ids[index], int(read.sequence.starts[index])
        names = read.modalities(index)
        stored = {modality: slot.stored[name][b] for name, modality in names.items()}
        stored[MASK] = slot.stored[read.mask][b]
        self._stored(case_id, start, index, stored)
        frames = {modality: slot.frames[name][b] for name, modality in names.items()}
        mask = slot.frames[read.mask][b]
        mask[...] = stored[MASK]
        if latents := self.store.index.latents:
            scales = self.store.cases[case_id].scale
            for modality, out in frames.items():
                np.multiply(stored[modality], np.float32(scales[modality] / latents.std), out=out)
        else:
            for modality, out in frames.items():
                physical_frames(self.store, case_id, modality, self.settings, stored[modality], out)
            self._prepare(read, names, frames, mask, index)
        if len(frames) < len(names):  # one modality is both
            slot.frames["source"][b][...] = slot.frames["target"][b]

    def _prepare(
        self,
        read: _Read,
        names: dict[str, str],
        frames: dict[str, NDArray[np.float32]],
        mask: NDArray[np.float32],
        index: int,
    ) -> None:
        """Augment the frames and the mask of a sample, and set what lies outside the mask."""
        if self.augment:
            size = self.store.index.size
            draw = Augmentation(self.settings.augment, size, self.seed, read.sequence.epoch, index, read.stream)
            draw.move(mask, nearest=True, outside=0.0)
            for modality, out in frames.items():
                draw.move(out)
                if self.store.index.modalities[modality].unit != "HU" and self.settings.augment.intensity:
                    draw.intensify(out)
                if (
                    modality == names.get("source")
                    and draw.faults
                    and self.store.index.modalities[modality].unit == "HU"
                ):
                    draw.distort(out, mask, window_for(modality, self.settings.window, {}))
        if self.settings.outside_mask == "lowest":
            for k, outside in enumerate((mask == 0).view(np.uint8)):
                for out in frames.values():
                    cv2.copyTo(self._lowest, outside, out[k])  # several times as fast as a boolean index

    def _stored(self, case_id: str, start: int, index: int, out: dict[str, NDArray]) -> None:
        """Put the stored values of sample ``index`` into ``out``; (clip length, rows, columns) each."""
        self.store.read(case_id, start, self.sequence.clip_length, out)

    def _collate(self, slot: _Slot, step: int) -> dict[str, Any]:
        indices = self._indices(step)
        unpaired = _names(self.targets, indices, "target_") if self.targets else {}
        return {
            **{name: self._channels(name, torch.from_numpy(array)) for name, array in slot.frames.items()},
            "latent": self.store.index.latents is not None,
            **_names(self.sequence, indices),
            **unpaired,
            "sample_index": torch.from_numpy(indices),
            **self._pairs(indices),
        }

    def _channels(self, name: str, film: torch.Tensor) -> torch.Tensor:
        """Return (batch, frames, rows, columns) with channels: one, or a latent's, which lie one below another."""
        if (latents := self.store.index.latents) is None:
            return film.unsqueeze(2)
        film = film.unflatten(2, (latents.channels, latents.size[0]))
        return film[:, :, :1] if name.endswith("mask") else film

    def _pairs(self, indices: NDArray[np.int64]) -> dict[str, Any]:
        """Return source, target and spacing: of the whole batch, or lists of each clip's own."""
        pairs = (
            [self.sequence.pairs[index] for index in indices] if self.sequence.pairs else [(self.source, self.target)]
        )
        columns = {
            "source_modality": [source for source, _ in pairs],
            "target_modality": [target for _, target in pairs],
            "spacing_mm": [self.store.spacing_mm(source) for source, _ in pairs],
        }
        return columns if self.sequence.pairs else {name: values[0] for name, values in columns.items()}


def _names(sequence: ClipSequence, indices: NDArray[np.int64], prefix: str = "") -> dict[str, Any]:
    starts = torch.from_numpy(sequence.starts[indices])
    return {
        f"{prefix}case_id": [sequence.case_ids[i] for i in indices],
        f"{prefix}slice_index": starts[:, None] + torch.arange(sequence.clip_length)[None, :],
    }


def physical_frames(
    store: SliceStore,
    case_id: str,
    modality: str,
    settings: StreamSettings,
    stored: NDArray[np.int16],
    out: NDArray[np.float32],
) -> None:
    """Turn stored integers into normalised frames, into ``out``."""
    case = store.cases[case_id]
    window = window_for(modality, settings.window, case.percentiles)
    scale = case.scale.get(modality, 1.0)
    # Dividing the window instead of multiplying the frames saves a pass over them.
    for image, frame in zip(stored, out, strict=True):  # a frame stays in the processor's cache, a clip does not
        normalise(image, (window[0] / scale, window[1] / scale), frame)
