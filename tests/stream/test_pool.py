"""Several shard folders are read as one, where they go together."""

import numpy as np
import pytest
from makers import alter_index, configuration, film, write_shards

from pipeline.errors import ArtifactError
from pipeline.stream.datamodule import ClipDataModule
from pipeline.stream.store import SliceStore

MR = {"t1n": "a.u.", "t2w": "a.u."}


@pytest.fixture
def folders(tmp_path):
    torsos = [film("a", 9), film("b", 6)]
    heads = [film("c", 7, modalities=("t1n", "t2w"), seed=1), film("d", 5, modalities=("t1n",), seed=2)]
    write_shards(tmp_path / "torsos", torsos, per_shard=2)
    write_shards(tmp_path / "heads", heads, units=MR)
    alter_index(tmp_path / "heads", lambda index: index.update(spacing_mm=[3.0, 1.5, 1.5]))
    return [tmp_path / "torsos", tmp_path / "heads"], {one.case_id: one for one in torsos + heads}


def test_every_case_of_every_folder_reads_as_from_its_own(folders):
    places, films = folders
    with SliceStore(*places) as store:
        assert sorted(store.cases) == ["a", "b", "c", "d"]
        for case_id, one in films.items():
            found = store.film(case_id, *one.frames, "mask")
            assert all(np.array_equal(found[name], frames) for name, frames in one.frames.items())
            assert np.array_equal(found["mask"], one.mask)
        assert store.spacing_mm("ct") == (1.0, 1.0, 1.0) and store.spacing_mm("t2w") == (3.0, 1.5, 1.5)
        store.verify()
        (places[1] / "shard-00001.tar").write_bytes(b"x" * (places[1] / "shard-00001.tar").stat().st_size)
        with pytest.raises(ArtifactError, match="SHA-256"):
            store.verify()


def test_one_network_learns_every_pair_of_both(folders):
    with SliceStore(*folders[0]) as store:
        words = ["stream.pairing=every_pair", "stream.clip_length=3", "stream.clip_growth=1", "stream.global_batch=2"]
        data = ClipDataModule(store, configuration(*words))
        assert sorted(data.pairs) == [("cbct", "ct"), ("ct", "cbct"), ("t1n", "t2w"), ("t2w", "t1n")]
        seen = set()
        for batch in data.train_dataloader():
            seen |= set(batch["case_id"])
            heads = [(3.0, 1.5, 1.5) if name[0] == "t" else (1.0, 1.0, 1.0) for name in batch["source_modality"]]
            assert batch["spacing_mm"] == heads
        assert seen == {"a", "b", "c"}


def test_the_order_of_folders_is_part_of_what_was_trained_on(folders):
    with SliceStore(*folders[0]) as one, SliceStore(*folders[0][:1]) as first:
        assert one.index.config_hash != first.index.config_hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (6, 10)}, "another size cannot be read together"),
        ({"folds": {"e": 3}}, "another number of folds"),
        ({"modalities": ("ct", "t1n")}, "hold the same modality. Found: ct, t1n"),
        ({"case_id": "c"}, "hold the same case. Found: c"),
    ],
)
def test_folders_that_do_not_go_together_are_refused(folders, tmp_path, change, message):
    modalities = change.get("modalities", ("flair",))
    other = film(change.get("case_id", "e"), 5, change.get("size", (6, 8)), modalities)
    write_shards(tmp_path / "other", [other], units={"flair": "a.u."}, folds=change.get("folds"))
    with pytest.raises(ArtifactError, match=message):
        SliceStore(*folders[0], tmp_path / "other")
