"""What is on disk between stages: the cohort, the shard index, translations and scores, each with a schema version."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.artifacts import content_hash, read_json, write_json
from pipeline.errors import ArtifactError, ConfigError

CASE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
MODALITY = re.compile(r"[a-z][a-z0-9]{0,15}")
Split = Literal["train", "validation", "test"]
CaseId = Annotated[str, Field(pattern=rf"^{CASE_ID.pattern}$")]
Modality = Annotated[str, Field(pattern=rf"^{MODALITY.pattern}$")]


class Record(BaseModel):
    """Plain, validated data with a file name and a schema version of its own."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    FILE: ClassVar[str] = ""
    WHAT: ClassVar[str] = "record"

    @classmethod
    def load(cls, place: Path) -> Self:
        """Read the record from its file, or from the folder that holds it."""
        path = place / cls.FILE if place.is_dir() else place
        data = read_json(path, what=cls.WHAT)
        known = cls.model_fields["schema_version"].default if "schema_version" in cls.model_fields else None
        found = data.get("schema") if isinstance(data, dict) else None
        if known is not None and found != known:
            raise ArtifactError(
                f"{cls.WHAT} at '{path}' has another schema version",
                value=found,
                allowed=known,
                remedy="Write it again with this version of Cinevox",
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ArtifactError(f"{cls.WHAT} at '{path}' is not valid at '{where}'", value=first["msg"]) from None

    def save(self, folder: Path) -> None:
        """Write the record atomically under its own name into ``folder``."""
        write_json(folder / self.FILE, self)


class GridRecord(BaseModel):
    """A voxel grid as plain data: ``shape`` and the first three rows of the affine (index to mm, RAS+)."""

    model_config = ConfigDict(extra="forbid")
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, float, float, float], ...]


class VolumeFile(BaseModel):
    """A volume on disk: ``path`` is relative to the cohort's root (or absolute), in POSIX form."""

    model_config = ConfigDict(extra="forbid")
    path: str
    unit: str
    grid: GridRecord
    sha256: str
    voxel_hash: str = ""  # over the voxels alone: the same image under another name or header


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


class Excluded(BaseModel):
    """A case that was left out, and why."""

    model_config = ConfigDict(extra="forbid")
    case_id: str
    reason: str


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


def split_in(case: Case | ShardCase, fold: int, folds: int) -> Split:
    """Return a case's split when ``fold`` is tested: the next fold validates, the others train; 0: its own split."""
    if not fold:
        return case.split
    if case.fold == fold:
        return "test"
    return "validation" if case.fold == fold % folds + 1 else "train"


class StoredFile(BaseModel):
    """A file inside a shard: ``path`` in POSIX form, which cannot lead out of the shard."""

    model_config = ConfigDict(extra="forbid")
    path: Annotated[str, Field(pattern=r"^([A-Za-z0-9_-]{1,64}/)*(c\.0\.0\.0|zarr\.json)$")]
    bytes: int
    sha256: str


class ShardFile(BaseModel):
    """One shard: its tar file or zarr folder, its table of offsets, and what must be found in them.

    Names are plain ones: an index from elsewhere can name neither another folder nor a command.
    """

    model_config = ConfigDict(extra="forbid")
    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}\.(tar|zarr)$")]
    sha256: str  # of the tar; of a zarr folder's list of files
    bytes: int
    table: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}\.npy$")]
    table_sha256: str
    members: int
    cases: list[CaseId]
    files: list[StoredFile] = Field(default_factory=list)  # of a zarr folder, every one

    def contents(self) -> dict[str, tuple[int, str]]:
        """Return path below the shard folder -> bytes and SHA-256, of every file but the table."""
        if not self.files:
            return {self.file: (self.bytes, self.sha256)}
        return {f"{self.file}/{file.path}": (file.bytes, file.sha256) for file in self.files}


class ShardCase(BaseModel):
    """One case in the shards: where it is, how its film was cut from the volume, and its intensity statistics."""

    model_config = ConfigDict(extra="forbid")
    case_id: CaseId
    patient: str
    split: Split
    fold: int = 0  # as in the cohort
    shard: int
    slices: Annotated[int, Field(ge=1)]
    film_grid: GridRecord  # the stored film: (slices, rows, columns)
    source_grids: dict[Modality, GridRecord]  # the native grid of each modality's file
    scale: dict[Modality, float] = Field(default_factory=dict)  # stored value x scale = physical value
    percentiles: dict[Modality, tuple[float, float]] = Field(default_factory=dict)  # 0.5 and 99.5 % inside the mask

    @property
    def modalities(self) -> tuple[str, ...]:
        """What is stored of the case, which may lack some of the cohort's."""
        return tuple(self.source_grids)


class ShardModality(BaseModel):
    """How a modality is stored: unit, dtype ('int16' or 'float16') and the value of padding."""

    model_config = ConfigDict(extra="forbid")
    unit: str
    dtype: Literal["int16", "float16"]
    padding: float


