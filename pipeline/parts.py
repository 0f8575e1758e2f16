"""A stage in parts: each part does its share of the cases, and the join makes one output of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pipeline.artifacts import read_json, write_json

T = TypeVar("T")
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


def write_note(output: Path, part: str, left_out: dict[str, str]) -> None:
    """Note that a part has done what it can; ``left_out`` are cases with their reasons."""
    number, count = part.split("/")
    write_json(output / FOLDER / f"{number}-of-{count}.json", {"schema": 1, "left_out": left_out})


def left_out_by_parts(output: Path) -> dict[str, str]:
    """Return the cases that parts left out, with their reasons."""
    found: dict[str, str] = {}
    for path in sorted((output / FOLDER).glob("*-of-*.json")):
        found |= read_json(path, what="note of a part")["left_out"]
    return found


def missing_parts(output: Path, count: int) -> list[int]:
    """Return the parts of so many that did not end, or left cases out."""
    return [number for number in range(1, count + 1) if not _whole(output / FOLDER / f"{number}-of-{count}.json")]


def _whole(path: Path) -> bool:
    return path.is_file() and not read_json(path, what="note of a part")["left_out"]
