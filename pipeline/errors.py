"""Errors a user meets: what happened, the value, what is allowed, and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CinevoxError(Exception):
    """A user's error: shown as one message without a traceback, exit code 2.

    Args:
        what: What is wrong, naming the case or key; never a patient's name, identifier or header path.
        value: The value that was found.
        allowed: What would be accepted.
        remedy: The command or setting that helps.
    """

    exit_code = 2

    def __init__(self, what: str, *, value: object = None, allowed: object = None, remedy: str = "") -> None:
        parts = [what if what.endswith("?") else what.rstrip(".") + "."]
        if value is not None:
            parts.append(f"Found: {value}.")
        if allowed is not None:
            parts.append(f"Allowed: {allowed}.")
        if remedy:
            parts.append(remedy.rstrip(".") + ".")
        super().__init__(" ".join(parts))
        self.what, self.value, self.allowed, self.remedy = what, value, allowed, remedy


class ConfigError(CinevoxError):
    """A setting is unknown, of the wrong type, or impossible together with another."""


class DataError(CinevoxError):
    """A volume or a case cannot be used as it is."""


class GeometryError(DataError):
    """Grids, orientations or spacings do not fit together."""


class ArtifactError(CinevoxError):
    """Something on disk is damaged, stale, foreign or already in use."""


class CheckpointError(ArtifactError):
    """A checkpoint is missing, damaged, or does not fit what it is asked to do."""


class TrainingError(CinevoxError):
    """Training cannot go on (non-finite losses, budget that cannot be met)."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return a hint ``Did you mean 'x'?`` for a misspelt name, or an empty string."""
    match = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f"Did you mean '{match[0]}'?" if match else ""
