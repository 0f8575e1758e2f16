"""The order of samples: a pure function of (seed, epoch, clip length, stream), whatever the hardware.

Ranks, workers and restarts only decide who reads which part of one global sequence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError

Pair = tuple[str, str]  # source and target modality


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
        pairs: Source and target modality per sample; empty where all samples have the same.
    """

    case_ids: tuple[str, ...]
    starts: NDArray[np.int64]
    clip_length: int
    epoch: int
    dropped: int
    short_cases: tuple[str, ...]
    pairs: tuple[Pair, ...] = ()

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
    names, starts, short = clips(slices, clip_length, stride)
    order = random_for(seed, stream, epoch, clip_length).permutation(len(starts))
    if limit:
        order = order[:limit]
    whole = len(order) // global_batch * global_batch
    dropped, order = len(order) - whole, order[:whole]
    return ClipSequence(tuple(names[i] for i in order), starts[order], clip_length, epoch, dropped, short)


def unpaired_targets(
    slices: Mapping[str, int], sequence: ClipSequence, *, seed: int, stride: int = 1, stream: str = "target"
) -> ClipSequence:
    """Return a target clip for each sample of ``sequence``, whatever its source is.

    They come from permutations of their own. One that is used up is followed by another, so that no clip comes twice
    before each has come once; of one that is longer the epoch takes the beginning, and other epochs other clips.

    Args:
        slices: Slices per case that has the target.
        sequence: Of the sources: it decides how many samples an epoch has.
        seed: Of the run.
        stride: Between neighbouring starts.
        stream: Names independent sequences.
    """
    names, starts, short = clips(slices, sequence.clip_length, stride)
    order = _endless(len(starts), len(sequence), seed, stream, sequence.epoch, sequence.clip_length)
    return ClipSequence(tuple(names[i] for i in order), starts[order], sequence.clip_length, sequence.epoch, 0, short)


def pair_sequence(
    slices: Mapping[Pair, Mapping[str, int]],
    *,
    seed: int,
    epoch: int,
    clip_length: int,
    global_batch: int,
    stride: int = 1,
    limit: int = 0,
    stream: str = "train",
) -> ClipSequence:
    """Return an epoch in which every pair of modalities comes equally often, whatever the cases hold.

    Samples come in rounds, each of them a permutation of all pairs. A pair takes its clips from permutations of its
    own, as an unpaired target does. An epoch has as many samples as the pairs have clips together.

    Args:
        slices: Per pair, slices per case that has both modalities.
        seed: Of the run.
        epoch: Counts from 0.
        clip_length: Frames per clip.
        global_batch: Samples per optimiser step over all ranks.
        stride: Between neighbouring starts.
        limit: Clips per epoch; 0 for all.
        stream: Names independent sequences.
    """
    found = {pair: clips(slices[pair], clip_length, stride) for pair in sorted(slices)}
    short = tuple(sorted({case_id for _, _, skipped in found.values() for case_id in skipped}))
    found = {pair: clips for pair, clips in found.items() if len(clips[1])}
    count = sum(len(starts) for _, starts, _ in found.values())
    count = min(count, limit) if limit else count
    whole = count // global_batch * global_batch
    pairs, key = list(found), (epoch, clip_length)
    rounds = -(-whole // len(pairs)) if pairs else 0
    turns = [random_for(seed, stream, "pairs", *key, turn).permutation(len(pairs)) for turn in range(rounds)]
    drawn = {pair: _endless(len(starts), rounds, seed, stream, *pair, *key) for pair, (_, starts, _) in found.items()}
    samples = [(pairs[place], int(drawn[pairs[place]][turn])) for turn, order in enumerate(turns) for place in order]
    samples = samples[:whole]
    return ClipSequence(
        tuple(found[pair][0][clip] for pair, clip in samples),
        np.array([found[pair][1][clip] for pair, clip in samples], np.int64),
        clip_length,
        epoch,
        count - whole,
        short,
        tuple(pair for pair, _ in samples),
    )


def _endless(count: int, wanted: int, seed: int, *key: int | str) -> NDArray[np.int64]:
    """Return so many numbers below ``count``, none a second time before each has come once."""
    rounds = -(-wanted // count) if count else 0
    orders = [random_for(seed, *key, turn).permutation(count) for turn in range(rounds)]
    return np.concatenate(orders)[:wanted] if orders else np.zeros(0, np.int64)


def clips(
    slices: Mapping[str, int], clip_length: int, stride: int
) -> tuple[list[str], NDArray[np.int64], tuple[str, ...]]:
    """Return case and first slice of every clip, and the cases that are too short for one."""
    names, starts, short = [], [np.zeros(0, np.int64)], []
    for case_id in sorted(slices):
        last = slices[case_id] - clip_length
        if last < 0:
            short.append(case_id)
            continue
        first = np.unique(np.append(np.arange(0, last + 1, stride), last))
        starts.append(first)
        names += [case_id] * len(first)
    return names, np.concatenate(starts).astype(np.int64), tuple(short)


def micro_batch(global_batch: int, *, ranks: int, accumulate: int) -> int:
    """Return the clips of one rank's backward pass: global batch = ranks x micro-batch x accumulation.

    Raises:
        ConfigError: The global batch cannot be divided so.
    """
    if global_batch % (ranks * accumulate):
        fitting = [n for n in range(1, global_batch + 1) if global_batch % (ranks * n) == 0]
        raise ConfigError(
            "stream.global_batch cannot be divided among the ranks and stream.accumulate",
            value=f"{global_batch} clips, {ranks} rank(s), accumulate {accumulate}",
            allowed=f"a multiple of {ranks * accumulate}"
            + (f", or stream.accumulate {', '.join(map(str, fitting))}" if fitting else ""),
        )
    return global_batch // (ranks * accumulate)


def rank_share(sample: int, *, rank: int, ranks: int, batch: int) -> NDArray[np.int64]:
    """Return which samples a rank reads of the global batch that begins with ``sample`` of the sequence.

    A global batch is a stretch of the sequence, so that any number of ranks walks along the same order, and every
    rank takes as many steps as the others.
    """
    first = sample + rank * batch
    return np.arange(first, first + batch)
