"""Ranks: how many processes train together, how they are started, and how the first decides for all."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from pytorch_lightning.plugins.environments import ClusterEnvironment, SLURMEnvironment

from pipeline.errors import ConfigError, TrainingError
from pipeline.signals import release_warnings
from pipeline.training.sharding import fsdp

T = TypeVar("T")
_LAUNCHER = "CINEVOX_LAUNCHER"  # process id of the launcher that a rank belongs to
_GRACE_SECONDS = 5.0
# EX_TEMPFAIL of sysexits.h: what was saved stays, and the same command continues. slurm/job.sh requeues such a job.
TO_BE_CONTINUED = 75
_LOST = ("onnection", "gloo", "imed out")  # in what torch says of ranks that are gone or hang


class RankLostError(TrainingError):
    """Another rank is gone: a job goes on from the last checkpoint, as often as ``trainer.attempts`` allows."""

    exit_code = TO_BE_CONTINUED


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; ``local`` counts within its node."""

    rank: int
    count: int
    local: int
    local_count: int

    @property
    def first(self) -> bool:
        """Whether this rank writes and speaks."""
        return self.rank == 0


def this_rank() -> Ranks:
    """Return what the environment says: our own launcher's or torchrun's words, else SLURM's, else one rank."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        count = int(env["WORLD_SIZE"])
        local_count = int(env.get("LOCAL_WORLD_SIZE", count))
        return Ranks(int(env["RANK"]), count, int(env.get("LOCAL_RANK", env["RANK"])), local_count)
    if "SLURM_PROCID" in env and "SLURM_STEP_NUM_TASKS" in env:  # inside srun; a batch script has no step of its own
        count = int(env["SLURM_STEP_NUM_TASKS"])
        nodes = int(env.get("SLURM_STEP_NUM_NODES", 1))
        return Ranks(int(env["SLURM_PROCID"]), count, int(env["SLURM_LOCALID"]), count // nodes)
    return Ranks(0, 1, 0, 1)


def must_launch(devices: int, nodes: int) -> bool:
    """Whether this process has to start the ranks that the settings want.

    Raises:
        ConfigError: Ranks were started from outside, and not as many as the settings want.
    """
    wanted, started = devices * nodes, this_rank().count
    if started > 1 and started != wanted:
        raise ConfigError(
            "The ranks that were started are not those of the settings",
            value=f"{started} ranks",
            allowed=f"trainer.devices={devices} x trainer.nodes={nodes} = {wanted}",
            remedy="Start as many tasks as that, or change the settings",
        )
    if wanted > 1 and started == 1 and nodes > 1:
        raise ConfigError(
            "Several nodes need a launcher that reaches them all",
            value=f"trainer.nodes={nodes}",
            remedy="Start the command on every node with srun or torchrun",
        )
    return wanted > 1 and started == 1


def launch(count: int, arguments: list[str]) -> None:
    """Run this very command in ``count`` rank processes on this machine and wait for them.

    When one ends with an error, the others are ended within seconds: none is left waiting for it.

    Raises:
        TrainingError: A rank was killed.
        SystemExit: A rank failed, and has said why.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # DDP's advice on unused parameters, once per rank
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        _LAUNCHER: str(os.getpid()),
    }
    command = [sys.executable, "-m", "pipeline", *arguments]
    ranks = [
        subprocess.Popen(command, env={**common, "RANK": str(r), "LOCAL_RANK": str(r)})  # noqa: S603 - our own command
        for r in range(count)
    ]
    with _passing_on_signals(ranks):
        failed = _first_failure(ranks)
    if failed is None:
        return
    rank, code = failed
    if code < 0:
        raise TrainingError(
            f"Rank {rank} was killed by {signal.Signals(-code).name}; the other ranks were ended",
            remedy="If memory ran out, lower stream.global_batch or raise stream.accumulate; the same command "
            "continues from the last checkpoint",
        )
    raise SystemExit(code)


def _first_failure(ranks: list[subprocess.Popen[bytes]]) -> tuple[int, int] | None:
    """Wait for all ranks; at the first failure end the others. Return that rank and its exit code."""
    failed: tuple[int, int] | None = None
    deadline = float("inf")
    while None in [process.poll() for process in ranks]:
        if failed is None:
            codes = [(r, p.returncode) for r, p in enumerate(ranks) if p.returncode]
            if codes:
                # A killed rank is the cause, an error beside it the consequence.
                failed, deadline = (
                    min(codes, key=lambda item: (item[1] > 0, item[0])),
                    time.monotonic() + _GRACE_SECONDS,
                )
        elif time.monotonic() > deadline:
            for process in ranks:
                if process.poll() is None:
                    process.kill()
        time.sleep(0.05)
    codes = [(r, p.returncode) for r, p in enumerate(ranks) if p.returncode]
    return failed or (codes[0] if codes else None)


