"""The stage around the physics: names, records, refusals, flags, continuing. A stand-in scanner keeps it fast."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers import body, configuration, film_affine, write_cohort

from pipeline.errors import ArtifactError, ConfigError, DataError
from pipeline.geometry import Volume, grid_difference, reorder
from pipeline.io import read_volume
from pipeline.records import Cohort
from pipeline.simulation.bodies import with_soft_tissue
from pipeline.simulation.calibration import Calibration
from pipeline.simulation.scan import Scan
from pipeline.stages import simulate

OPTIONS = ("simulate=demo", "simulate.spacing_mm=[4,5,5]", "simulate.pictures=false")


class Scanner:
    """Takes the place of the simulator: the CT minus 10 HU, everything in the field of view."""

    scanned: list = []  # noqa: RUF012

    def __init__(self, settings, seed, threads, calibration=None):
        self.calibration = calibration or Calibration(0.1, 1.0, 0.0, 1.0, -1000.0, 20.0, 15.0, -30.0)

    def scan(self, film, mask, extent, case_id, number):
        self.scanned.append((case_id, number))
        ct = Volume(np.rint(film.array[extent]).astype(np.int16), film.affine.copy())
        ct.affine[:3, 3] += film.affine[:3, 0] * extent.start
        seen = np.ones(ct.array.shape, np.uint8)
        return Scan(ct.with_array(ct.array - 10), ct, ct.with_array(seen, "a.u."))


@pytest.fixture(autouse=True)
def scanner(monkeypatch):
    monkeypatch.setattr(simulate, "Simulator", Scanner)
    Scanner.scanned = []


def run(source, output, *options, **paths):
    simulate.run(configuration(*OPTIONS, *options, input=[source], output=output, **paths))
    return Cohort.load(output)


def cut(seed=0):
    """A body that reaches through most of one lateral face."""
    volume = body(seed)
    array = volume.array.copy()
    array[:, 4:20, 10:] = 40
    return volume.with_array(array)


def test_a_case_becomes_cbct_ct_and_field_of_view_on_one_grid(tmp_path):
    known = {"patients": {"a": "anna"}, "splits": {"a": "test"}, "folds": {"a": 3}}
    source = write_cohort(tmp_path / "in", {"a": {"ct": body()}}, **known)
    cohort = run(source, tmp_path / "out")
    (case,) = cohort.cases
    assert (case.case_id, case.patient, case.split, case.fold, cohort.folds) == ("a", "anna", "test", 3, 3)
    assert set(case.volumes) == {"cbct", "ct"} and set(case.masks) == {"field_of_view"}
    ct, cbct = (read_volume(cohort.path(case.volumes[m])) for m in ("ct", "cbct"))
    mask = read_volume(cohort.path(case.masks["field_of_view"]))
    assert ct.array.dtype == cbct.array.dtype == np.int16 and mask.array.dtype == np.uint8
    assert ct.array.shape == cbct.array.shape == mask.array.shape
    np.testing.assert_array_equal(ct.affine, cbct.affine)
    np.testing.assert_allclose(ct.affine, film_affine())
    assert cohort.made_by["calibration"]["water_centre_hu"] == 1.0
    assert cohort.made_by["simulate"]["preset"] == "demo"


def test_a_long_volume_becomes_several_scans_of_the_same_patient_or_is_cropped(tmp_path):
    long = body(shape=(60, 24, 26))  # 24 cm
    source = write_cohort(tmp_path / "in", {"torso": {"ct": long}}, patients={"torso": "p"}, splits={"torso": "test"})
    cohort = run(source, tmp_path / "split")
    assert [c.case_id for c in cohort.cases] == ["torso_s1", "torso_s2"]
    assert {(c.patient, c.split) for c in cohort.cases} == {("p", "test")}
    assert len({c.volumes["ct"].grid.shape[0] for c in cohort.cases}) == 1
    cropped = run(source, tmp_path / "crop", "simulate.axial=crop")
    assert [c.case_id for c in cropped.cases] == ["torso"]


def test_a_cut_body_is_refused_and_the_others_go_on(tmp_path):
    source = write_cohort(tmp_path / "in", {"bad": {"ct": cut()}, "good": {"ct": body(1)}})
    with pytest.raises(DataError, match=r"1 case\(s\) were left out.*bad") as caught:
        run(source, tmp_path / "out")
    assert caught.value.exit_code == 2
    cohort = Cohort.load(tmp_path / "out")
    assert [c.case_id for c in cohort.cases] == ["good"]
    assert cohort.excluded[0].case_id == "bad" and "left face" in cohort.excluded[0].reason
    with pytest.raises(DataError, match="bad"):  # a finished run says the same again
        run(source, tmp_path / "out")
    assert Scanner.scanned == [("good", 0)]


def test_a_slightly_cut_body_is_flagged(tmp_path):
    volume = body()
    array = volume.array.copy()
    array[:, 10:14, 10:] = 40
    source = write_cohort(tmp_path / "in", {"a": {"ct": volume.with_array(array)}})
    (case,) = run(source, tmp_path / "out").cases
    assert any("cuts the body" in flag and "left face" in flag for flag in case.flags)


def test_other_modalities_come_along_on_the_scans_grid_and_a_cohort_without_ct_is_refused(tmp_path):
    mr = Volume((body(1).array + 1000).astype(np.int16), body(1).affine, "a.u.")
    cases = {"a": {"ct": body(), "cbct": body(3), "t1n": mr}, "b": {"t1n": body(2)}}
    cohort = run(write_cohort(tmp_path / "both", cases, units={"t1n": "a.u."}), tmp_path / "out", "simulate.axial=crop")
    (case,) = cohort.cases
    assert case.case_id == "a" and set(case.volumes) == {"ct", "cbct", "t1n"} and case.volumes["t1n"].unit == "a.u."
    ct, cbct, t1n = (read_volume(cohort.path(case.volumes[m]), "a.u.") for m in ("ct", "cbct", "t1n"))
    assert grid_difference(ct.grid, t1n.grid, tolerance_mm=1e-4) == "" and t1n.array.dtype == np.int16
    np.testing.assert_array_equal(cbct.array, ct.array - 10)  # simulated, not the one that was there
    assert np.corrcoef(t1n.array.ravel(), reorder(mr).array.ravel())[0, 1] > 0.99
    assert any("CBCT" in note for note in cohort.made_by["notes"]) and any("b" in n for n in cohort.made_by["notes"])
    none = write_cohort(tmp_path / "none", {"a": {"t1n": body()}})
    with pytest.raises(DataError, match="no CT"):
        run(none, tmp_path / "nothing")


def test_a_killed_run_continues_and_a_finished_one_does_nothing(tmp_path, monkeypatch):
    source = write_cohort(tmp_path / "in", {name: {"ct": body(i)} for i, name in enumerate("abc")})
    scan = Scanner.scan

    def killed(self, film, mask, extent, case_id, number):
        if case_id == "c":
            raise KeyboardInterrupt
        return scan(self, film, mask, extent, case_id, number)

    monkeypatch.setattr(Scanner, "scan", killed)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out")
    monkeypatch.setattr(Scanner, "scan", scan)
    (tmp_path / "out" / "b" / "cbct.nii.gz").unlink()  # a case without all its files is done again
    cohort = run(source, tmp_path / "out")
    assert [name for name, _ in Scanner.scanned] == ["a", "b", "b", "c"]
    assert [c.case_id for c in cohort.cases] == ["a", "b", "c"] and "calibration" in cohort.made_by
    before = (tmp_path / "out" / "cohort.json").stat().st_mtime_ns
    run(source, tmp_path / "out")
    assert (tmp_path / "out" / "cohort.json").stat().st_mtime_ns == before
    with pytest.raises(ArtifactError, match=r"simulate\.photons_per_mm2"):
        run(source, tmp_path / "out", "simulate.photons_per_mm2=7")


def test_training_patients_are_scanned_as_every_body_and_others_as_they_are(tmp_path):
    cases = {"a": {"ct": body(1)}, "b": {"ct": body(2)}}
    source = write_cohort(tmp_path / "in", cases, splits={"a": "train", "b": "test"})
    bodies = "simulate.training_bodies=[{size: 1}, {size: 0.8}, {soft_tissue_hu: -30}]"
    cohort = run(source, tmp_path / "out", bodies)
    assert [(c.case_id, c.patient, c.split) for c in cohort.cases] == [
        ("a", "p0", "train"), ("a_b2", "p0", "train"), ("a_b3", "p0", "train"), ("b", "p1", "test"),
    ]  # fmt: skip
    whole, small, dark = (read_volume(cohort.path(case.volumes["ct"])).array for case in cohort.cases[:3])
    assert small.shape[0] == whole.shape[0], "the axis keeps its length"
    assert (small > -300).sum() / (whole > -300).sum() == pytest.approx(0.8**2, abs=0.06)
    soft = (whole > 10) & (whole < 90)
    assert soft.any() and np.median(dark[soft] - whole[soft]) == -30
    assert (dark[whole < -100] == whole[whole < -100]).mean() > 0.9, "air and fat stay"
    assert cohort.cases[1].flags[-1] == "in-plane size times 0.8, soft tissue +0 HU"


def test_bodies_are_refused_in_a_cross_validation(tmp_path):
    source = write_cohort(tmp_path / "in", {"a": {"ct": body()}}, folds={"a": 1})
    with pytest.raises(ConfigError, match="cross-validation"):
        run(source, tmp_path / "out", "simulate.training_bodies=[{size: 0.8}, {size: 1}]")


@given(st.floats(-50, 50), st.lists(st.floats(-1000, 3000, width=32), min_size=2, max_size=40))
def test_a_soft_tissue_shift_keeps_the_order_of_hu_and_leaves_fat_and_bone(shift, hu):
    ct = Volume(np.sort(np.asarray(hu, np.float32)).reshape(1, 1, -1), np.eye(4), "HU")
    shifted = with_soft_tissue(ct, shift).array
    assert (np.diff(shifted) >= 0).all()
    outside = (ct.array <= -60) | (ct.array >= 300)
    assert (shifted[outside] == ct.array[outside]).all() and np.abs(shifted - ct.array).max() <= abs(shift) + 1e-3


def test_a_known_mask_is_kept(tmp_path):
    ct = body()
    known = ct.with_array((ct.array > -500).astype(np.uint8), "1")
    source = write_cohort(tmp_path / "in", {"a": {"ct": ct}}, masks={"a": {"body": known}})
    cohort = run(source, tmp_path / "out")
    (case,) = cohort.cases
    np.testing.assert_array_equal(read_volume(cohort.path(case.masks["body"])).array, known.array)


def test_dry_run_writes_nothing_and_names_must_not_meet(tmp_path, capsys):
    long = body(shape=(60, 24, 26))
    source = write_cohort(tmp_path / "in", {"a": {"ct": long}})
    simulate.run(configuration(*OPTIONS, input=[source], output=tmp_path / "out", dry_run=True))
    assert not (tmp_path / "out").exists() and "2 scan(s)" in capsys.readouterr().err
    met = write_cohort(tmp_path / "met", {"a": {"ct": long}, "a_s1": {"ct": body()}})
    with pytest.raises(DataError, match="a_s1"):
        run(met, tmp_path / "out")
    with pytest.raises(ConfigError, match="input=COHORT"):
        simulate.run(configuration(*OPTIONS, output=tmp_path / "out"))


@pytest.mark.real
def test_real_volumes_that_cut_the_body(tmp_path, real_data):
    volumes = {name: {"ct": read_volume(real_data / "ct" / f"{name}.nii.gz")} for name in ("abdomen", "lung_crop")}
    source = write_cohort(tmp_path / "in", volumes)
    with pytest.raises(DataError, match="lung_crop"):
        run(source, tmp_path / "out", "simulate.axial=crop")
    cohort = Cohort.load(tmp_path / "out")
    assert [c.case_id for c in cohort.cases] == ["abdomen"]
    assert any("cuts the body" in flag for flag in cohort.cases[0].flags)
