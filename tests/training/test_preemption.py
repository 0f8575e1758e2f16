"""A training that is told to stop: saved at the end of the step, and the same end as without."""

import os
import signal
import threading
import time
import zipfile

import pytest
import torch
from runs import assert_equal_ends, checkpoint
from test_ranks import arguments

from pipeline.__main__ import main
from pipeline.errors import CheckpointError
from pipeline.training.budget import Budget
from pipeline.training.checkpoint import _read_back

EXTRA = ["trainer.checkpoint_steps=3", "trainer.attempts=2"]


@pytest.fixture(autouse=True)
def outlived():
    """Let a signal that comes late, when nothing listens any more, fail a test instead of ending all of them."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGUSR1, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def told_after_the_first_checkpoint(run, number):
    def tell():
        while not (run / "checkpoints" / "last.ckpt").exists():
            time.sleep(0.001)
        os.kill(os.getpid(), number)

    return threading.Thread(target=tell, daemon=True)


@pytest.mark.parametrize(
    ("number", "method", "steps"), [(signal.SIGUSR1, "regression", 40), (signal.SIGTERM, "cyclegan", 16)]
)
def test_told_to_stop_it_saves_and_goes_on_to_the_same_end(number, method, steps, tiny_shards, tmp_path, capsys):
    extra = [*EXTRA, f"trainer.budget.steps={steps}"]
    before = [signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGTERM)]
    assert main(arguments(tiny_shards, tmp_path / "whole", method, *extra)) == 0
    command = arguments(tiny_shards, tmp_path / "told", method, *extra)
    telling = told_after_the_first_checkpoint(tmp_path / "told", number)
    telling.start()
    with pytest.raises(SystemExit) as ended:
        main(command)
    telling.join()
    assert ended.value.code == 75
    reached = checkpoint(tmp_path / "told")["progress"]["step"]
    assert 0 < reached < steps
    assert f"Told to stop by {number.name}: saved at step {reached}" in capsys.readouterr().err
    assert main(command) == 0
    assert_equal_ends(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "told"))
    pools = [checkpoint(tmp_path / run).get("pools", []) for run in ("whole", "told")]
    assert len(pools[0]) == (2 if method == "cyclegan" else 0)
    for one, other in zip(*pools, strict=True):
        assert one["steps"] == other["steps"] == steps
        assert len(one["images"]) == 6
        assert torch.equal(one["images"], other["images"])
    assert [signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGTERM)] == before


def test_told_as_the_fit_begins_it_saves_after_one_step(tiny_shards, tmp_path, monkeypatch, capsys):
    """Lightning takes SIGTERM there, and would end the fit with an exception."""
    monkeypatch.setattr(Budget, "on_train_start", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        main(arguments(tiny_shards, tmp_path / "run", "regression", *EXTRA, "trainer.budget.steps=40"))
    assert ended.value.code == 75
    assert "Told to stop by SIGTERM: saved at step 1;" in capsys.readouterr().err
    assert checkpoint(tmp_path / "run")["progress"]["step"] == 1


def test_what_was_written_is_read_back(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {"weight": torch.arange(10_000.0)}}, path)
    _read_back(path)
    with zipfile.ZipFile(path) as archive:
        data = next(item for item in archive.infolist() if item.file_size >= 40_000)
    with path.open("r+b") as stream:
        stream.seek(data.header_offset + 2000)
        stream.write(b"\x01")
    with pytest.raises(CheckpointError, match="not written as it is in memory"):
        _read_back(path)
