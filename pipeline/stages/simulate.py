"""Simulate cone-beam CT from the CT volumes of a cohort.

    cinevox simulate input=COHORT output=SIMULATED simulate=torso|head|demo

Reads cohort.json (or the folder that holds it). Writes for every scan CASE/cbct.nii.gz and CASE/ct.nii.gz (int16 HU
on one film-ordered grid), CASE/field_of_view.nii.gz, pictures/CASE.png, and a new cohort.json with the same patients
and splits. A case's other modalities (MR, in the CT's frame of reference) are put on the scan's grid, its own CBCT is
left behind. A volume longer than one scan becomes several cases (CASE_s1, CASE_s2, ...) or is cropped to its middle.

A CT that cuts the body sideways is flagged; where more than a quarter of a lateral face is body, the case is left
out with its reason, the others go on, and the command ends with exit code 2. A killed run continues.

simulate.training_bodies='[{size: 1}, {size: 0.8, soft_tissue_hu: -20}]' scans training patients also as other bodies:
slimmer or larger, or with less or more contrast in muscle and organs (CASE_b2, CASE_b3, ...).

part=K/N simulates every N-th case only, beside the other parts; part=join makes cohort.json of what they made, and
lists the cases that failed without failing itself.

Main options: simulate.axial=split|crop, simulate.spacing_mm, simulate.photons_per_mm2, simulate.scatter_to_primary,
simulate.motion_mm, simulate.pictures, seed, workers (threads), --dry-run.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import __version__
from pipeline.artifacts import (
    check_free_space,
    claim_output,
    content_hash,
    file_sha256,
    read_json,
    write_json,
)
from pipeline.cohorts.checks import voxel_hash
from pipeline.errors import ConfigError, DataError
from pipeline.geometry import Grid, Volume
from pipeline.imaging.film import grid_record
from pipeline.imaging.mask import body_mask
from pipeline.imaging.resample import resample
from pipeline.io import read_volume, write_volume
from pipeline.locks import lock
from pipeline.parts import JOIN, left_out_by_parts, share_of, write_note
from pipeline.progress import say, track
from pipeline.records import CASE_ID, Case, Cohort, Excluded, VolumeFile
from pipeline.settings import Body, Config
from pipeline.simulation.axial import FLAG_FRACTION, REFUSE_FRACTION, worst_cut
from pipeline.simulation.bodies import resized, resized_grid, with_soft_tissue
from pipeline.simulation.calibration import Calibration
from pipeline.simulation.picture import draw
from pipeline.simulation.scan import Scan, Simulator, film_grid, scans_of, to_film
from pipeline.tracking.stage import track_stage

_CASE_FILE = "case.json"
_CALIBRATION_FILE = "calibration.json"
_BYTES_PER_VOXEL = 5  # two int16 volumes and a uint8 mask, before compression
_BYTES_PER_OTHER = 4  # at most, of another modality


def run(config: Config) -> None:
    """Simulate every CT case of the cohort ``config.input[0]`` into ``config.output``.

    Raises:
        DataError: No CT in the cohort; or, after all others are written, cases that were refused.
        ArtifactError: The output folder holds something else.
    """
    if len(config.input) != 1 or config.output is None:
        raise ConfigError("'cinevox simulate' needs one input=COHORT and output=FOLDER")
    cohort, output = Cohort.load(config.input[0]), config.output
    cases = [case for case in cohort.cases if "ct" in case.volumes]
    if not cases:
        raise DataError(
            f"Cohort '{cohort.name}' has no CT to simulate from",
            value=", ".join(sorted({m for c in cohort.cases for m in c.volumes})) or "no cases",
            allowed="cases with the modality 'ct'",
        )
    cases, bodies = as_bodies(cases, config)
    names = scan_names(cases, config)
    size = sum(
        math.prod((extent.stop - extent.start, *film_grid(_grid(case), config.simulate.spacing_mm).shape[1:]))
        * (_BYTES_PER_VOXEL + _BYTES_PER_OTHER * len(_others(case)))
        for case in cases
        for extent in scans_of(_grid(case), config.simulate)
    )
    total = sum(len(ids) for ids in names.values())
    if config.dry_run:
        say(f"Would simulate {total} scan(s) of {len(cases)} case(s) into '{output}', below {size / 1e6:.0f} MB.")
        return
    settings = {
        "simulate": config.simulate.model_dump(mode="json"),
        "seed": config.seed,
        "cohort": content_hash([_content(case) for case in cohort.cases]),
    }
    working, joining = bool(config.part) and config.part != JOIN, config.part == JOIN
    claim = claim_output(output, "simulate", settings, wait=working)
    if claim.finished:
        say(f"'{output}' is finished: nothing to do.")
        _refuse(Cohort.load(output).excluded[len(cohort.excluded) :], output)
        return
    if working:
        claim.share()
        cases = share_of(cases, config.part)
    check_free_space(output, size)
    started = time.monotonic()
    work = _Work(config, cohort, output, bodies)
    done: list[Case] = []
    refused: list[Excluded] = []
    known = left_out_by_parts(output) if joining else {}
    for case in track(cases, "simulate", len(cases)):
        try:
            ids = names[case.case_id]
            done += work.finished(case, ids, known) if joining else work.simulate(case, ids)
        except DataError as error:
            say(f"Left out: {error}")
            refused.append(Excluded(case_id=case.case_id, reason=str(error)))
    if working:
        write_note(output, config.part, {e.case_id: e.reason for e in refused})
        _refuse(refused, output)
        return
    if joining and not done:
        raise DataError("No case could be simulated", value=refused[0].reason if refused else None)
    notes = _notes(cohort)
    made_by: dict[str, Any] = {"verb": "simulate", "cinevox": __version__, **settings, "notes": notes}
    if work.calibration is not None:
        made_by["calibration"] = work.calibration.record()
    Cohort(
        schema=1,
        name=cohort.name,
        root=str(output.resolve()),
        folds=cohort.folds,
        cases=done,
        excluded=[*cohort.excluded, *refused],
        made_by=made_by,
    ).save(output)
    if not joining or {e.case_id for e in refused} <= known.keys():  # else a part never ended, and may yet
        claim.finish(scans=len(done), refused=len(refused))
    seconds = None if joining else time.monotonic() - started  # the parts' own are not known here
    counted = {"scans": len(done), "refused": len(refused), "seconds": seconds}
    track_stage(config, "simulate", counted, cohort=str(settings["cohort"]))
    for note in notes:
        say(note)
    say(f"Simulated {len(done)} scan(s) of {len(cases) - len(refused)} case(s) into '{output}'.")
    if not joining:
        _refuse(refused, output)


def as_bodies(cases: list[Case], config: Config) -> tuple[list[Case], dict[str, Body]]:
    """Return the cases, those of training patients once for each of ``simulate.training_bodies``, and each one's body.

    Raises:
        ConfigError: Bodies for a cross-validation, in which every patient is tested on.
    """
    wanted = config.simulate.training_bodies
    if wanted != [Body()] and any(case.fold for case in cases):
        raise ConfigError(
            "A cross-validation tests on every patient, and on patients as they are",
            value=f"{len(wanted)} simulate.training_bodies",
            allowed="[{size: 1}] for a cohort with folds",
        )
    found: list[Case] = []
    bodies: dict[str, Body] = {}
    for case in cases:
        for number, body in enumerate(wanted if case.split == "train" else [Body()], start=1):
            other = case
            if not body.as_it_is:
                other = case.model_copy(deep=True, update={"case_id": f"{case.case_id}_b{number}"})
                other.flags.append(f"in-plane size times {body.size:g}, soft tissue {body.soft_tissue_hu:+g} HU")
                other.volumes["ct"].grid = grid_record(resized_grid(_grid(case), body.size))
            found.append(other)
            bodies[other.case_id] = body
    return found, bodies


def scan_names(cases: list[Case], config: Config) -> dict[str, list[str]]:
    """Return the case ids of each case's scans: its own for one scan, with ``_s1``, ``_s2``, ... for several."""
    names: dict[str, list[str]] = {}
    for case in cases:
        count = len(scans_of(_grid(case), config.simulate))
        ends = [""] if count == 1 else [f"_s{number}" for number in range(1, count + 1)]
        names[case.case_id] = [case.case_id + end for end in ends]
    taken: dict[str, str] = {}
    for case_id, ids in names.items():
        for name in ids:
            other = taken.setdefault(name.lower(), case_id)
            if other != case_id or not CASE_ID.fullmatch(name):
                raise DataError(
                    f"A scan of case '{case_id}' cannot be named '{name}'",
                    value=f"the same as of case '{other}'" if other != case_id else f"{len(name)} characters",
                    allowed="names of at most 64 characters, each once",
                    remedy="Rename the case, or set simulate.axial=crop",
                )
    return names


