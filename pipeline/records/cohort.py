"""The cohort: cases, patients, splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.records.base import CaseId, Excluded, Modality, Record, Split, VolumeFile


class Case(BaseModel):
    """The co-registered volumes of one patient at one time."""

    model_config = ConfigDict(extra="forbid")
    case_id: CaseId
    patient: str
    split: Split
    fold: int = 0  # of a cross-validation: 1 to the record's folds; 0: none
    volumes: dict[Modality, VolumeFile]
    masks: dict[str, VolumeFile] = Field(default_factory=dict)  # 'body', 'field_of_view': non-zero is inside
    flags: list[str] = Field(default_factory=list)  # suspicions that did not stop the case


class Cohort(Record):
    """``cohort.json``: cases, patients, splits, checks and hashes."""

    FILE: ClassVar[str] = "cohort.json"
    WHAT: ClassVar[str] = "cohort record"
    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: str
    root: str
    folds: int = 0
    cases: list[Case]
    excluded: list[Excluded] = Field(default_factory=list)
    made_by: dict[str, Any] = Field(default_factory=dict)  # verb and settings that made it

    @model_validator(mode="after")
    def _unique(self) -> Self:
        seen: set[str] = set()
        split_of: dict[str, tuple[str, int]] = {}
        for case in self.cases:
            if case.case_id.lower() in seen:
                raise ValueError(f"case '{case.case_id}' is listed twice (names are compared without case)")
            seen.add(case.case_id.lower())
            if split_of.setdefault(case.patient, (case.split, case.fold)) != (case.split, case.fold):
                raise ValueError(f"a patient of case '{case.case_id}' is in two splits or folds")
            if not (1 if self.folds else 0) <= case.fold <= self.folds:
                raise ValueError(f"case '{case.case_id}' is in fold {case.fold} of {self.folds}")
        return self

    def path(self, volume: VolumeFile) -> Path:
        """Return where a volume's file lies."""
        return Path(self.root) / volume.path

    def select(self, split: str) -> list[Case]:
        """Return the cases of one split, or all of them for 'all'."""
        return [case for case in self.cases if split in ("all", case.split)]
