"""The whole chain, one verb, or a sweep, as SLURM jobs.

    cinevox submit experiment=NAME cluster=NAME input=PATIENTS output=CHAIN
    cinevox submit VERB cluster=NAME input=... output=...
    cinevox submit sweep sweep=NAME cluster=NAME input=SHARDS output=SWEEP

Reads   what the verbs read; of a chain input=PATIENTS (none for phantoms)
Writes  CHAIN/{cohort,simulated,shards,run,translated,scores,report}, CHAIN/jobs/ (jobs.json and the jobs' logs);
        with cohort.split.folds=K CHAIN/fold1/{run,translated} to CHAIN/foldK/ instead of run and translated;
        of a single verb or a sweep its output, and beside it OUTPUT.jobs/

Simulating, preprocessing, translating and evaluating are arrays of cluster.parts tasks that share the cases (one of
these verbs alone too, unless cluster.parts=1); a join lists the cases that failed and goes on with the others.
Cone-beam CT is simulated where it is the source and the patients have none. Folds and members of a sweep are arrays
with a task each.
Training has trainer.nodes x trainer.devices tasks; it saves before the time limit or when it is preempted, and goes
on by itself at exactly the next sample.

A second submit of the same run submits what is missing: not what has finished, waits or runs.

Main options: cluster=NAME (conf/cluster/NAME.yaml), cluster.account, cluster.parts, cluster.gpu.time,
--dry-run (prints every job, submits nothing).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.arguments import parse
from pipeline.artifacts import difference, is_finished
from pipeline.cluster import slurm
from pipeline.cluster.chain import chain, single, sweep
from pipeline.cluster.job import Job, sbatch_words, text
from pipeline.cluster.record import Jobs, SubmittedJob, SubmittedTask, jobs_folder
from pipeline.errors import ArtifactError, ConfigError
from pipeline.locks import lock
from pipeline.parts import missing_parts
from pipeline.progress import say
from pipeline.settings import Config


def run(config: Config) -> None:
    """Submit what is missing of a chain or a verb.

    Raises:
        ConfigError: SLURM is not here or refuses a job, or there is nothing of that name to submit.
        ArtifactError: The output was submitted with other settings.
    """
    assert config.output is not None
    work = config.work or "chain"
    overrides, _, _ = parse(config.command[1:], "submit")
    if any(not word.isprintable() for word in overrides):
        raise ConfigError("A setting holds a newline or another control character")
    if any(not path.exists() for path in (*config.input, *([config.checkpoint] if config.checkpoint else []))):
        raise ArtifactError("What should be read is not there", remedy="Check input=PATH and checkpoint=PATH")
    jobs = {"chain": chain, "sweep": sweep}.get(work, single)(config, overrides)
    folder = jobs_folder(config.output, work)
    if "\\" in str(folder):
        raise ConfigError("SLURM takes no backslash in the path of a log", remedy="Choose another output folder")
    if config.dry_run:
        for job in jobs:
            waits = _conditions(job, {name: f"<{name}>" for name in job.after})
            sys.stdout.write(f"\n# {job.name}\n{text(sbatch_words(job, config.cluster, folder, waits))}\n")
        return
    slurm.require()
    folder.mkdir(parents=True, exist_ok=True)
    held = lock(folder / ".submit.lock", f"The jobs of '{config.output}'")
    record = _record(folder, work, jobs)
    standings = slurm.standings([job.number for job in record.jobs if job.number])
    waiting: dict[str, str] = {}  # what later jobs have to wait for
    for job, noted in zip(jobs, record.jobs, strict=True):
        standing = standings.get(noted.number)
        if standing is not None and standing.alive:
            say(f"{job.name}: job {noted.number} is {standing}")
            waiting[job.name] = noted.number
            continue
        tasks = _missing(job)
        if tasks is None:
            say(f"{job.name}: finished")
            continue
        words = sbatch_words(job, config.cluster, folder, _conditions(job, waiting), tasks)
        noted.number = waiting[job.name] = slurm.submit(words)
        record.save(folder)
        say(f"{job.name}: submitted as job {noted.number}")
    held.release()


def _missing(job: Job) -> list[int] | None:
    """Return the tasks of an array that are to be run, none for what is no array; None: it is finished."""
    if job.tasks:
        if all(is_finished(task.output) for task in job.tasks):
            return None
        # Also one that is done where what follows is not: a task that corresponds to none would wait for all of them.
        return [number for number, task in enumerate(job.tasks, start=1) if not is_finished(task.last)] or None
    if is_finished(job.output):
        return None
    tasks = missing_parts(job.output, job.parts)
    return None if job.parts and not tasks else tasks


def _conditions(job: Job, waiting: Mapping[str, str]) -> dict[str, list[str]]:
    """Return what a job waits for, of those that wait or run."""
    found: dict[str, list[str]] = {}
    for name, kind in job.after.items():
        if name in waiting:
            found.setdefault(kind, []).append(waiting[name])
    return found


def _record(folder: Path, work: str, jobs: Sequence[Job]) -> Jobs:
    """Return the record of an earlier submit, or a new one."""
    words = [f"{job.name}: {word}" for job in jobs for word in job.words if not word.startswith("workers=")]
    words += [f"{job.name} of {task.name}: {word}" for job in jobs for task in job.tasks for word in task.words]
    settings = sorted(words)
    new = Jobs(work=work, settings=settings, jobs=[_submitted(job) for job in jobs])
    if not (folder / Jobs.FILE).is_file():
        return new
    old = Jobs.load(folder)
    changed = difference(dict.fromkeys(old.settings, "given"), dict.fromkeys(settings, "given"))
    if changed or [(j.name, j.parts) for j in old.jobs] != [(j.name, j.parts) for j in new.jobs]:
        raise ArtifactError(
            "This output was submitted with other settings: "
            + ("; ".join(changed[:6]) or "another number of cluster.parts"),
            remedy="Choose another output, or give the same settings; those of the group 'cluster' may change",
        )
    return old


def _submitted(job: Job) -> SubmittedJob:
    tasks = [SubmittedTask(name=task.name, output=str(task.output)) for task in job.tasks]
    return SubmittedJob(name=job.name, verb=job.verb, output=str(job.output), parts=job.parts, tasks=tasks)
