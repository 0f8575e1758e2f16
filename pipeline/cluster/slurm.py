"""What is asked of SLURM: submit, how jobs stand, cancel. Arguments are lists; no shell is involved."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.errors import ConfigError

# Everything else has ended, and will not start again by itself.
_ALIVE = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "RESIZING")
_SECONDS = 60


@dataclass(frozen=True)
class Standing:
    """How a job stands: the states of its tasks with their number, and the reason where it waits."""

    states: Counter[str]
    reason: str = ""

    @property
    def alive(self) -> bool:
        """Whether something of it runs or will run."""
        return any(state in _ALIVE for state in self.states)

    def __str__(self) -> str:
        if sum(self.states.values()) == 1:
            return next(iter(self.states))
        return ", ".join(f"{count} {state}" for state, count in sorted(self.states.items()))


def require() -> None:
    """See that there is a SLURM that answers.

    Raises:
        ConfigError: There is none.
    """
    _ask(["squeue", "--noheader", "--me", "--format=%i"])


def submit(words: Sequence[str]) -> str:
    """Run an sbatch command and return the job's number.

    Raises:
        ConfigError: SLURM refuses the job, with its own words.
    """
    # --parsable: number[;cluster]
    return _ask(words).strip().partition(";")[0]


def cancel(numbers: Iterable[str]) -> None:
    """Cancel jobs, whether they wait or run."""
    _ask(["scancel", *numbers])


def standings(numbers: Sequence[str]) -> dict[str, Standing]:
    """Return how those jobs stand that SLURM still knows: the controller's own memory, then its accounting."""
    wanted = set(numbers)
    if not wanted:
        return {}
    rows: dict[str, list[tuple[str, int, str]]] = {}
    for line in _ask(["squeue", "--noheader", "--me", "--states=all", "--format=%F|%K|%T|%r"]).splitlines():
        number, task, state, reason = line.strip().split("|", 3)
        if number in wanted:
            rows.setdefault(number, []).append((state, _count(task), reason))
    for number, state in _accounted(sorted(wanted - set(rows))):
        rows.setdefault(number, []).append((state, 1, ""))
    found = {}
    for number, tasks in rows.items():
        states: Counter[str] = Counter()
        for state, count, _ in tasks:
            states[state] += count
        waiting = {reason for state, _, reason in tasks if state == "PENDING"}
        found[number] = Standing(states, ", ".join(sorted(waiting - {"None", ""})))
    return found


def _count(tasks: str) -> int:
    """Return how many tasks of an array a row stands for: 'N/A', '3', or '4-8,11%2' of those that wait."""
    count = 0
    for span in tasks.partition("%")[0].split(","):
        first, _, last = span.partition("-")
        count += int(last) - int(first) + 1 if last.isdigit() and first.isdigit() else 1
    return count


def _accounted(numbers: list[str]) -> list[tuple[str, str]]:
    if not numbers or shutil.which("sacct") is None:
        return []
    words = ["sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={','.join(numbers)}"]
    done = subprocess.run(  # noqa: S603 - a list, no shell
        [*words, "--format=JobID,State"], capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    if done.returncode:
        return []  # a site without accounting: what the folders say has to do
    rows = (line.split("|", 1) for line in done.stdout.splitlines() if "|" in line)
    return [(job.partition("_")[0], state.partition(" ")[0]) for job, state in rows]


def _ask(words: Sequence[str]) -> str:
    if shutil.which(words[0]) is None:
        raise ConfigError(
            f"There is no '{words[0]}' here",
            remedy="Submit from a machine with SLURM; --dry-run shows the jobs anywhere",
        )
    try:
        done = subprocess.run(  # noqa: S603 - a list, no shell
            list(words), capture_output=True, text=True, timeout=_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"'{words[0]}' gave no answer", value=f"{_SECONDS} s", remedy="Try again later") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ConfigError(f"SLURM refused '{words[0]}'", value=lines[-1], remedy="Look at the group 'cluster'")
    return done.stdout
