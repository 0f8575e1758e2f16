"""Translations and their scores."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.records.base import CaseId, Excluded, Record, unique


class TranslatedCase(BaseModel):
    """One translated volume: files are relative to the translation's folder, or absolute."""

    model_config = ConfigDict(extra="forbid")
    case_id: CaseId
    patient: str
    prediction: str
    source: str = ""
    reference: str = ""
    mask: str = ""  # field of view or given mask; empty when there is none
    mask_kind: str = ""  # 'field_of_view' (evaluate combines it with the body) or 'given'
    seconds: float = 0.0


class Translation(Record):
    """``translation.json``: which run translated what, and where the references are."""

    FILE: ClassVar[str] = "translation.json"
    WHAT: ClassVar[str] = "translation record"
    schema_version: Literal[1] = Field(default=1, alias="schema")
    method: str
    label: str  # shown in tables; the experiment's name or the method's
    run: str
    checkpoint_sha256: str
    source_modality: str
    target_modality: str
    unit: str
    fold: int = 0  # whose patients these are, tested by a run that was not trained on them; 0: no cross-validation
    cohort: str = ""  # its name, where one is known
    cases: list[TranslatedCase]
    excluded: list[Excluded] = Field(default_factory=list)
    settings: dict[str, Any] = Field(default_factory=dict)


class Score(BaseModel):
    """One number: a metric of one case, one method, one region; ``null`` carries its reason."""

    model_config = ConfigDict(extra="forbid")
    case: str
    patient: str
    cohort: str = ""  # its name; empty when none is known
    method: str
    region: str
    metric: str
    value: float | None
    unit: str
    better: Literal["lower", "higher", "zero"]
    reason: str = ""


class Summary(BaseModel):
    """A method's values over patients; see `pipeline.metrics.statistics`.

    Mean, deviation (n - 1), median and quartiles are over ``n`` patients, each the mean of his or her cases; ``low``
    to ``high`` is the bootstrap interval of the mean. ``cases`` counts defined values, ``undefined`` the others.
    """

    model_config = ConfigDict(extra="forbid")
    method: str
    region: str
    metric: str
    cohort: str = ""  # empty: all patients
    mean: float | None
    sd: float | None
    median: float | None = None
    q1: float | None = None
    q3: float | None = None
    low: float | None = None
    high: float | None = None
    n: int
    cases: int = 0
    undefined: int
    unit: str
    better: Literal["lower", "higher", "zero"]
    note: str = ""  # why there is no interval


class Comparison(BaseModel):
    """Two methods on the patients that both were scored on: ``difference`` is the median of a minus b, of absolute
    values where zero is best.

    ``p`` is that of Wilcoxon's signed-rank test, ``p_holm`` corrected over the pairs of methods of the same metric,
    region and cohort; both are ``null`` where no test is possible, and ``note`` says why.
    """

    model_config = ConfigDict(extra="forbid")
    a: str
    b: str
    region: str
    metric: str
    cohort: str = ""  # empty: all patients
    n: int
    difference: float | None
    p: float | None
    p_holm: float | None
    unit: str
    note: str = ""


class SetScore(BaseModel):
    """One number for all slices of all cases together, such as a Frechet distance; ``n`` counts slices per set."""

    model_config = ConfigDict(extra="forbid")
    method: str
    region: str
    metric: str
    value: float | None
    n: int
    unit: str
    better: Literal["lower", "higher", "zero"]
    reason: str = ""


class Scores(Record):
    """``scores.json``: every score with the profile that defines it."""

    FILE: ClassVar[str] = "scores.json"
    WHAT: ClassVar[str] = "scores"
    schema_version: Literal[1] = Field(default=1, alias="schema")
    profile: dict[str, Any]
    scores: list[Score]
    summary: list[Summary]
    comparisons: list[Comparison] = Field(default_factory=list)
    sets: list[SetScore] = Field(default_factory=list)
    translations: list[str] = Field(default_factory=list)  # folders whose volumes were scored: figures read them
    notes: list[str] = Field(default_factory=list)  # resampled references, cases left out

    def methods(self) -> list[str]:
        """Return the methods in the order in which they were scored."""
        return unique(score.method for score in self.scores)
