"""The order of samples: a pure function of (seed, epoch, clip length, stream), whatever the hardware.

Ranks, workers and restarts only decide who reads which part of one global sequence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def random_for(seed: int, *key: int | str) -> np.random.Generator:
    """Return a generator that depends on nothing but its arguments."""
    plain = tuple(k if isinstance(k, str) else int(k) for k in (seed, *key))  # NumPy's integers print otherwise
    digest = hashlib.sha256(repr(plain).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


@dataclass(frozen=True)
class ClipSequence:
    """All clips of one epoch, in order.

    Attributes:
        case_ids: Per sample.
        starts: First slice per sample.
        clip_length: Frames per clip.
        epoch: The epoch that this is the order of.
        dropped: Samples below one global batch that this epoch leaves out.
        short_cases: Cases with fewer slices than a clip has frames: they are skipped and counted.
    """

    case_ids: tuple[str, ...]
    starts: NDArray[np.int64]
    clip_length: int
    epoch: int
    dropped: int
    short_cases: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.starts)


def clip_sequence(
    slices: Mapping[str, int],
    *,
    seed: int,
    epoch: int,
    clip_length: int,
    global_batch: int,
    stride: int = 1,
    limit: int = 0,
    stream: str = "train",
) -> ClipSequence:
    """Return the clips of an epoch: every start of every case, permuted, cut to whole global batches.

    Args:
        slices: Slices per case.
        seed: Of the run.
        epoch: Counts from 0.
        clip_length: Frames per clip.
        global_batch: Samples per optimiser step over all ranks.
        stride: Between neighbouring starts; the film's last clip is always there.
        limit: Clips per epoch; 0 for all.
        stream: Names independent sequences.
    """
    names, starts, short = [], [], []
    for case_id in sorted(slices):
        last = slices[case_id] - clip_length
        if last < 0:
            short.append(case_id)
            continue
        first = np.unique(np.append(np.arange(0, last + 1, stride), last))
        starts.append(first)
        names += [case_id] * len(first)
    every = np.concatenate(starts) if starts else np.zeros(0, np.int64)
    order = random_for(seed, stream, epoch, clip_length).permutation(len(every))
    if limit:
        order = order[:limit]
    whole = len(order) // global_batch * global_batch
    dropped, order = len(order) - whole, order[:whole]
    return ClipSequence(
        tuple(names[i] for i in order), every[order].astype(np.int64), clip_length, epoch, dropped, tuple(short)
    )


def rank_share(
    step: int, *, rank: int, ranks: int, batch: int, accumulate: int, global_batch: int
) -> NDArray[np.int64]:
    """Return which samples of the sequence a rank reads at its ``step``-th batch (steps count micro-batches)."""
    if ranks * batch * accumulate != global_batch:
        raise ValueError(f"{ranks} x {batch} x {accumulate} is not the global batch {global_batch}")
    whole, micro = divmod(step, accumulate)
    first = whole * global_batch + micro * ranks * batch + rank * batch
    return np.arange(first, first + batch)