class _Work:
    """The scanner, made when the first case needs it, and where its results go."""

    def __init__(self, config: Config, cohort: Cohort, output: Path, bodies: dict[str, Body]) -> None:
        self.config, self.cohort, self.output, self.bodies = config, cohort, output, bodies
        self.calibration = self._kept()
        self._simulator: Simulator | None = None

    def _kept(self) -> Calibration | None:
        path = self.output / _CALIBRATION_FILE
        return Calibration(**read_json(path, what="calibration of the simulated scanner")) if path.exists() else None

    def simulator(self) -> Simulator:
        """Return the calibrated scanner; its calibration is kept, so that a continued run has the same."""
        if self._simulator is None:
            say("Loading RTK and scanning the water cylinder (about half a minute).")
            simulate = self.config.simulate
            held = lock(self.output / f".{_CALIBRATION_FILE}.lock", "The calibration", wait=True)  # of several parts
            self._simulator = Simulator(simulate, self.config.seed, self.config.workers, self._kept())
            self.calibration = self._simulator.calibration
            write_json(self.output / _CALIBRATION_FILE, self.calibration.exact())
            held.release()
            found = self.calibration
            say(
                f"Water {found.water_centre_hu:+.1f} HU, air {found.air_hu:+.1f} HU, "
                f"cupping {found.cupping_hu:.1f} HU, noise {found.noise_hu:.1f} HU."
            )
        return self._simulator

    def simulate(self, case: Case, ids: list[str]) -> list[Case]:
        """Return the records of a case's scans, made now or by an earlier run.

        Raises:
            DataError: The volume cannot be read, or it cuts the body.
        """
        held = lock(self.output / f".{case.case_id}.lock", f"Case '{case.case_id}'")
        try:
            return self._simulate(case, ids)
        finally:
            held.release()

    def finished(self, case: Case, ids: list[str], left_out: dict[str, str]) -> list[Case]:
        """Return the records of a case's scans that parts made.

        Raises:
            DataError: They left it out, or none of them came to it.
        """
        found = [record for name in ids if (record := self._finished(name)) is not None]
        if len(found) < len(ids):
            raise DataError(left_out.get(case.case_id, f"The part with case '{case.case_id}' did not end"))
        return found

    def _simulate(self, case: Case, ids: list[str]) -> list[Case]:
        found = [self._finished(name) for name in ids]
        if all(found):
            return [record for record in found if record is not None]
        config = self.config
        try:
            ct = with_soft_tissue(self._read(case, case.volumes["ct"]), self.bodies[case.case_id].soft_tissue_hu)
            film = to_film(ct, config.simulate.spacing_mm)
        except DataError as error:
            raise DataError(f"The CT of case '{case.case_id}' cannot be read: {error}") from None
        body = body_mask(film, config.simulate.body_threshold_hu)
        flags = [*case.flags, *_cut(body, case.case_id)]
        records = []
        for number, (name, extent) in enumerate(zip(ids, scans_of(_grid(case), config.simulate), strict=True)):
            record = found[number]
            if record is None:
                scan = self.simulator().scan(film, body, extent, case.case_id, number)
                record = self._write(case, name, flags, scan)
                if config.simulate.pictures:
                    draw(self.output / "pictures" / f"{name}.png", scan, body[extent], name)
                write_json(self.output / name / _CASE_FILE, record)
            records.append(record)
        return records

    def _read(self, case: Case, file: VolumeFile, unit: str = "HU") -> Volume:
        return resized(read_volume(self.cohort.path(file), unit), self.bodies[case.case_id].size)

    def _write(self, case: Case, name: str, flags: list[str], scan: Scan) -> Case:
        volumes = {"cbct": scan.cbct, "ct": scan.ct}
        for kind, file in _others(case).items():
            volumes[kind] = _onto(self._read(case, file, file.unit), scan.ct.grid)
        masks = {"field_of_view": scan.field_of_view}
        for mask, file in case.masks.items():
            if mask not in masks:  # what was known about the case is kept, on the scan's grid
                known = self._read(case, file, "a.u.")
                binary = known.with_array((known.array > 0).astype(np.uint8))
                masks[mask] = resample(binary, scan.ct.grid, outside=0, order="nearest")
        files = {kind: _save(self.output, name, kind, volume) for kind, volume in {**volumes, **masks}.items()}
        return Case(
            case_id=name,
            patient=case.patient,
            split=case.split,
            fold=case.fold,
            volumes={kind: files[kind] for kind in volumes},
            masks={kind: files[kind] for kind in masks},
            flags=flags,
        )

    def _finished(self, name: str) -> Case | None:
        """Return the record of a scan that an earlier run finished, or None."""
        path = self.output / name / _CASE_FILE
        if not path.exists():
            return None
        record = Case.model_validate(read_json(path, what=f"record of the simulated case '{name}'"))
        files = [self.output / file.path for file in (*record.volumes.values(), *record.masks.values())]
        if self.config.simulate.pictures:
            files.append(self.output / "pictures" / f"{name}.png")
        return record if all(file.is_file() for file in files) else None


