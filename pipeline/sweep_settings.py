"""The schema of workflows: trainings that are compared, or that build on one another, and what is different in each."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from pipeline.section import Section

# A folder's name, and the method's in tables.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Word = Annotated[str, Field(pattern=r"^[+~]{0,2}[A-Za-z_][^=\s]*=.*$")]


class SweepSettings(Section):
    """Members by name, each with the settings that it adds to those of the command line."""

    members: dict[Name, list[Word]]


class ThreeStageSettings(Section):
    """What each stage of latent mapping adds to the settings of the command line."""

    autoencoder: list[Word]
    translator: list[Word]
    decoder: list[Word]
