"""Several shard folders as one: brains and torsos, each at a spacing of its own, for a model of all modalities."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.artifacts import content_hash
from pipeline.errors import ArtifactError
from pipeline.records import Latents, ShardIndex


def pooled(indices: Sequence[ShardIndex]) -> ShardIndex:
    """Return one index over the shards of several: what they must have in common, and the cases of all.

    Its ``spacing_mm`` is the first folder's: each modality lives in one folder, which has its own
    (``SliceStore.spacing_mm``).

    Raises:
        ArtifactError: Folders with another size, folds, or kind, or with the same case or modality.
    """
    if len(indices) == 1:
        return indices[0]
    first, offset = indices[0], 0
    cases, shards = [], []
    for index in indices:
        for what, one, other in (
            ("size", first.size, index.size),
            ("number of folds", first.folds, index.folds),
            ("encoder", first.latents and first.latents.encoder, index.latents and index.latents.encoder),
        ):
            if one != other:
                raise ArtifactError(
                    f"Shards of another {what} cannot be read together",
                    value=other,
                    allowed=one,
                    remedy="Prepare both alike",
                )
        cases += [case.model_copy(update={"shard": case.shard + offset}) for case in index.cases]
        shards += index.shards
        offset = len(shards)
    for what, names in (
        ("modality", [name for index in indices for name in index.modalities]),
        ("case", [case.case_id for case in cases]),
    ):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ArtifactError(
                f"Two shard folders hold the same {what}",
                value=", ".join(twice[:10]),
                remedy="Preprocess them as one cohort",
            )
    return first.model_copy(
        update={
            "config_hash": content_hash([index.config_hash for index in indices]),
            "cohort_hash": content_hash([index.cohort_hash for index in indices]),
            "modalities": {name: kind for index in indices for name, kind in index.modalities.items()},
            "cases": cases,
            "shards": shards,
            "latents": _latents(indices),
            "seal": content_hash([index.seal for index in indices]),
        }
    )


def _latents(indices: Sequence[ShardIndex]) -> Latents | None:
    """Return the common record of latents, with the standard deviation over the slices of all folders."""
    if indices[0].latents is None:
        return None
    weights = [sum(case.slices for case in index.cases) for index in indices]
    squares = [index.latents.std**2 for index in indices if index.latents]
    mean = sum(w * s for w, s in zip(weights, squares, strict=True)) / sum(weights)
    return indices[0].latents.model_copy(update={"std": math.sqrt(mean)})
