"""The threaded reader hands out exactly the sequence's clips, in buffers that it uses again."""

import tarfile
import threading
import time

import numpy as np
import pytest
import torch
from makers import configuration, film, write_shards

from pipeline.errors import ArtifactError
from pipeline.imaging.normalise import normalise
from pipeline.stream import loader as loader_module
from pipeline.stream.augment import Augmentation
from pipeline.stream.loader import ClipLoader
from pipeline.stream.sampler import clip_sequence, unpaired_targets
from pipeline.stream.store import SliceStore

FILMS = [film(name, slices) for name, slices in (("a", 9), ("b", 6), ("c", 11))]
BY_NAME = {one.case_id: one for one in FILMS}
MOVES = ("flip", "rotate_degrees", "scale", "shift_pixels", "intensity")
STILL = dict.fromkeys([*MOVES, "source_offset_hu", "source_gain", "source_shading_hu"], 0.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with SliceStore(write_shards(tmp_path_factory.mktemp("shards"), FILMS)) as opened:
        yield opened


def stream(**changes):
    settings = configuration().stream
    plain = {**settings.model_dump(), "augment": STILL, "outside_mask": "keep", "threads": 3, "prefetch": 2}
    return type(settings).model_validate({**plain, **changes})


def loader(store, settings=None, *, batch=2, ranks=1, rank=0, accumulate=1, first_sample=0, length=3, epoch=0, **more):
    slices = {case.case_id: case.slices for case in store.index.cases}
    whole = batch * ranks * accumulate
    sequence = clip_sequence(slices, seed=5, epoch=epoch, clip_length=length, global_batch=whole)
    return ClipLoader(
        store, sequence, settings or stream(), source="cbct", target="ct", batch=batch,
        rank=rank, ranks=ranks, seed=5, first_sample=first_sample, **more,
    )  # fmt: skip


def copy(batch):
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def everything(source):
    return [copy(batch) for batch in source]


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[k], other[k]) if isinstance(one[k], torch.Tensor) else one[k] == other[k] for k in one
    )


def clip(case_id, start, length, part):
    one = BY_NAME[case_id]
    return (one.mask if part == "mask" else one.frames[part])[start : start + length]


def test_batches_hold_what_direct_computation_gives(store):
    source = loader(store)
    batches = everything(source)
    assert len(batches) == len(source) == 10
    seen = []
    for batch in batches:
        assert batch["source"].shape == batch["target"].shape == batch["mask"].shape == (2, 3, 1, 6, 8)
        assert batch["source"].dtype == torch.float32
        assert batch["spacing_mm"] == (1.0, 1.0, 1.0)
        assert (batch["source_modality"], batch["target_modality"]) == ("cbct", "ct")
        for b, case_id in enumerate(batch["case_id"]):
            index = batch["slice_index"][b].tolist()
            assert index == list(range(index[0], index[0] + 3))
            seen.append((case_id, index[0]))
            for name, part in (("source", "cbct"), ("target", "ct")):
                expected = normalise(clip(case_id, index[0], 3, part), (-1024, 2048))
                np.testing.assert_array_equal(batch[name][b, :, 0].numpy(), expected)
            np.testing.assert_array_equal(batch["mask"][b, :, 0].numpy(), clip(case_id, index[0], 3, "mask"))
    assert seen == list(zip(source.sequence.case_ids, source.sequence.starts.tolist(), strict=True))


def test_outside_the_mask_is_the_lowest_value(store):
    for batch in loader(store, stream(outside_mask="lowest")):
        for name in ("source", "target"):
            assert (batch[name][batch["mask"] == 0] == -1).all()
        assert (batch["source"][batch["mask"] == 1] > -1).any()


def test_augmentation_is_keyed_by_the_sample_whatever_the_division(store):
    settings = stream(augment={**STILL, "flip": 0.5, "shift_pixels": 2.0})
    whole = {int(i): b for batch in everything(loader(store, settings, batch=1)) for i, b in _samples(batch)}
    parts = {
        int(i): b
        for rank in (0, 1)
        for batch in everything(loader(store, settings, batch=2, ranks=2, rank=rank))
        for i, b in _samples(batch)
    }
    assert set(parts) <= set(whole)
    assert all(torch.equal(parts[i], whole[i]) for i in parts)
    index = next(i for i in whole if Augmentation(settings.augment, (6, 8), 5, 0, i).flip)
    sequence = loader(store, batch=1).sequence
    image = normalise(clip(sequence.case_ids[index], int(sequence.starts[index]), 3, "cbct"), (-1024, 2048))
    expected = Augmentation(settings.augment, (6, 8), 5, 0, index).move(image)
    np.testing.assert_array_equal(whole[index][:, 0].numpy(), expected)


