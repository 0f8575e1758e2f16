"""Training runs: what they write, how they resume, and what they refuse."""

import csv
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from makers import configuration

from pipeline.__main__ import main
from pipeline.stages import train
from pipeline.stream.store import SliceStore

REGRESSION = ["model=regression", "model.module.network.widths=[4,8]", "model.module.network.residual_units=1"]
VID2VID = [
    "model=vid2vid",
    "model.module.generator.width=4",
    "model.module.generator.downsamplings=2",
    "model.module.generator.blocks=2",
    "model.module.image_discriminator.width=4",
    "model.module.temporal_discriminator.width=4",
]
COMMON = [
    "source=t1n",
    "tracking=none",
    "trainer.precision=fp32",
    "trainer.threads=1",
    "trainer.budget.minutes=0",
    "trainer.validations=2",
    "trainer.validation_segments=1",
    "trainer.validation_slices=4",
    "stream.clip_length=3",
    "stream.clip_growth=1",
    "stream.augment.shift_pixels=1",
]


def arguments(shards: Path, output: Path, *extra: str) -> list[str]:
    return ["train", f"input={shards}", f"output={output}", *COMMON, *extra]


@pytest.fixture(scope="module")
def finished(tiny_shards, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("run") / "run"
    assert main(arguments(tiny_shards, run, *REGRESSION, "trainer.budget.steps=6", "trainer.keep_every=4")) == 0
    return run


def test_a_run_leaves_configuration_checkpoints_numbers_and_panels(finished):
    assert json.loads((finished / "config.json").read_text())["model"]["name"] == "regression"
    names = {p.name for p in (finished / "checkpoints").iterdir()}
    assert names == {"last.ckpt", "previous.ckpt", "best.ckpt", "step-00000004.ckpt"}
    with (finished / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {int(r["step"]) for r in rows} >= {3, 6}
    assert all(float(r["validation/mae_hu"]) > 0 for r in rows if r["validation/mae_hu"])
    assert len(list((finished / "panels").glob("*.png"))) == 2


def test_a_checkpoint_is_plain_data_and_describes_its_preprocessing(finished):
    data = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    assert data["cinevox"]["preprocessing"]["spacing_mm"] == [12.0, 8.0, 8.0]
    assert data["cinevox"]["method"] == "regression"
    assert data["progress"]["step"] == 6


def test_a_finished_run_is_left_alone(finished, tiny_shards, capsys):
    before = (finished / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert main(arguments(tiny_shards, finished, *REGRESSION, "trainer.budget.steps=6")) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert (finished / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def test_changed_settings_are_refused_with_their_difference(finished, tiny_shards, capsys):
    changed = [*REGRESSION, "trainer.budget.steps=6", "model.module.learning_rate=0.123"]
    assert main(arguments(tiny_shards, finished, *changed)) == 2
    message = capsys.readouterr().err
    assert "learning_rate" in message
    assert "0.123" in message


def test_force_takes_changed_settings_and_records_them(finished, tiny_shards, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    extra = [*REGRESSION, "trainer.budget.steps=8", "trainer.force=true"]
    assert main(arguments(tiny_shards, run, *extra)) == 0
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["progress"]["step"] == 8
    assert "trainer.budget.steps: 6 -> 8" in json.loads((run / "stage.json").read_text())["forced"][0]


def test_resuming_without_a_checkpoint_is_an_error_not_a_new_run(tiny_shards, tmp_path, capsys):
    extra = [*REGRESSION, "trainer.budget.steps=2", "trainer.resume=true"]
    assert main(arguments(tiny_shards, tmp_path / "run", *extra)) == 2
    assert "No checkpoint to resume" in capsys.readouterr().err


def test_a_folder_in_use_is_not_overwritten(tiny_shards, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    assert main(arguments(tiny_shards, tmp_path, *REGRESSION, "trainer.budget.steps=2")) == 2
    assert "already in use" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_the_space_that_is_asked_for_is_what_is_written(finished, tiny_shards, tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(train, "check_free_space", lambda folder, size: asked.append(size - 50_000_000))
    run, command = tmp_path / "run", [*REGRESSION, "model.module.network.widths=[64,128]", "trainer.budget.steps=2"]
    assert main(arguments(tiny_shards, run, *command, "trainer.validations=1")) == 0
    size = (run / "checkpoints" / "last.ckpt").stat().st_size
    assert asked[0] == pytest.approx(4 * size, rel=0.1)
    assert main(arguments(tiny_shards, run, *command, "trainer.validations=1")) == 0
    assert len(asked) == 1  # a finished run needs none
    assert main(arguments(tiny_shards, unfinished(run, tmp_path / "copy"), *command, "trainer.validations=1")) == 0
    assert asked[1] <= 3.1 * size


def test_a_step_is_saved_once_and_the_one_before_stays(finished, monkeypatch, tiny_shards, tmp_path):
    saved = []
    save = pl.Trainer.save_checkpoint
    monkeypatch.setattr(pl.Trainer, "save_checkpoint", lambda *a, **k: (saved.append(1), save(*a, **k)))
    extra = [*REGRESSION, "trainer.budget.steps=4", "trainer.checkpoint_steps=1", "trainer.keep_every=2"]
    assert main(arguments(tiny_shards, tmp_path / "run", *extra)) == 0
    assert len(saved) == 4
    steps = {
        path.stem: torch.load(path, weights_only=True)["progress"]["step"]
        for path in (tmp_path / "run" / "checkpoints").iterdir()
        if path.stem != "best"
    }
    assert steps == {"last": 4, "previous": 3, "step-00000002": 2, "step-00000004": 4}


class _Tripwire:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_checkpoint_that_holds_code_is_refused_and_nothing_runs(kind, tmp_path, tiny_shards, capsys):
    path, trap = tmp_path / "evil.ckpt", tmp_path / "sprung"
    payload = {"cinevox": {"schema": 1}, "state_dict": {}, "extra": _Tripwire(str(trap))}
    if kind == "torch":
        torch.save(payload, path)
    else:
        path.write_bytes(pickle.dumps(payload))
    assert main(["translate", f"checkpoint={path}", f"input={tiny_shards}", f"output={tmp_path / 'out'}"]) == 2
    assert "was not opened" in capsys.readouterr().err
    assert not trap.exists()


@pytest.mark.parametrize("damage", ["empty", "cut", "foreign"])
def test_a_damaged_checkpoint_is_named(damage, finished, tiny_shards, tmp_path, capsys):
    path = tmp_path / "last.ckpt"
    whole = (finished / "checkpoints" / "last.ckpt").read_bytes()
    if damage == "foreign":
        torch.save({"weights": torch.zeros(2)}, path)
    else:
        path.write_bytes(b"" if damage == "empty" else whole[: len(whole) // 2])
    assert main(["translate", f"checkpoint={path}", f"input={tiny_shards}", f"output={tmp_path / 'out'}"]) == 2
    assert "last.ckpt" in capsys.readouterr().err


def test_a_checkpoint_cannot_choose_code(finished, tiny_shards, tmp_path, capsys):
    data = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    trap = tmp_path / "sprung"
    data["cinevox"]["config"]["model"]["module"] = {"_target_": "os.mkdir", "path": str(trap)}
    torch.save(data, tmp_path / "evil.ckpt")
    command = ["translate", f"checkpoint={tmp_path / 'evil.ckpt'}", f"input={tiny_shards}", f"output={tmp_path / 'o'}"]
    assert main([*command, "source=t1n"]) == 2
    assert "points outside what may be built" in capsys.readouterr().err
    assert not trap.exists()


def test_nothing_but_non_finite_steps_ends_the_run_with_a_snapshot(tiny_shards, tmp_path, capsys):
    extra = [*REGRESSION, "model.module.learning_rate=1e30", "model.module.max_norm=0", "trainer.budget.steps=60"]
    assert main(arguments(tiny_shards, tmp_path / "run", *extra, "trainer.nan_limit=3")) == 2
    assert "not finite" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "not-finite.ckpt").exists()


def test_temporal_terms_with_single_slices_are_refused_before_data_is_read(tiny_shards, tmp_path, capsys):
    assert (
        main(arguments(tiny_shards, tmp_path / "run", *VID2VID, "stream.clip_length=1", "trainer.budget.steps=1")) == 2
    )
    message = capsys.readouterr().err
    assert "stream.clip_length" in message
    assert not (tmp_path / "run").exists()


def test_a_method_that_learns_from_pairs_refuses_other_batches(tiny_shards, tmp_path, capsys):
    command = arguments(tiny_shards, tmp_path / "run", *REGRESSION, "stream.pairing=unpaired", "trainer.budget.steps=1")
    assert main(command) == 2
    assert "Found: stream.pairing=unpaired. Allowed: paired" in capsys.readouterr().err


def test_identity_needs_no_training(tiny_shards, tmp_path):
    assert main(arguments(tiny_shards, tmp_path / "run", "model=identity", "trainer.budget.steps=1")) == 0
    data = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert data["cinevox"]["method"] == "identity"


def _start(command: list[str]) -> subprocess.Popen:
    # A job in the background starts with Ctrl-C ignored, and so would its children.
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *command],
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_a_run_killed_after_its_last_step_takes_no_further_one(finished, tiny_shards, tmp_path):
    run = unfinished(finished, tmp_path / "run")
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    assert main(arguments(tiny_shards, run, *REGRESSION, "trainer.budget.steps=6")) == 0
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before
    assert json.loads((run / "stage.json").read_text())["finished"]


def unfinished(run: Path, to: Path) -> Path:
    """Copy a finished run as one that was killed before it could say so."""
    shutil.copytree(run, to)
    record = json.loads((to / "stage.json").read_text())
    (to / "stage.json").write_text(json.dumps({**record, "finished": False}))
    return to


def test_a_run_that_was_killed_after_its_last_step_is_finished_as_it_is(finished, tiny_shards, tmp_path):
    run = unfinished(finished, tmp_path / "run")
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    assert main(arguments(tiny_shards, run, *REGRESSION, "trainer.budget.steps=6", "trainer.keep_every=4")) == 0
    assert json.loads((run / "stage.json").read_text())["finished"]
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before


LONGER = [*REGRESSION, "trainer.budget.steps=8", "trainer.force=true"]


@pytest.mark.parametrize("damage", [b"", b"half of a", None])
def test_a_damaged_last_checkpoint_is_passed_over_for_the_one_before(damage, finished, tiny_shards, tmp_path, capsys):
    run = unfinished(finished, tmp_path / "run")
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-2000] if damage is None else damage)
    before = (run / "run.json").read_bytes() if (run / "run.json").exists() else None
    assert main(arguments(tiny_shards, run, *LONGER)) == 0
    message = capsys.readouterr().err
    assert "last.ckpt' is damaged" in message
    assert "Passed over" in message
    assert "Continuing at step 4" in message
    assert torch.load(last, weights_only=True)["progress"]["step"] == 8
    assert before is None or (run / "run.json").read_bytes() == before


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(finished, tiny_shards, tmp_path, capsys):
    run = unfinished(finished, tmp_path / "run")
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(b"")
    assert main(arguments(tiny_shards, run, *LONGER)) == 2
    assert "damaged" in capsys.readouterr().err


def test_a_checkpoint_of_another_version_is_named_with_its_version(finished, tiny_shards, tmp_path, capsys):
    data = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    data["cinevox"] |= {"schema": 0, "cinevox": "0.0.3"}
    torch.save(data, tmp_path / "old.ckpt")
    command = ["translate", f"checkpoint={tmp_path / 'old.ckpt'}", f"input={tiny_shards}", f"output={tmp_path / 'o'}"]
    assert main([*command, "source=t1n"]) == 2
    assert "was written by Cinevox 0.0.3. Found: schema 0. Allowed: schema 1" in capsys.readouterr().err


def test_hyper_parameters_in_a_checkpoint_run_nothing(finished, tiny_shards, tmp_path):
    """Lightning before 2.6.6 called what ``_instantiator`` names."""
    run, trap = unfinished(finished, tmp_path / "run"), tmp_path / "sprung"
    for name in ("last.ckpt", "previous.ckpt"):
        data = torch.load(run / "checkpoints" / name, weights_only=True)
        data["hyper_parameters"] = {"_instantiator": "os.mkdir", "path": str(trap)}
        data["hparams_name"] = "kwargs"
        torch.save(data, run / "checkpoints" / name)
    assert main(arguments(tiny_shards, run, *LONGER)) == 0
    assert not trap.exists()


def test_a_run_that_never_gets_further_is_not_started_for_ever(tiny_shards, tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise ValueError("always the same")

    command = arguments(tiny_shards, tmp_path / "run", *REGRESSION, "trainer.budget.steps=3", "trainer.attempts=2")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.models.regression.Regression.training_step", fail)
        assert [main(command) for _ in range(3)] == [1, 1, 2]
    message = capsys.readouterr().err
    assert "was started 2 times at step 0" in message
    assert main(command) == 2  # still, although the cause is gone
    assert main([*command, "trainer.force=true"]) == 0


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_names_the_settings_that_help(error, tiny_shards, tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr("pipeline.models.regression.Regression.training_step", fail)
    assert main(arguments(tiny_shards, tmp_path / "run", *REGRESSION, "trainer.budget.steps=3")) == 2
    message = capsys.readouterr().err
    assert "stream.accumulate" in message
    assert "stream.clip_limit" in message


def test_fp16_on_a_cpu_is_refused_first(tiny_shards, tmp_path, capsys):
    command = arguments(tiny_shards, tmp_path / "run", *REGRESSION, "trainer.budget.steps=1")
    assert main([*command, "trainer.precision=fp16-mixed", "trainer.accelerator=cpu"]) == 2
    assert "fp16-mixed needs a GPU" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_interrupted_run_says_how_to_go_on(tiny_shards, tmp_path):
    command = arguments(tiny_shards, tmp_path / "run", *REGRESSION, "trainer.budget.steps=100000")
    running = _start([*command, "trainer.checkpoint_steps=1", "trainer.validations=1"])
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 200
    while not last.exists() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    try:
        message = running.communicate(timeout=100)[1].decode()
    finally:
        running.kill()
    assert running.returncode == 130, message
    assert "the same command continues" in message
    assert torch.load(last, weights_only=True)["progress"]["step"] >= 1


def test_a_choice_that_is_not_made_leaves_no_trace_so_that_older_runs_go_on(tiny_shards):
    with SliceStore(tiny_shards) as store:
        plain = train._deciding(configuration(), store)
        chosen = train._deciding(configuration("stream.pairing=every_pair", "stream.pairs=['t1n:ct']"), store)
    assert not {"pairs", "remote", "remote_shuffle"} & set(plain["stream"])
    assert "strategy" not in plain["trainer"] and not {"init", "weights"} & set(plain["model"])
    assert chosen["stream"]["pairs"] == ["t1n:ct"]
