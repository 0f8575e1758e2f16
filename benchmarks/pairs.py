r"""What the check of pairs finds: good pairs as they are, moved, turned and mirrored ones, and volumes of two patients.

    CINEVOX_DATA=... python benchmarks/pairs.py output=FOLDER [simulated=COHORT]

The pairs are T1 and T2 of the co-registered brains below CINEVOX_DATA and, with ``simulated`` (the output of 'cinevox
simulate'), CBCT and CT of every patient's first scan. Only headers are changed, but for the mirrored ones. All
go through 'cinevox cohort --check', a cohort of each kind; its answers are printed as a table.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.artifacts import file_sha256
from pipeline.geometry import Volume, reorder
from pipeline.imaging.film import grid_record
from pipeline.io import read_volume, write_volume
from pipeline.records import Case, Cohort, PairQualities, PairQuality, VolumeFile

BRAINS = ("gli", "met", "tcga")
SHIFTS_MM = ((2, 0, 0), (0, 4, 0), (0, 0, 8))
DEGREES = (2, 4, 6)
Shift = tuple[float, ...]
Pair = dict[str, Volume]  # by modality; the first is the one that is moved


def main(words: list[str]) -> None:
    """Check a cohort of MR pairs and one of CBCT and CT, and print the table."""
    own = dict(word.split("=", 1) for word in words)
    output = Path(own["output"])
    print("| pairs | change | n | shift (mm) | off by at most (mm) | flagged |\n|---|---|---|---|---|---|")
    check("MR", dict(brains(Path(os.environ["CINEVOX_DATA"]) / "mr")), output / "mr")
    if "simulated" in own:
        check("CBCT-CT", dict(simulated(Path(own["simulated"]))), output / "cbct")


def check(kind: str, pairs: dict[str, Pair], folder: Path) -> None:
    """Write a cohort of all variants, run the check on it, and print its lines of the table."""
    told: dict[str, tuple[str, Shift]] = {}
    cases = []
    for name, change, shift, volumes in variants(pairs):
        told[name] = (change, shift)
        cases.append(write_case(folder, name, volumes))
    # Not by 'cinevox cohort' itself: it refuses one volume in many cases.
    Cohort(schema=1, name=kind, root=str(folder.resolve()), cases=cases).save(folder)
    source, target = next(iter(pairs.values()))
    words = ["--check", f"input={folder}", f"output={folder / 'check'}", f"source={source}", f"target={target}"]
    subprocess.run([sys.executable, "-m", "pipeline", "cohort", *words, "workers=1"], check=True, stdout=sys.stderr)
    found = {pair.case_id: pair for pair in PairQualities.load(folder / "check").pairs}
    print("\n".join(lines(kind, told, found)))


def write_case(folder: Path, name: str, volumes: Pair) -> Case:
    """Write a case's volumes and return its record."""
    files = {}
    for modality, volume in volumes.items():
        path = folder / name / f"{modality}.nii.gz"
        write_volume(path, volume)
        files[modality] = VolumeFile(
            path=f"{name}/{path.name}", unit=volume.unit, grid=grid_record(volume.grid), sha256=file_sha256(path)
        )
    return Case(case_id=name, patient=name, split="train", volumes=files)


def brains(folder: Path) -> Iterator[tuple[str, Pair]]:
    """Yield T1 and T2 of each brain."""
    for name in BRAINS:
        yield name, {m: reorder(read_volume(folder / f"brain_{name}_{m}.nii.gz", "a.u.")) for m in ("t1n", "t2w")}


def simulated(folder: Path) -> Iterator[tuple[str, Pair]]:
    """Yield CBCT and CT of every patient's first scan."""
    cohort, seen = Cohort.load(folder), set()
    for case in cohort.cases:
        if case.patient not in seen:
            seen.add(case.patient)
            files = {modality: case.volumes[modality] for modality in ("cbct", "ct")}
            yield case.case_id, {m: reorder(read_volume(cohort.path(file), "HU")) for m, file in files.items()}


def variants(pairs: dict[str, Pair]) -> Iterator[tuple[str, str, Shift, Pair]]:
    """Yield every case: name, what was done to it, the shift added in mm, volumes."""
    for name, volumes in pairs.items():
        first, second = volumes
        yield name, "as it is", (0, 0, 0), volumes
        for shift in SHIFTS_MM:
            change = f"moved {max(shift)} mm"
            yield f"{name}_moved{max(shift)}", change, shift, volumes | {first: moved(volumes[first], shift)}
        for degrees in DEGREES:
            change = f"turned {degrees} degrees"
            yield f"{name}_turned{degrees}", change, (), volumes | {first: turned(volumes[first], degrees)}
        mirror = volumes[first].with_array(volumes[first].array[:, :, ::-1].copy())
        yield f"{name}_mirrored", "left and right exchanged", (), volumes | {first: mirror}
        for other, theirs in pairs.items():
            if other != name:
                foreign = moved(theirs[first], middle(volumes[second]) - middle(theirs[first]))
                yield f"{name}_of_{other}", "two patients", (), volumes | {first: foreign}


def moved(volume: Volume, shift_mm: Shift | np.ndarray) -> Volume:
    """Return the volume elsewhere; the voxels are shared."""
    affine = volume.affine.copy()
    affine[:3, 3] += shift_mm
    return Volume(volume.array, affine, volume.unit)


def turned(volume: Volume, degrees: float) -> Volume:
    """Return the volume turned around the patient's axis through its middle."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rotation = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    affine = volume.affine.copy()
    affine[:3, :3] = rotation @ affine[:3, :3]
    affine[:3, 3] = rotation @ (affine[:3, 3] - middle(volume)) + middle(volume)
    return Volume(volume.array, affine, volume.unit)


def middle(volume: Volume) -> np.ndarray:
    """Return the world coordinates of the middle, mm."""
    return np.asarray(volume.affine[:3, :3] @ ((np.array(volume.array.shape) - 1) / 2) + volume.affine[:3, 3])


def lines(kind: str, told: dict[str, tuple[str, Shift]], found: dict[str, PairQuality]) -> Iterator[str]:
    """Yield a line per change: the shifts found, how far from what was added to the pair as it is, and the flags."""
    for change in dict.fromkeys(change for change, _ in told.values()):
        cases = [case for case, (what, _) in told.items() if what == change]
        lengths = [found[case].length_mm or 0.0 for case in cases]
        off = ""
        if change.startswith("moved"):
            errors = [shift_of(found[c]) - shift_of(found[c.rpartition("_moved")[0]]) - told[c][1] for c in cases]
            off = f"{max(np.linalg.norm(error) for error in errors):.1f}"
        flagged = sum(bool(found[case].flags) for case in cases)
        span = f"{min(lengths):.1f} to {max(lengths):.1f}"
        yield f"| {kind} | {change} | {len(cases)} | {span} | {off} | {flagged} |"


def shift_of(pair: PairQuality) -> np.ndarray:
    """Return the shift that was found, mm."""
    assert pair.shift_mm is not None, pair.reason
    return np.asarray(pair.shift_mm)


if __name__ == "__main__":
    main(sys.argv[1:])
