"""``jobs.json``: what was submitted, so that a second submit, 'status' and 'cancel' know it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import ArtifactError
from pipeline.records import Record


class SubmittedTask(BaseModel):
    """A task of an array that has a folder of its own."""

    model_config = ConfigDict(extra="forbid")
    name: str
    output: str


class SubmittedJob(BaseModel):
    """A job of a chain; ``number`` is SLURM's, empty while it was not needed."""

    model_config = ConfigDict(extra="forbid")
    name: str
    verb: str
    output: str
    parts: int
    tasks: list[SubmittedTask] = Field(default_factory=list)
    number: str = ""


class Jobs(Record):
    """The jobs of a chain or of one verb, in order."""

    FILE: ClassVar[str] = "jobs.json"
    WHAT: ClassVar[str] = "record of the submitted jobs"
    schema_version: Literal[1] = Field(default=1, alias="schema")
    work: str
    settings: list[str]  # words of the command line that decide what is made
    jobs: list[SubmittedJob]


def jobs_folder(output: Path, work: str) -> Path:
    """Return where the jobs of an output are noted and their logs lie.

    A stage claims its output folder as its own, so those of a single verb lie beside it.
    """
    output = output.absolute()
    return output / "jobs" if work == "chain" else output.with_name(f"{output.name}.jobs")


def find_jobs(output: Path) -> tuple[Path, Jobs]:
    """Return the folder and the record of what was submitted for an output.

    Raises:
        ArtifactError: Nothing was.
    """
    for work in ("chain", "verb"):
        folder = jobs_folder(output, work)
        if (folder / Jobs.FILE).is_file():
            return folder, Jobs.load(folder)
    raise ArtifactError(f"Nothing was submitted for '{output}'", remedy="Give the output folder of a 'cinevox submit'")
