"""Good pairs pass, shifted and foreign ones are flagged with what to do, and only the report is written."""

import csv
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from cohort_makers import settings
from makers import write_cohort
from PIL import Image

from pipeline.__main__ import main
from pipeline.cohorts.pair_outliers import flag_pairs, shift_words
from pipeline.cohorts.pair_quality import isotropic_grid, pairs_of
from pipeline.cohorts.pair_sheet import write_csv, write_sheet
from pipeline.cohorts.phantom import make_patient
from pipeline.config import compose
from pipeline.geometry import Grid, Volume, reorder
from pipeline.io import read_volume
from pipeline.records import Case, Cohort, PairQualities, PairQuality, VolumeFile
from pipeline.settings import PairLimits
from pipeline.stages import cohort

LIMITS = PairLimits(shift_mm=3, overlap=0.85, edge_agreement=0.6)
WORDS = ["source=t1n", "workers=1"]


@cache
def patient(index):
    """A phantom head in CT and T1, a mixture of voxels of 4 and 5 mm."""
    made = settings(anatomy="head", size=(40, 56, 48), spacing_mm=(5.0, 4.0, 4.0), modalities=["ct", "t1n"])
    return make_patient(made, 0, index)


def moved(volume, shift_mm):
    affine = volume.affine.copy()
    affine[:3, 3] += shift_mm
    return Volume(volume.array, affine, volume.unit)


def checked(root, cases, *words):
    """Write a cohort and return its pairs by case."""
    place = write_cohort(root / "cohort", cases, units={"t1n": "a.u."})
    config = compose([*WORDS, "cohort.check=true", *words], {"input": [place], "output": root / "pairs"})
    cohort.run(config)
    return {pair.case_id: pair for pair in PairQualities.load(root / "pairs").pairs}


def test_shifts_are_recovered_and_flagged_and_good_pairs_are_not(tmp_path):
    shifts = {"good": (0, 0, 0), "two": (2, 0, 0), "four": (0, -4, 0), "eight": (0, 0, 8), "oblique": (5, 5, -4)}
    pairs = checked(
        tmp_path, {name: patient(0) | {"t1n": moved(patient(0)["t1n"], shift)} for name, shift in shifts.items()}
    )
    for name, shift in shifts.items():
        assert np.linalg.norm(np.subtract(pairs[name].shift_mm, shift)) < 1, name
        assert (pairs[name].source, pairs[name].target) == ("t1n", "ct")
    assert {name for name, pair in pairs.items() if pair.flags} == {"four", "eight", "oblique"}
    flag = pairs["eight"].flags[0]
    assert "mm superior) off ct, at most 3 mm is allowed: register t1n to ct" in flag
    assert "cohort.exclude=[eight]" in flag
    assert "4." in shift_words(pairs["four"]) and "posterior" in shift_words(pairs["four"])


def test_another_patient_is_flagged(tmp_path):
    pairs = checked(tmp_path, {"own": patient(0), "foreign": {"ct": patient(0)["ct"], "t1n": patient(1)["t1n"]}})
    assert not pairs["own"].flags
    assert pairs["foreign"].flags and pairs["foreign"].edge_agreement < pairs["own"].edge_agreement
    assert pairs["foreign"].mutual_information < pairs["own"].mutual_information


def test_fields_that_lie_apart_and_fields_of_view(tmp_path):
    far = {"ct": patient(0)["ct"], "t1n": moved(patient(0)["t1n"], (500, 0, 0))}
    pairs = checked(tmp_path, {"far": far})
    assert pairs["far"].shift_mm is None and pairs["far"].overlap is None
    assert "cannot be compared: their fields lie apart" in pairs["far"].flags[0]
    assert not pairs["far"].picture


