"""Volumes to the target modality.

Reads   checkpoint=RUN    a run folder (its last checkpoint) or a .ckpt file
        input=SHARDS      translates translate.split (train, validation, test or all) of a shard folder
        input=FILE|DIR    or any volume, or a folder of volumes (DIR/CASE.nii.gz or DIR/CASE/SOURCE.nii.gz)
        mask=FILE         of a single volume: non-zero is the field of view
Writes  output=DIR        CASE.nii.gz on exactly the source's grid and orientation, and translation.json

Main options
  translate.split=test  translate.weights=ema|raw  translate.outside=-1000
  translate.precision=auto|fp32|bf16-mixed|bf16       bf16: weights too, except the heads'
  translate.compile=true                              torch.compile: a slow first volume, faster ones after it

A run of a cross-validation (fold=K) translates the patients of its own fold as the split 'test'.
How an input is prepared, and how the result is turned back, stands in the checkpoint; an input that does not fit
it is refused.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.artifacts import check_free_space, claim_output, content_hash, difference, file_sha256
from pipeline.cohorts.folder import safe
from pipeline.cohorts.plausibility import check_hu, check_values
from pipeline.errors import ArtifactError, CinevoxError, ConfigError, DataError
from pipeline.geometry import Grid, Volume, reorder
from pipeline.imaging.film import film_grid, grid_from, to_stored
from pipeline.imaging.mask import body_mask, foreground_mask
from pipeline.imaging.normalise import normalise, restore, window_for
from pipeline.imaging.resample import resample
from pipeline.io import SUFFIXES, read_grid, read_volume, stem, write_volume
from pipeline.networks.cpu_layers import lay_out
from pipeline.progress import say, track
from pipeline.records import Cohort, Excluded, ShardIndex, TranslatedCase, Translation
from pipeline.settings import Config
from pipeline.stream.store import SliceStore
from pipeline.tracking.stage import track_stage
from pipeline.training.checkpoint import FOLDER, LAST, load_checkpoint, load_method
from pipeline.training.compilation import check_compiler, compile_for_inference
from pipeline.training.heap import keep_freed_memory
from pipeline.training.precision import autocast, device_for, resolve_precision, round_weights


@dataclass(frozen=True)
class _Job:
    """One case to translate; ``open`` reads it only when its turn comes."""

    case_id: str
    patient: str
    open: Callable[[], _Prepared]
    voxels: int  # of the volume that is written; 0 where the header cannot be read
    source: str = ""
    reference: str = ""
    mask: str = ""
    mask_kind: str = ""
    cohort: str = ""


@dataclass(frozen=True)
class _Prepared:
    """A normalised film and the way back to the volume that it came from."""

    frames: NDArray[np.float32]  # (slices, rows, columns) in [-1, 1]
    mask: NDArray[np.uint8]
    film: Grid
    native: Grid
    percentiles: dict[str, tuple[float, float]]


def run(config: Config) -> None:
    """Translate a split of shards, a volume, or a folder of volumes."""
    assert config.checkpoint is not None and config.output is not None
    data = load_checkpoint(config.checkpoint)
    record = data["cinevox"]
    place, output = config.input[0], config.output
    find = _shard_jobs if (place / ShardIndex.FILE).is_file() else _volume_jobs
    jobs = find(place, record, config)
    if not jobs:
        raise DataError(f"Nothing to translate: no case in split '{config.translate.split}'")
    fold = _run_fold(record) if config.translate.split == "test" and find is _shard_jobs else 0
    label = config.translate.label or record["label"]
    say(f"{label}: {len(jobs)} case(s), {record['source']} to {record['target']}")
    if config.dry_run:
        names = ", ".join(f"{job.case_id}.nii.gz" for job in jobs[:20])
        say(f"Would write {len(jobs)} volume(s), at most {_bytes(jobs, record) / 1e6:.0f} MB: {names}")
        return
    path = config.checkpoint / FOLDER / LAST if config.checkpoint.is_dir() else config.checkpoint
    sha256 = file_sha256(path)
    settings = {
        "checkpoint": sha256,
        "translate": config.translate.model_dump(),
        "cases": [j.case_id for j in jobs],
        "input": _content(place, jobs),
    }
    claim = claim_output(output, "translate", settings)
    if claim.finished:
        say(f"'{output}' is finished already; nothing to do")
        return
    check_free_space(output, _bytes([job for job in jobs if not _target(output, job).exists()], record))
    done: list[TranslatedCase] = []
    excluded: list[Excluded] = []
    translate = _translator(data, config)
    for job in track(jobs, "translate"):
        target = _target(output, job)
        start = time.perf_counter()
        try:
            if not target.exists():
                write_volume(target, translate(job))
        except CinevoxError as error:
            excluded.append(Excluded(case_id=job.case_id, reason=str(error)))
            continue
        done.append(
            TranslatedCase(
                case_id=job.case_id,
                patient=job.patient,
                prediction=target.name,
                source=job.source,
                reference=job.reference,
                mask=job.mask,
                mask_kind=job.mask_kind,
                seconds=round(time.perf_counter() - start, 2),
            )
        )
    if done:
        Translation(
            method=record["method"],
            label=label,
            run=str(config.checkpoint.resolve()),
            checkpoint_sha256=sha256,
            source_modality=record["source"],
            target_modality=record["target"],
            unit=_unit(record),
            fold=fold,
            cohort=jobs[0].cohort,
            cases=done,
            excluded=excluded,
            settings=config.translate.model_dump(mode="json"),
        ).save(output)
    seconds = [case.seconds for case in done if case.seconds]  # none where an earlier start translated the case
    counted = {"cases": len(done), "excluded": len(excluded)}
    track_stage(config, "translate", {**counted, "seconds_per_case": sum(seconds) / max(len(seconds), 1)})
    if excluded:
        raise DataError(
            f"{len(excluded)} of {len(jobs)} cases were left out (the others are written): "
            + "; ".join(f"{e.case_id}: {e.reason}" for e in excluded[:10])
        )
    claim.finish(cases=len(done))
    say(f"Translated {len(done)} case(s) into '{output}'")


def _target(output: Path, job: _Job) -> Path:
    return output / f"{job.case_id}.nii.gz"


def _bytes(jobs: list[_Job], record: dict[str, Any]) -> int:
    """Return the most that the jobs' volumes take on disk."""
    return sum(job.voxels for job in jobs) * (2 if _unit(record) == "HU" else 4)


