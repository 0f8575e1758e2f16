"""Volumes to shards of ordered slices.

Reads   input=COHORT      a folder with cohort.json (of 'cinevox cohort' or 'cinevox simulate')
Writes  output=SHARDS     index.json, shard-NNNNN.tar (a plain WebDataset), shard-NNNNN.npy (offsets and checksums)

Main options
  preprocess.spacing_mm=[slice,row,column]  one for the whole cohort
  preprocess.size=[rows,columns]            centred on the body; a body that does not fit is an error
  preprocess.resample=true                  put modalities on another grid onto the target's
  preprocess.store=tar|zarr                 shard-NNNNN.tar, or shard-NNNNN.zarr (zarr v3) beside the same index
  preprocess.short_cases=skip               leave out films below preprocess.minimum_slices, counted
  workers=N                                 processes, one shard each

Intensities stay physical (int16 HU; MR int16 with its scale); window and normalisation belong to the training.
Killed and started again it redoes only unfinished shards; the same inputs give the same bytes.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import check_free_space, claim_output, content_hash, file_sha256, read_json, write_json
from pipeline.errors import ArtifactError, CinevoxError, DataError, GeometryError
from pipeline.geometry import Grid, Volume, grid_difference
from pipeline.imaging.film import PADDING_HU, film_grid, grid_from, grid_record, to_stored
from pipeline.imaging.mask import body_mask, foreground_mask
from pipeline.imaging.resample import resample
from pipeline.io import read_volume
from pipeline.locks import die_with_parent
from pipeline.progress import say, track
from pipeline.records import Case, Cohort, Excluded, ShardCase, ShardFile, ShardIndex, ShardModality
from pipeline.settings import Config, PreprocessSettings
from pipeline.stream.shard import Film
from pipeline.stream.store import is_whole, write_shard

_SKIPPED = "skipped: "


class _TooShortError(DataError):
    """A film below preprocess.minimum_slices."""


def run(config: Config) -> None:
    """Shard a cohort."""
    folder, output = config.input[0], config.output
    assert output is not None
    cohort = Cohort.load(folder)
    modalities = _modalities(cohort, (config.source, config.target))
    reference = config.target if config.target in modalities else sorted(modalities)[0]
    settings = config.preprocess
    groups = _groups(cohort, settings.patients_per_shard)
    estimate = _estimate(cohort, settings, len(modalities))
    say(
        f"{len(cohort.cases)} cases of {len({c.patient for c in cohort.cases})} patients, {', '.join(modalities)}; "
        f"{len(groups)} shards, at most {estimate / 1e6:.0f} MB"
    )
    if config.dry_run:
        return
    decides = {
        "preprocess": settings.model_dump(mode="json"),
        "cohort": content_hash(_content(cohort)),
        "reference": reference,
        "schema": ShardIndex.model_fields["schema_version"].default,  # shards of an older version are not continued
    }
    check_free_space(output, estimate)
    claim = claim_output(output, "preprocess", decides)
    names = [f"shard-{i:05d}" for i in range(len(groups))]
    if claim.finished and (output / ShardIndex.FILE).is_file() and all(_is_done(output, n, quick=True) for n in names):
        say(f"'{output}' is finished already; nothing to do")
        return
    cohort_path = (folder / Cohort.FILE if folder.is_dir() else folder).resolve()
    # A task carries its own cases only: a large cohort would be sent once per shard.
    place = cohort.model_copy(update={"cases": [], "excluded": [], "made_by": {}})
    tasks = [
        _Task(place, group, settings, tuple(modalities), reference, output, names[i], i)
        for i, group in enumerate(groups)
    ]
    todo = [task for task in tasks if not _is_done(output, task.name)]
    if len(todo) < len(tasks):
        say(f"Continuing: {len(tasks) - len(todo)} of {len(tasks)} shards are there")
    if todo:
        # Spawned, not forked: libraries that were imported with threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(min(config.workers, len(todo)), context, die_with_parent) as pool:
                for _ in track(pool.map(_write, todo), "preprocess", total=len(todo)):
                    pass
        except BrokenProcessPool:
            raise DataError(
                "A worker process was killed, probably because memory ran out",
                value=f"workers={config.workers}",
                remedy="Set a smaller number of workers; the same command continues",
            ) from None
    excluded = _join(cohort_path, cohort.folds, modalities, settings, output, names, decides)
    say(f"Shards of {len(cohort.cases) - len(excluded)} cases in '{output}'")
    refused = [e for e in excluded if not e.reason.startswith(_SKIPPED)]
    if refused:
        raise DataError(
            f"{len(refused)} of {len(cohort.cases)} cases were left out (the others are written): "
            + "; ".join(f"{e.case_id}: {e.reason}" for e in refused[:10]),
            remedy="The same command tries them again",
        )
    # Only now: a run that left cases out by an error is not finished, and its rerun says so again.
    claim.finish(cases=len(cohort.cases) - len(excluded), excluded=len(excluded))


def _modalities(cohort: Cohort, pair: tuple[str, str]) -> dict[str, str]:
    """Return modality -> unit of those that every case has."""
    if not cohort.cases:
        raise DataError("The cohort has no case", remedy="Look at 'excluded' in its cohort.json")
    common = set.intersection(*(set(case.volumes) for case in cohort.cases))
    for modality in sorted(set().union(*(case.volumes for case in cohort.cases)) - common):
        lacking = [case.case_id for case in cohort.cases if modality not in case.volumes]
        if modality in pair:
            raise DataError(
                f"{len(lacking)} of {len(cohort.cases)} cases lack '{modality}': {', '.join(lacking[:10])}",
                remedy="Leave them out with cohort.exclude, or complete them",
            )
        say(f"'{modality}' is not stored: {len(lacking)} of {len(cohort.cases)} cases lack it")
    if not common:
        raise DataError("The cases have no modality in common")
    return {name: cohort.cases[0].volumes[name].unit for name in sorted(common)}


def _groups(cohort: Cohort, patients: int) -> list[list[Case]]:
    """Group cases by patient, so many patients to a shard; the order is that of the case ids."""
    by_patient: dict[str, list[Case]] = {}
    for case in sorted(cohort.cases, key=lambda c: c.case_id):
        by_patient.setdefault(case.patient, []).append(case)
    films = list(by_patient.values())
    return [list(chain(*films[i : i + patients])) for i in range(0, len(films), patients)]


def _estimate(cohort: Cohort, settings: PreprocessSettings, modalities: int) -> int:
    slices = 0
    for case in cohort.cases:
        grid = grid_from(next(iter(case.volumes.values())).grid)
        axis = next(i for i, letter in enumerate(grid.axes) if letter in "SI")
        slices += math.ceil(grid.shape[axis] * grid.spacing_mm[axis] / settings.spacing_mm[0])
    return slices * settings.size[0] * settings.size[1] * (2 * modalities + 1) + 10_000_000


def _content(cohort: Cohort) -> dict[str, Any]:
    """What of a cohort decides the shards: voxels and splits, not where the files lie."""
    return {
        case.case_id: {
            "patient": case.patient,
            "split": case.split,
            "fold": (case.fold, cohort.folds),
            "files": {name: file.sha256 for name, file in {**case.volumes, **case.masks}.items()},
        }
        for case in cohort.cases
    }


# --- One case ----------------------------------------------------------------------------------------------------


def prepare_film(
    cohort: Cohort, case: Case, settings: PreprocessSettings, modalities: Sequence[str], reference: str
) -> tuple[Film, dict[str, Any]]:
    """Turn a case's volumes into a film on the cohort's grid.

    Returns:
        The film, and what the index says of it (grids, scales, percentiles).

    Raises:
        GeometryError: Modalities on different grids (unless ``resample``), or a body that does not fit.
        DataError: An empty mask, or too few slices.
    """
    volumes = {name: _read(cohort, case, name) for name in modalities}
    anchor = volumes[reference]
    native = {name: grid_record(volume.grid) for name, volume in volumes.items()}
    for name, volume in volumes.items():
        difference = grid_difference(anchor.grid, volume.grid)
        if difference and not settings.resample:
            raise GeometryError(
                f"'{reference}' and '{name}' of case '{case.case_id}' differ in {difference}. "
                f"{reference}: {anchor.grid.describe()}; {name}: {volume.grid.describe()}",
                remedy="Register them, or set preprocess.resample=true if they share one frame of reference",
            )
    body = _body(cohort, case, anchor, settings)
    grid = film_grid(anchor, body, settings.spacing_mm, settings.size, case.case_id)
    inside = _onto(Volume(body.astype(np.uint8), anchor.affine), grid) > 0
    if "field_of_view" in case.masks:
        inside &= _onto(read_volume(cohort.path(case.masks["field_of_view"])), grid) > 0
    if not inside.any():
        raise DataError(f"The mask of case '{case.case_id}' (body and field of view) is empty")
    if grid.shape[0] < settings.minimum_slices:
        raise _TooShortError(
            f"Case '{case.case_id}' has {grid.shape[0]} slices at {settings.spacing_mm[0]:g} mm",
            allowed=f"at least preprocess.minimum_slices={settings.minimum_slices}",
            remedy="Set preprocess.short_cases=skip to leave such cases out",
        )
    frames, scale, percentiles = {}, {}, {}
    for name, volume in volumes.items():
        film, scale[name] = to_stored(volume, grid)
        frames[name] = film
        low, high = np.percentile(film[inside], [0.5, 99.5]) * scale[name]
        percentiles[name] = (float(low), float(high))
    facts = {
        "slices": grid.shape[0],
        "film_grid": grid_record(grid),
        "source_grids": native,
        "scale": scale,
        "percentiles": percentiles,
    }
    return Film(case.case_id, frames, inside.astype(np.uint8)), facts


def _read(cohort: Cohort, case: Case, modality: str) -> Volume:
    file = case.volumes[modality]
    path = cohort.path(file)
    volume = read_volume(path, file.unit)
    if file_sha256(path) != file.sha256:
        raise DataError(
            f"'{modality}' of case '{case.case_id}' is not the file that the cohort record speaks of",
            remedy="Run 'cinevox cohort' again",
        )
    if volume.array.dtype.kind == "f" and not np.isfinite(volume.array).all():
        bad = np.argwhere(~np.isfinite(volume.array))
        raise DataError(
            f"'{modality}' of case '{case.case_id}' holds {len(bad)} voxels that are NaN or infinite",
            value=f"the first at index {tuple(bad[0].tolist())}",
        )
    return volume


def _body(cohort: Cohort, case: Case, anchor: Volume, settings: PreprocessSettings) -> NDArray[np.bool_]:
    for name in ("body", "mask"):
        if name in case.masks:
            given = read_volume(cohort.path(case.masks[name]))
            return resample(given, anchor.grid, outside=0, order="nearest").array > 0
    if anchor.unit == "HU":
        return body_mask(anchor, settings.body_threshold_hu)
    return foreground_mask(anchor)


def _onto(mask: Volume, grid: Grid) -> NDArray:
    return resample(mask, grid, outside=0, order="nearest").array


# --- One shard, in a process of its own --------------------------------------------------------------------------


class _Task(NamedTuple):
    cohort: Cohort
    cases: list[Case]
    settings: PreprocessSettings
    modalities: tuple[str, ...]
    reference: str
    output: Path
    name: str
    number: int


def _write(task: _Task) -> None:
    """Write one shard and, last, the note that it is complete."""
    cohort, cases, settings, modalities, reference, output, name, number = task
    facts: list[dict[str, Any]] = []
    excluded: list[dict[str, str]] = []

    def films() -> Iterator[Film]:
        for case in cases:
            try:
                film, about = prepare_film(cohort, case, settings, modalities, reference)
            except CinevoxError as error:
                skip = isinstance(error, _TooShortError) and settings.short_cases == "skip"
                excluded.append({"case_id": case.case_id, "reason": (_SKIPPED if skip else "") + str(error)})
                continue
            facts.append(
                {
                    "case_id": case.case_id,
                    "patient": case.patient,
                    "split": case.split,
                    "fold": case.fold,
                    "shard": number,
                    **about,
                }
            )
            yield film

    shard = write_shard(output, name, films(), settings.codec, settings.store)
    cases_ = [ShardCase.model_validate(fact).model_dump(mode="json") for fact in facts]
    write_json(output / f"{name}.json", {"shard": shard.model_dump(), "cases": cases_, "excluded": excluded})


def _is_done(output: Path, name: str, *, quick: bool = False) -> bool:
    """Whether a shard's note is there, no case of it failed, and its files are those that it speaks of.

    ``quick`` compares their sizes and leaves out the checksums.
    """
    try:
        shard, _, excluded = _note(output, name)
    except (ArtifactError, LookupError, TypeError, ValueError):
        return False
    if any(not case.reason.startswith(_SKIPPED) for case in excluded):
        return False
    return is_whole(output, shard, quick=quick)


def _note(output: Path, name: str) -> tuple[ShardFile, list[ShardCase], list[Excluded]]:
    data = read_json(output / f"{name}.json", what="shard note")
    return (
        ShardFile.model_validate(data["shard"]),
        [ShardCase.model_validate(case) for case in data["cases"]],
        [Excluded.model_validate(case) for case in data["excluded"]],
    )


def _join(
    cohort_path: Path,
    folds: int,
    modalities: dict[str, str],
    settings: PreprocessSettings,
    output: Path,
    names: list[str],
    decides: dict[str, Any],
) -> list[Excluded]:
    """Write the index over all shards; return the cases that were left out."""
    shards, cases, excluded = [], [], []
    for name in names:
        shard, of_shard, left_out = _note(output, name)
        if of_shard:
            shards.append(shard)
            cases += [case.model_copy(update={"shard": len(shards) - 1}) for case in of_shard]
        excluded += left_out
    if not cases:
        raise DataError("No case could be prepared: " + "; ".join(f"{e.case_id}: {e.reason}" for e in excluded[:5]))
    # Not the kind of store: what is read from it is the same, and so is what is trained on it.
    content = settings.model_dump(mode="json", exclude={"store"})
    ShardIndex(
        schema=2,
        config_hash=content_hash({**decides, "preprocess": content}),
        cohort=str(cohort_path),
        cohort_hash=decides["cohort"],
        folds=folds,
        codec=settings.codec,
        axes="SPL",
        spacing_mm=settings.spacing_mm,
        size=settings.size,
        modalities={
            name: ShardModality(unit=unit, dtype="int16", padding=PADDING_HU if unit == "HU" else 0.0)
            for name, unit in modalities.items()
        },
        cases=cases,
        shards=shards,
        preprocess=content,
        excluded=excluded,
    ).save(output)
    return excluded
