"""Several ranks: the same result as one, the same end for all, and an end that loses nothing."""

import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from runs import assert_equal_ends, checkpoint, finish, start

from pipeline.__main__ import main
from pipeline.errors import ConfigError
from pipeline.training import ranks
from pipeline.training.ranks import RankLostError, joined, must_launch, this_rank

HERE = Path(__file__).parent
COMMON = [
    "source=t1n",
    "tracking=none",
    "trainer.precision=fp32",
    "trainer.threads=1",
    "trainer.budget.minutes=0",
    "trainer.validations=1",
    "trainer.validation_segments=2",
    "trainer.validation_slices=4",
    "stream.clip_growth=1",
    "stream.augment.shift_pixels=1",
    "stream.global_batch=4",
    "stream.threads=1",
]
METHODS = {
    "cyclegan": [
        "stream.pairing=unpaired",
        "stream.clip_length=1",
        "model.module.generator.width=4",
        "model.module.generator.blocks=1",
        "model.module.discriminator.width=4",
        "model.module.discriminator.layers=2",
        "model.module.pool=6",
    ],
    "regression": [
        "stream.clip_length=3",
        "model.module.network.widths=[4,8]",
        "model.module.network.residual_units=1",
    ],
    "vid2vid": [
        "stream.clip_length=7",
        "stream.clip_limit=7",
        "model.module.generator.width=4",
        "model.module.generator.downsamplings=2",
        "model.module.generator.blocks=2",
        "model.module.image_discriminator.width=4",
        "model.module.temporal_discriminator.width=4",
        "model.module.weight_l1=10",
        "model.module.frames_per_step=4",
    ],
}


def arguments(shards: Path, output: Path, method: str, *extra: str) -> list[str]:
    return ["train", f"input={shards}", f"output={output}", f"model={method}", *COMMON, *METHODS[method], *extra]


@pytest.fixture
def ranks_of_the_environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_who_this_rank_is_comes_from_torchrun_or_slurm(ranks_of_the_environment):
    assert this_rank() == ranks.Ranks(0, 1, 0, 1)
    assert must_launch(2, 1)
    assert not must_launch(1, 1)
    with pytest.raises(ConfigError, match="srun or torchrun"):
        must_launch(2, 2)
    for name, value in (("SLURM_PROCID", "5"), ("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_LOCALID", "1")):
        ranks_of_the_environment.setenv(name, value)
    ranks_of_the_environment.setenv("SLURM_STEP_NUM_NODES", "2")
    assert this_rank() == ranks.Ranks(5, 8, 1, 4)
    assert not must_launch(4, 2)
    with pytest.raises(ConfigError, match=r"8 ranks. Allowed: trainer.devices=2 x trainer.nodes=2 = 4"):
        must_launch(2, 2)


def two_ranks(*words: str, timeout: float = 500) -> list[dict]:
    """Run two_ranks.py twice, connected; return what each printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    common.pop("OMP_NUM_THREADS", None)
    both = [
        subprocess.Popen(
            [sys.executable, HERE / "two_ranks.py", *words],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    ended = [process.communicate(timeout=timeout) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    return [json.loads(out) for out, _ in ended]


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")
def test_two_ranks_learn_the_same_with_compiled_networks():
    for found in two_ranks("inductor", timeout=1500):
        assert found["compiled"]
        assert found["seen"]
        assert found["unlike"] < 1e-4


def test_two_ranks_learn_as_one_would_skip_together_and_follow_the_first():
    first, second = two_ranks()
    assert first["decided"] == second["decided"] == "rank 0"
    assert first["first"] == second["first"] == 7
    assert first["sum"] == second["sum"] == [2, 1]
    assert (first["refused"], second["refused"]) == ("with the reason", 2)
    assert first["threads"] == second["threads"] == 3
    assert first["told"] is second["told"] is True
    assert first["vid2vid"] == second["vid2vid"]
    assert first["vid2vid"]["kept"]
    assert first["vid2vid"]["moved"]
    assert first["vid2vid"]["skipped"] == 3  # one per frame
    assert max(first["pools"], second["pools"]) < 1e-4
    assert first["unlike"] == second["unlike"]
    assert len(first["unlike"]) >= 6
    assert max(first["unlike"].values()) < 2e-4, first["unlike"]  # of the largest gradient, in float32
    for found in (first["compiled"], second["compiled"]):  # traced by dynamo, without kernels: those are a long test
        assert found["compiled"]
        assert found["seen"]
        assert found["unlike"] < 1e-5


def test_a_rank_that_the_others_never_join_is_to_be_continued(ranks_of_the_environment):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in words.items():
        ranks_of_the_environment.setenv(name, value)
    with pytest.raises(RankLostError, match="Rank 1 lost") as lost, joined(torch.device("cpu"), 0.3):
        pass
    assert lost.value.exit_code == 75


@pytest.mark.parametrize(
    "said",
    [
        "Operation timed out!",
        "[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 40000ms for recv operation to complete",
        "Connection closed by peer [127.0.0.1]:29500",
    ],
)
def test_what_torch_says_of_ranks_that_hang_or_are_gone_is_to_be_continued(said, ranks_of_the_environment):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        ranks_of_the_environment.setenv(name, value)
    ranks_of_the_environment.setattr("torch.distributed.init_process_group", lambda *_, **__: None)
    with pytest.raises(RankLostError, match="Rank 0 lost"), joined(torch.device("cpu"), 1):
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="of our own"), joined(torch.device("cpu"), 1):
        raise RuntimeError("a fault of our own")


def test_a_global_batch_that_does_not_divide_is_refused_before_any_rank_starts(tiny_shards, tmp_path, capsys):
    command = arguments(tiny_shards, tmp_path / "run", "regression", "trainer.devices=3", "trainer.budget.steps=1")
    assert main(command) == 2
    assert "stream.global_batch cannot be divided" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def descendants(process: subprocess.Popen) -> list[int]:
    """Return the ranks of a launcher, by process id."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return [int(pid) for pid in listed.stdout.split()]


