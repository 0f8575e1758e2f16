"""What is translated: a film of each case, out of shards or of volumes, and the way back to its own grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import difference
from pipeline.cohorts.folder import safe
from pipeline.cohorts.plausibility import check_hu, check_values
from pipeline.errors import ArtifactError, ConfigError, DataError
from pipeline.geometry import Grid, Volume, reorder
from pipeline.imaging.film import film_grid, grid_from, to_stored
from pipeline.imaging.mask import body_mask, foreground_mask
from pipeline.imaging.normalise import normalise, window_for
from pipeline.imaging.resample import resample
from pipeline.io import SUFFIXES, read_grid, read_volume, stem
from pipeline.progress import say
from pipeline.records import Cohort, ShardIndex
from pipeline.settings import Config
from pipeline.stream.store import SliceStore


@dataclass(frozen=True)
class SourceCase:
    """One case to translate; ``open`` reads it only when its turn comes."""

    case_id: str
    patient: str
    open: Callable[[], SourceFilm]
    voxels: int  # of the volume that is written; 0 where the header cannot be read
    source: str = ""
    reference: str = ""
    mask: str = ""
    mask_kind: str = ""
    cohort: str = ""


@dataclass(frozen=True)
class SourceFilm:
    """A normalised film and the way back to the volume that it came from."""

    frames: NDArray[np.float32]  # (slices, rows, columns) in [-1, 1]
    mask: NDArray[np.uint8]
    film: Grid
    native: Grid
    percentiles: dict[str, tuple[float, float]]


def source_cases(store: SliceStore | None, record: dict[str, Any], config: Config) -> list[SourceCase]:
    """Return the cases of shards (those of ``translate.split``), of a folder of volumes, or the one of a volume.

    Args:
        store: The shards that ``input`` names, if it names some.
        record: What the checkpoint says of its run.
        config: Of the command.

    Raises:
        ArtifactError: Shards that were prepared differently from the run's.
        ConfigError: Another fold than the run's.
        DataError: Nothing is there.
    """
    return _of_shards(store, record, config) if store else _of_volumes(config.input[0], record, config)


def is_shards(config: Config) -> bool:
    """Whether the input is a folder of shards, here or on a server."""
    return bool(config.shards_url) or (config.input[0] / ShardIndex.FILE).is_file()


def check_prepared(record: dict[str, Any], index: ShardIndex, modalities: Sequence[str]) -> None:
    """Refuse shards whose ``modalities`` were prepared differently from those that a run was trained on.

    Raises:
        ArtifactError: With the difference.
    """
    preparation = record["preprocessing"]
    spacings = preparation.get("spacings_mm", {})
    known = {key: preparation[key] for key in ("axes", "size")}
    found: dict[str, Any] = {"axes": index.axes, "size": list(index.size)}
    for name in modalities:
        known[name] = {
            **preparation["modalities"].get(name, {}),
            "spacing_mm": spacings.get(name, preparation["spacing_mm"]),
        }
        held = index.modalities[name].model_dump() if name in index.modalities else {}
        found[name] = {**held, "spacing_mm": list(index.spacing_mm)}
    if changed := difference(known, found):
        raise ArtifactError(
            "These shards were prepared differently from those that the run was trained on: " + "; ".join(changed),
            remedy="Translate the volumes themselves (input=FILE|DIR), or preprocess them as the run's shards were",
        )


def _of_shards(store: SliceStore, record: dict[str, Any], config: Config) -> list[SourceCase]:
    index, preparation = store.index, record["preprocessing"]
    check_prepared(record, index, [record["source"]])
    try:
        cohort: Cohort | None = Cohort.load(Path(index.cohort))
    except ArtifactError:
        say("The cohort record of these shards is gone: volumes are written, but no reference is known")
        cohort = None
    cases = {case.case_id: case for case in cohort.cases} if cohort else {}
    found = []
    chosen = index.select(config.translate.split, _fold(record, config, index))
    if lacking := [case.case_id for case in chosen if record["source"] not in case.modalities]:
        say(f"{len(lacking)} case(s) without '{record['source']}' are not translated: {', '.join(lacking[:10])}")
    for shard_case in (case for case in chosen if record["source"] in case.modalities):
        case = cases.get(shard_case.case_id)

        def open_film(case_id: str = shard_case.case_id) -> SourceFilm:
            source, entry = record["source"], store.cases[case_id]
            film = store.film(case_id, source, "mask")
            physical = film[source].astype(np.float32) * np.float32(entry.scale.get(source, 1.0))
            window = window_for(source, preparation["window"], entry.percentiles)
            frames = normalise(physical, window)
            native = grid_from(entry.source_grids[source])
            return SourceFilm(frames, film["mask"], grid_from(entry.film_grid), native, dict(entry.percentiles))

        def located(kind: str, owner: Any = case) -> str:
            return str(cohort.path(owner.volumes[kind]).resolve()) if cohort and owner and kind in owner.volumes else ""

        kind = next((name for name in ("field_of_view", "body") if case and name in case.masks), "")
        mask = case.masks[kind] if case and kind else None
        found.append(
            SourceCase(
                shard_case.case_id,
                shard_case.patient,
                open_film,
                math.prod(shard_case.source_grids[record["source"]].shape),
                source=located(record["source"]),
                reference=located(record["target"]),
                mask=str(cohort.path(mask).resolve()) if cohort and mask else "",
                mask_kind="given" if kind == "body" else kind,  # a body that was given is all that is scored
                cohort=cohort.name if cohort else "",
            )
        )
    return found


def run_fold(record: dict[str, Any]) -> int:
    """Return the fold that a run left out, 0 for none."""
    return int(record["config"].get("fold", 0))


def _fold(record: dict[str, Any], config: Config, index: ShardIndex) -> int:
    """Return the run's fold, after checking that it says which of these patients were trained on."""
    fold = run_fold(record)
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


def _of_volumes(place: Path, record: dict[str, Any], config: Config) -> list[SourceCase]:
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
    found = []
    for case_id, file in zip(case_ids, files, strict=True):

        def open_volume(file: Path = file, case_id: str = case_id) -> SourceFilm:
            return _prepare(read_volume(file), record, config, case_id)

        mask = str(config.mask.resolve()) if config.mask else ""
        kind = "field_of_view" if mask else ""
        found.append(
            SourceCase(case_id, case_id, open_volume, _voxels(file), str(file.resolve()), mask=mask, mask_kind=kind)
        )
    return found


def _voxels(file: Path) -> int:
    try:
        return math.prod(read_grid(file).shape)
    except DataError:
        return 0  # said when its turn comes, so that the others go on


def _volumes_in(folder: Path, modality: str) -> list[Path]:
    flat = [f for f in sorted(folder.iterdir()) if f.is_file() and f.name.lower().endswith(SUFFIXES)]
    nested = [f for f in sorted(folder.glob("*/*")) if f.name.lower().endswith(SUFFIXES) and stem(f) == modality]
    return flat or nested


def _prepare(volume: Volume, record: dict[str, Any], config: Config, case_id: str) -> SourceFilm:
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
    return SourceFilm(frames, mask.astype(np.uint8), grid, volume.grid, percentiles)
