"""Volumes to shards of ordered slices.

Reads   input=COHORT      a folder with cohort.json (of 'cinevox cohort' or 'cinevox simulate')
Writes  output=SHARDS     index.json, shard-NNNNN.tar (a plain WebDataset), shard-NNNNN.npy (offsets and checksums),
                          plan.json (spacing, size, clip length, and why), fingerprint.json (what it was made from)

Main options
  preprocess.spacing_mm=[slice,row,column]  one for the whole cohort; auto: planned from the cohort
  preprocess.size=[rows,columns]            centred on the body; a body that does not fit is an error; auto: planned
  preprocess.memory_gib=N                   for training; auto: the GPU's, else this job's RAM
  stream.pairing=unpaired                   keep cases that have one modality only; paired training refuses them
  preprocess.resample=true                  put modalities on another grid onto the target's
  preprocess.store=tar|zarr                 shard-NNNNN.tar, or shard-NNNNN.zarr (zarr v3) beside the same index
  preprocess.short_cases=skip               leave out films below preprocess.minimum_slices, counted
  workers=N                                 processes, one shard each

Intensities stay physical (int16 HU; MR int16 with its scale); window and normalisation belong to the training.
Killed and started again it redoes only unfinished shards; the same inputs give the same bytes.
part=K/N writes every N-th shard only, beside the other parts; part=join makes the index of what they wrote, and lists
the cases that failed without failing itself.
--dry-run prints the plan and writes nothing.
"""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.artifacts import check_free_space, claim_output, content_hash, lock_output
from pipeline.errors import CinevoxError, DataError
from pipeline.imaging.film import PADDING_HU, grid_from
from pipeline.parts import JOIN, share_of, write_note
from pipeline.preparation.fingerprint import fingerprint_case
from pipeline.preparation.memory import case_voxels, job_bytes, training_memory, worker_bytes
from pipeline.preparation.plan import make_plan
from pipeline.preparation.shards import ShardTask, failed, is_done, reference_of, shard_note, write_task
from pipeline.processes import parallel
from pipeline.progress import say
from pipeline.records import (
    Case,
    CaseFingerprint,
    Cohort,
    Excluded,
    Fingerprint,
    Plan,
    ShardIndex,
    ShardModality,
)
from pipeline.settings import Config, PreprocessSettings
from pipeline.tracking.stage import track_stage


def run(config: Config) -> None:
    """Shard a cohort."""
    folder, output = config.input[0], config.output
    assert output is not None
    cohort = Cohort.load(folder)
    paired = config.stream.pairing == "paired"
    modalities = _modalities(cohort, (config.source, config.target), paired)
    reference = config.target if config.target in modalities else sorted(modalities)[0]
    # A task carries its own cases only: a large cohort would be sent once per shard.
    place = cohort.model_copy(update={"cases": [], "excluded": [], "made_by": {}})
    working, joining = bool(config.part) and config.part != JOIN, config.part == JOIN
    if working and not config.dry_run:
        planning = lock_output(output, wait=True)  # one part plans, the others read its plan
    plan, fingerprint = _plan(config, cohort, place, reference, modalities[reference])
    settings = config.preprocess.model_copy(
        update={"spacing_mm": plan.spacing_mm, "size": plan.size, "memory_gib": plan.memory_gib}
    )
    groups = _groups(cohort, settings.patients_per_shard)
    estimate = _estimate(cohort.cases, plan, len(modalities))
    workers = _workers(config.workers, cohort, plan, len(modalities))
    say(
        f"{len(cohort.cases)} cases of {len({c.patient for c in cohort.cases})} patients, {', '.join(modalities)}; "
        f"{len(groups)} shards, at most {estimate / 1e6:.0f} MB"
    )
    for reason in plan.reasons:
        say(f"  {reason}")
    if config.dry_run:
        return
    decides = {
        "preprocess": settings.model_dump(mode="json"),
        "cohort": content_hash(_content(cohort)),
        "reference": reference,
        "modalities": sorted(modalities),
        "schema": ShardIndex.model_fields["schema_version"].default,  # shards of an older version are not continued
    }
    claim = claim_output(output, "preprocess", decides, wait=working)
    names = [f"shard-{i:05d}" for i in range(len(groups))]
    if claim.finished and (output / ShardIndex.FILE).is_file() and all(is_done(output, n, quick=True) for n in names):
        say(f"'{output}' is finished already; nothing to do")
        return
    if fingerprint is not None:
        fingerprint.save(output)
    plan.save(output)
    if working:
        claim.share()
        planning.release()
    cohort_path = (folder / Cohort.FILE if folder.is_dir() else folder).resolve()
    tasks = [
        ShardTask(place, group, plan, settings, tuple(modalities), reference, output, names[i], i)
        for i, group in enumerate(groups)
    ]
    tasks = share_of(tasks, config.part)
    todo = [task for task in tasks if not is_done(output, task.name)]
    if len(todo) < len(tasks):
        say(f"Continuing: {len(tasks) - len(todo)} of {len(tasks)} shards are there")
    check_free_space(output, _estimate([case for task in todo for case in task.cases], plan, len(modalities)))
    for _ in parallel(write_task, todo, workers, "preprocess"):
        pass
    if working:
        left_out = [case for task in tasks for case in failed(shard_note(output, task.name)[2])]
        write_note(output, config.part, {case.case_id: case.reason for case in left_out})
        _refuse(left_out, sum(len(task.cases) for task in tasks))
        return
    excluded = _join(cohort_path, cohort.folds, modalities, plan, settings, output, names, groups, decides)
    say(f"Shards of {len(cohort.cases) - len(excluded)} cases in '{output}'")
    size = sum(shard.bytes for shard in ShardIndex.load(output).shards) / 1e6
    counted = {"cases": len(cohort.cases) - len(excluded), "excluded": len(excluded), "megabytes": size}
    track_stage(config, "preprocess", counted, cohort=decides["cohort"])
    refused = failed(excluded)
    if joining and refused:
        for case in refused:
            say(f"Left out: {case.case_id}: {case.reason}")
        return
    _refuse(refused, len(cohort.cases))
    # Only now: a run that left cases out by an error is not finished, and its rerun says so again.
    claim.finish(cases=len(cohort.cases) - len(excluded), excluded=len(excluded))


