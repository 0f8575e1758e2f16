"""How well the volumes of each case fit together."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.records.base import CaseId, Excluded, Modality, Record


class PairQuality(BaseModel):
    """How well a case's source fits its target; ``reason`` says why a value is ``None``."""

    model_config = ConfigDict(extra="forbid")
    case_id: CaseId
    patient: str
    source: Modality
    target: Modality
    mutual_information: float | None = None  # normalised, inside either body: 0 independent, 1 the same
    overlap: float | None = None  # Dice of the bodies inside what both show
    shift_mm: tuple[float, float, float] | None = None  # of the source: to the right, anterior, superior
    local_mm: float | None = None  # what is left without the shift: median over blocks of some 50 mm
    edge_agreement: float | None = None  # mean squared cosine between edges: 1 all agree, 1/3 chance
    grid_mm: float | None = None  # spacing at which it was measured
    picture: str = ""  # relative to the record
    reason: str = ""
    flags: list[str] = Field(default_factory=list)

    @property
    def length_mm(self) -> float | None:
        """Length of the shift."""
        return None if self.shift_mm is None else sum(part * part for part in self.shift_mm) ** 0.5


class PairQualities(Record):
    """``pair_quality.json``: every pair of modalities of every case."""

    FILE: ClassVar[str] = "pair_quality.json"
    WHAT: ClassVar[str] = "record of the pairs' quality"
    schema_version: Literal[1] = Field(default=1, alias="schema")
    cohort_hash: str
    settings: dict[str, Any]
    method: str
    pairs: list[PairQuality]
    excluded: list[Excluded] = Field(default_factory=list)  # could not be read
