"""Trainings in processes of their own, and how two of them ended."""

import subprocess
import sys
from pathlib import Path

import torch


def start(command: list[str]) -> subprocess.Popen:
    # A session of its own, as a job has: what is killed there does not touch the tests.
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *command], stderr=subprocess.PIPE, start_new_session=True
    )


def finish(command: list[str]) -> str:
    process = start(command)
    message = process.communicate(timeout=300)[1].decode()
    assert process.returncode == 0, message
    return message


def checkpoint(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def assert_equal_ends(one: dict, other: dict) -> None:
    assert one["progress"]["step"] == other["progress"]["step"]
    assert one["ClipDataModule"] == other["ClipDataModule"]
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    for a, b in zip(one["optimizer_states"], other["optimizer_states"], strict=True):
        for key, state in a["state"].items():
            assert all(torch.equal(state[n], b["state"][key][n]) for n in state)
