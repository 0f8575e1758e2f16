"""The schema of ``conf/cluster/``: where jobs run, and with what."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from pipeline.section import Section

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
# minutes, minutes:seconds, hours:minutes:seconds, or each of them after days-
_TIME = r"^(\d+-)?\d+(:\d\d){0,2}$"


def _one_line(text: str) -> str:
    """Refuse what would end a line: job records and logs are read line by line."""
    if not text.strip() or not text.isprintable():
        raise ValueError("must not be empty, nor hold newlines or other control characters")
    return text


def _no_secrets(environment: dict[str, str]) -> dict[str, str]:
    for name in environment:
        if not _NAME.fullmatch(name):
            raise ValueError(f"'{name[:40]}' is no name of an environment variable")
        if _SECRET.search(name):
            raise ValueError(f"'{name}' looks like a secret: export it in the shell that submits, jobs inherit it")
    return environment


def _seconds(time: str) -> int:
    """Return a time limit in seconds; its first number is of minutes, or of hours where there are three or days."""
    days, _, clock = time.rpartition("-")
    numbers = [int(number) for number in clock.split(":")]
    if not days and len(numbers) < 3:
        numbers.insert(0, 0)
    hours, minutes, seconds = [*numbers, 0, 0][:3]
    return ((24 * int(days or 0) + hours) * 60 + minutes) * 60 + seconds


Word = Annotated[str, AfterValidator(_one_line)]


class Resources(Section):
    """What a job asks for."""

    partition: Word | None
    constraint: Word | None
    time: Annotated[str, Field(pattern=_TIME)]
    memory: Annotated[str, Field(pattern=r"^\d+[KMGT]?$")] | None  # per node
    cpus: Annotated[int, Field(ge=1)]  # per task
    gpus: Word | None  # one per task: 'any', or the name of a kind; null: none


class ClusterSettings(Section):
    """A site; see docs/how-to/run-on-a-cluster.md."""

    account: Word | None
    qos: Word | None
    parts: Annotated[int, Field(ge=1, le=1000)]  # tasks of an array; SLURM's own default limit is 1001
    at_once: Annotated[int, Field(ge=0)]  # 0: no limit
    warning_s: Annotated[int, Field(ge=10, le=65535)]  # SLURM's own limit
    modules: list[Word]
    environment: Annotated[dict[str, Word], AfterValidator(_no_secrets)]
    container: list[Word]
    python: Word | None
    options: list[Annotated[str, Field(pattern=r"^--[a-z]"), AfterValidator(_one_line)]]
    cpu: Resources
    gpu: Resources

    @model_validator(mode="after")
    def _warned_in_time(self) -> Self:
        if self.warning_s >= _seconds(self.gpu.time):
            raise ValueError(
                f"warning_s={self.warning_s} leaves no time to train: gpu.time={self.gpu.time} is not longer"
            )
        return self