@contextmanager
def _passing_on_signals(ranks: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Hand signals on to the ranks, which know how to stop; a terminal's Ctrl-C reaches them by itself."""

    def pass_on(number: int, frame: object) -> None:
        for process in ranks:
            if process.poll() is None:
                process.send_signal(number)

    handlers = {signal.SIGTERM: pass_on, signal.SIGUSR1: pass_on}
    by_hand = sys.stdin is not None and sys.stdin.isatty()
    handlers[signal.SIGINT] = (lambda number, frame: None) if by_hand else pass_on
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    release_warnings()  # the ranks hold it back until they listen
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def has_launcher() -> bool:
    """Whether our own launcher started this rank: it has said what there is to say before the training."""
    return _LAUNCHER in os.environ


def end_with_the_launcher() -> None:
    """Let this rank end when its launcher is gone (killed): nobody else would end it."""
    parent = os.environ.get(_LAUNCHER)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()


@contextmanager
def joined(device: torch.device, timeout_seconds: float) -> Iterator[Ranks]:
    """Connect the ranks (NCCL on GPUs, gloo on CPUs) for the duration of the context."""
    here = this_rank()
    if here.count == 1:
        yield here
        return
    end_with_the_launcher()
    if "MASTER_ADDR" not in os.environ:
        slurm = SLURMEnvironment(auto_requeue=False)
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = slurm.main_address, str(slurm.main_port)
    if device.type == "cuda":
        torch.cuda.set_device(here.local)
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            rank=here.rank,
            world_size=here.count,
            timeout=timedelta(seconds=timeout_seconds),
        )
        yield here
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or any(word in str(error) for word in _LOST):
            raise RankLostError(
                f"Rank {here.rank} lost the connection to the others",
                remedy="Another rank ended: look for its message; the same command continues",
            ) from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


class StartedRanks(ClusterEnvironment):
    """The ranks as Lightning asks for them: it neither starts any nor looks for SLURM, whose jobs it would requeue."""

    def __init__(self, here: Ranks) -> None:
        super().__init__()
        self.here = here

    @property
    def creates_processes_externally(self) -> bool:
        """Srun, torchrun or our own launcher started them."""
        return True

    @property
    def main_address(self) -> str:
        """Where the first rank listens."""
        return os.environ.get("MASTER_ADDR", "127.0.0.1")

    @property
    def main_port(self) -> int:
        """Its port; nobody asks for it where there is one rank."""
        return int(os.environ.get("MASTER_PORT", 0))

    @staticmethod
    def detect() -> bool:
        """Never found by itself: it is given."""
        return False

    def world_size(self) -> int:
        """All ranks."""
        return self.here.count

    def set_world_size(self, size: int) -> None:
        """Nothing: it is what was started."""

    def global_rank(self) -> int:
        """This rank."""
        return self.here.rank

    def set_global_rank(self, rank: int) -> None:
        """Nothing: it is what was started."""

    def local_rank(self) -> int:
        """This rank within its node."""
        return self.here.local

    def node_rank(self) -> int:
        """This rank's node."""
        return self.here.rank // self.here.local_count


def strategy_for(here: Ranks, strategy: str = "ddp") -> Any:
    """Return Lightning's strategy: DDP or FSDP between ranks, and nothing around a single one."""
    if here.count == 1:
        return "auto"
    if strategy == "fsdp":
        return fsdp(dist.get_backend())
    from pytorch_lightning.strategies import DDPStrategy

    # Alternating optimisers leave parameters without gradients. Buffers are not sent around at each step: those of
    # frozen feature networks never change, and batch norm's running statistics are the first rank's.
    return DDPStrategy(find_unused_parameters=True, broadcast_buffers=False, process_group_backend=dist.get_backend())


def decided_by_the_first(decide: Callable[[], T]) -> T:
    """Call ``decide`` on the first rank and return its answer (plain data) on all.

    What the first rank raises ends the others too; only the first says why.
    """
    if not dist.is_initialized():
        return decide()
    answer: list[object] = [None, None]
    error: BaseException | None = None
    if dist.get_rank() == 0:
        try:
            answer = [decide(), None]
        except Exception as raised:
            error, answer = raised, [None, getattr(raised, "exit_code", 1)]
    dist.broadcast_object_list(answer)
    if error is not None:
        raise error
    if answer[1] is not None:
        raise SystemExit(answer[1])
    return answer[0]  # type: ignore[return-value]


def first_ranks_number(value: float) -> float:
    """Return the first rank's number on all ranks: clocks differ, and what follows from them must not."""
    if not dist.is_initialized():
        return value
    box = torch.tensor([value], dtype=torch.float64, device=_device())
    dist.broadcast(box, 0)
    return float(box.item())


def summed(values: list[float]) -> list[float]:
    """Return the sums over all ranks."""
    if not dist.is_initialized():
        return values
    box = torch.tensor(values, dtype=torch.float64, device=_device())
    dist.all_reduce(box)
    return [float(v) for v in box.tolist()]


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