def _samples(batch):
    return zip(batch["sample_index"].tolist(), batch["source"], strict=True)


@pytest.mark.parametrize("units", [{}, {"ct": "a.u."}])
def test_the_intensity_of_ct_is_never_changed_that_of_mr_is(tmp_path, units):
    with SliceStore(write_shards(tmp_path, FILMS[:1], units=units)) as mixed:
        settings = {"window": {"ct": (-1024, 2048), "cbct": (-1024, 2048)}}
        changed = everything(loader(mixed, stream(**settings, augment={**STILL, "intensity": 0.5})))
        plain = everything(loader(mixed, stream(**settings)))
    for one, other in zip(changed, plain, strict=True):
        assert torch.equal(one["source"], other["source"])
        assert torch.equal(one["target"], other["target"]) == (not units)


@pytest.mark.parametrize("outside", ["lowest", "keep"])
def test_faults_change_a_source_in_hu_inside_the_mask_and_nothing_else(store, outside):
    faults = {"source_offset_hu": 50.0, "source_gain": 0.02, "source_shading_hu": 30.0}
    changed = everything(loader(store, stream(augment={**STILL, **faults}, outside_mask=outside)))
    plain = everything(loader(store, stream(outside_mask=outside)))
    for one, other in zip(changed, plain, strict=True):
        assert torch.equal(one["target"], other["target"])
        outside_body = other["mask"] == 0
        assert torch.equal(one["source"][outside_body], other["source"][outside_body])
        assert not torch.equal(one["source"], other["source"])


def test_faults_are_not_put_on_an_mr_source(tmp_path):
    with SliceStore(write_shards(tmp_path, FILMS[:1], units={"cbct": "a.u."})) as mixed:
        window = {"ct": (-1024, 2048)}
        changed = everything(loader(mixed, stream(window=window, augment={**STILL, "source_offset_hu": 50.0})))
        plain = everything(loader(mixed, stream(window=window)))
    assert all(same(one, other) for one, other in zip(changed, plain, strict=True))


def test_mr_is_scaled_and_normalised_by_its_own_percentiles(tmp_path):
    folder = write_shards(tmp_path, FILMS[:1], units={"ct": "a.u."}, scale={"ct": 0.5})
    with SliceStore(folder) as store:
        batch = next(iter(loader(store, stream(window={"cbct": (-1024, 2048)}), batch=1)))
        values = clip("a", int(batch["slice_index"][0, 0]), 3, "ct") * 0.5
    np.testing.assert_allclose(batch["target"][0, :, 0].numpy(), normalise(values, (0, 1000)), atol=1e-5)


def unpaired(store, settings=None, sources=("a",), targets=("b", "c"), **more):
    """Sources of some films with targets of others."""
    slices = {case.case_id: case.slices for case in store.index.cases}
    sequence = clip_sequence({n: slices[n] for n in sources}, seed=5, epoch=0, clip_length=3, global_batch=1)
    drawn = unpaired_targets({n: slices[n] for n in targets}, sequence, seed=5)
    return ClipLoader(
        store, sequence, settings or stream(), source="cbct", target="ct", batch=1, seed=5, targets=drawn, **more
    )


def test_unpaired_batches_hold_targets_of_other_cases_with_their_own_masks(store):
    source = unpaired(store)
    batches = everything(source)
    assert len(batches) == 7
    for batch, case_id, start in zip(batches, source.targets.case_ids, source.targets.starts, strict=True):
        assert batch["case_id"] == ["a"] and batch["target_case_id"] == [case_id] != ["a"]
        assert batch["target_slice_index"].tolist() == [list(range(start, start + 3))]
        first = int(batch["slice_index"][0, 0])
        for name, case, at, part in (("source", "a", first, "cbct"), ("target", case_id, start, "ct")):
            expected = normalise(clip(case, at, 3, part), (-1024, 2048))
            np.testing.assert_array_equal(batch[name][0, :, 0].numpy(), expected)
        np.testing.assert_array_equal(batch["mask"][0, :, 0].numpy(), clip("a", first, 3, "mask"))
        np.testing.assert_array_equal(batch["target_mask"][0, :, 0].numpy(), clip(case_id, start, 3, "mask"))
    assert not {name for name in next(iter(loader(store))) if name.startswith("target_")} - {"target_modality"}


