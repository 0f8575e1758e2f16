"""The three stages as one command: each goes on where it was, and the last one's checkpoint needs no other."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from makers import film, write_shards
from miniatures import MINIATURE

from pipeline.__main__ import main
from pipeline.config import compose
from pipeline.records import ShardIndex
from pipeline.training.checkpoint import load_checkpoint
from pipeline.workflows import three_stage
from pipeline.workflows.three_stage import quoted

STAGES = ("autoencoder", "translator", "decoder")
COMMON = ["experiment=latent_three_stage", "tracking=none", "workers=1", "source=t1n", "target=t2w"]
COMMON += ["stream.clip_length=2", "stream.clip_limit=2", "stream.clip_growth=1", "trainer.threads=1"]
COMMON += ["trainer.budget.minutes=0", "trainer.budget.steps=2"]
COMMON += ["stream.augment.shift_pixels=1"]  # as experiments of data have it: of slices, not of latents


def stage(name: str, *more: str) -> str:
    method = f"latent_{name}"
    known = [] if name == "autoencoder" else ["model.module.transformer.modalities=[cbct,ct,t1n,t2w]"]
    own = compose(["experiment=latent_three_stage"]).three_stage.model_dump()[name]
    return f"three_stage.{name}={json.dumps([*own, *MINIATURE[method], *known, *more])}"


@pytest.fixture(scope="module", autouse=True)
def in_this_process():
    """Commands that are not processes of their own: test_sweep.py has those, and each takes seconds to start."""

    def start(words, log):
        log.touch()
        return main(list(words))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(three_stage, "start", start)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory, in_this_process):
    """A finished chain over two folders of shards, in a folder whose name Hydra would not take as it stands."""
    place = tmp_path_factory.mktemp("three") / "it's (a) chain"
    heads = [film(name, 4, (16, 16), ("t1n", "t2w"), seed) for seed, name in enumerate("ab")]
    write_shards(place / "heads", heads, units={"t1n": "a.u.", "t2w": "a.u."})
    write_shards(place / "torsos", [film("c", 4, (16, 16))])
    assert main(command(place)) == 0
    return place


def command(place: Path, *more: str) -> list[str]:
    inputs = [f"input={place / name}" for name in ("heads", "torsos")]
    return ["train", *COMMON, *map(stage, STAGES), *more, *inputs, f"output={place / 'out'}"]


def test_one_command_ends_with_a_model_of_all_pairs(place):
    record = load_checkpoint(place / "out" / "decoder")["cinevox"]
    pairs = [["cbct", "ct"], ["ct", "cbct"], ["t1n", "t2w"], ["t2w", "t1n"]]
    assert record["method"] == "latent_decoder" and record["pairs"] == pairs
    latents = [ShardIndex.load(place / "out" / name).latents for name in ("latents-1", "latents-2")]
    assert latents[0].encoder == latents[1].encoder


def test_the_same_command_does_nothing_more(place, capsys):
    before = {path: path.stat().st_mtime_ns for path in (place / "out").rglob("*.ckpt")}
    assert main(command(place)) == 0
    assert capsys.readouterr().err.count("finished already") == 5
    assert {path: path.stat().st_mtime_ns for path in (place / "out").rglob("*.ckpt")} == before


def test_what_is_missing_alone_is_made_again_to_the_bit(place, tmp_path):
    whole = load_checkpoint(place / "out" / "decoder")["state_dict"]
    shutil.move(place / "out" / "decoder", tmp_path / "first")
    try:
        assert main(command(place)) == 0
        again = load_checkpoint(place / "out" / "decoder")["state_dict"]
        assert all(torch.equal(again[name], value) for name, value in whole.items())
    finally:
        shutil.rmtree(place / "out" / "decoder", ignore_errors=True)
        shutil.move(tmp_path / "first", place / "out" / "decoder")


def test_the_last_checkpoint_translates_without_the_others(place, tmp_path):
    shutil.copytree(place / "out" / "decoder", tmp_path / "alone")
    shutil.copytree(place / "heads", tmp_path / "heads")
    words = ["translate.split=train", f"checkpoint={tmp_path / 'alone'}", f"input={tmp_path / 'heads'}"]
    results = []
    for target, source in (("t2w", "t1n"), ("t1n", "t2w")):
        out = tmp_path / target
        pair = [f"source_modality={source}", f"target_modality={target}"]
        assert main(["translate", "tracking=none", *words, *pair, f"output={out}"]) == 0
        results.append((out / "a.nii.gz").read_bytes())
    assert results[0] != results[1]


def test_a_stage_that_cannot_work_is_refused_before_the_first_one_starts(place, tmp_path, capsys):
    words = [word for word in command(place) if not word.startswith(("three_stage.decoder", "output="))]
    broken = stage("decoder", "model.module.weight_gam=1")
    assert main([*words, broken, f"output={tmp_path / 'out'}"]) == 2
    assert "weight_gam" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ranks_that_were_started_from_outside_do_not_each_run_the_chain(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = [word for word in command(place) if not word.startswith("output=")]
    assert main([*words, f"output={tmp_path / 'out'}"]) == 2
    assert "Found: 2 ranks" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_dry_run_prints_every_command_and_writes_nothing(place, tmp_path, capsys):
    words = [word for word in command(place) if not word.startswith("output=")]
    assert main([*words, f"output={tmp_path / 'out'}", "--dry-run"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cinevox ")]
    assert [line.split()[1] for line in lines] == ["train", "encode", "encode", "train", "train"]
    assert "experiment=latent_three_stage" in lines[0] and "three_stage=null" in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["plain", "it's", "back\\slash", "end\\", "both\\'", "a b,(c)=[d]", "k: {v}", "ü"])
def test_a_path_is_one_value_whatever_it_is_called(name):
    path = Path("/place") / name
    word = f"model.module.autoencoder_checkpoint={quoted(path)}"
    assert compose(["model=latent_translator", word]).model.module["autoencoder_checkpoint"] == str(path)
