"""What a run's last bits depend on is kept, and said when it changes."""

import pytest
import torch
from runs import checkpoint
from test_ranks import arguments

from pipeline.__main__ import main


def test_other_threads_are_said_when_a_run_goes_on(tiny_shards, tmp_path, capsys):
    command = arguments(tiny_shards, tmp_path / "run", "regression", "trainer.checkpoint_steps=1")
    assert main([*command, "trainer.budget.steps=1"]) == 0
    kept = checkpoint(tmp_path / "run")["arithmetic"]
    assert kept["threads"] == 1
    assert kept["ranks"] == 1
    assert kept["torch"] == torch.__version__
    longer = [*command, "trainer.budget.steps=2", "trainer.force=true"]
    capsys.readouterr()
    assert main([*longer, "trainer.threads=2"]) == 0
    assert "another order from here (threads 1 -> 2)" in capsys.readouterr().err
    torch.set_num_threads(1)
    assert main([*longer, "trainer.threads=2", "trainer.budget.steps=3"]) == 0
    assert "Sums" not in capsys.readouterr().err


@pytest.fixture(autouse=True)
def _threads_of_the_other_tests():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