def test_only_what_the_source_sees_counts(tmp_path):
    ct, t1n = patient(0)["ct"], patient(0)["t1n"]
    seen = np.zeros(ct.array.shape, np.uint8)
    seen[8:32] = 1
    cut = t1n.with_array(np.where(seen, t1n.array, 0).astype(t1n.array.dtype))
    place = write_cohort(
        tmp_path / "cohort",
        {"a": {"ct": ct, "t1n": cut}},
        masks={"a": {"field_of_view": ct.with_array(seen)}},
        units={"t1n": "a.u."},
    )
    cohort.run(compose([*WORDS, "cohort.check=true"], {"input": [place], "output": tmp_path / "pairs"}))
    (pair,) = PairQualities.load(tmp_path / "pairs").pairs
    assert not pair.flags and pair.overlap > 0.9


def test_the_command_writes_beside_the_cohort_and_does_nothing_twice(tmp_path, capsys):
    root = write_cohort(tmp_path / "in", {"a": patient(0), "b": patient(1)}, units={"t1n": "a.u."})
    (root / "cohort.json").unlink()
    words = ["cohort", *WORDS, f"input={root}", f"output={tmp_path / 'out'}"]
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file()}
    assert main(words) == 0
    record = (tmp_path / "out" / "cohort.json").read_bytes()
    assert not (tmp_path / "out" / "pair_quality.json").exists()
    assert main([*words, "--check"]) == 0
    said = capsys.readouterr().err
    assert "nothing to do" in said and "0 of 2 pairs are flagged" in said
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names >= {"cohort.json", "pair_quality", "pair_quality.csv", "pair_quality.html", "pair_quality.json"}
    assert ".stage.lock" not in names
    assert (tmp_path / "out" / "cohort.json").read_bytes() == record
    with Image.open(tmp_path / "out" / "pair_quality" / "a-t1n-ct.png") as picture:
        assert picture.width > 500 and len(picture.getcolors(1 << 24)) > 50
    written = (tmp_path / "out" / "pair_quality.json").stat().st_mtime_ns
    assert main([*words, "--check"]) == 0
    assert main(["cohort", "--check", *WORDS, f"input={tmp_path / 'out'}", f"output={tmp_path / 'out'}"]) == 0
    assert (tmp_path / "out" / "pair_quality.json").stat().st_mtime_ns == written
    assert main([*words, "--check", "cohort.pair_limits.shift_mm=0.001", "cohort.pair_limits.edge_agreement=0.99"]) == 0
    assert "2 of 2 pairs are flagged" in capsys.readouterr().err
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file()} == before


def test_a_file_that_changed_is_named_and_the_others_are_checked(tmp_path, capsys):
    place = write_cohort(tmp_path / "in", {"a": patient(0), "b": patient(1)}, units={"t1n": "a.u."})
    path = place / "b" / "t1n.nii"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    words = ["cohort", "--check", *WORDS, f"input={place}", f"output={tmp_path / 'out'}"]
    assert main(words) == 2
    assert "case 'b': 't1n' of case 'b' is not the file" in capsys.readouterr().err
    assert len((tmp_path / "out" / "pair_quality.csv").read_text().splitlines()) == 2
    assert not (tmp_path / "out" / "pair_quality.json").exists()  # so that the next run looks again


def test_other_verbs_have_no_such_switch(tmp_path, capsys):
    assert main(["train", "--check", f"input={tmp_path}", f"output={tmp_path / 'out'}"]) == 2
    assert "Unknown option '--check'" in capsys.readouterr().err


def test_a_dry_run_says_how_many(tmp_path, capsys):
    place = write_cohort(tmp_path / "in", {"a": patient(0)}, units={"t1n": "a.u."})
    assert main(["cohort", "--check", "--dry-run", *WORDS, f"input={place}", f"output={tmp_path / 'out'}"]) == 0
    assert "1 pairs" in capsys.readouterr().err and not (tmp_path / "out").exists()


# --- Flags, table and sheet ------------------------------------------------------------------------------------------


