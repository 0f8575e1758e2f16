"""Streamed batches: the stored clips in the order of the shards, and a resume at exactly the next sample."""

import io
import pickle
import tarfile
import threading
import time

import numpy as np
import pytest
import torch
from makers import alter_index, configuration, film, write_shards
from shard_server import serving

from pipeline.artifacts import file_sha256
from pipeline.errors import ArtifactError, ConfigError
from pipeline.imaging.normalise import normalise
from pipeline.stream import remote_files
from pipeline.stream.augment import Augmentation
from pipeline.stream.datamodule import ClipDataModule, Position
from pipeline.stream.remote import RemoteStore
from pipeline.stream.streaming import members

FILMS = [film(name, slices) for name, slices in zip("abcdef", (9, 6, 11, 8, 5, 7), strict=True)]
BY_NAME = {one.case_id: one for one in FILMS}
COMMON = (
    "stream.clip_length=3",
    "stream.clip_growth=1",
    "stream.global_batch=2",
    "stream.remote.shuffle=4",
    "stream.remote.attempts=2",
    "stream.remote.timeout_s=5",
    "stream.outside_mask=keep",
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(remote_files, "PAUSE_SECONDS", 0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("served"), FILMS, per_shard=2, splits={"d": "validation"})


@pytest.fixture
def server(folder):
    with serving(folder) as running:
        yield running


def module(server, place, *overrides):
    config = configuration(*COMMON, *overrides)
    return ClipDataModule(RemoteStore(server.url, config.stream.remote, cache=place), config)


def train(data, steps):
    """Walk on for some steps; returns the batches that were seen."""
    seen = []
    while len(seen) < steps:
        for batch in data.train_dataloader():
            seen.append({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in batch.items()})
            data.advance()
            if len(seen) == steps:
                break
    return seen


def same(one, other):
    return all(
        a.keys() == b.keys()
        and all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)
        for a, b in zip(one, other, strict=True)
    )


def reading():
    return [t for t in threading.enumerate() if t.name.startswith(("shard-", "reader"))]


def test_batches_hold_the_stored_clips_with_the_augmentation_of_their_sample(server, tmp_path):
    data = module(server, tmp_path)
    loader = data.train_dataloader()
    sequence, augment = loader.sequence, data.config.stream.augment
    assert "d" not in sequence.case_ids
    count = 0
    for batch in loader:
        for b, index in enumerate(batch["sample_index"].tolist()):
            case, start = sequence.case_ids[index], int(sequence.starts[index])
            assert (batch["case_id"][b], batch["slice_index"][b].tolist()) == (case, [start, start + 1, start + 2])
            draw = Augmentation(augment, (6, 8), data.config.seed, 0, index)
            for name, part in (("source", "cbct"), ("target", "ct")):
                expected = normalise(BY_NAME[case].frames[part][start : start + 3], (-1024, 2048))
                np.testing.assert_array_equal(batch[name][b, :, 0].numpy(), draw.move(expected))
            mask = BY_NAME[case].mask[start : start + 3].astype(np.float32)
            np.testing.assert_array_equal(batch["mask"][b, :, 0].numpy(), draw.move(mask, nearest=True, outside=0.0))
            count += 1
    assert count == len(sequence) == 28
    assert "shard-00001.npy" not in server.asked  # nothing is read at random


@pytest.mark.parametrize("stop", [0, 1, 5, 13, 14, 17])
def test_a_resumed_run_goes_on_with_exactly_the_next_sample(server, tmp_path, stop):
    whole = train(module(server, tmp_path), 20)
    first = module(server, tmp_path)
    head = train(first, stop)
    state = first.state_dict()
    assert all(type(value) is int for value in state.values())
    second = module(server, tmp_path)
    second.load_state_dict(dict(state))
    assert same([*head, *train(second, 20 - stop)], whole)


def test_a_resume_near_the_end_of_an_epoch_fetches_only_the_shards_that_are_left(server, tmp_path):
    data = module(server, tmp_path)
    data.load_state_dict({"epoch": 0, "sample": 26, "clip_length": 3, "streams": 1})
    left = [batch["case_id"] for batch in data.train_dataloader()]
    assert len(left) == 1
    fetched = [name for name in server.asked if name.endswith(".tar")]
    assert len(fetched) < len({case.shard for case in data.store.index.cases})


def test_two_ranks_read_the_samples_of_one_with_two_streams(server, tmp_path):
    data = module(server, tmp_path, "trainer.devices=2", "stream.global_batch=4")
    assert data.position.streams == 2
    whole = {int(i): b for batch in train(data, 4) for i, b in zip(batch["sample_index"], batch["source"], strict=True)}
    found = {}
    for rank in range(2):
        other = module(server, tmp_path, "trainer.devices=2", "stream.global_batch=4")
        loader = other.train_dataloader()
        half = type(loader)(
            other.store, loader.sequence, other.config.stream, source="cbct", target="ct", batch=2, rank=rank, ranks=2
        )
        for batch, _ in zip(half, range(4), strict=False):
            found |= {int(i): b.clone() for i, b in zip(batch["sample_index"], batch["source"], strict=True)}
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[i], whole[i]) for i in whole)


