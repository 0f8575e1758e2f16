"""The index of shards, the plan that they were made by, and what the plan was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from pipeline.artifacts import content_hash, write_json
from pipeline.errors import ArtifactError, ConfigError
from pipeline.records.base import CaseId, Excluded, GridRecord, Modality, Record, Split
from pipeline.records.cohort import Case


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


class Latents(BaseModel):
    """What shards of latents hold instead of slices: (channels x rows, columns) of int16 for each slice."""

    model_config = ConfigDict(extra="forbid")
    channels: Annotated[int, Field(ge=1)]
    size: tuple[int, int]  # rows, columns of a channel
    std: Annotated[float, Field(gt=0)]  # of the training cases' latents; batches are divided by it
    encoder: str  # hash of the weights that made them
    shards: str  # config_hash of the shards that they were made from
    folder: str  # where those lie
    window: dict[str, tuple[float, float]]  # how those were prepared: as in a training
    outside_mask: Literal["lowest", "keep"]


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
    latents: Latents | None = None
    seal: str = ""  # over all the rest: an altered scale or spacing would be believed

    @classmethod
    def parse(cls, data: Any, place: object) -> Self:
        """Return the index after comparing it with its seal."""
        index = super().parse(data, place)
        if index.seal != index.sealed().seal:
            what = "does not match its seal: it was altered or damaged" if index.seal else "has lost its seal"
            raise ArtifactError(
                f"The {cls.WHAT} {what}",
                remedy="Copy it again, or run 'cinevox preprocess' again",
            )
        return index

    def save(self, folder: Path) -> None:
        """Write the index with its seal."""
        write_json(folder / self.FILE, {**self._content(), "seal": self.sealed().seal})

    def sealed(self) -> Self:
        """Return the index with the seal of its content."""
        return self.model_copy(update={"seal": content_hash(self._content())})

    def _content(self) -> dict[str, Any]:
        # Shards of slices are sealed as they were when there were no others.
        unused = {"latents"} if self.latents is None else set()
        return self.model_dump(mode="json", by_alias=True, exclude={"seal", *unused})

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
