"""Latents are written once, come back as they were encoded, and belong to one encoder."""

import numpy as np
import pytest
import torch
from makers import configuration, film, write_shards
from miniatures import MINIATURE

from pipeline.__main__ import main
from pipeline.errors import ConfigError
from pipeline.imaging.normalise import normalise
from pipeline.records import ShardIndex
from pipeline.stream.datamodule import ClipDataModule, as_encoded
from pipeline.stream.store import SliceStore
from pipeline.training.checkpoint import load_checkpoint, load_method

MODEL = ["model=latent_autoencoder", *MINIATURE["latent_autoencoder"], "stream.pairing=modalities", "tracking=none"]
SHORT = [
    "stream.clip_length=2",
    "stream.clip_growth=1",
    "stream.clip_limit=2",
    "trainer.budget.steps=2",
    "trainer.threads=1",
]
MODALITIES = ("ct", "t1n")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Shards of two modalities whose size no factor divides, and two autoencoders that were trained on them."""
    place = tmp_path_factory.mktemp("encode")
    films = [film("a", 5, (20, 27), MODALITIES), film("b", 4, (20, 27), MODALITIES), film("c", 3, (20, 27), ("ct",))]
    write_shards(place / "shards", films, units={"t1n": "a.u."}, splits={"c": "test"})
    for run, seed in (("run", 0), ("other", 1)):
        assert (
            main(["train", *MODEL, *SHORT, f"seed={seed}", f"input={place / 'shards'}", f"output={place / run}"]) == 0
        )
    assert (
        main(["encode", f"checkpoint={place / 'run'}", f"input={place / 'shards'}", f"output={place / 'latents'}"]) == 0
    )
    return place


def test_latents_come_back_as_the_posteriors_mean_of_the_prepared_slices(place):
    method = load_method(load_checkpoint(place / "run"))
    with SliceStore(place / "shards") as slices, SliceStore(place / "latents") as latents:
        index = latents.index
        assert index.latents.encoder == method.encoder_hash()
        assert index.size == (index.latents.channels * index.latents.size[0], index.latents.size[1])
        squares = []
        for case in index.cases:
            assert case.modalities == slices.cases[case.case_id].modalities
            for modality in case.modalities:
                film = slices.film(case.case_id, modality, "mask")
                window = (-1024.0, 2048.0) if modality == "ct" else (0.0, 1000.0)
                frames = normalise(film[modality].astype(np.float32), window)
                frames[film["mask"] == 0] = -1
                wanted = method.encode_slices(torch.from_numpy(frames).unsqueeze(1)).numpy()
                found = latents.film(case.case_id, modality)[modality] * case.scale[modality]
                assert np.abs(found.reshape(wanted.shape) - wanted).max() <= np.abs(wanted).max() / 32000 * 0.51
                squares += [wanted.ravel()] if case.split == "train" else []
        assert index.latents.std == pytest.approx(float(np.concatenate(squares).std()), rel=1e-3)


def test_a_training_reads_them_with_their_channels_and_at_unit_spread(place):
    config = configuration(
        "stream=latents", "stream.pairing=every_pair", "stream.clip_length=2", "stream.clip_growth=1"
    )
    with SliceStore(place / "latents") as store:
        config = as_encoded(config, store.index)
        batches = [
            {**batch, "source": batch["source"].clone()} for batch in ClipDataModule(store, config).train_dataloader()
        ]
        channels, size = store.index.latents.channels, store.index.latents.size
        for batch in batches:
            assert batch["latent"] and batch["source"].shape == (1, 2, channels, *size)
            assert batch["mask"].shape == (1, 2, 1, *size)
        case, modality, first = (batches[0][k][0] for k in ("case_id", "source_modality", "slice_index"))
        wanted = (
            store.film(case, modality)[modality][first] * store.cases[case].scale[modality] / store.index.latents.std
        )
        assert np.allclose(batches[0]["source"][0], wanted.reshape(2, channels, *size), atol=1e-6)
        spread = torch.cat([batch["source"].flatten() for batch in batches]).std()
        assert 0.5 < spread < 2
        with pytest.raises(ConfigError, match=r"cannot be augmented.*Set stream\.augment"):
            ClipDataModule(store, configuration("stream.pairing=every_pair", "stream.clip_length=2"))


def test_a_place_is_inside_where_any_of_its_pixels_is(place):
    with SliceStore(place / "shards") as slices, SliceStore(place / "latents") as latents:
        mask, places = (s.film("a", "mask")["mask"] for s in (slices, latents))
        rows, columns = latents.index.latents.size
        step = -(-20 // rows)
        for row, column in ((0, 0), (rows - 1, columns - 1)):
            block = mask[:, row * step : (row + 1) * step, column * step : (column + 1) * step]
            assert np.array_equal(places[:, row, column], block.any(axis=(1, 2)))
            assert np.array_equal(places[:, row + rows, column], places[:, row, column])


def test_a_killed_encode_does_the_rest_and_a_finished_one_nothing(place, tmp_path, capsys):
    command = ["encode", f"checkpoint={place / 'run'}", f"input={place / 'shards'}", f"output={tmp_path / 'out'}"]
    assert main(command) == 0
    before = (tmp_path / "out" / "index.json").read_bytes()
    assert before == (place / "latents" / "index.json").read_bytes()
    (tmp_path / "out" / "shard-00001.json").unlink()
    first = (tmp_path / "out" / "shard-00000.tar").stat().st_mtime_ns
    assert main(command) == 0
    assert (tmp_path / "out" / "shard-00000.tar").stat().st_mtime_ns == first
    assert (tmp_path / "out" / "index.json").read_bytes() == before
    capsys.readouterr()
    assert main(command) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert main([*command[:1], f"checkpoint={place / 'other'}", *command[2:]]) == 2
    assert "encoder" in capsys.readouterr().err


def test_what_has_no_encoder_and_what_is_encoded_already_are_refused(place, tmp_path, capsys):
    identity = ["train", "model=identity", *SHORT, "source=t1n", "stream.pairing=unpaired", "tracking=none"]
    assert main([*identity, f"input={place / 'shards'}", f"output={tmp_path / 'run'}"]) == 0
    for run, shards, message in (
        (tmp_path / "run", "shards", "has no encoder. Found: identity"),
        (place / "run", "latents", "hold latents already"),
    ):
        assert main(["encode", f"checkpoint={run}", f"input={place / shards}", f"output={tmp_path / 'out'}"]) == 2
        assert message in capsys.readouterr().err
    words = ["train", "model=regression", *MINIATURE["regression"], *SHORT, "stream=latents", "source=t1n"]
    assert main([*words, "tracking=none", f"input={place / 'latents'}", f"output={tmp_path / 'x'}"]) == 2
    assert "Regression does not learn from latents" in capsys.readouterr().err


def test_a_modality_that_the_encoder_never_saw_is_refused(place, tmp_path, capsys):
    write_shards(tmp_path / "shards", [film("z", 3, (20, 27), ("flair",))], units={"flair": "a.u."})
    command = ["encode", f"checkpoint={place / 'run'}", f"input={tmp_path / 'shards'}", f"output={tmp_path / 'out'}"]
    assert main(command) == 2
    assert "flair" in capsys.readouterr().err
    assert ShardIndex.load(place / "latents").modalities["ct"].unit == "latent"


def test_a_training_needs_no_case_of_the_default_pair(tmp_path, capsys):
    write_shards(tmp_path / "shards", [film("z", 3, (16, 16), ("t1n", "t2w"))], units={"t1n": "a.u.", "t2w": "a.u."})
    words = [*MODEL, *SHORT, "trainer.budget.steps=6", f"input={tmp_path / 'shards'}", f"output={tmp_path / 'run'}"]
    assert main(["train", *words]) == 0
    assert "epoch 0: 4 steps" in capsys.readouterr().err
