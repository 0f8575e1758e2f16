"""The order of samples is a function of its arguments and nothing else."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.stream.sampler import clip_sequence, micro_batch, pair_sequence, random_for, rank_share, unpaired_targets

FILMS = {"c": 7, "a": 12, "b": 3}
FROZEN_PAIRS = [(("b", "a"), ("x", 0)), (("a", "b"), ("x", 0)), (("b", "a"), ("x", 0))]
OPTIONS = {"seed": 3, "epoch": 0, "clip_length": 4, "global_batch": 1}
films = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(1, 20), max_size=6)


def samples(sequence):
    return list(zip(sequence.case_ids, sequence.starts.tolist(), strict=True))


@given(films, st.integers(1, 8), st.integers(1, 4), st.integers(1, 5))
def test_an_epoch_holds_every_clip_once_but_for_what_is_counted_as_dropped(slices, length, stride, batch):
    sequence = clip_sequence(slices, seed=1, epoch=2, clip_length=length, global_batch=batch, stride=stride)
    seen = samples(sequence)
    assert len(set(seen)) == len(seen) == len(sequence)
    assert len(seen) % batch == 0
    assert sequence.dropped < batch
    assert all(0 <= start <= slices[case] - length for case, start in seen)
    expected = {
        (case, start)
        for case, count in slices.items()
        for start in {*range(0, count - length + 1, stride), *([count - length] if count >= length else [])}
    }
    assert set(seen) <= expected
    assert len(expected) == len(seen) + sequence.dropped
    assert sequence.short_cases == tuple(sorted(case for case, count in slices.items() if count < length))


def test_the_last_clip_of_a_film_is_there_whatever_the_stride():
    seen = samples(clip_sequence({"a": 12}, **{**OPTIONS, "clip_length": 5}, stride=4))
    assert sorted(seen) == [("a", 0), ("a", 4), ("a", 7)]


def test_the_order_is_the_same_again_and_does_not_depend_on_the_order_of_cases():
    first = samples(clip_sequence(FILMS, **OPTIONS))
    assert samples(clip_sequence(dict(reversed(FILMS.items())), **OPTIONS)) == first
    numbers = {key: np.int64(value) for key, value in OPTIONS.items()}
    assert samples(clip_sequence(FILMS, **numbers)) == first


def test_the_order_is_frozen():
    """A change here makes runs that are under way go on with other samples."""
    assert samples(clip_sequence({"a": 6}, **OPTIONS)) == [("a", 1), ("a", 0), ("a", 2)]


@pytest.mark.parametrize("change", [{"seed": 4}, {"epoch": 1}, {"stream": "target"}])
def test_seed_epoch_and_stream_change_the_order_and_not_the_content(change):
    one, other = (samples(clip_sequence(FILMS, **{**OPTIONS, **c})) for c in ({}, change))
    assert one != other
    assert sorted(one) == sorted(other)


def test_epochs_differ_from_each_other():
    orders = [tuple(samples(clip_sequence(FILMS, **{**OPTIONS, "epoch": e}))) for e in range(20)]
    assert len(set(orders)) == 20


def test_a_limit_cuts_the_epoch_and_other_epochs_see_other_clips():
    epochs = [samples(clip_sequence({"a": 60}, **{**OPTIONS, "epoch": e}, limit=10)) for e in range(12)]
    assert all(len(e) == 10 for e in epochs)
    assert len({s for e in epochs for s in e}) > 45


def test_fewer_clips_than_a_batch_are_an_empty_epoch_and_all_are_dropped():
    sequence = clip_sequence({"a": 5}, **{**OPTIONS, "global_batch": 3})
    assert (len(sequence), sequence.dropped) == (0, 2)
    assert len(clip_sequence({}, **OPTIONS)) == 0


@given(films, films, st.integers(1, 4), st.integers(0, 3))
def test_unpaired_targets_come_equally_often_one_for_each_sample(sources, targets, length, epoch):
    options = {"seed": 1, "epoch": epoch, "clip_length": length, "global_batch": 2}
    sequence = clip_sequence(sources, **options)
    drawn = unpaired_targets(targets, sequence, seed=1)
    everything = set(samples(clip_sequence(targets, **{**options, "global_batch": 1})))
    assert len(drawn) == (len(sequence) if everything else 0)
    counts = Counter(samples(drawn))
    assert set(counts) <= everything
    assert max(counts.values(), default=0) - min((counts[clip] for clip in everything), default=0) <= 1
    assert drawn.short_cases == tuple(sorted(case for case, count in targets.items() if count < length))


def test_unpaired_targets_have_an_order_of_their_own_in_every_epoch():
    """The same films on both sides, and yet no sample keeps its pair but by chance."""
    sources = [clip_sequence({"a": 200}, **{**OPTIONS, "epoch": epoch}) for epoch in range(2)]
    targets = [unpaired_targets({"a": 200}, sequence, seed=3) for sequence in sources]
    assert all(sorted(samples(s)) == sorted(samples(t)) for s, t in zip(sources, targets, strict=True))
    assert samples(targets[0]) != samples(targets[1])
    for sequence, target in zip(sources, targets, strict=True):
        assert np.sum(sequence.starts == target.starts) < 8
    assert samples(unpaired_targets({"a": 200}, sources[0], seed=3)) == samples(targets[0])


def test_the_order_of_unpaired_targets_is_frozen():
    sequence = clip_sequence({"a": 7}, **OPTIONS)
    assert samples(unpaired_targets({"b": 6}, sequence, seed=3)) == [("b", 1), ("b", 0), ("b", 2), ("b", 2)]


@given(st.dictionaries(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), films), st.integers(1, 4))
def test_every_pair_of_modalities_comes_equally_often_and_its_clips_too(slices, batch):
    options = {"seed": 1, "epoch": 2, "clip_length": 3, "global_batch": batch}
    sequence = pair_sequence(slices, **options)
    clips = {pair: samples(clip_sequence(cases, **{**options, "global_batch": 1})) for pair, cases in slices.items()}
    clips = {pair: found for pair, found in clips.items() if found}
    assert len(sequence) + sequence.dropped == sum(map(len, clips.values()))
    assert len(sequence) % batch == 0 and sequence.dropped < batch
    seen = Counter(sequence.pairs)
    assert max(seen.values(), default=0) - min((seen[pair] for pair in clips), default=0) <= 1
    for pair, found in clips.items():
        own = Counter(s for s, p in zip(samples(sequence), sequence.pairs, strict=True) if p == pair)
        assert set(own) <= set(found)
        assert max(own.values(), default=0) - min((own[clip] for clip in found), default=0) <= 1


def test_the_order_of_pairs_is_frozen():
    slices = {("a", "b"): {"x": 4}, ("b", "a"): {"x": 3}}
    sequence = pair_sequence(slices, **{**OPTIONS, "clip_length": 3})
    assert list(zip(sequence.pairs, samples(sequence), strict=True)) == FROZEN_PAIRS
    assert len(pair_sequence(slices, **{**OPTIONS, "clip_length": 3}, limit=2)) == 2
    assert pair_sequence({("a", "b"): {"x": 2}}, **OPTIONS).short_cases == ("x",)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_ranks_divide_every_global_batch_exactly_and_in_order(ranks, accumulate, batch):
    whole = ranks * accumulate * batch
    assert micro_batch(whole, ranks=ranks, accumulate=accumulate) == batch
    shares = [
        rank_share(sample, rank=rank, ranks=ranks, batch=batch)
        for sample in range(0, 3 * whole, ranks * batch)
        for rank in range(ranks)
    ]
    assert all(len(share) == batch for share in shares)
    assert np.concatenate(shares).tolist() == list(range(3 * whole))


@pytest.mark.parametrize(
    ("ranks", "accumulate", "allowed"),
    [(4, 2, "a multiple of 8, or stream.accumulate 1, 3"), (5, 1, "a multiple of 5."), (1, 5, "1, 2, 3, 4, 6, 12")],
)
def test_a_division_that_is_not_the_global_batch_is_refused_with_those_that_are(ranks, accumulate, allowed):
    with pytest.raises(ConfigError) as caught:
        micro_batch(12, ranks=ranks, accumulate=accumulate)
    assert f"Found: 12 clips, {ranks} rank(s), accumulate {accumulate}. " in str(caught.value)
    assert allowed in str(caught.value)


def test_random_numbers_depend_on_the_key_alone():
    def draw(*key):
        return random_for(*key).random(3).tolist()

    assert draw(1, "a", 2) == draw(np.int64(1), "a", np.int32(2))
    assert len({tuple(draw(*k)) for k in [(1, "a", 2), (1, "a", 3), (1, "b", 2), (2, "a", 2), (1, "2"), (1, 2)]}) == 6
