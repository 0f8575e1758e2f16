"""Which clips come next is the datamodule's state; what the shards cannot serve is refused at the start."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import configuration, film, write_shards

from pipeline.errors import ConfigError, DataError
from pipeline.records import Plan
from pipeline.stream.datamodule import ClipDataModule, Position, as_planned, clip_length_at
from pipeline.stream.store import SliceStore

FILMS = [film("a", 9), film("b", 6), film("c", 30)]
SHORT = ("stream.clip_length=3", "stream.clip_growth=1", "stream.global_batch=2")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = write_shards(tmp_path_factory.mktemp("shards"), FILMS, splits={"c": "test"})
    with SliceStore(folder) as opened:
        yield opened


@pytest.fixture(scope="module")
def long_store(tmp_path_factory):
    with SliceStore(write_shards(tmp_path_factory.mktemp("long"), [film("a", 16), film("b", 10)])) as opened:
        yield opened


def module(store, *overrides):
    return ClipDataModule(store, configuration(*(overrides or SHORT)))


def train(data, steps):
    """Walk on for some steps; returns the samples that were seen."""
    seen = []
    while len(seen) < steps:
        for batch in data.train_dataloader():
            seen.append((batch["case_id"], batch["slice_index"].tolist(), batch["source"].clone()))
            data.advance()
            if len(seen) == steps:
                break
    return seen


def same(one, other):
    return all(a[:2] == b[:2] and torch.equal(a[2], b[2]) for a, b in zip(one, other, strict=True))


def test_only_training_cases_are_read(store):
    assert {case for names, _, _ in train(module(store), 5) for case in names} == {"a", "b"}


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 6, 9, 10])
def test_a_run_resumed_from_its_state_goes_on_with_exactly_the_next_sample(store, stop):
    whole = train(module(store), 13)
    first = module(store)
    head = train(first, stop)
    state = first.state_dict()
    assert all(type(value) is int for value in state.values())
    second = module(store)
    second.load_state_dict(dict(state))
    assert same([*head, *train(second, 13 - stop)], whole)


def test_the_position_counts_samples_and_epochs(store):
    data = module(store)
    train(data, 7)
    assert data.position == Position(epoch=1, sample=4, clip_length=3)
    train(data, 3)
    assert data.position == Position(epoch=2, sample=0, clip_length=0)


def test_the_clip_length_doubles_at_equal_parts_of_the_budget():
    stream = configuration("stream.clip_length=6", "stream.clip_growth=3", "stream.clip_limit=20").stream
    lengths = [clip_length_at(stream, share) for share in (0, 0.33, 0.34, 0.66, 0.67, 1.0)]
    assert lengths == [6, 6, 12, 12, 20, 20]
    constant = configuration("stream.clip_length=6", "stream.clip_growth=1").stream
    assert {clip_length_at(constant, share) for share in (0, 0.5, 1.0)} == {6}


def test_clips_grow_between_epochs_never_within_one_and_never_beyond_the_films(store):
    data = module(store, "stream.clip_length=3", "stream.clip_growth=3", "stream.clip_limit=24")
    loader = data.train_dataloader()
    assert loader.sequence.clip_length == 3
    next(iter(loader))
    data.advance()
    data.budget_share = 1.0
    assert data.train_dataloader().sequence.clip_length == 3
    data.position = Position(epoch=1)
    assert data.train_dataloader().sequence.clip_length == 9


def test_a_resumed_epoch_keeps_its_clip_length(store):
    growing = ("stream.clip_length=3", "stream.clip_growth=2", "stream.clip_limit=24")
    data = module(store, *growing)
    train(data, 2)
    again = module(store, *growing)
    again.load_state_dict(data.state_dict())
    again.budget_share = 1.0
    assert again.train_dataloader().sequence.clip_length == 3


def test_cases_shorter_than_a_clip_are_counted_aloud(store, capsys):
    data = module(store, "stream.clip_length=7", "stream.clip_growth=1")
    data.train_dataloader()
    data.train_dataloader()
    assert capsys.readouterr().err == "1 case(s) shorter than 7 slices are skipped in this epoch\n"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stream.clip_length=10", "stream.clip_limit=10"], "every training film. Found: 10. Allowed: at most 9"),
        (["source=t1n"], "The shards hold no modality 't1n'. Allowed: cbct, ct"),
        (["target=t1n"], "The shards hold no modality 't1n'"),
        (["~stream.window.cbct"], "stream.window has no window for 'cbct', which is in HU"),
        (["stream.clip_length=3", "stream.global_batch=12"], "than stream.global_batch. Found: 11 clips"),
        ([*SHORT, "stream.clip_growth=3"], "An epoch of clips of 9 slices has fewer"),
    ],
)  # fmt: skip
def test_what_the_shards_cannot_serve_is_refused_at_the_start(store, overrides, message):
    with pytest.raises(ConfigError) as caught:
        module(store, *overrides)
    assert message in str(caught.value)


def test_each_fold_leaves_its_own_cases_and_those_that_validate_it_out_of_the_training(tmp_path):
    fold_of = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 1}
    films = [film(name, 6) for name in fold_of]
    with SliceStore(write_shards(tmp_path, films, folds=fold_of)) as store:
        trained = [set(module(store, *SHORT, f"fold={fold}").slices) for fold in range(5)]
        assert trained == [set("abcde"), {"c", "d"}, {"a", "d", "e"}, {"a", "b", "e"}, {"b", "c"}]
        assert [[c.case_id for c in store.index.select("test", fold)] for fold in range(1, 5)] == [
            ["a", "e"],
            ["b"],
            ["c"],
            ["d"],
        ]
        assert {c.case_id for c in store.index.select("validation", 4)} == {"a", "e"}
        with pytest.raises(ConfigError, match=r"no such fold\. Found: fold=5\. Allowed: 1 to 4"):
            module(store, *SHORT, "fold=5")


def test_a_fold_of_shards_without_folds_is_refused(store):
    with pytest.raises(ConfigError, match=r"not dealt to folds. Found: fold=1. Allowed: 0. Set cohort.split.folds"):
        module(store, *SHORT, "fold=1")


def test_cases_with_one_modality_each_are_for_unpaired_training(tmp_path):
    """No case has its pair: sources are of some patients, targets of others."""
    films = [film(name, 6, modalities=(kind,)) for name, kind in (("a", "cbct"), ("b", "ct"), ("c", "cbct"))]
    with SliceStore(write_shards(tmp_path, films)) as store:
        with pytest.raises(DataError) as caught:
            module(store, *SHORT)
        message = "3 of the training cases have only one of 'cbct' and 'ct': a, b, c. Leave them out"
        assert message in str(caught.value) and "stream.pairing=unpaired" in str(caught.value)
        data = module(store, *SHORT, "stream.pairing=unpaired")
        batches = [(batch["case_id"], batch["target_case_id"]) for batch in data.train_dataloader()]
        assert len(batches) == 4
        assert {name for sources, _ in batches for name in sources} == {"a", "c"}
        assert {name for _, targets in batches for name in targets} == {"b"}


def test_shards_without_a_training_case_are_refused(tmp_path):
    with (
        SliceStore(write_shards(tmp_path, FILMS[:1], splits={"a": "test"})) as store,
        pytest.raises(DataError, match="hold no training case"),
    ):
        module(store)


class FakeTrainer:
    def __init__(self, world_size, global_rank=0):
        self.world_size, self.global_rank = world_size, global_rank


DIVISIONS = [(ranks, accumulate) for ranks in (1, 2, 4) for accumulate in (1, 2)]
GROWING = ("stream.clip_length=2", "stream.clip_growth=2", "stream.global_batch=8", "stream.clips_per_epoch=21")
PAIRINGS = ["paired", "unpaired", "every_pair", "modalities"]
PLAIN_STREAM = ("stream.threads=1", "stream.prefetch=1")


def every_rank(store, ranks, accumulate, *, state=None, pairing="paired"):
    """One datamodule per rank, as the processes of a distributed run hold them."""
    modules = []
    for rank in range(ranks):
        data = module(store, *GROWING, *PLAIN_STREAM, f"stream.accumulate={accumulate}", f"stream.pairing={pairing}")
        data.trainer = FakeTrainer(ranks, rank)
        if state is not None:
            data.load_state_dict(dict(state))
        modules.append(data)
    return modules


def walk(modules, steps):
    """Take optimiser steps on all ranks at once; returns epoch, sample, cases and slices in the global order."""
    seen, taken = [], 0
    while taken < steps:
        loaders = [data.train_dataloader() for data in modules]
        assert len({len(loader) for loader in loaders}) == 1  # no rank waits for another one
        for batches in zip(*loaders, strict=True):
            epoch = loaders[0].sequence.epoch
            for batch in batches:
                samples = [batch["sample_index"].tolist(), batch["case_id"], batch["slice_index"].tolist()]
                if "target_case_id" in batch:
                    samples += [batch["target_case_id"], batch["target_slice_index"].tolist()]
                if isinstance(batch["source_modality"], list):
                    samples += [batch["source_modality"], batch["target_modality"]]
                seen += [(epoch, *sample) for sample in zip(*samples, strict=True)]
            for data in modules:
                data.advance()
            taken += 1
            if taken == steps:
                break
    return seen


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_the_sequence_of_samples_is_the_same_whatever_the_ranks_and_the_accumulation(long_store, pairing):
    orders = [walk(every_rank(long_store, *division, pairing=pairing), 5) for division in DIVISIONS]
    assert len(orders[0]) == 40
    assert all(order == orders[0] for order in orders)
    assert [sample[1] for sample in orders[0]] == [*range(16), *range(16), *range(8)]


@given(st.sampled_from(DIVISIONS), st.sampled_from(DIVISIONS), st.integers(0, 4), st.sampled_from(PAIRINGS))
@settings(max_examples=25)
def test_a_run_goes_on_exactly_on_another_number_of_ranks(long_store, before, after, stop, pairing):
    whole = walk(every_rank(long_store, 1, 1, pairing=pairing), 5)
    first = every_rank(long_store, *before, pairing=pairing)
    head = walk(first, stop)
    states = [data.state_dict() for data in first]
    assert all(state == states[0] for state in states)
    assert [*head, *walk(every_rank(long_store, *after, state=states[0], pairing=pairing), 5 - stop)] == whole


def test_a_position_beyond_a_shortened_epoch_is_the_next_epoch(store):
    data = module(store, *SHORT)
    data.load_state_dict({"epoch": 2, "sample": 99, "clip_length": 3})
    assert data.train_dataloader().sequence.epoch == 3
    data.load_state_dict({"epoch": 2, "sample": 5, "clip_length": 3})
    assert data.train_dataloader().first_sample == 4


def test_a_global_batch_that_the_ranks_cannot_divide_is_refused(store):
    data = module(store)
    data.trainer = FakeTrainer(2)
    assert data.train_dataloader().batch == 1
    data.trainer = FakeTrainer(3)
    with pytest.raises(
        ConfigError,
        match=r"divided among the ranks .* Found: 2 clips, 3 rank\(s\), accumulate 1. Allowed: a multiple of 3",
    ):
        data.train_dataloader()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("auto", "auto"), (6, 24)),
        (("4", "auto"), (4, 24)),
        (("auto", "5"), (5, 5)),
        (("30", "auto"), (30, 30)),
        (("4", "9"), (4, 9)),
    ],
)
def test_clip_lengths_that_are_auto_are_the_planned_ones_and_what_is_set_wins(store, words, expected):
    plan = Plan(schema=1, spacing_mm=(2.5, 1, 1), size=(6, 8), clip_length=6, clip_limit=24, memory_gib=8, reasons=[])
    config = configuration(f"stream.clip_length={words[0]}", f"stream.clip_limit={words[1]}")
    stream = as_planned(config, store.index.model_copy(update={"plan": plan})).stream
    assert (stream.clip_length, stream.clip_limit) == expected


def test_auto_without_a_plan_says_what_to_set(store):
    with pytest.raises(ConfigError, match="have no plan"):
        as_planned(configuration("stream.clip_length=auto"), store.index)


@pytest.fixture(scope="module")
def mixed_store(tmp_path_factory):
    """Cases with three modalities, two and one."""
    films = [
        film("a", 9, modalities=("ct", "t1n", "t2w")),
        film("b", 6, modalities=("t1n", "t2w")),
        film("c", 8, modalities=("ct",)),
    ]
    units = {"t1n": "a.u.", "t2w": "a.u."}
    with SliceStore(write_shards(tmp_path_factory.mktemp("mixed"), films, units=units)) as opened:
        yield opened


def test_every_pair_is_learnt_from_the_cases_that_have_it(mixed_store):
    data = module(mixed_store, *SHORT, "stream.pairing=every_pair")
    names = ["ct:t1n", "ct:t2w", "t1n:ct", "t1n:t2w", "t2w:ct", "t2w:t1n"]
    assert [":".join(pair) for pair in data.pairs] == names
    assert data.pairs["t1n", "t2w"] == {"a": 9, "b": 6} and data.pairs["ct", "t2w"] == {"a": 9}
    for batch in data.train_dataloader():
        for case_id, source, target in zip(*(batch[k] for k in KEYS), strict=True):
            assert case_id in data.pairs[source, target]


KEYS = ("case_id", "source_modality", "target_modality")


def test_frames_are_those_of_the_pair_that_is_named(mixed_store):
    data = module(mixed_store, *SHORT, "stream.pairing=every_pair", "stream.outside_mask=keep", *STILL)
    for batch in data.train_dataloader():
        for place, source in enumerate(batch["source_modality"]):
            first = int(batch["slice_index"][place, 0])
            stored = mixed_store.film(batch["case_id"][place], source)[source][first : first + 3]
            low, high = (0.0, 1000.0) if source != "ct" else (-1024.0, 2048.0)
            expected = ((stored.astype("float64") - low) / (high - low) * 2 - 1).clip(-1, 1)
            assert abs(batch["source"][place, :, 0].numpy() - expected).max() < 1e-5


STILL = [f"stream.augment.{name}=0" for name in ("flip", "rotate_degrees", "scale", "shift_pixels", "intensity")]


def test_modalities_are_their_own_targets_also_when_augmented(mixed_store):
    data = module(mixed_store, *SHORT, "stream.pairing=modalities")
    seen = set()
    for batch in data.train_dataloader():
        assert batch["source_modality"] == batch["target_modality"]
        assert torch.equal(batch["source"], batch["target"])
        seen |= set(batch["source_modality"])
    assert seen == {"ct", "t1n", "t2w"}


def test_pairs_that_no_case_has_are_refused_with_those_that_there_are(mixed_store, store):
    with pytest.raises(ConfigError, match=r"Found: cbct:ct\. Allowed: ct:t1n, ct:t2w, t1n:ct"):
        module(mixed_store, *SHORT, "stream.pairing=every_pair", "stream.pairs=['cbct:ct']")
    data = module(mixed_store, *SHORT, "stream.pairing=every_pair", "stream.pairs=['t2w:ct']")
    assert list(data.pairs) == [("t2w", "ct")]
    with pytest.raises(ConfigError, match="one modality twice"):
        configuration("stream.pairing=every_pair", "stream.pairs=['ct:ct']")
    with pytest.raises(ConfigError, match="goes with"):
        configuration("stream.pairs=['ct:cbct']")
