"""A job as the words that sbatch is given: settings are options, the command is arguments; nothing is pasted."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.cluster_settings import ClusterSettings


@dataclass(frozen=True)
class Task:
    """A task of an array that works on something of its own: with words that no other is given, into its folder."""

    name: str
    words: tuple[str, ...]
    output: Path
    last: Path  # what becomes of it in the end: until that is finished, the task may be needed


@dataclass(frozen=True)
class Job:
    """One verb with its words; an array deals the stage's cases among its tasks, or has a folder for each.

    ``name`` is its own within the chain, ``after`` names those that it needs, each with SLURM's word for how they must
    have ended, ``output`` is the stage's folder (an absolute path), ``ranks`` are tasks on each of ``nodes``.
    """

    name: str
    verb: str
    words: tuple[str, ...]
    output: Path
    after: Mapping[str, str] = field(default_factory=dict)
    parts: int = 0  # tasks of an array over the cases; 0: it is none
    tasks: tuple[Task, ...] = ()  # of an array over anything else, from 1
    gpu: bool = False
    nodes: int = 1
    ranks: int = 1

    @property
    def size(self) -> int:
        """Tasks of the array; 0 where it is none."""
        return len(self.tasks) or self.parts

    @property
    def saves_when_warned(self) -> bool:
        """Whether it turns a signal into a checkpoint and goes on later."""
        return self.verb == "train"


def template() -> Path:
    """Return the job script: package data of the wheel, or the repository's ``slurm/``."""
    package = Path(__file__).parent.parent
    inside = package / "slurm"
    return (inside if inside.is_dir() else package.parent / "slurm") / "job.sh"


def sbatch_words(
    job: Job,
    settings: ClusterSettings,
    folder: Path,
    dependencies: Mapping[str, Sequence[str]] | None = None,
    tasks: Sequence[int] = (),
) -> list[str]:
    """Return the command that submits a job.

    Args:
        job: What is to be done.
        settings: Of the cluster.
        folder: Where the job's log goes, without a backslash; must exist when it starts.
        dependencies: ``afterok``, ``afterany`` or ``aftercorr``: numbers of jobs.
        tasks: Of an array, those to run; empty: all.
    """
    resources = settings.gpu if job.gpu else settings.cpu
    words = ["sbatch", "--parsable", f"--job-name=cinevox-{job.name}"]
    # A pattern to SLURM, the folder too: what is not meant as one is doubled.
    log = f"{str(folder).replace('%', '%%')}/{job.name}-{'%A_%a' if job.size else '%j'}.log"
    words += [f"--output={log}", "--open-mode=append"]
    words += [f"--nodes={job.nodes}", f"--ntasks-per-node={job.ranks}", f"--cpus-per-task={resources.cpus}"]
    words += [f"--time={resources.time}", "--requeue"]
    for option, value in (
        ("account", settings.account),
        ("qos", settings.qos),
        ("partition", resources.partition),
        ("constraint", resources.constraint),
        ("mem", resources.memory),
    ):
        if value is not None:
            words.append(f"--{option}={value}")
    if resources.gpus is not None:
        kind = "" if resources.gpus == "any" else f"{resources.gpus}:"
        words.append(f"--gpus-per-node={kind}{job.ranks}")
    if job.saves_when_warned:
        words.append(f"--signal=USR1@{settings.warning_s}")
    if job.size:
        limit = f"%{settings.at_once}" if settings.at_once else ""
        words.append(f"--array={','.join(map(str, tasks)) or f'1-{job.size}'}{limit}")
    if dependencies:
        conditions = (f"{kind}:{':'.join(numbers)}" for kind, numbers in dependencies.items())
        words += [f"--dependency={','.join(conditions)}", "--kill-on-invalid-dep=yes"]
    words += [*settings.options, str(template())]
    for name in settings.modules:
        words += ["--module", name]
    for name, value in settings.environment.items():
        words += ["--environment", f"{name}={value}"]
    if job.parts:
        words += ["--parts", str(job.parts)]
    if job.saves_when_warned:
        words.append("--continue-killed")
    for number, task in enumerate(job.tasks, start=1):
        words += [part for word in task.words for part in ("--task", str(number), word)]
    interpreter = settings.python or sys.executable
    return [*words, "--", *settings.container, interpreter, "-m", "pipeline", job.verb, *job.words]


def text(words: Sequence[str]) -> str:
    """Return a command as a person reads it and a shell would take it: an option or a word to a line."""
    return " \\\n  ".join(shlex.quote(word) for word in words)
