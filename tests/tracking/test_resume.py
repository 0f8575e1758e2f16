"""A run that is started again: one W&B run, one curve, offline as well, and once it is synced."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import wandb
from makers import configuration
from wandb_server import wandb_server

from pipeline.__main__ import main
from pipeline.artifacts import read_json, write_json
from pipeline.tracking.segments import logged, offline_files, read_records
from pipeline.tracking.wandb_run import WandbRun

TRAINING = [
    *("source=t1n", "model=regression", "model.module.network.widths=[4,8]", "model.module.network.residual_units=1"),
    *("trainer.precision=fp32", "trainer.threads=1", "trainer.budget.minutes=0", "trainer.budget.steps=5"),
    *("trainer.validations=1", "trainer.validation_segments=1", "trainer.validation_slices=4"),
    *("stream.clip_length=3", "stream.clip_growth=1", "trainer.keep_every=2"),
    *("tracking=offline", "tracking.log_every=1"),
]


def history(file):
    return [row for record in read_records(file) if (row := logged(record))]


def values_of(rows, key):
    return {json.loads(row["step"]): json.loads(row[key]) for row in rows if key in row}


@pytest.fixture(scope="module")
def resumed(tiny_shards, tmp_path_factory) -> tuple[Path, dict[int, float]]:
    """A run that was killed after step 5 with a checkpoint of step 2, and went on; and the killed one's losses."""
    run = tmp_path_factory.mktemp("resumed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        command = ["train", f"input={tiny_shards}", f"output={run}", *TRAINING]
        assert main(command) == 0
        wandb.teardown()  # as at the end of a process: all is written
        (first,) = offline_files(run)
        before = values_of(history(first), "train/l1_loss")
        checkpoints = run / "checkpoints"
        shutil.copy(checkpoints / "step-00000002.ckpt", checkpoints / "last.ckpt")
        write_json(run / "stage.json", {**read_json(run / "stage.json", what="stage"), "finished": False})
        first.write_bytes(first.read_bytes()[:-9])  # a kill leaves a record in half
        assert main(command) == 0
        wandb.teardown()
    return run, before


def test_the_files_of_both_starts_are_one_run_and_no_step_is_in_both(resumed):
    run, before = resumed
    first, second = offline_files(run)
    assert first.name == second.name
    steps = [{json.loads(row["step"]) for row in history(file)} for file in (first, second)]
    assert steps == [{1, 2}, {3, 4, 5}]
    losses = values_of(history(first), "train/l1_loss") | values_of(history(second), "train/l1_loss")
    assert losses == before and set(losses) == {1, 2, 3, 4, 5}


def sync(address, place, *folders):
    environment = {**os.environ, "WANDB_BASE_URL": address, "WANDB_API_KEY": "f" * 40, "WANDB_ERROR_REPORTING": "false"}
    command = [str(Path(sys.executable).with_name("wandb")), "sync", "--yes", *map(str, folders)]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("together", [True, False])
def test_wandb_joins_them_to_one_curve_whether_it_sends_them_together_or_apart(resumed, tmp_path, together):
    run, before = resumed
    shutil.copytree(run / "wandb", tmp_path / "wandb")
    starts = sorted((tmp_path / "wandb").glob("offline-run-*"))
    with wandb_server() as (address, received):
        for folders in [starts] if together else [[start] for start in starts]:
            sync(address, tmp_path, *folders)
    (name,) = received.history
    rows = received.rows(name)
    assert len(rows) == sum(len(history(file)) for file in offline_files(run))
    assert {row["step"]: row["train/l1_loss"] for row in rows if "train/l1_loss" in row} == before
    steps = [row["step"] for row in rows]
    assert steps == sorted(steps)
    if not together:  # W&B's own counter goes on as well
        assert [row["_step"] for row in rows] == sorted({row["_step"] for row in rows})
    assert {run["groupName"] for run in received.runs if run["groupName"]} == {"regression"}


@pytest.fixture
def fresh(monkeypatch):
    """W&B as in a new process: it reads its environment once."""
    monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.mark.usefixtures("fresh")
def test_online_the_same_run_goes_on_and_no_path_or_command_is_sent(tmp_path, monkeypatch):
    folder = tmp_path / "Mustermann_Erika"
    folder.mkdir()
    config = configuration("tracking=online", "model=regression")
    with wandb_server() as (address, received):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        for start in (1, 3):
            run = WandbRun(config, folder, "train", step=start - 1)
            for step in (start, start + 1):
                run.log({"train/l1_loss": 1 / step}, step)
            run.finish()
    assert [row["step"] for row in received.rows(run.id)] == [1, 2, 3, 4]
    sent = b"\n".join(received.bodies)
    for word in ("Mustermann", str(tmp_path), sys.argv[0], os.path.expanduser("~")):  # noqa: PTH111
        assert word.encode() not in sent, word


@pytest.mark.usefixtures("fresh")
def test_where_wandb_is_not_reached_the_run_stays_here_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    run = WandbRun(configuration("tracking=online", "model=regression"), tmp_path, "train")
    run.log({"train/l1_loss": 1.0}, 1)
    run.finish()
    wandb.teardown()
    assert "kept offline" in capsys.readouterr().err
    (file,) = offline_files(tmp_path)
    assert values_of(history(file), "train/l1_loss") == {1: 1.0}