def _content(place: Path, jobs: list[_Job]) -> str | dict[str, str]:
    """Return what of the input decides the result: another volume under the same name is another translation."""
    if (place / ShardIndex.FILE).is_file():
        return ShardIndex.load(place).config_hash
    return {job.case_id: content_hash([file_sha256(Path(f)) for f in (job.source, job.mask) if f]) for job in jobs}


def _unit(record: dict[str, Any]) -> str:
    unit = record["preprocessing"]["modalities"][record["target"]]["unit"]
    return "HU" if unit == "HU" else "normalised"


# --- Where films come from ---------------------------------------------------------------------------------------


def _shard_jobs(folder: Path, record: dict[str, Any], config: Config) -> list[_Job]:
    store = SliceStore(folder)
    index, preparation = store.index, record["preprocessing"]
    changed = difference(
        {key: preparation[key] for key in ("axes", "spacing_mm", "size", "modalities")},
        {
            "axes": index.axes,
            "spacing_mm": list(index.spacing_mm),
            "size": list(index.size),
            "modalities": {name: item.model_dump() for name, item in index.modalities.items()},
        },
    )
    changed = [line for line in changed if not line.startswith("modalities.") or record["source"] in line.split(":")[0]]
    if changed:
        raise ArtifactError(
            "These shards were prepared differently from those that the run was trained on: " + "; ".join(changed),
            remedy="Translate the volumes themselves (input=FILE|DIR), or preprocess them as the run's shards were",
        )
    try:
        cohort: Cohort | None = Cohort.load(Path(index.cohort))
    except ArtifactError:
        say("The cohort record of these shards is gone: volumes are written, but no reference is known")
        cohort = None
    cases = {case.case_id: case for case in cohort.cases} if cohort else {}
    jobs = []
    chosen = index.select(config.translate.split, _fold(record, config, index))
    if lacking := [case.case_id for case in chosen if record["source"] not in case.modalities]:
        say(f"{len(lacking)} case(s) without '{record['source']}' are not translated: {', '.join(lacking[:10])}")
    for shard_case in (case for case in chosen if record["source"] in case.modalities):
        case = cases.get(shard_case.case_id)

        def open_film(case_id: str = shard_case.case_id) -> _Prepared:
            source, entry = record["source"], store.cases[case_id]
            film = store.film(case_id, source, "mask")
            physical = film[source].astype(np.float32) * np.float32(entry.scale.get(source, 1.0))
            window = window_for(source, preparation["window"], entry.percentiles)
            frames = normalise(physical, window)
            native = grid_from(entry.source_grids[source])
            return _Prepared(frames, film["mask"], grid_from(entry.film_grid), native, dict(entry.percentiles))

        def located(kind: str, owner: Any = case) -> str:
            return str(cohort.path(owner.volumes[kind]).resolve()) if cohort and owner and kind in owner.volumes else ""

        mask = case.masks.get("field_of_view") if case else None
        jobs.append(
            _Job(
                shard_case.case_id,
                shard_case.patient,
                open_film,
                math.prod(shard_case.source_grids[record["source"]].shape),
                source=located(record["source"]),
                reference=located(record["target"]),
                mask=str(cohort.path(mask).resolve()) if cohort and mask else "",
                mask_kind="field_of_view" if mask else "",
                cohort=cohort.name if cohort else "",
            )
        )
    return jobs


