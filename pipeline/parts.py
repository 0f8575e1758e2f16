"""A stage in parts: each part does its share of the cases, and the join makes one output of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline.artifacts import read_json, write_json

T = TypeVar("T")
VERBS = ("simulate", "preprocess", "translate", "evaluate", "sweep")
JOIN = "join"
FOLDER = "parts"


def share_of(items: Sequence[T], part: str) -> list[T]:
    """Return every N-th item for part 'K/N', all of them for '' and none for the join, which makes nothing itself."""
    if not part:
        return list(items)
    if part == JOIN:
        return []
    number, count = map(int, part.split("/"))
    return list(items[number - 1 :: count])


def write_note(output: Path, part: str, left_out: Mapping[str, str], **more: Mapping[str, Any]) -> None:
    """Note that a part has done what it can.

    Args:
        output: The stage's folder.
        part: Which it was, 'K/N'.
        left_out: Cases with their reasons.
        more: What else the join has to know of each case, as plain data.
    """
    number, count = part.split("/")
    write_json(output / FOLDER / f"{number}-of-{count}.json", {"schema": 1, "left_out": left_out, **more})


def left_out_by_parts(output: Path) -> dict[str, str]:
    """Return the cases that parts left out, with their reasons."""
    return noted_by_parts(output, "left_out")


def noted_by_parts(output: Path, what: str) -> dict[str, Any]:
    """Return what all parts noted under one name, by case."""
    found: dict[str, Any] = {}
    for path in sorted((output / FOLDER).glob("*-of-*.json")):
        found |= read_json(path, what="note of a part").get(what, {})
    return found


def missing_parts(output: Path, count: int) -> list[int]:
    """Return the parts of so many that did not end, or left cases out."""
    return [number for number in range(1, count + 1) if not _whole(output / FOLDER / f"{number}-of-{count}.json")]


def _whole(path: Path) -> bool:
    return path.is_file() and not read_json(path, what="note of a part")["left_out"]
