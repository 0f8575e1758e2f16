"""One shard: its films, and the note that says what is in it and what was left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.artifacts import read_json, write_json
from pipeline.errors import ArtifactError, CinevoxError
from pipeline.preparation.case import TooShortError, prepare_film
from pipeline.records import Case, Cohort, Excluded, Plan, ShardCase, ShardFile
from pipeline.settings import PreprocessSettings
from pipeline.stream.shard import Film
from pipeline.stream.store import is_whole, write_shard

SKIPPED = "skipped: "


class ShardTask(NamedTuple):
    """What one process needs to write a shard; ``cohort`` is without its cases, ``number`` the shard's."""

    cohort: Cohort
    cases: list[Case]
    plan: Plan
    settings: PreprocessSettings
    modalities: tuple[str, ...]
    reference: str
    output: Path
    name: str
    number: int


def write_task(task: ShardTask) -> None:
    """Write one shard and, last, the note that it is complete."""
    cohort, cases, plan, settings, modalities, reference, output, name, number = task
    facts: list[dict[str, Any]] = []
    excluded: list[dict[str, str]] = []

    def films() -> Iterator[Film]:
        for case in cases:
            try:
                own = [name for name in modalities if name in case.volumes]
                film, about = prepare_film(cohort, case, plan, settings, own, reference_of(case, reference))
            except CinevoxError as error:
                skip = isinstance(error, TooShortError) and settings.short_cases == "skip"
                excluded.append({"case_id": case.case_id, "reason": (SKIPPED if skip else "") + str(error)})
                continue
            facts.append(
                {
                    "case_id": case.case_id,
                    "patient": case.patient,
                    "split": case.split,
                    "fold": case.fold,
                    "shard": number,
                    **about,
                }
            )
            yield film

    shard = write_shard(output, name, films(), settings.codec, settings.store)
    cases_ = [ShardCase.model_validate(fact).model_dump(mode="json") for fact in facts]
    write_json(output / f"{name}.json", {"shard": shard.model_dump(), "cases": cases_, "excluded": excluded})


def is_done(output: Path, name: str, *, quick: bool = False) -> bool:
    """Whether a shard's note is there, no case of it failed, and its files are those that it speaks of.

    ``quick`` compares their sizes and leaves out the checksums.
    """
    try:
        shard, _, excluded = shard_note(output, name)
    except (ArtifactError, LookupError, TypeError, ValueError):
        return False
    if failed(excluded):
        return False
    return is_whole(output, shard, quick=quick)


def shard_note(output: Path, name: str) -> tuple[ShardFile, list[ShardCase], list[Excluded]]:
    """Return what the note of a shard says: its files, its cases, and those that were left out."""
    data = read_json(output / f"{name}.json", what="shard note")
    return (
        ShardFile.model_validate(data["shard"]),
        [ShardCase.model_validate(case) for case in data["cases"]],
        [Excluded.model_validate(case) for case in data["excluded"]],
    )


def failed(excluded: Iterable[Excluded]) -> list[Excluded]:
    """Return the cases that were left out by an error, not because the settings want it so."""
    return [case for case in excluded if not case.reason.startswith(SKIPPED)]


def reference_of(case: Case, reference: str) -> str:
    """Return the modality that decides a case's grid: the cohort's reference, or another one of a case without it."""
    return reference if reference in case.volumes else sorted(case.volumes)[0]
