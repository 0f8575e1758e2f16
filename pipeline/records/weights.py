"""The record of a folder of pretrained weights."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.records.base import Record

Name = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")]


class WeightsFile(BaseModel):
    """One file of weights, NAME.pth beside the record."""

    model_config = ConfigDict(extra="forbid")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: int
    channels_in: int
    channels_out: int


class WeightsFolder(Record):
    """``weights.json``: what was added to the folder, by name."""

    FILE: ClassVar[str] = "weights.json"
    WHAT: ClassVar[str] = "record of pretrained weights"
    schema_version: Literal[1] = Field(default=1, alias="schema")
    files: dict[Name, WeightsFile] = Field(default_factory=dict)