def test_an_unpaired_target_is_outside_its_own_mask_and_has_an_augmentation_of_its_own(store):
    settings = stream(outside_mask="lowest", augment={**STILL, "flip": 0.5})
    moved, still = (everything(unpaired(store, s)) for s in (settings, stream(outside_mask="lowest")))
    flips = []
    for one, plain in zip(moved, still, strict=True):
        assert (one["source"][one["mask"] == 0] == -1).all()
        assert (one["target"][one["target_mask"] == 0] == -1).all()
        for name in ("source", "target", "target_mask"):
            assert torch.equal(one[name], plain[name]) or torch.equal(one[name], plain[name].flip(-1))
        assert torch.equal(one["target"], plain["target"]) == torch.equal(one["target_mask"], plain["target_mask"])
        flips.append(tuple(torch.equal(one[name], plain[name]) for name in ("source", "target")))
    assert {a == b for a, b in flips} == {True, False}


def test_without_augmentation_there_is_none(store):
    strong = stream(augment={**STILL, "flip": 1.0})
    one = next(iter(loader(store, strong, augment=False)))
    assert same(copy(one), copy(next(iter(loader(store)))))


@pytest.mark.parametrize("first", [0, 1, 2, 5, 9, 10, 12])
def test_from_any_batch_on_exactly_the_remainder_follows(store, first):
    settings = stream(augment={**STILL, "flip": 0.5, "shift_pixels": 2.0})
    whole = everything(loader(store, settings))
    rest = loader(store, settings, first_sample=2 * first)
    assert len(rest) == max(0, 10 - first)
    got = everything(rest)
    assert len(got) == len(whole[first:])
    assert all(same(one, other) for one, other in zip(got, whole[first:], strict=True))


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 1), (1, 4), (8, 1), (4, 30)])
def test_threads_and_prefetch_change_nothing(store, threads, prefetch):
    whole = everything(loader(store))
    other = everything(loader(store, stream(threads=threads, prefetch=prefetch)))
    assert all(same(a, b) for a, b in zip(whole, other, strict=True))


def test_ranks_and_accumulation_read_the_same_samples_in_the_same_steps(store):
    single = [b["sample_index"].tolist() for b in loader(store, batch=4)]
    ranks = [[b["sample_index"].tolist() for b in loader(store, batch=2, ranks=2, rank=r)] for r in (0, 1)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == single
    micro = [b["sample_index"].tolist() for b in loader(store, batch=2, accumulate=2)]
    assert [a + b for a, b in zip(micro[::2], micro[1::2], strict=True)] == single


def test_buffers_are_used_again_and_a_batch_is_valid_until_the_next(store):
    expected = everything(loader(store))
    addresses = set()
    for batch, right in zip(loader(store, stream(prefetch=1)), expected, strict=True):
        addresses.add(batch["source"].data_ptr())
        torch.sum(batch["source"] ** 2)  # the training's work, while threads read ahead
        assert same(batch, right)
    assert len(addresses) == 2


def test_memory_does_not_grow_with_the_number_of_cases(tmp_path):
    sizes = []
    for count in (2, 12):
        many = [film(f"case_{i}", 6) for i in range(count)]
        with SliceStore(write_shards(tmp_path / str(count), many)) as store:
            source = loader(store)
            arrays = [a for slot in source._slots for a in (*slot.frames.values(), *slot.stored.values())]
            sizes.append(sum(a.nbytes for a in arrays))
            assert len(list(source)) == count * 2
            after = [a for slot in source._slots for a in (*slot.frames.values(), *slot.stored.values())]
            assert all(a is b for a, b in zip(arrays, after, strict=True))
    assert sizes[0] == sizes[1]


def test_a_fault_in_a_thread_reaches_the_training(tmp_path):
    folder = write_shards(tmp_path, [film("a", 9)])
    shard = folder / "shard-00000.tar"
    with tarfile.open(shard) as archive:
        place = archive.getmembers()[12].offset_data + 30
    content = bytearray(shard.read_bytes())
    content[place] ^= 0xFF
    shard.write_bytes(content)
    with SliceStore(folder) as store, pytest.raises(ArtifactError, match=r"'a_0000\d\.\w+\.slice' in shard"):
        everything(loader(store))


def test_an_iteration_that_is_given_up_leaves_no_thread_behind(store):
    iterator = iter(loader(store))
    next(iterator)
    iterator.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("reader")]


def test_the_time_spent_waiting_for_data_is_counted(store, monkeypatch):
    real = loader_module.ClipLoader._read

    def slow(self, *arguments):
        time.sleep(0.02)
        real(self, *arguments)

    monkeypatch.setattr(loader_module.ClipLoader, "_read", slow)
    source = loader(store, stream(threads=1))
    list(source)
    assert source.wait_seconds > 0.1


def test_an_epoch_with_nothing_left_yields_nothing(store):
    assert everything(loader(store, first_sample=99)) == []


def test_a_remainder_that_the_ranks_cannot_share_evenly_is_refused(store):
    with pytest.raises(ValueError, match="19 samples are no whole number of steps of 1 x 2"):
        loader(store, first_sample=1)
