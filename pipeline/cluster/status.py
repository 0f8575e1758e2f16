"""How the jobs of an output stand.

    cinevox status OUTPUT

Reads   OUTPUT/jobs/jobs.json of a chain, or OUTPUT.jobs/jobs.json of a verb, and the folders of its stages
Writes  nothing

A line per job: what SLURM says of it, cases that were left out, and of a training its last checkpoint, steps per
second and the time left. Folds and members of a sweep have a line each. A job that SLURM has forgotten has 'finished'
if its folder says so, else 'ended'.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from pipeline.artifacts import is_finished, read_json
from pipeline.cluster import slurm
from pipeline.cluster.record import Jobs, SubmittedJob, find_jobs
from pipeline.parts import left_out_by_parts
from pipeline.progress import duration
from pipeline.settings import Config

_PROGRESS = "progress.json"  # of training/checkpoint.py, which would load torch


def run(config: Config) -> None:
    """Print how the jobs of ``config.input[0]`` stand.

    Raises:
        ArtifactError: Nothing was submitted for it.
    """
    _, record = find_jobs(config.input[0])
    standings = slurm.standings([job.number for job in record.jobs if job.number])
    for line in lines(record, standings):
        sys.stdout.write(line + "\n")


def lines(record: Jobs, standings: dict[str, slurm.Standing]) -> list[str]:
    """Return a line per job: name, number, state, and what is known beside it; and one per task with its own folder."""
    rows = []
    for job in record.jobs:
        rows.append((job.name, job.number or "-", _state(job, standings.get(job.number)), _details(job)))
        for task in job.tasks:
            output = Path(task.output)
            state = "finished" if is_finished(output) else "begun" if output.exists() else "-"
            rows.append((f"  {task.name}", "", state, _training(output) if job.verb == "train" else ""))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    padded = (
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    )
    return [line.rstrip() for line in padded]


def _state(job: SubmittedJob, standing: slurm.Standing | None) -> str:
    if standing is not None and standing.alive:
        return f"{standing} ({standing.reason})" if standing.reason else str(standing)
    if _finished(job):
        return "finished"
    if standing is not None:
        return str(standing)
    return "ended" if job.number else "not submitted"


def _finished(job: SubmittedJob) -> bool:
    outputs = [task.output for task in job.tasks] or [job.output]
    return all(is_finished(Path(output)) for output in outputs)


def _details(job: SubmittedJob) -> str:
    output = Path(job.output)
    if job.tasks:
        ended = sum(is_finished(Path(task.output)) for task in job.tasks)
        return f"{ended} of {len(job.tasks)} finished"
    if job.verb == "train":
        return _training(output)
    left_out = left_out_by_parts(output) if job.parts else {}
    return f"{len(left_out)} case(s) left out: {', '.join(sorted(left_out)[:8])}" if left_out else ""


def _training(run: Path) -> str:
    path = run / _PROGRESS
    if not path.is_file():
        return ""
    progress = read_json(path, what="progress of the training")
    step, seconds, share = progress["step"], progress["seconds"], progress["share"]
    words = [f"step {step}, saved {duration(max(0.0, time.time() - path.stat().st_mtime))} ago"]
    if seconds > 0:
        words.append(f"{step / seconds:.3g} steps/s")
    if 0 < share < 1:
        words.append(f"{duration(seconds / share * (1 - share))} left from there")
    return ", ".join(words)
