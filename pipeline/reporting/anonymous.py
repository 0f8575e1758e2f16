"""Scores for others to see: numbers stay, names of cases, patients, cohorts and folders go."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from pipeline.records import Scores, unique
from pipeline.reporting.tables import SOURCE


def anonymous(scores: Scores, names: Collection[str]) -> Scores:
    """Return the scores with cases, patients and cohorts numbered, and without notes, reasons and folders.

    Args:
        scores: As 'cinevox evaluate' wrote them.
        names: Methods that may keep their name; another one may be called after a folder, and is numbered too.
    """
    cases = _numbered("case", (s.case for s in scores.scores))
    patients = _numbered("patient", (s.patient for s in scores.scores))
    cohorts = _numbered("cohort", (s.cohort for s in scores.scores if s.cohort)) | {"": ""}
    methods = _numbered("method", (m for m in scores.methods() if m != SOURCE)) | {n: n for n in (*names, SOURCE)}
    return scores.model_copy(
        update={
            "scores": [
                s.model_copy(
                    update={
                        "case": cases[s.case],
                        "patient": patients[s.patient],
                        "cohort": cohorts[s.cohort],
                        "method": methods[s.method],
                        "reason": "no value" if s.reason else "",
                    }
                )
                for s in scores.scores
            ],
            "summary": [
                s.model_copy(update={"method": methods[s.method], "cohort": cohorts[s.cohort]}) for s in scores.summary
            ],
            "comparisons": [
                c.model_copy(update={"a": methods[c.a], "b": methods[c.b], "cohort": cohorts[c.cohort]})
                for c in scores.comparisons
            ],
            "sets": [
                s.model_copy(update={"method": methods[s.method], "reason": "no value" if s.reason else ""})
                for s in scores.sets
            ],
            "translations": [],
            "notes": [],
        }
    )


def _numbered(kind: str, names: Iterable[str]) -> dict[str, str]:
    return {name: f"{kind} {number}" for number, name in enumerate(unique(names), start=1)}


def mean_values(scores: Scores) -> dict[str, float | None]:
    """Return the means over all patients as ``scores/REGION/METRIC``, with ``/METHOD`` where there are several.

    The untranslated source's begin with ``source/``.
    """
    several = len([m for m in scores.methods() if m != SOURCE]) > 1
    means: dict[str, float | None] = {}
    for entry in scores.summary:
        if not entry.cohort:
            kind = "source" if entry.method == SOURCE else "scores"
            method = f"/{entry.method}" if several and entry.method != SOURCE else ""
            means[f"{kind}/{entry.region}/{entry.metric}{method}"] = entry.mean
    return means
