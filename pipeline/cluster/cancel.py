"""End what was submitted for an output.

    cinevox cancel OUTPUT

Reads   OUTPUT/jobs/jobs.json of a chain, or OUTPUT.jobs/jobs.json of a verb
Writes  nothing

Jobs that wait are taken out of the queue; those that run are ended, a training with a checkpoint where SLURM grants
the seconds for it (KillWait). 'cinevox submit' with the same words continues.
"""

from __future__ import annotations

from pipeline.cluster import slurm
from pipeline.cluster.record import find_jobs
from pipeline.progress import say
from pipeline.settings import Config


def run(config: Config) -> None:
    """Cancel the jobs of ``config.input[0]`` that have not ended.

    Raises:
        ArtifactError: Nothing was submitted for it.
    """
    _, record = find_jobs(config.input[0])
    standings = slurm.standings([job.number for job in record.jobs if job.number])
    alive = [job for job in record.jobs if job.number in standings and standings[job.number].alive]
    for job in alive:
        say(f"{'Would cancel' if config.dry_run else 'Cancelling'} {job.name}: job {job.number}")
    if alive and not config.dry_run:
        slurm.cancel(job.number for job in alive)
    if not alive:
        say("No job of it waits or runs")