def _refuse(refused: list[Excluded], count: int) -> None:
    if refused:
        raise DataError(
            f"{len(refused)} of {count} cases were left out (the others are written): "
            + "; ".join(f"{e.case_id}: {e.reason}" for e in refused[:10]),
            remedy="The same command tries them again",
        )


def _workers(wanted: int, cohort: Cohort, plan: Plan, modalities: int) -> int:
    """Return how many workers the job's memory holds, at least one, and say what they need."""
    film = plan.size[0] * plan.size[1]
    voxels = max(case_voxels(case, film * _slices(case, plan)) for case in cohort.cases)
    each, have = worker_bytes(voxels, modalities), job_bytes()
    workers = min(wanted, max(1, int(have // each)))
    if workers < wanted:
        say(f"{workers} instead of {wanted} workers: each needs up to {each / 1e9:.1f} GB of {have / 1e9:.1f} GB")
    elif each > have:
        say(f"A worker needs up to {each / 1e9:.1f} GB, and there are {have / 1e9:.1f} GB: this may fail")
    return workers


# --- The plan ----------------------------------------------------------------------------------------------------


def _plan(config: Config, cohort: Cohort, place: Cohort, reference: str, unit: str) -> tuple[Plan, Fingerprint | None]:
    """Return the plan, and the fingerprint where one had to be taken.

    What is 'auto' stays, in a folder that was begun, what it was planned to be there: on any machine.
    """
    settings, model, output = config.preprocess, config.model, config.output
    assert output is not None
    if (output / Plan.FILE).is_file():
        earlier = Plan.load(output)
        same = all(
            wanted is None or tuple(np.ravel(wanted)) == tuple(np.ravel(planned))
            for wanted, planned in (
                (settings.spacing_mm, earlier.spacing_mm),
                (settings.size, earlier.size),
                (settings.memory_gib, earlier.memory_gib),
            )
        )
        if same:
            return earlier, None
    fingerprint = None
    if settings.spacing_mm is None or settings.size is None:
        looks = [_Look(place, case, reference_of(case, reference), settings.body_threshold_hu) for case in cohort.cases]
        found = list(parallel(_look, looks, config.workers, "fingerprint"))
        fingerprint = Fingerprint(
            schema=1,
            reference=reference,
            unit=unit,
            cases=[case for case in found if isinstance(case, CaseFingerprint)],
            excluded=[case for case in found if isinstance(case, Excluded)],
        )
        if not fingerprint.cases:
            raise _nothing_left(fingerprint.excluded)
    memory = training_memory(settings.memory_gib)
    cases = fingerprint.cases if fingerprint else []
    return make_plan(cases, settings, memory, model.memory, config.stream.global_batch), fingerprint


class _Look(NamedTuple):
    cohort: Cohort
    case: Case
    reference: str
    threshold_hu: float


def _look(task: _Look) -> CaseFingerprint | Excluded:
    try:
        return fingerprint_case(*task)
    except CinevoxError as error:
        return Excluded(case_id=task.case.case_id, reason=str(error))


def _nothing_left(excluded: list[Excluded]) -> DataError:
    return DataError("No case could be prepared: " + "; ".join(f"{e.case_id}: {e.reason}" for e in excluded[:5]))


# --- The cohort --------------------------------------------------------------------------------------------------


def _modalities(cohort: Cohort, pair: tuple[str, str], paired: bool) -> dict[str, str]:
    """Return modality -> unit of those that every case has; for unpaired training, of those that any case has."""
    if not cohort.cases:
        raise DataError("The cohort has no case", remedy="Look at 'excluded' in its cohort.json")
    common = set.intersection(*(set(case.volumes) for case in cohort.cases))
    units = {name: file.unit for case in cohort.cases for name, file in case.volumes.items()}
    for modality in sorted(set(units) - common):
        lacking = [case.case_id for case in cohort.cases if modality not in case.volumes]
        if not paired:
            say(f"{len(lacking)} of {len(cohort.cases)} cases lack '{modality}'")
            continue
        if modality in pair:
            raise DataError(
                f"{len(lacking)} of {len(cohort.cases)} cases lack '{modality}': {', '.join(lacking[:10])}",
                remedy="Leave them out with cohort.exclude, complete them, or set stream.pairing=unpaired",
            )
        say(f"'{modality}' is not stored: {len(lacking)} of {len(cohort.cases)} cases lack it")
    if paired and not common:
        raise DataError("The cases have no modality in common")
    return {name: units[name] for name in sorted(common if paired else units)}


def _groups(cohort: Cohort, patients: int) -> list[list[Case]]:
    """Group cases by patient, so many patients to a shard; the order is that of the case ids."""
    by_patient: dict[str, list[Case]] = {}
    for case in sorted(cohort.cases, key=lambda c: c.case_id):
        by_patient.setdefault(case.patient, []).append(case)
    films = list(by_patient.values())
    return [list(chain(*films[i : i + patients])) for i in range(0, len(films), patients)]


def _estimate(cases: list[Case], plan: Plan, modalities: int) -> int:
    slices = sum(_slices(case, plan) for case in cases)
    return slices * plan.size[0] * plan.size[1] * (2 * modalities + 1) + 10_000_000


def _slices(case: Case, plan: Plan) -> int:
    grid = grid_from(next(iter(case.volumes.values())).grid)
    axis = next(i for i, letter in enumerate(grid.axes) if letter in "SI")
    return math.ceil(grid.shape[axis] * grid.spacing_mm[axis] / plan.spacing_mm[0])


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


# --- The index ----------------------------------------------------------------------------------------------------


def _join(
    cohort_path: Path,
    folds: int,
    modalities: dict[str, str],
    plan: Plan,
    settings: PreprocessSettings,
    output: Path,
    names: list[str],
    groups: list[list[Case]],
    decides: dict[str, Any],
) -> list[Excluded]:
    """Write the index over all shards; return the cases that were left out.

    A shard that is not there belongs to a part that did not end.
    """
    shards, cases, excluded = [], [], []
    for name, group in zip(names, groups, strict=True):
        if not (output / f"{name}.json").is_file():
            reason = "the part that prepares it did not end"
            excluded += [Excluded(case_id=case.case_id, reason=reason) for case in group]
            continue
        shard, of_shard, left_out = shard_note(output, name)
        if of_shard:
            shards.append(shard)
            cases += [case.model_copy(update={"shard": len(shards) - 1}) for case in of_shard]
        excluded += left_out
    if not cases:
        raise _nothing_left(excluded)
    # Neither the kind of store nor the memory: what is read, and so what is trained on it, is the same.
    content = settings.model_dump(mode="json", exclude={"store", "memory_gib"})
    ShardIndex(
        schema=2,
        config_hash=content_hash({**decides, "preprocess": content}),
        cohort=str(cohort_path),
        cohort_hash=decides["cohort"],
        folds=folds,
        codec=settings.codec,
        axes="SPL",
        spacing_mm=plan.spacing_mm,
        size=plan.size,
        modalities={
            name: ShardModality(unit=unit, dtype="int16", padding=PADDING_HU if unit == "HU" else 0.0)
            for name, unit in modalities.items()
        },
        cases=cases,
        shards=shards,
        preprocess=content,
        excluded=excluded,
        plan=plan,
    ).save(output)
    return excluded