def _onto(volume: Volume, grid: Grid) -> Volume:
    """Return another modality on the scan's grid, 0 where it was not imaged, in its own dtype."""
    moved = resample(volume, grid, outside=0)
    kept = volume.array.dtype
    return moved.with_array(np.rint(moved.array).astype(kept) if np.issubdtype(kept, np.integer) else moved.array)


def _cut(body: NDArray[np.bool_], case_id: str) -> list[str]:
    """Return a flag for a body that the CT's lateral border cuts; refuse where that is too much."""
    if not body.any():
        raise DataError(
            f"No body was found in the CT of case '{case_id}'",
            remedy="Look at the volume, or lower simulate.body_threshold_hu",
        )
    face, fraction = worst_cut(body)
    if fraction > REFUSE_FRACTION:
        raise DataError(
            f"The CT of case '{case_id}' cuts the body sideways, so its projections cannot be simulated",
            value=f"body on {fraction:.0%} of the {face} face",
            allowed=f"at most {REFUSE_FRACTION:.0%}",
            remedy="Take the uncropped CT, or leave the case out with cohort.exclude",
        )
    return [f"CT cuts the body: {fraction:.1%} of the {face} face"] if fraction > FLAG_FRACTION else []


def _save(output: Path, name: str, kind: str, volume: Volume) -> VolumeFile:
    relative = f"{name}/{kind}.nii.gz"
    write_volume(output / relative, volume)
    return VolumeFile(
        path=relative,
        unit=volume.unit,
        grid=grid_record(volume.grid),
        sha256=file_sha256(output / relative),
        voxel_hash=voxel_hash(volume),
    )