def test_other_ranks_go_on_where_they_share_the_streams_and_are_refused_elsewhere(server, tmp_path):
    state = {"epoch": 1, "sample": 4, "clip_length": 3, "streams": 2}
    data = module(server, tmp_path, "trainer.devices=1", "stream.global_batch=4")
    data.load_state_dict(dict(state))
    assert len(data.train_dataloader().sequence.streams) == 2
    other = module(server, tmp_path, "trainer.devices=3", "stream.global_batch=6")
    other.load_state_dict({**state, "sample": 6})
    with pytest.raises(ConfigError, match=r"3 rank\(s\).*Allowed: 1, 2"):
        other._current()
    other.load_state_dict({**state, "sample": 0})  # an epoch's beginning
    assert len(other._current().streams) == 3


def test_fewer_shards_than_ranks_is_refused_before_anything_is_fetched(server, tmp_path):
    with pytest.raises(ConfigError, match=r"3 shard\(s\), 4 rank\(s\)"):
        module(server, tmp_path, "trainer.devices=4", "stream.global_batch=4")
    assert server.asked == ["index.json"]


def test_unpaired_targets_are_refused_with_the_reason(server, tmp_path):
    with pytest.raises(ConfigError, match=r"read in order.*Copy the shards"):
        module(server, tmp_path, "stream.pairing=unpaired")


def test_the_split_is_said_once(server, tmp_path, capsys):
    train(module(server, tmp_path), 20)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Shards rank 0")]
    assert len(said) == 1


@pytest.mark.parametrize("fault", ["cut", "byte", 500, 404])
def test_a_server_that_fails_in_an_epoch_ends_it_with_an_error_and_no_thread_stays(server, tmp_path, fault):
    data = module(server, tmp_path, "stream.remote.shuffle=1")
    last = data._current().streams[0].shards[-1]
    server.faults[data.store.index.shards[last].file] = fault
    began, seen = time.monotonic(), 0
    with pytest.raises(ArtifactError, match="cannot be fetched"):
        for _ in data.train_dataloader():
            seen += 1
    assert seen > 0
    assert time.monotonic() - began < 10
    wait_until(lambda: not reading())


def test_an_epoch_that_is_left_early_leaves_no_thread(server, tmp_path):
    data = module(server, tmp_path)
    for _ in data.train_dataloader():
        break
    wait_until(lambda: not reading())
    assert data.position == Position(epoch=0, sample=0, clip_length=3, streams=1)


def wait_until(done):
    deadline = time.monotonic() + 5
    while not done():
        assert time.monotonic() < deadline, reading()
        time.sleep(0.01)


class Trap:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize("where", ["beside", "instead", "behind"])
def test_a_pickle_among_the_members_is_refused_and_never_opened(tmp_path, where):
    """The index is whoever's who made the shards: it names the hash of what is hostile."""
    place = write_shards(tmp_path / "served", FILMS[:1])
    path = place / "shard-00000.tar"
    kept = []
    with tarfile.open(path) as old:
        kept = [(member, old.extractfile(member).read()) for member in old]
    trap = pickle.dumps(Trap())
    evil = {"beside": "a_00004.pickle.pkl", "instead": "a_00004.mask.pkl", "behind": "b_00000.pyd"}[where]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as new:
        for member, data in kept:
            if member.name.startswith("a_00004.mask") and where != "behind":
                add(new, evil, trap)
                if where == "instead":
                    continue
            add(new, member.name, data)
        if where == "behind":
            add(new, evil, trap)
    alter_index(place, lambda index: index["shards"][0].update(bytes=path.stat().st_size, sha256=file_sha256(path)))
    with serving(place) as hostile, pytest.raises(ArtifactError, match=r"does not hold slice 4|more than its cases"):
        train(module(hostile, tmp_path), 30)


def add(archive, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def test_half_a_pair_and_a_cut_tar_are_errors(folder):
    whole = (folder / "shard-00000.tar").read_bytes()
    samples = list(members(io.BytesIO(whole), "x"))
    assert len(samples) == 15
    assert samples[0].keys() == {"__key__", "__url__", "cbct.slice", "ct.slice", "mask.slice"}
    with pytest.raises(ArtifactError, match="cannot be read"):
        list(members(io.BytesIO(whole[:700]), "x"))
    with pytest.raises(ArtifactError, match="cannot be read"):
        list(members(io.BytesIO(b"<html>" * 200), "x"))


def test_webdataset_is_told_to_be_careful_and_its_opener_is_never_called(server, tmp_path, monkeypatch):
    import webdataset
    from webdataset import tariterators

    monkeypatch.delenv("WDS_SECURE", raising=False)
    monkeypatch.setattr(tariterators.gopen, "gopen", lambda *_, **__: pytest.fail("webdataset opened something"))
    monkeypatch.setattr(webdataset.utils, "enforce_security", False)
    train(module(server, tmp_path), 2)
    assert webdataset.utils.enforce_security is True
