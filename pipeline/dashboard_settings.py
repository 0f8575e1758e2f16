"""The schema of ``conf/dashboard/``: what a W&B workspace shows."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.section import Section


class PanelSettings(Section):
    """One chart of keys as runs log them: ``lines`` over training steps, ``bars`` of last values, or media."""

    title: str
    kind: Literal["lines", "bars", "media"]
    keys: list[str] = Field(default_factory=list)
    pattern: str = ""  # of lines: a regular expression for keys that differ from method to method
    logarithmic: bool = False

    @model_validator(mode="after")
    def _shows_something(self) -> Self:
        if bool(self.keys) == bool(self.pattern):
            raise ValueError(f"panel '{self.title}' needs either keys or a pattern")
        if self.kind != "lines" and (self.pattern or self.logarithmic):
            raise ValueError(f"panel '{self.title}': pattern and logarithmic are of lines")
        if self.kind == "bars" and len(self.keys) != 1:
            raise ValueError(f"panel '{self.title}': bars show one key")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"panel '{self.title}': the pattern is no regular expression ({error})") from None
        return self


class PanelGroup(Section):
    """Panels under one heading."""

    title: str
    panels: Annotated[list[PanelSettings], Field(min_length=1)]


class DashboardSettings(Section):
    """A W&B workspace; ``verbs`` are those whose runs it lists."""

    title: str
    verbs: Annotated[
        list[Literal["simulate", "preprocess", "train", "translate", "evaluate", "report"]], Field(min_length=1)
    ]
    sections: Annotated[list[PanelGroup], Field(min_length=1)]