def _grid(case: Case) -> Grid:
    record = case.volumes["ct"].grid
    return Grid(record.shape, np.vstack([np.asarray(record.affine, float), [0, 0, 0, 1]]))


def _others(case: Case) -> dict[str, VolumeFile]:
    """Return what of a case comes along: all but the CT, and a CBCT, in whose place the simulated one comes."""
    return {kind: file for kind, file in case.volumes.items() if kind not in ("ct", "cbct")}


def _content(case: Case) -> dict[str, Any]:
    """Return what of a case decides the output: not where its files lie."""
    ct = case.volumes.get("ct")
    masks = {name: file.sha256 for name, file in case.masks.items()}
    others = {kind: file.sha256 for kind, file in _others(case).items()}
    return {
        **({"others": others} if others else {}),
        "case": case.case_id,
        "patient": case.patient,
        "split": case.split,
        "fold": case.fold,
        "ct": ct.sha256 if ct else None,
        "masks": masks,
        "flags": case.flags,
    }


def _notes(cohort: Cohort) -> list[str]:
    without = [case.case_id for case in cohort.cases if "ct" not in case.volumes]
    notes = []
    if any("cbct" in case.volumes for case in cohort.cases):
        notes.append("The cohort's own CBCT is not in the new cohort.")
    if without:
        notes.append(f"{len(without)} case(s) without CT are not in the new cohort: {', '.join(without[:8])}.")
    return notes


def _refuse(refused: list[Excluded], output: Path) -> None:
    if refused:
        raise DataError(
            f"{len(refused)} case(s) were left out of '{output}': " + ", ".join(e.case_id for e in refused),
            value=refused[0].reason,
            remedy="The other cases are finished and can be used",
        )
