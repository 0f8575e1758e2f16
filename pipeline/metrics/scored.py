"""What was scored of each case, on disk until all are: parts leave it for the join, a killed run for the next."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.artifacts import atomic_path, read_json, write_json
from pipeline.errors import ArtifactError
from pipeline.metrics.scoring import CaseResult
from pipeline.records import Score

FOLDER = "scored"


def save_result(output: Path, case: str, result: CaseResult) -> None:
    """Write a case's result below ``output``: numbers as JSON, features of sets beside it."""
    keys = list(result.features)
    if keys:
        arrays = {_name(side, i): result.features[key][side] for i, key in enumerate(keys) for side in (0, 1)}
        with atomic_path(output / FOLDER / f"{case}.npz") as partial:
            np.savez(partial, **arrays)  # type: ignore[arg-type]
    plain = {
        "schema": 1,
        "scores": [score.model_dump(mode="json") for score in result.scores],
        "notes": result.notes,
        "excluded": result.excluded,
        "features": keys,
    }
    write_json(output / FOLDER / f"{case}.json", plain)  # last: it says that the result is whole


def load_result(output: Path, case: str) -> CaseResult | None:
    """Return what `save_result` wrote of a case, equal to the last bit, or None.

    Raises:
        ArtifactError: It is damaged.
    """
    path = output / FOLDER / f"{case}.json"
    if not path.is_file():
        return None
    what = f"result of case '{case}'"
    plain = read_json(path, what=what)
    result = CaseResult(
        scores=[Score.model_validate(score) for score in plain["scores"]],
        notes=plain["notes"],
        excluded=plain["excluded"],
    )
    if plain["features"]:
        try:
            with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
                for i, (method, region, metric) in enumerate(plain["features"]):
                    result.features[method, region, metric] = (arrays[_name(0, i)], arrays[_name(1, i)])
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactError(
                f"The {what} is damaged", value=type(error).__name__, remedy=f"Remove '{path}' and score it again"
            ) from None
    return result


def _name(side: int, number: int) -> str:
    return f"{('prediction', 'reference')[side]}_{number}"
