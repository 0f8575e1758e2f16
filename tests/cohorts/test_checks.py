"""Every check finds the fault that it is for, and only that one."""

import numpy as np
import pytest
from cohort_makers import ct, mr, settings, write_cohort

from pipeline.cohorts.checks import (
    CheckSettings,
    check_case,
    check_complete,
    check_duplicates,
    flag_similarity,
    mutual_information,
    voxel_hash,
)
from pipeline.cohorts.folder import discover
from pipeline.cohorts.plausibility import check_hu, check_values
from pipeline.errors import DataError
from pipeline.geometry import Volume, reorder
from pipeline.io import read_volume, write_volume


def reports(root, source="t1n", target="ct"):
    settings_ = CheckSettings(source, target, -400.0, True, root / "out" / "checks")
    found = discover(root, settings()).cases
    return {case.case_id: check_case(case, root, settings_) for case in found}


def change(path, function):
    volume = read_volume(path)
    write_volume(path, volume.with_array(function(volume.array.copy())))


def test_good_cases_have_neither_problem_nor_flag(tmp_path):
    write_cohort(tmp_path, 4, ("ct", "t1n"))
    found = reports(tmp_path)
    every = list(found.values())
    assert check_complete(every) == {}
    check_duplicates(every)
    flag_similarity(every, "t1n", "ct")
    assert all(not r.problem and not r.flags for r in every), [(r.problem, r.flags) for r in every]
    record = found["case_0"].volumes["ct"]
    assert record.path == "case_0/ct.nii.gz" and record.unit == "HU" and len(record.sha256) == 64
    assert found["case_0"].volumes["t1n"].unit == "a.u."
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(value):
    volume = ct()
    array = volume.array.astype(np.float32)
    array[5, 3, 3] = array[7, 1, 1] = value
    with pytest.raises(DataError, match="2 slices, the first is slice 5"):
        check_values(volume.with_array(array))


def test_constant():
    volume = ct()
    with pytest.raises(DataError, match="constant"):
        check_values(volume.with_array(np.zeros_like(volume.array)))
    array = volume.array.copy()
    array[6] = -1000
    assert "first is slice 6" in check_values(volume.with_array(array))[0]
    array = volume.array.copy()
    array[[0, -1]] = 0
    assert check_values(volume.with_array(array)) == []


def test_hounsfield_units():
    volume = ct()
    hu = volume.array.astype(np.int32)
    assert check_hu(volume) == []
    assert check_hu(volume.with_array(hu)) == []
    assert check_hu(volume.with_array(hu.astype(np.float32))) == []
    with pytest.raises(DataError, match=r"HU \+1024.*add -1024"):
        check_hu(volume.with_array(np.maximum(hu + 1024, 0).astype(np.uint16)))
    with pytest.raises(DataError, match=r"HU -1024.*add 1024"):
        check_hu(volume.with_array(hu - 1024))
    for wrong in (mr(volume).array, np.maximum(hu + 1000, 0) * 3, hu / 1000):
        with pytest.raises(DataError, match="not Hounsfield units"):
            check_hu(volume.with_array(wrong))


@pytest.mark.parametrize("padding", [-3024, -2000, -32768])
def test_padding_is_a_flag_with_its_count(padding):
    volume = ct()
    array = volume.array.copy()
    array[:, :4] = padding
    (flag,) = check_hu(volume.with_array(array))
    assert flag.startswith(f"{array[:, :4].size} voxels") and "padding" in flag