def quality(case="a", **changes):
    good = {"mutual_information": 0.3, "overlap": 0.98, "shift_mm": (0.1, 0.2, 0.0), "local_mm": 0.5}
    good |= {"edge_agreement": 0.9, "grid_mm": 2.5, **changes}
    return PairQuality(case_id=case, patient=case, source="cbct", target="ct", **good)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shift_mm": (-3.2, 0.0, 0.6)}, r"3.3 mm (3.2 mm to the left, 0.6 mm superior) off ct"),
        ({"local_mm": 4.0}, "Parts of cbct lie 4.0 mm off ct in the median"),
        ({"overlap": 0.7}, "overlap by 0.70, at least 0.85"),
        ({"edge_agreement": 0.5}, "agree by 0.50 at best (chance is 0.33), at least 0.6"),
    ],
)
def test_limits_hold_for_a_single_case(changes, message):
    pair = quality(**changes)
    flag_pairs([pair], LIMITS)
    (flag,) = pair.flags
    assert message in flag and "cohort.exclude=[a]" in flag


def test_a_coarse_grid_allows_half_a_voxel():
    fine, coarse = quality(shift_mm=(0, 3.5, 0)), quality(shift_mm=(0, 3.5, 0), grid_mm=8)
    flag_pairs([fine, coarse], LIMITS)
    assert fine.flags and not coarse.flags


def test_outliers_are_those_of_their_own_pair_and_of_enough_cases():
    def others():
        return [quality(f"c{n}", mutual_information=0.3 + n / 100, overlap=0.98 - n / 1000) for n in range(5)]

    odd = quality("odd", mutual_information=0.1, overlap=0.9, shift_mm=(0, 0, 2.5))
    pairs = [*others(), odd]
    flag_pairs(pairs, LIMITS)
    assert [bool(pair.flags) for pair in pairs] == [False] * 5 + [True]
    text = " ".join(odd.flags)
    assert "mutual information 0.1, median of 6 cases" in text and "robust z" in text
    assert "overlap of the bodies 0.9" in text and "shift 2.5 mm" in text
    few = [*others()[:3], quality("odd", mutual_information=0.1)]
    flag_pairs(few, LIMITS)
    assert not any(pair.flags for pair in few)
    better = [*others(), quality("good", mutual_information=0.9, edge_agreement=1.0, shift_mm=(0, 0, 0), local_mm=0)]
    flag_pairs(better, LIMITS)
    assert not any(pair.flags for pair in better)


def test_pairs_end_at_the_target():
    assert list(pairs_of(["t2w", "ct", "t1n"], "t2w", "ct")) == [("t2w", "t1n"), ("t2w", "ct"), ("t1n", "ct")]


def test_the_grid_keeps_its_middle_and_its_size():
    affine = np.diag([4.0, 1.0, 1.0, 1.0])
    grid = isotropic_grid(Grid((100, 1000, 1000), affine), 2.5)
    assert np.prod(grid.shape) <= 4_000_000 and len({round(s, 6) for s in grid.spacing_mm}) == 1
    middle = grid.affine[:3, :3] @ ((np.array(grid.shape) - 1) / 2) + grid.affine[:3, 3]
    np.testing.assert_allclose(middle, (198, 499.5, 499.5))