class CaseFingerprint(BaseModel):
    """What a case's reference volume is like, in film order: slices, rows, columns."""

    model_config = ConfigDict(extra="forbid")
    case_id: CaseId
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    body_mm: tuple[float, float, float]  # extent of the body's box
    percentiles: tuple[float, float, float]  # 0.5, 50 and 99.5 % of the values inside the body


class Fingerprint(Record):
    """``fingerprint.json``: what a plan was made from."""

    FILE: ClassVar[str] = "fingerprint.json"
    WHAT: ClassVar[str] = "cohort's fingerprint"
    schema_version: Literal[1] = Field(default=1, alias="schema")
    reference: str  # the modality that was looked at
    unit: str
    cases: list[CaseFingerprint]
    excluded: list[Excluded] = Field(default_factory=list)  # no body, or damaged: they have no part in the plan


class Plan(Record):
    """``plan.json``: one spacing, size and clip length for all cases, with a reason for each; part of the index."""

    FILE: ClassVar[str] = "plan.json"
    WHAT: ClassVar[str] = "plan of the cohort"
    schema_version: Literal[1] = Field(default=1, alias="schema")
    spacing_mm: tuple[float, float, float]  # slice, row, column
    size: tuple[int, int]  # rows, columns
    clip_length: int  # proposed for the start of a training
    clip_limit: int  # and for its end
    memory_gib: float
    reasons: list[str]


class ShardIndex(Record):
    """``index.json`` of a shard folder."""

    FILE: ClassVar[str] = "index.json"
    WHAT: ClassVar[str] = "shard index"
    schema_version: Literal[2] = Field(default=2, alias="schema")
    config_hash: str
    cohort: str  # where cohort.json lies
    cohort_hash: str
    folds: int = 0
    codec: Literal["lz4", "none"]
    axes: Literal["SPL"]
    spacing_mm: tuple[float, float, float]  # slice, row, column
    size: tuple[int, int]  # rows, columns
    modalities: dict[Modality, ShardModality]
    cases: list[ShardCase]
    shards: list[ShardFile]
    preprocess: dict[str, Any]
    excluded: list[Excluded] = Field(default_factory=list)
    plan: Plan | None = None
    seal: str = ""  # over all the rest: an altered scale or spacing would be believed

    @classmethod
    def load(cls, place: Path) -> Self:
        """Read the index and compare it with its seal."""
        index = super().load(place)
        if index.seal and index.seal != index.sealed().seal:
            raise ArtifactError(
                f"The {cls.WHAT} does not match its seal: it was altered or damaged",
                remedy="Copy it again, or run 'cinevox preprocess' again",
            )
        return index

    def save(self, folder: Path) -> None:
        """Write the index with its seal."""
        write_json(folder / self.FILE, self.sealed())

    def sealed(self) -> Self:
        """Return the index with the seal of its content."""
        content = self.model_dump(mode="json", by_alias=True, exclude={"seal"})
        return self.model_copy(update={"seal": content_hash(content)})

    def select(self, split: str, fold: int = 0) -> list[ShardCase]:
        """Return the cases of one split, or all of them for 'all'; with ``fold``, of that turn of a cross-validation.

        Raises:
            ConfigError: The shards have no such fold.
        """
        if fold > self.folds:
            raise ConfigError(
                "The shards have no such fold"
                if self.folds
                else "The patients of these shards were not dealt to folds",
                value=f"fold={fold}",
                allowed=f"1 to {self.folds}" if self.folds else "0",
                remedy="" if self.folds else "Set cohort.split.folds and run again from 'cinevox cohort'",
            )
        return [case for case in self.cases if split in ("all", split_in(case, fold, self.folds))]


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
    cases: list[TranslatedCase]
    excluded: list[Excluded] = Field(default_factory=list)
    settings: dict[str, Any] = Field(default_factory=dict)


class Score(BaseModel):
    """One number: a metric of one case, one method, one region; ``null`` carries its reason."""

    model_config = ConfigDict(extra="forbid")
    case: str
    patient: str
    method: str
    region: str
    metric: str
    value: float | None
    unit: str
    better: Literal["lower", "higher", "zero"]
    reason: str = ""


class Summary(BaseModel):
    """Mean and sample standard deviation over cases; ``n`` counts defined values, ``undefined`` the others."""

    model_config = ConfigDict(extra="forbid")
    method: str
    region: str
    metric: str
    mean: float | None
    sd: float | None
    n: int
    undefined: int
    unit: str
    better: Literal["lower", "higher", "zero"]


class Scores(Record):
    """``scores.json``: every score with the profile that defines it."""

    FILE: ClassVar[str] = "scores.json"
    WHAT: ClassVar[str] = "scores"
    schema_version: Literal[1] = Field(default=1, alias="schema")
    profile: dict[str, Any]
    scores: list[Score]
    summary: list[Summary]
    translations: list[str] = Field(default_factory=list)  # folders whose volumes were scored: figures read them
    notes: list[str] = Field(default_factory=list)  # resampled references, cases left out

    def methods(self) -> list[str]:
        """Return the methods in the order in which they were scored."""
        return unique(score.method for score in self.scores)


def unique(items: Iterable[str]) -> list[str]:
    """Return the distinct items in order of first appearance."""
    return list(dict.fromkeys(items))