def test_metal_and_crops_inside_the_body_are_flags():
    volume = ct()
    array = volume.array.copy()
    array[5, 15, 15] = 20000
    assert "metal" in check_hu(volume.with_array(array))[0]
    inner = np.where(volume.array < -500, 45, volume.array)[:, 12:20, 12:20]
    inner = inner + np.random.default_rng(0).normal(0, 30, inner.shape).round()
    assert "cropped" in check_hu(volume.with_array(inner))[0]


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"half"])
def test_bad_files_are_problems_of_their_case_alone(tmp_path, content):
    folders = write_cohort(tmp_path, 3, suffix=".mha")
    whole = (folders[1] / "ct.mha").read_bytes()
    (folders[1] / "ct.mha").write_bytes(whole[: len(whole) // 2] if content == b"half" else content)
    found = reports(tmp_path)
    assert [bool(r.problem) for r in found.values()] == [False, True, False]
    assert found["case_1"].problem.startswith("ct: ")
    assert str(tmp_path) not in found["case_1"].problem


def test_unreadable_file_does_not_show_its_path(tmp_path, monkeypatch):
    write_cohort(tmp_path, 1)

    def fail(path, unit="HU", **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pipeline.cohorts.checks.read_volume", fail)
    (report,) = reports(tmp_path).values()
    assert report.problem == "ct: The file cannot be read (Permission denied)."


def test_case_without_its_pair(tmp_path):
    folders = write_cohort(tmp_path, 4, ("ct", "t1n"))
    (folders[2] / "t1n.nii.gz").unlink()
    found = reports(tmp_path)
    assert check_complete(list(found.values())) == {"t1n": 1}
    assert "'t1n' (3 of 4 cases have it)" in found["case_2"].problem


def test_a_modality_that_few_have_is_not_needed(tmp_path):
    folders = write_cohort(tmp_path, 3)
    write_volume(folders[0] / "t1n.nii.gz", mr(ct(0)))
    assert check_complete(list(reports(tmp_path).values())) == {}


def test_different_grids_are_flagged_with_a_picture(tmp_path):
    folders = write_cohort(tmp_path, 2, ("ct", "t1n"))
    volume = mr(ct(0))
    moved = volume.affine.copy()
    moved[:3, 3] += 12
    write_volume(folders[0] / "t1n.nii.gz", Volume(volume.array[1:], moved))
    found = reports(tmp_path)
    (flag,) = found["case_0"].flags
    assert "size (11, 32, 32) and (12, 32, 32)" in flag and "preprocess.resample" in flag
    assert flag.count("spacing (5, 8, 8)") == 2
    assert (tmp_path / "out/checks/case_0.png").read_bytes().startswith(b"\x89PNG")
    assert not found["case_1"].flags and not found["case_0"].problem


def test_another_axis_order_alone_is_no_difference(tmp_path):
    folders = write_cohort(tmp_path, 1, ("ct", "t1n"))
    path = folders[0] / "t1n.nii.gz"
    write_volume(path, reorder(read_volume(path), "RAI"))
    (report,) = reports(tmp_path).values()
    assert not report.flags and not report.problem


def test_couch_in_front_of_the_body_is_flagged(tmp_path):
    folders = write_cohort(tmp_path, 2)

    def couch(rows):
        def paint(array):
            array[:, rows, 4:28] = -100
            return array

        return paint

    change(folders[0] / "ct.nii.gz", couch(slice(29, 31)))
    change(folders[1] / "ct.nii.gz", couch(slice(1, 3)))
    found = reports(tmp_path)
    assert not found["case_0"].flags
    assert "flipped front to back" in found["case_1"].flags[0]


def test_same_voxels_in_two_cases(tmp_path):
    folders = write_cohort(tmp_path, 3)
    volume = reorder(read_volume(folders[0] / "ct.nii.gz"), "LPS")
    (folders[2] / "ct.nii.gz").unlink()
    # Another format, orientation and type: the same image all the same.
    write_volume(folders[2] / "ct.mha", volume.with_array(volume.array.astype(np.float32)))
    found = reports(tmp_path)
    check_duplicates(list(found.values()))
    for name in ("case_0", "case_2"):
        assert "'case_0'" in found[name].problem and "'case_2'" in found[name].problem
    assert not found["case_1"].problem


def test_same_voxels_under_two_modalities(tmp_path):
    folders = write_cohort(tmp_path, 1)
    (folders[0] / "cbct.nii.gz").write_bytes((folders[0] / "ct.nii.gz").read_bytes())
    (report,) = reports(tmp_path).values()
    assert "cbct and ct hold the same voxels" in report.problem


def test_near_duplicates_of_different_patients_are_flagged(tmp_path):
    folders = write_cohort(tmp_path, 3)
    noise = np.random.default_rng(5)
    volume = read_volume(folders[0] / "ct.nii.gz")
    noisy = volume.array + noise.integers(-2, 3, volume.array.shape)
    write_volume(folders[2] / "ct.nii.gz", volume.with_array(noisy.astype(np.int16)))
    found = reports(tmp_path)
    check_duplicates(list(found.values()))
    assert not found["case_0"].problem
    for name, other in (("case_0", "case_2"), ("case_2", "case_0")):
        assert any(f"nearly the same image as case '{other}'" in flag for flag in found[name].flags)
    assert not found["case_1"].flags
    same = reports(tmp_path)
    same["case_2"].patient = same["case_0"].patient
    check_duplicates(list(same.values()))
    assert not same["case_0"].flags


def test_swapped_pairs_are_flagged(tmp_path):
    folders = write_cohort(tmp_path, 5, ("ct", "t1n"))
    one, other = (folder / "t1n.nii.gz" for folder in folders[1:3])
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    found = reports(tmp_path)
    flag_similarity(list(found.values()), "t1n", "ct")
    assert [any("swapped" in f for f in r.flags) for r in found.values()] == [False, True, True, False, False]
    assert "case 'case_2'" in next(f for f in found["case_1"].flags if "swapped" in f)


def test_masks(tmp_path):
    folders = write_cohort(tmp_path, 3)
    volume = ct(0)
    inside = volume.with_array((volume.array > -400).astype(np.uint8))
    write_volume(folders[0] / "mask.nii.gz", inside)
    write_volume(folders[1] / "body.mha", inside.with_array(np.zeros_like(inside.array)))
    write_volume(folders[2] / "field_of_view.nii", inside.with_array(inside.array[2:]))
    found = reports(tmp_path)
    assert set(found["case_0"].masks) == {"body"} and not found["case_0"].flags
    assert "'body'" in found["case_1"].problem
    assert "grid of no modality" in found["case_2"].flags[0]


def test_voxel_hash_sees_values_and_shape_only():
    volume = ct()
    assert voxel_hash(volume) == voxel_hash(volume.with_array(volume.array.astype(np.float64)))
    assert voxel_hash(volume) != voxel_hash(volume.with_array(volume.array + 1))
    assert voxel_hash(volume) != voxel_hash(volume.with_array(volume.array.reshape(24, 16, 32)))


def test_mutual_information():
    a, b = np.random.default_rng(0).standard_normal((2, 20, 20, 20)).astype(np.float32)
    assert mutual_information(a, a) == pytest.approx(1)
    assert mutual_information(a, b) < 0.05
    assert mutual_information(a, 3 - 2 * a) > 0.9


@pytest.mark.real
def test_real_volumes(real_data):
    root = real_data
    for name in ("cranium", "abdomen", "lung_crop"):
        check_hu(reorder(read_volume(root / "ct" / f"{name}.nii.gz")))
    for name in ("mr_ct/template_ct", "mr/brain_tcga_t1n", "mr/brain_met_t1c"):
        with pytest.raises(DataError, match="not Hounsfield units"):
            check_hu(reorder(read_volume(root / f"{name}.nii.gz")))