def test_nothing_from_data_runs_in_the_table_or_the_sheet(tmp_path):
    evil = quality("-1-1", reason="<script>alert(1)</script>", shift_mm=None, overlap=None)
    flag_pairs([evil], LIMITS)
    record = PairQualities(
        schema=1, cohort_hash="", settings={"limits": LIMITS.model_dump()}, method="<b>", pairs=[evil]
    )
    write_csv(tmp_path, record)
    write_sheet(tmp_path, record, "<img src=x onerror=alert(1)>")
    with (tmp_path / "pair_quality.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert row["case"] == "'-1-1" and row["shift_mm"] == ""
    page = (tmp_path / "pair_quality.html").read_text()
    assert "<script" not in page and "<img src=x" not in page and "default-src 'none'" in page


# --- Real volumes ----------------------------------------------------------------------------------------------------


def real(folder, *names):
    return {name.split("_")[-1]: reorder(read_volume(folder / "mr" / f"{name}.nii.gz", "a.u.")) for name in names}


def centred(volume, on):
    middles = [v.affine[:3, :3] @ ((np.array(v.array.shape) - 1) / 2) + v.affine[:3, 3] for v in (volume, on)]
    return moved(volume, middles[1] - middles[0])


@pytest.mark.real
def test_real_mr_pairs(real_data, tmp_path):
    brains = {k: real(real_data, f"brain_{k}_t1n", f"brain_{k}_t2w") for k in ("gli", "met", "tcga")}
    cases = dict(brains)
    for shift in (2, 4, 8):
        cases[f"moved_{shift}"] = brains["tcga"] | {"t1n": moved(brains["tcga"]["t1n"], (0, 0, shift))}
    cases["foreign_1"] = {"t1n": centred(brains["gli"]["t1n"], brains["met"]["t2w"]), "t2w": brains["met"]["t2w"]}
    cases["foreign_2"] = {"t1n": centred(brains["met"]["t1n"], brains["tcga"]["t2w"]), "t2w": brains["tcga"]["t2w"]}
    head = real(real_data, "head_remind_t2w", "head_remind_t1c")
    cases["head"] = head  # on grids that are turned against each other, and aligned by their headers
    cases["head_moved"] = head | {"t1c": moved(head["t1c"], (0, 6, 0))}
    place = tmp_path / "cohort"
    records = [_record(place, name, volumes) for name, volumes in cases.items()]
    Cohort(schema=1, name="real", root=str(place), cases=records).save(place)
    words = ["cohort", "--check", "source=t1n", "target=t2w", "workers=1"]
    assert main([*words, f"input={place}", f"output={tmp_path / 'out'}"]) == 0
    pairs = {pair.case_id: pair for pair in PairQualities.load(tmp_path / "out").pairs}
    assert {name for name, pair in pairs.items() if not pair.flags} == {"gli", "met", "tcga", "moved_2", "head"}
    for shift in (2, 4, 8):
        apart = np.subtract(pairs[f"moved_{shift}"].shift_mm, pairs["tcga"].shift_mm)
        assert np.linalg.norm(apart - (0, 0, shift)) < 1
    assert abs(pairs["head_moved"].length_mm - 6) < 1


def _record(place: Path, name, volumes):
    from pipeline.artifacts import file_sha256
    from pipeline.imaging.film import grid_record
    from pipeline.io import write_volume

    files = {}
    for modality, volume in volumes.items():
        path = place / name / f"{modality}.nii"
        write_volume(path, volume)
        files[modality] = VolumeFile(
            path=f"{name}/{path.name}", unit="a.u.", grid=grid_record(volume.grid), sha256=file_sha256(path)
        )
    return Case(case_id=name, patient=name, split="train", volumes=files)


@pytest.mark.real
def test_a_real_ct_against_a_degraded_one(real_data, tmp_path):
    ct = reorder(read_volume(real_data / "ct" / "abdomen.nii.gz"))
    rng = np.random.default_rng(0)
    shading = 80 * np.sin(np.linspace(0, 3, ct.array.shape[2]))
    cbct = np.clip(0.9 * ct.array + shading + rng.normal(0, 60, ct.array.shape), -1024, 3071).astype(np.int16)
    cases = {f"moved_{shift}": {"ct": ct, "cbct": moved(ct.with_array(cbct), (0, shift, 0))} for shift in (0, 2, 4, 8)}
    place = write_cohort(tmp_path / "cohort", cases)
    assert main(["cohort", "--check", "workers=1", f"input={place}", f"output={tmp_path / 'out'}"]) == 0
    pairs = json.loads((tmp_path / "out" / "pair_quality.json").read_text())["pairs"]
    for pair, shift in zip(pairs, (0, 2, 4, 8), strict=True):
        assert np.linalg.norm(np.subtract(pair["shift_mm"], (0, shift, 0))) < 1
        assert bool(pair["flags"]) == (shift > 3)
