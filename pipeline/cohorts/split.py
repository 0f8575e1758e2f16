"""Patients to splits: lists decide first, then what ``cases.csv`` says, then fractions by a hash of the patient.

Beside its split a patient may have a fold: a training chooses one of the folds to test (``records.split_in``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from pipeline.errors import ConfigError, nearest
from pipeline.records import CASE_ID, Split
from pipeline.settings import SplitSettings

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def assign_splits(
    patients: Iterable[str],
    settings: SplitSettings,
    seed: int,
    *,
    given: Mapping[str, Split] | None = None,
    names: Mapping[str, str] | None = None,
) -> dict[str, Split]:
    """Return the split of every patient.

    Patients are ranked by a hash of (seed, patient) and cut by the fractions, so that the result depends neither on
    their order nor on where their files lie, and a new patient moves few others. Where at least three patients are
    left for the fractions, each fraction above zero gets one.

    Args:
        patients: Distinct or repeated identifiers.
        settings: Fractions and lists.
        seed: Chooses the ranking.
        given: Splits that ``cases.csv`` states; a list of the settings overrules them.
        names: Identifier by the patient's original name, where the two differ: lists may hold either.

    Raises:
        ConfigError: A list holds an unknown patient, or one patient under two names in two splits.
    """
    known = sorted(set(patients))
    chosen: dict[str, Split] = {p: s for p, s in (given or {}).items() if p in set(known)}
    listed: dict[str, Split] = {}
    for split in SPLITS:
        for entry in cast("list[str]", getattr(settings, split)):
            patient = (names or {}).get(entry, entry)
            if patient not in known:
                shown = entry if CASE_ID.fullmatch(entry) else "a name with characters that are not shown"
                raise ConfigError(
                    f"cohort.split.{split} lists a patient that the cohort does not have",
                    value=shown,
                    allowed=f"one of {len(known)} patients",
                    remedy=nearest(entry, known) or "Look at the patients in cohort.json",
                )
            if listed.setdefault(patient, split) != split:
                raise ConfigError(
                    f"A patient is listed in both cohort.split.{listed[patient]} and cohort.split.{split}"
                )
    chosen |= listed
    ranked = _ranked((patient for patient in known if patient not in chosen), seed)
    start = 0
    for split, count in zip(SPLITS, shares(len(ranked), [settings.fractions.get(s, 0.0) for s in SPLITS]), strict=True):
        chosen |= dict.fromkeys(ranked[start : start + count], split)
        start += count
    return chosen


def deal_folds(patients: Iterable[str], folds: int, seed: int) -> dict[str, int]:
    """Return the fold (from 1) of every patient: stretches of their ranking, whose sizes differ by one at most.

    It depends on neither order nor place, and one more patient moves at most ``folds - 1`` others, each by one fold.

    Args:
        patients: Distinct or repeated identifiers.
        folds: How many; 0 puts everyone into fold 0, which is none.
        seed: Chooses the ranking.

    Raises:
        ConfigError: Fewer patients than folds.
    """
    ranked = _ranked(set(patients), seed)
    if len(ranked) < folds:
        raise ConfigError(
            "cohort.split.folds is larger than the number of patients", value=folds, allowed=f"at most {len(ranked)}"
        )
    return {patient: 1 + rank * folds // len(ranked) if folds else 0 for rank, patient in enumerate(ranked)}


def _ranked(patients: Iterable[str], seed: int) -> list[str]:
    return sorted(patients, key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest())


def shares(count: int, fractions: Sequence[float]) -> list[int]:
    """Divide ``count`` by fractions with the largest-remainder rule.

    With at least three to divide, no fraction above zero is left empty: the largest share gives one away.
    """
    exact = [count * fraction for fraction in fractions]
    # The epsilon keeps 0.7 * 10 = 7.000000000000001 and 6.999999999999999 the same.
    parts = [math.floor(value + 1e-9) for value in exact]
    order = sorted(range(len(parts)), key=lambda i: (-round(exact[i] - parts[i], 9), i))
    for i in order[: count - sum(parts)]:
        parts[i] += 1
    if count >= 3:
        for i, fraction in enumerate(fractions):
            if fraction > 0 and parts[i] == 0:
                parts[parts.index(max(parts))] -= 1
                parts[i] = 1
    return parts
