"""Training and translating from shards on a server: the same run as an unbroken one, and clear refusals."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "stream"))
from runs import assert_equal_ends, checkpoint, finish
from shard_server import serving

from pipeline.__main__ import main
from pipeline.stream import remote_files

REGRESSION = ["model=regression", "model.module.network.widths=[4,8]", "model.module.network.residual_units=1"]
COMMON = [
    "source=t1n",
    "tracking=none",
    "trainer.precision=fp32",
    "trainer.threads=1",
    "trainer.budget.minutes=0",
    "trainer.budget.steps=8",
    "trainer.validations=1",
    "trainer.validation_segments=1",
    "trainer.validation_slices=4",
    "trainer.panels=false",
    "trainer.checkpoint_steps=1",
    "stream.clip_length=3",
    "stream.clip_growth=1",
    "stream.global_batch=2",
    "stream.remote.shuffle=5",
    "stream.remote.attempts=2",
]


def arguments(url, output: Path, *extra: str) -> list[str]:
    return ["train", f"input={url}", f"output={output}", *REGRESSION, *COMMON, *extra]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CINEVOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote_files, "PAUSE_SECONDS", 0.01)


@pytest.fixture
def server(shards_of_one_patient):
    with serving(shards_of_one_patient) as running:
        yield running


@pytest.fixture(scope="session")
def shards_of_one_patient(tiny_shards, tmp_path_factory) -> Path:
    """The tiny shards with a patient in each, so that two training patients are two shards."""
    folder = tmp_path_factory.mktemp("each") / "shards"
    words = ["preprocess.spacing_mm=[12,8,8]", "preprocess.size=[32,32]", "preprocess.patients_per_shard=1"]
    command = ["preprocess", *words, "source=t1n", "workers=1", f"input={tiny_shards.parent / 'cohort'}"]
    assert main([*command, f"output={folder}"]) == 0
    return folder


def test_a_run_whose_server_fails_goes_on_to_the_end_of_an_unbroken_one_and_translates(server, tmp_path, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(arguments(server.url, whole)) == 0
    assert "Shards rank 0: 2" in capsys.readouterr().err
    # The second shard does not come, and is in nobody's cache.
    for kept in (tmp_path / "cache").iterdir():
        kept.unlink()
    training = [name for name in dict.fromkeys(server.asked) if name.endswith(".tar")][:2]
    server.faults[training[1]] = 503
    assert main(arguments(server.url, broken, "stream.remote.shuffle=5")) == 2
    message = capsys.readouterr().err
    assert f"'{training[1]}' cannot be fetched from '{server.url}'. Found: HTTP 503, after 2" in message
    assert 0 < checkpoint(broken)["progress"]["step"] < 8
    server.faults.clear()
    assert main(arguments(server.url, broken)) == 0
    assert_equal_ends(checkpoint(whole), checkpoint(broken))
    assert server.url not in (broken / "config.json").read_text()
    assert server.url not in json.dumps(checkpoint(broken)["cinevox"])
    out = tmp_path / "translated"
    assert main(["translate", f"checkpoint={broken}", f"input={server.url}", f"output={out}", "source=t1n"]) == 0
    assert len(list(out.glob("*.nii.gz"))) == 1


def test_two_ranks_train_from_one_cache(server, tmp_path):
    run = tmp_path / "run"
    message = finish(arguments(server.url, run, "trainer.devices=2", "trainer.budget.steps=3"))
    assert "Shards rank 0: 1 (12 clips); rank 1: 1 (12 clips); 12 samples for every rank" in message
    shards = [name for name in server.asked if name.endswith(".tar")]
    assert len(shards) == len(set(shards))
    assert checkpoint(run)["ClipDataModule"] == {"epoch": 0, "sample": 6, "clip_length": 3, "streams": 2}
    weights = checkpoint(run)["state_dict"]
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_more_ranks_than_shards_are_refused_before_a_rank_starts(server, tmp_path, capsys):
    words = ["trainer.devices=4", "stream.global_batch=4"]
    assert main(arguments(server.url, tmp_path / "run", *words)) == 2
    assert "2 shard(s), 4 rank(s)" in capsys.readouterr().err
    assert server.asked == ["index.json"]
    assert not (tmp_path / "run").exists()


def test_a_run_of_a_folder_does_not_go_on_from_a_server(server, tiny_shards, tmp_path, capsys):
    assert main(arguments(server.url, tmp_path / "run", "trainer.budget.steps=1")) == 0
    other = server.folder
    assert main(arguments(other, tmp_path / "run", "trainer.budget.steps=1")) == 2
    assert "remote_shuffle" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("pipe:cat /etc/passwd", "scheme 'pipe'"),
        ("ftp://host/shards", "scheme 'ftp'"),
        ("file:///shards", "scheme 'file'"),
        ("simplecache::https://host/shards", "scheme 'simplecache'"),
        ("https://host/a::pipe:ls", "scheme 'https'"),
        ("https://me:secret@host/shards", "~/.netrc"),
        ("https://host/shards?token=secret", "~/.netrc"),
        ("https://", "scheme 'https'"),
    ],
)
def test_addresses_that_are_commands_chains_or_secrets_are_refused(tmp_path, capsys, url, message):
    assert main(arguments(url, tmp_path / "run")) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "secret" not in said
    assert not (tmp_path / "run").exists()


def test_an_address_is_no_input_of_other_verbs_and_no_other_path(tmp_path, capsys):
    assert main(["verify", "input=https://host/shards"]) == 2
    assert "'cinevox verify' reads folders only" in capsys.readouterr().err
    assert main(["train", "input=https://host/shards", "output=https://host/run"]) == 2
    assert "'output' is an address" in capsys.readouterr().err
    assert main(["train", "input=https://host/shards", f"input={tmp_path}", "output=run"]) == 2
    assert "the only input" in capsys.readouterr().err
    assert main(["train", "shards_url=https://host/shards", "output=run"]) == 2
    assert "Use input=URL" in capsys.readouterr().err
