"""Tiny cohorts and shards for tests: volumes of a few voxels with the records that stages read."""

import json
from functools import lru_cache
from hashlib import sha256

import numpy as np

from pipeline.artifacts import content_hash, file_sha256
from pipeline.config import compose
from pipeline.geometry import Grid, Volume
from pipeline.imaging.film import grid_record
from pipeline.io import write_volume
from pipeline.records import Case, Cohort, ShardCase, ShardIndex, ShardModality, VolumeFile
from pipeline.stream.shard import Film
from pipeline.stream.store import write_shard

SPACING = (4.0, 5.0, 5.0)
SHAPE = (10, 24, 26)
# Words of a cohort and its shards that take seconds: four phantom heads, T1 and CT.
PHANTOMS = [
    "cohort=phantom",
    "cohort.patients=4",
    "cohort.anatomy=head",
    "cohort.modalities=[t1n,ct]",
    "cohort.size=[14,32,32]",
    "cohort.spacing_mm=[12,8,8]",
    "cohort.split.fractions={train: 0.5, validation: 0.25, test: 0.25}",
    "preprocess.spacing_mm=[12,8,8]",
    "preprocess.size=[32,32]",
    "source=t1n",
]


@lru_cache
def _composed(*overrides):
    return compose(["workers=1", *overrides])


def configuration(*overrides, dry_run=False, **paths):
    """The configuration of one command; composed once for the same overrides."""
    config = _composed(*overrides)
    return type(config).model_validate({**config.model_dump(), **paths, "dry_run": dry_run})


def film_affine(spacing=SPACING, origin=(60.0, 50.0, -20.0)):
    """Film order: slices to superior, rows to posterior, columns to the patient's left."""
    matrix = np.zeros((4, 4))
    matrix[2, 0], matrix[1, 1], matrix[0, 2] = spacing[0], -spacing[1], -spacing[2]
    matrix[:3, 3], matrix[3, 3] = origin, 1
    return matrix


def body(seed=0, shape=SHAPE, spacing=SPACING):
    """A noisy elliptic cylinder in HU (int16), film order."""
    rng = np.random.default_rng(seed)
    _, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    inside = (x / 0.7) ** 2 + (y / 0.7) ** 2 < 1
    hu = np.where(inside, rng.integers(-80, 400, shape), -1000)
    return Volume(hu.astype(np.int16), film_affine(spacing))


def pair(seed=0, shape=SHAPE):
    """A CT and a CBCT that is a little darker and noisier."""
    ct = body(seed, shape)
    noise = np.random.default_rng([seed, 1]).integers(-60, 20, shape)
    return {"ct": ct, "cbct": ct.with_array((ct.array + noise).astype(np.int16))}


def write_cohort(root, cases, *, masks=None, patients=None, splits=None, units=None, suffix=".nii", folds=None):
    """Write ``{case: {modality: Volume}}`` with its cohort record; returns the folder."""
    masks, units = masks or {}, units or {}
    records = []
    for place, (case_id, volumes) in enumerate(cases.items()):
        files = {}
        for name, volume in {**volumes, **masks.get(case_id, {})}.items():
            path = root / case_id / f"{name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_volume(path, volume)
            relative = path.relative_to(root).as_posix()
            unit = units.get(name, "HU") if name in volumes else "1"
            files[name] = VolumeFile(path=relative, unit=unit, grid=grid_record(volume.grid), sha256=file_sha256(path))
        records.append(
            Case(
                case_id=case_id,
                patient=(patients or {}).get(case_id, f"p{place}"),
                split=(splits or {}).get(case_id, "train"),
                fold=(folds or {}).get(case_id, 0),
                volumes={name: files[name] for name in volumes},
                masks={name: files[name] for name in masks.get(case_id, {})},
            )
        )
    count = max((folds or {}).values(), default=0)
    Cohort(schema=1, name="tiny", root=str(root), folds=count, cases=records).save(root)
    return root


def film(case_id, slices=7, size=(6, 8), modalities=("cbct", "ct"), seed=0):
    """A film of random voxels, all different from slice to slice."""
    rng = np.random.default_rng([seed, *case_id.encode()])
    frames = {name: rng.integers(-1024, 2000, (slices, *size)).astype(np.int16) for name in modalities}
    return Film(case_id, frames, rng.integers(0, 2, (slices, *size)).astype(np.uint8))


def write_shards(
    folder, films, *, codec="lz4", store="tar", per_shard=1, units=None, splits=None, scale=None, folds=None
):
    """Write films and their index; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    modalities = sorted({name for one in films for name in one.frames})
    size = films[0].mask.shape[1:]
    units, scale = units or {}, scale or {}
    shards, cases = [], []
    for number, first in enumerate(range(0, len(films), per_shard)):
        group = films[first : first + per_shard]
        shards.append(write_shard(folder, f"shard-{number:05d}", iter(group), codec, store))
        for place, one in enumerate(group):
            grid = grid_record(Grid(one.mask.shape, film_affine((1.0, 1.0, 1.0))))
            cases.append(
                ShardCase(
                    case_id=one.case_id,
                    patient=f"p{first + place}",
                    split=(splits or {}).get(one.case_id, "train"),
                    fold=(folds or {}).get(one.case_id, 0),
                    shard=number,
                    slices=len(one.mask),
                    film_grid=grid,
                    source_grids=dict.fromkeys(one.frames, grid),
                    scale={name: scale.get(name, 1.0) for name in one.frames},
                    percentiles=dict.fromkeys(one.frames, (0.0, 1000.0)),
                )
            )
    ShardIndex(
        schema=2,
        config_hash="0",
        cohort="cohort.json",
        cohort_hash="0",
        folds=max((folds or {}).values(), default=0),
        codec=codec,
        axes="SPL",
        spacing_mm=(1.0, 1.0, 1.0),
        size=size,
        modalities={
            n: ShardModality(unit=units.get(n, "HU"), dtype="int16", padding=-1024.0 if n not in units else 0.0)
            for n in modalities
        },
        cases=cases,
        shards=shards,
        preprocess={},
    ).save(folder)
    return folder


def state(place):
    """Return what is below a folder, to the byte: mode, time of the last change, and content; of folders, the time."""
    found = {}
    for path in sorted([place, *place.rglob("*")]):
        facts, content = path.lstat(), path.read_bytes() if path.is_file() else b""
        found[path] = (facts.st_mode, facts.st_mtime_ns, facts.st_size if content else 0, sha256(content).hexdigest())
    return found


def alter_index(folder, change):
    """Let ``change`` alter the index's plain data and seal it again: an index that was wrong from the start."""
    path = folder / "index.json"
    index = json.loads(path.read_text())
    change(index)
    del index["seal"]
    path.write_text(json.dumps({**index, "seal": content_hash(index)}))
