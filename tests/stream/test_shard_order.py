"""The order of streamed samples: known before a byte is fetched, and as many steps for every rank."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.stream.sampler import clips, random_for
from pipeline.stream.shard_order import shuffled, split_among, streamed_sequence


def order(slices, per_shard, **changes):
    cases = list(slices)
    shards = [cases[i : i + per_shard] for i in range(0, len(cases), per_shard)]
    how = {"seed": 3, "epoch": 0, "clip_length": 3, "global_batch": 4, "streams": 2, "buffer": 5} | changes
    return streamed_sequence(slices, shards, **how)


SLICES = dict(zip("abcdefgh", (9, 14, 5, 7, 12, 3, 8, 10), strict=True))


def listed(sequence):
    return list(zip(sequence.case_ids, sequence.starts.tolist(), strict=True))


@given(st.integers(0, 200), st.integers(1, 40), st.integers(0, 9))
def test_a_buffer_shuffles_without_loss_and_looks_no_further_than_its_size(count, buffer, seed):
    found = shuffled(count, buffer, random_for(seed))
    assert sorted(found.tolist()) == list(range(count))
    assert all(arrival < k + buffer for k, arrival in enumerate(found.tolist()))
    if buffer == 1:
        assert found.tolist() == list(range(count))


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 20), min_size=2, max_size=12),
    st.integers(1, 3),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 3),
    st.integers(1, 30),
    st.integers(0, 3),
    st.sampled_from([0, 7]),
)
def test_ranks_take_equal_steps_and_no_clip_comes_twice(lengths, per_shard, streams, each, buffer, epoch, limit):
    slices = {f"c{n}": length for n, length in enumerate(lengths)}
    how = {"streams": streams, "global_batch": streams * each, "buffer": buffer, "epoch": epoch, "limit": limit}
    try:
        found = order(slices, per_shard, **how)
    except ConfigError:
        return
    names, starts, _ = clips(slices, 3, 1)
    every = set(zip(names, starts.tolist(), strict=True))
    samples = listed(found)
    assert len(set(samples)) == len(samples) <= (limit or len(every))
    assert set(samples) <= every
    assert len(samples) % (streams * each) == 0
    assert found.dropped == len(every) - len(samples)
    per_step = [[] for _ in found.streams]
    for place, stream in enumerate(found.streams):
        kept = stream.samples[stream.samples >= 0]
        per_step[place] = np.bincount(kept // (streams * each), minlength=len(samples) // (streams * each)).tolist()
        assert set(per_step[place]) <= {each}
        assert [samples[s] for s in kept] == [
            (case, start)
            for case, start, s in zip(stream.case_ids, stream.starts.tolist(), stream.samples, strict=True)
            if s >= 0
        ]
    shards = [number for stream in found.streams for number in stream.shards]
    assert len(shards) == len(set(shards))


def test_the_order_follows_from_seed_and_epoch_alone():
    again = order(SLICES, 2)
    assert listed(order(SLICES, 2)) == listed(again)
    for change in ({"seed": 4}, {"epoch": 1}, {"buffer": 6}):
        assert listed(order(SLICES, 2, **change)) != listed(again)
    epochs = {order(SLICES, 2, epoch=epoch).streams[0].shards for epoch in range(8)}
    assert len(epochs) > 2


def test_clips_come_in_the_order_of_the_shards_but_for_the_buffer():
    found = order(SLICES, 2, streams=1, buffer=1, global_batch=1)
    cases = [list(SLICES)[2 * n + k] for n in found.streams[0].shards for k in (0, 1)]
    assert list(dict.fromkeys(found.case_ids)) == cases


def test_fewer_shards_than_ranks_is_an_error_with_the_numbers():
    with pytest.raises(ConfigError, match=r"4 shard\(s\), 8 rank\(s\), clips of 3 slices.*at most 4"):
        order(SLICES, 2, streams=8, global_batch=8)
    # Of a shard whose cases are too short for a clip nothing can be read.
    with pytest.raises(ConfigError, match=r"1 shard\(s\), 2 rank\(s\)"):
        order({"a": 9, "b": 2}, 1)


def test_a_rank_with_too_few_clips_for_a_step_is_an_error_with_the_numbers():
    with pytest.raises(ConfigError, match=r"fewer clips of 3 slices.*2 clip\(s\)\. Allowed: at least 4"):
        order({"a": 9, "b": 4}, 1, global_batch=8)


def test_the_split_is_said_with_its_numbers():
    found = order(SLICES, 2)
    line = split_among(found, 2)
    clips_of = [len(stream.starts) for stream in found.streams]
    assert f"rank 0: 2 ({clips_of[0]} clips); rank 1: 2 ({clips_of[1]} clips)" in line
    assert f"{len(found) // 2} samples for every rank" in line
    assert f"{found.dropped} clips are left out" in line
    many = {f"c{n}": 4 for n in range(30)}
    assert "1 to 2 (2 to 4 clips) for each of 16 ranks" in split_among(order(many, 1, streams=16, global_batch=16), 16)