def _run_fold(record: dict[str, Any]) -> int:
    return int(record["config"].get("fold", 0))


def _fold(record: dict[str, Any], config: Config, index: ShardIndex) -> int:
    """Return the run's fold, after checking that it says which of these patients were trained on."""
    fold = _run_fold(record)
    if config.fold not in (0, fold):
        raise ConfigError(
            "The run tested another fold, so these patients may be among those that it was trained on",
            value=f"fold={config.fold}",
            allowed=f"fold={fold}" if fold else "no fold: the run knew none",
            remedy="Leave fold out: the checkpoint knows it",
        )
    if fold and config.translate.split != "all" and record["shards"] != index.config_hash:
        raise ArtifactError(
            f"The run tested fold {fold} of other shards, so nothing says which of these patients it was trained on",
            value=f"translate.split={config.translate.split}",
            allowed="translate.split=all, or the run's own shards",
        )
    return fold


def _volume_jobs(place: Path, record: dict[str, Any], config: Config) -> list[_Job]:
    if not place.exists():
        raise DataError(f"No input at '{place}'")
    files = [place] if place.is_file() else _volumes_in(place, record["source"])
    if not files:
        raise DataError(f"No volume in '{place}'", allowed=" ".join(SUFFIXES))
    if config.mask is not None and len(files) > 1:
        raise ConfigError("mask=FILE goes with a single volume")
    names = [stem(f) if place.is_file() or f.parent == place else f.parent.name for f in files]
    case_ids = [safe("case", name) for name in names]
    if len({case_id.lower() for case_id in case_ids}) < len(case_ids):
        raise DataError("Two volumes would be written under one name", remedy="Translate them one by one")
    jobs = []
    for case_id, file in zip(case_ids, files, strict=True):

        def open_volume(file: Path = file, case_id: str = case_id) -> _Prepared:
            return _prepare(read_volume(file), record, config, case_id)

        mask = str(config.mask.resolve()) if config.mask else ""
        kind = "field_of_view" if mask else ""
        jobs.append(_Job(case_id, case_id, open_volume, _voxels(file), str(file.resolve()), mask=mask, mask_kind=kind))
    return jobs


def _voxels(file: Path) -> int:
    try:
        return math.prod(read_grid(file).shape)
    except DataError:
        return 0  # said when its turn comes, so that the others go on