KILLED = [
    "trainer.devices=2",
    "trainer.checkpoint_steps=1",
    "trainer.attempts=0",
    "stream.global_batch=2",
    "model.module.ema_decay=0.9",
]


@pytest.mark.long  # two minutes; and 20 and 100 kills stand beside it
def test_a_killed_rank_ends_the_run_which_then_goes_on_to_the_same_end(tiny_shards, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    extra = [*KILLED, "trainer.budget.steps=6"]
    finish(arguments(tiny_shards, whole, "vid2vid", *extra))
    victim = start(arguments(tiny_shards, broken, "vid2vid", *extra))
    last = broken / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 200
    while not last.exists() and victim.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    second_rank = max(descendants(victim))
    os.kill(second_rank, signal.SIGKILL)
    killed = time.monotonic()
    message = victim.communicate(timeout=60)[1].decode()
    assert time.monotonic() - killed < 30
    assert victim.returncode == 2, message
    assert "was killed by SIGKILL" in message
    assert 0 < checkpoint(broken)["progress"]["step"] < 6
    shutil.copytree(broken, tmp_path / "alone")
    assert "Continuing at step" in finish(arguments(tiny_shards, broken, "vid2vid", *extra))
    assert_equal_ends(checkpoint(whole), checkpoint(broken))
    # On one rank the same clips follow; sums are rounded in another order.
    assert main(arguments(tiny_shards, tmp_path / "alone", "vid2vid", *extra, "trainer.devices=1")) == 0
    assert checkpoint(tmp_path / "alone")["ClipDataModule"] == checkpoint(whole)["ClipDataModule"]


class Launched:
    """Trainings by the command, whose launcher starts the ranks; it can be killed too."""

    seconds = 40  # for a start

    def start(self, command: list[str]) -> None:
        self.process = start(command)

    def victims(self) -> list[int]:
        return [self.process.pid, *descendants(self.process)]

    def running(self) -> bool:
        return self.process.poll() is None

    def ended(self) -> None:
        self.process.communicate(timeout=100)
        time.sleep(1.5)  # a launcher's ranks end when they see that it is gone

    def close(self) -> None:
        if self.running():
            self.process.kill()
            self.process.communicate()


class Forked:
    """Trainings as forks of a process that has imported everything: a start takes a second."""

    seconds = 4

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TORCH_CPP_LOG_LEVEL": "ERROR"}
        self.server = subprocess.Popen(
            [sys.executable, HERE / "forked_ranks.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )

    def start(self, command: list[str]) -> None:
        self.server.stdin.write(json.dumps(command).encode() + b"\n")
        self.server.stdin.flush()
        self.pids = json.loads(self.server.stdout.readline())

    def victims(self) -> list[int]:
        return self.pids

    def running(self) -> bool:
        return not select.select([self.server.stdout], [], [], 0)[0]

    def ended(self) -> None:
        codes = json.loads(self.server.stdout.readline())  # the other rank ended by itself
        assert -signal.SIGKILL in codes, codes
        assert 0 not in codes, codes

    def close(self) -> None:
        self.server.kill()
        self.server.communicate()
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.long
@pytest.mark.parametrize(
    ("ranks_by", "method", "kills", "steps"), [(Launched, "vid2vid", 20, 90), (Forked, "regression", 100, 340)]
)
def test_killed_at_random_points_the_end_is_that_of_an_unbroken_run(
    ranks_by, method, kills, steps, tiny_shards, tmp_path
):
    """In start-up, in a step, in a save, in validation; every fourth is the first rank's while it writes one."""
    draw = random.Random(2026)
    extra = [*KILLED, "trainer.validations=40", "trainer.rank_timeout_s=15", f"trainer.budget.steps={steps}"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(arguments(tiny_shards, whole, method, *extra))
    command, trainings = arguments(tiny_shards, broken, method, *extra), ranks_by()
    last, reached, written = broken / "checkpoints" / "last.ckpt", [0], 0
    partial = last.with_name(f".partial.{last.name}")
    try:
        for kill in range(kills):
            before, begun = stamp(partial), time.monotonic()
            trainings.start(command)
            wanted = reached[-1] + draw.choice([0, 1, 2, 3, 4])
            if wanted == reached[-1]:
                time.sleep(draw.random() * trainings.seconds / 2)
            while wanted > reached_step(last) and trainings.running() and time.monotonic() < begun + 120:
                time.sleep(0.02)
            if kill % 4 == 3:
                while stamp(partial) in (None, before) and trainings.running() and time.monotonic() < begun + 120:
                    pass
            else:
                time.sleep(draw.random() * trainings.seconds / 40)
            assert trainings.running(), (kill, reached)
            os.kill(trainings.victims()[-2] if kill % 4 == 3 else draw.choice(trainings.victims()), signal.SIGKILL)
            trainings.ended()
            written += stamp(partial) not in (None, before)
            reached.append(reached_step(last))
    finally:
        trainings.close()
    finish(command)
    assert len(set(reached)) > kills // 2, reached
    assert written >= kills // 10, written
    assert_equal_ends(checkpoint(whole), checkpoint(broken))


def stamp(partial: Path) -> int | None:
    """When a checkpoint that is being written, or was, was touched last."""
    return partial.stat().st_mtime_ns if partial.exists() else None


def reached_step(last: Path) -> int:
    return checkpoint(last.parents[1])["progress"]["step"] if last.exists() else 0
