"""The order of samples that come out of shards in order: a pure function of (seed, epoch, clip length, streams).

An epoch's shards are permuted and dealt to streams, one per rank that the epoch began with. A stream's clips come out
of its shards one after another, through a shuffle buffer. Of each global batch every stream gives as many samples, so
that all ranks take the same number of steps whatever their shards hold, and the epoch's samples are known before a byte
is fetched: a resumed run reads what is left, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.stream.sampler import ClipSequence, clips, random_for


@dataclass(frozen=True)
class ShardStream:
    """One stream of an epoch: which shards it reads, in order, and when each of their clips becomes a sample.

    Attributes:
        shards: By number, in the order of reading.
        case_ids: Per clip, as they come out of the shards.
        starts: First slice per clip.
        samples: The sample of the epoch that a clip becomes; -1 for those that are left out.
    """

    shards: tuple[int, ...]
    case_ids: tuple[str, ...]
    starts: NDArray[np.int64]
    samples: NDArray[np.int64]


@dataclass(frozen=True)
class StreamedSequence(ClipSequence):
    """All clips of an epoch as samples, and the streams that they come from."""

    streams: tuple[ShardStream, ...] = ()


def shuffled(count: int, buffer: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Return an order of ``count`` arrivals: each is drawn from a buffer that the next arrival fills up again.

    The k-th to leave is one of the first ``k + buffer`` to arrive.
    """
    held = list(range(min(buffer, count)))
    order = np.empty(count, np.int64)
    draws = random.random(count)
    for k in range(count):
        place = int(draws[k] * len(held))
        order[k] = held[place]
        if k + buffer < count:
            held[place] = k + buffer
        else:
            held[place] = held[-1]
            held.pop()
    return order


def streamed_sequence(
    slices: Mapping[str, int],
    shards: Sequence[Sequence[str]],
    *,
    seed: int,
    epoch: int,
    clip_length: int,
    global_batch: int,
    streams: int,
    buffer: int,
    stride: int = 1,
    limit: int = 0,
) -> StreamedSequence:
    """Return the clips of an epoch in the order of their shards.

    Args:
        slices: Slices per training case.
        shards: The cases of every shard, in the order in which they lie there; others than training cases are passed.
        seed: Of the run.
        epoch: Counts from 0.
        clip_length: Frames per clip.
        global_batch: Samples per optimiser step over all ranks.
        streams: How many shards are read side by side: a multiple of the ranks, a divisor of the global batch.
        buffer: Clips that a sample is drawn from.
        stride: Between neighbouring starts; the film's last clip is always there.
        limit: Clips per epoch; 0 for all.

    Raises:
        ConfigError: Fewer shards with clips than streams, or too few clips in a stream's for one step.
    """
    names, starts, short = clips(slices, clip_length, stride)
    of_case: dict[str, list[int]] = {}
    for name, start in zip(names, starts.tolist(), strict=True):
        of_case.setdefault(name, []).append(start)
    counts = {n: sum(len(of_case.get(case, ())) for case in shard) for n, shard in enumerate(shards)}
    filled = [number for number, count in counts.items() if count]
    if len(filled) < streams:
        raise ConfigError(
            "There are fewer shards with training clips than ranks, and a shard is read by one rank",
            value=f"{len(filled)} shard(s), {streams} rank(s), clips of {clip_length} slices",
            allowed=f"at most {len(filled)} rank(s)",
            remedy="Train on fewer ranks, or run 'cinevox preprocess' with a smaller preprocess.patients_per_shard",
        )
    dealt = _deal([filled[i] for i in random_for(seed, "shards", epoch).permutation(len(filled))], counts, streams)
    per_step = global_batch // streams
    fewest = min(sum(counts[number] for number in hand) for hand in dealt)
    if fewest < per_step:
        raise ConfigError(
            f"A rank's shards hold fewer clips of {clip_length} slices than its share of stream.global_batch",
            value=f"{fewest} clip(s)",
            allowed=f"at least {per_step}",
            remedy="Set a smaller stream.global_batch or a smaller stream.clip_limit, or train on fewer ranks",
        )
    steps = fewest // per_step
    if limit:
        steps = min(steps, limit // global_batch)
    total = steps * global_batch
    case_ids, firsts = np.empty(total, object), np.zeros(total, np.int64)
    found = []
    for place, hand in enumerate(dealt):
        arriving = [(case, start) for number in hand for case in shards[number] for start in of_case.get(case, ())]
        order = shuffled(len(arriving), buffer, random_for(seed, "buffer", epoch, clip_length, place))
        leaving = order[: steps * per_step]
        step, within = np.divmod(np.arange(len(leaving)), per_step)
        sample = step * global_batch + place * per_step + within
        samples = np.full(len(arriving), -1, np.int64)
        samples[leaving] = sample
        own = tuple(case for case, _ in arriving), np.array([start for _, start in arriving], np.int64)
        case_ids[sample] = np.array(own[0], object)[leaving]
        firsts[sample] = own[1][leaving]
        found.append(ShardStream(tuple(hand), *own, samples))
    dropped = len(names) - total
    return StreamedSequence(tuple(case_ids.tolist()), firsts, clip_length, epoch, dropped, short, streams=tuple(found))


def _deal(shards: Sequence[int], counts: Mapping[int, int], streams: int) -> list[list[int]]:
    """Give each shard in turn to the stream that has the fewest clips so far."""
    hands: list[list[int]] = [[] for _ in range(streams)]
    held = [0] * streams
    for number in shards:
        place = held.index(min(held))
        hands[place].append(number)
        held[place] += counts[number]
    return hands


def split_among(sequence: StreamedSequence, ranks: int) -> str:
    """Return one line on which rank reads how much of an epoch."""
    share = len(sequence.streams) // ranks
    own = [sequence.streams[rank * share : (rank + 1) * share] for rank in range(ranks)]
    shards = [sum(len(stream.shards) for stream in streams) for streams in own]
    samples = [sum(len(stream.starts) for stream in streams) for streams in own]
    if ranks <= 8:
        each = "; ".join(f"rank {r}: {s} ({c} clips)" for r, (s, c) in enumerate(zip(shards, samples, strict=True)))
    else:
        each = f"{min(shards)} to {max(shards)} ({min(samples)} to {max(samples)} clips) for each of {ranks} ranks"
    left = f", {sequence.dropped} clips are left out of this epoch" if sequence.dropped else ""
    return f"Shards {each}; {len(sequence) // ranks} samples for every rank{left}"