def _volumes_in(folder: Path, modality: str) -> list[Path]:
    flat = [f for f in sorted(folder.iterdir()) if f.is_file() and f.name.lower().endswith(SUFFIXES)]
    nested = [f for f in sorted(folder.glob("*/*")) if f.name.lower().endswith(SUFFIXES) and stem(f) == modality]
    return flat or nested


def _prepare(volume: Volume, record: dict[str, Any], config: Config, case_id: str) -> _Prepared:
    """Prepare a stray volume as the run's shards were, by the checkpoint's record."""
    preparation, source = record["preprocessing"], record["source"]
    unit = preparation["modalities"][source]["unit"]
    volume = Volume(volume.array, volume.affine, unit)
    film = reorder(volume)
    check_values(film)
    if unit == "HU":
        check_hu(film)
    body = body_mask(volume, preparation["body_threshold_hu"]) if unit == "HU" else foreground_mask(volume)
    grid = film_grid(volume, body, tuple(preparation["spacing_mm"]), tuple(preparation["size"]), case_id)
    mask = resample(Volume(body.astype(np.uint8), volume.affine), grid, outside=0, order="nearest").array
    if config.mask is not None:
        mask = mask * (resample(read_volume(config.mask), grid, outside=0, order="nearest").array > 0)
    if not mask.any():
        raise DataError(f"The mask of case '{case_id}' is empty")
    stored, scale = to_stored(volume, grid)
    physical = stored.astype(np.float32) * np.float32(scale)
    low, high = np.percentile(physical[mask > 0], [0.5, 99.5])
    percentiles = {source: (float(low), float(high))}
    frames = normalise(physical, window_for(source, preparation["window"], percentiles))
    return _Prepared(frames, mask.astype(np.uint8), grid, volume.grid, percentiles)


# --- There and back ----------------------------------------------------------------------------------------------


def _translator(data: dict[str, Any], config: Config) -> Callable[[_Job], Volume]:
    """Return the function from a job to its volume on the source's grid."""
    record = data["cinevox"]
    device = device_for(config.trainer.accelerator)
    precision = resolve_precision(config.translate.precision, device)
    keep_freed_memory(device)
    method = lay_out(load_method(data, config.trainer.allow_packages).to(device), device)
    method.use_ema = config.translate.weights == "ema"  # type: ignore[assignment]
    if precision == "bf16":
        round_weights(method)
    if config.translate.compile:
        check_compiler(device)
        compile_for_inference(method)
    masked = record["preprocessing"]["outside_mask"] == "lowest"
    in_hu = _unit(record) == "HU"

    def translate(job: _Job) -> Volume:
        prepared = job.open()
        frames = prepared.frames.copy()
        if masked:
            frames[prepared.mask == 0] = -1.0
        generator = torch.Generator(device).manual_seed(config.seed)
        with torch.inference_mode(), autocast(precision, device):
            predicted = method.translate(  # type: ignore[operator]
                torch.from_numpy(frames).unsqueeze(1).to(device),
                torch.from_numpy(prepared.mask.astype(np.float32)).unsqueeze(1).to(device),
                source_modality=record["source"],
                target_modality=record["target"],
                generator=generator,
            )
        values = predicted.squeeze(1).float().cpu().numpy()
        outside = config.translate.outside if in_hu else -1.0
        if in_hu:
            window = window_for(record["target"], record["preprocessing"]["window"], prepared.percentiles)
            values = restore(values, window)
        volume = resample(Volume(values, prepared.film.affine), prepared.native, outside=outside)
        array = volume.array
        if masked:
            # The mask is put on at full resolution, so that skin is not mixed with air by the resampling.
            film_mask = Volume(prepared.mask, prepared.film.affine)
            inside = resample(film_mask, prepared.native, outside=0, order="nearest").array
            array = np.where(inside > 0, array, np.float32(outside))
        if in_hu:
            array = np.clip(np.rint(array), -32768, 32767).astype(np.int16)
        return Volume(array, prepared.native.affine, "HU" if in_hu else "a.u.")

    return translate
