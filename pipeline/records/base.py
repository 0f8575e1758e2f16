"""What every record on disk is: validated plain data with a schema version, and the parts that records share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.artifacts import read_json, write_json
from pipeline.errors import ArtifactError

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
        return cls.parse(read_json(path, what=cls.WHAT), path)

    @classmethod
    def parse(cls, data: Any, place: object) -> Self:
        """Return the record that plain data describes; ``place`` is where it was found, for messages."""
        known = cls.model_fields["schema_version"].default if "schema_version" in cls.model_fields else None
        found = data.get("schema") if isinstance(data, dict) else None
        if known is not None and found != known:
            raise ArtifactError(
                f"{cls.WHAT} at '{place}' has another schema version",
                value=found,
                allowed=known,
                remedy="Write it again with this version of Cinevox",
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ArtifactError(f"{cls.WHAT} at '{place}' is not valid at '{where}'", value=first["msg"]) from None

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


class Excluded(BaseModel):
    """A case that was left out, and why."""

    model_config = ConfigDict(extra="forbid")
    case_id: str
    reason: str


def unique(items: Iterable[str]) -> list[str]:
    """Return the distinct items in order of first appearance."""
    return list(dict.fromkeys(items))
