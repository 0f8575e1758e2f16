"""Volumes survive writing and reading in every format and orientation; damaged and hostile files do not get through."""

import gzip
import hashlib
import itertools
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.artifacts import file_sha256
from pipeline.errors import DataError, GeometryError
from pipeline.geometry import Volume, grid_difference, reorder
from pipeline.io import SUFFIXES, limits, read_grid, read_volume, stem, write_volume

WRITTEN = [s for s in SUFFIXES if s != ".mhd"]
SECRET = "Erika_Mustermann"
AXES = [
    "".join(letters) for order in itertools.permutations(["RL", "AP", "SI"]) for letters in itertools.product(*order)
]


def make(dtype=np.int16, shape=(4, 5, 6)):
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    affine = np.array([[0, -2, 0, 10], [0, 0, 3, -4], [1.5, 0, 0, 7], [0, 0, 0, 1.0]])
    return Volume(array, affine)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    axes=st.sampled_from(AXES),
    spacing=st.tuples(*[st.floats(0.2, 8)] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    turn=st.floats(-30, 30),
    suffix=st.sampled_from(WRITTEN),
    dtype=st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64]),
)
def test_round_trip(tmp_path, axes, spacing, origin, turn, suffix, dtype):
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * spacing
    affine[:3, 3] = origin
    volume = reorder(Volume(make(dtype).array, affine), axes)
    path = tmp_path / f"x{suffix}"
    write_volume(path, volume)
    back = read_volume(path)
    assert back.array.dtype == dtype
    np.testing.assert_array_equal(back.array, volume.array)
    assert grid_difference(back.grid, volume.grid) == ""
    assert grid_difference(read_grid(path), volume.grid) == ""
    first = path.read_bytes()
    write_volume(path, volume)
    assert path.read_bytes() == first


def test_lps_nrrd_and_ras_nifti_are_the_same_film(tmp_path):
    volume = reorder(make(), "RAS")
    write_volume(tmp_path / "a.nii.gz", volume)
    write_volume(tmp_path / "b.nrrd", reorder(volume, "LPS"))
    image = sitk.ReadImage(str(tmp_path / "b.nrrd"))
    assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    one, other = (reorder(read_volume(tmp_path / name)) for name in ("a.nii.gz", "b.nrrd"))
    np.testing.assert_array_equal(one.array, other.array)
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-4)


def test_written_nifti_states_both_forms(tmp_path):
    write_volume(tmp_path / "a.nii.gz", make())
    header = nib.load(tmp_path / "a.nii.gz").header
    assert header["sform_code"] > 0 and header["qform_code"] > 0
    np.testing.assert_allclose(header.get_sform(), header.get_qform(), atol=1e-5)


def nifti_bytes(array, affine=None, *, sform=1, qform=1, **fields):
    """Return a file whose header is set field by field, as nibabel itself would not write it."""
    data = bytearray(nib.Nifti1Image(array, np.eye(4), dtype=array.dtype).to_bytes())
    header = nib.Nifti1Header(bytes(data[:348]))
    affine = np.eye(4) if affine is None else affine
    if qform:
        header.set_qform(affine)
    header.set_sform(affine)
    for key, value in {"sform_code": sform, "qform_code": qform, **fields}.items():
        header[key] = value
    data[:348] = header.binaryblock
    return bytes(data)


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype", "first"),
    [
        (np.nan, np.nan, np.int16, 7),
        (0, 5, np.int16, 7),
        (1, 0, np.int16, 7),
        (1, -1024, np.int16, -1017),
        (20000, 0, np.int32, 140000),
        (0.5, 1, np.float32, 4.5),
    ],
)
def test_nifti_scaling(tmp_path, slope, intercept, dtype, first):
    array = np.full((2, 2, 2), 7, np.int16)
    (tmp_path / "a.nii").write_bytes(nifti_bytes(array, scl_slope=slope, scl_inter=intercept))
    back = read_volume(tmp_path / "a.nii")
    assert back.array.dtype == dtype
    assert back.array[0, 0, 0] == first


def test_big_endian_becomes_native_and_writable(tmp_path):
    array = np.arange(8, dtype=">i2").reshape(2, 2, 2)
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    image = nib.Nifti1Image(array, np.eye(4), header)
    nib.save(image, tmp_path / "a.nii")
    back = read_volume(tmp_path / "a.nii").array
    assert back.dtype == np.int16 and back.flags.writeable
    np.testing.assert_array_equal(back, array)


def test_fourth_axis_of_one_is_dropped_and_a_series_is_refused(tmp_path):
    for count in (1, 3):
        nib.save(nib.Nifti1Image(np.zeros((2, 3, 4, count), np.int16), np.eye(4)), tmp_path / f"{count}.nii.gz")
    assert read_volume(tmp_path / "1.nii.gz").array.shape == (2, 3, 4)
    with pytest.raises(DataError, match="three axes"):
        read_volume(tmp_path / "3.nii.gz")


def test_orientation_of_nifti(tmp_path):
    array, path = np.zeros((2, 3, 4), np.int16), tmp_path / "a.nii"
    sheared = np.diag([2.0, 2, 2, 1])
    sheared[0, 2] = 0.4
    path.write_bytes(nifti_bytes(array, sform=0, qform=0))
    with pytest.raises(GeometryError, match="left and right are unknown"):
        read_grid(path)
    path.write_bytes(nifti_bytes(array, sheared, qform=0))
    with pytest.raises(GeometryError, match="right angles"):
        read_grid(path)
    # A sheared sform beside a usable qform: the qform decides.
    path.write_bytes(nifti_bytes(array, sheared, qform=1))
    assert limits.shear_degrees(read_grid(path).affine) < limits.ORTHOGONAL_DEGREES
    path.write_bytes(nifti_bytes(array, np.diag([0.0, 0, 0, 1]), qform=0))
    with pytest.raises(GeometryError, match="unusable"):
        read_grid(path)


def test_metres_become_millimetres(tmp_path):
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.diag([0.002, 0.002, 0.003, 1]))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "a.nii")
    assert read_grid(tmp_path / "a.nii").spacing_mm == pytest.approx((2, 2, 3))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>404</html>", b"\0" * 1000, b"NRRD0004\nsizes: x\n\n"])
def test_what_is_no_volume(tmp_path, suffix, content):
    folder = tmp_path / SECRET
    folder.mkdir()
    path = folder / f"{SECRET}{suffix}"
    path.write_bytes(content)
    for read in (read_volume, read_grid):
        with pytest.raises(DataError) as caught:
            read(path)
        assert SECRET not in str(caught.value)
        assert caught.value.remedy
    if not content:
        assert "empty" in str(caught.value)
    elif content.startswith(b"<"):
        assert "web page" in str(caught.value)


@pytest.mark.parametrize("suffix", WRITTEN)
def test_cut_off_files_never_give_other_voxels(tmp_path, suffix):
    volume = Volume(np.random.default_rng(1).integers(-1000, 1000, (12, 13, 14)).astype(np.int16), np.eye(4))
    whole = tmp_path / f"whole{suffix}"
    write_volume(whole, volume)
    data = whole.read_bytes()
    failed = 0
    for length in (1, 40, 200, 360, 700, len(data) // 2, len(data) - 40, len(data) - 1):
        path = tmp_path / f"cut{suffix}"
        path.write_bytes(data[:length])
        try:
            np.testing.assert_array_equal(read_volume(path).array, volume.array)
        except DataError:
            failed += 1
    assert failed >= 7


def test_flipped_byte_in_gzip_is_found(tmp_path):
    write_volume(tmp_path / "a.nii.gz", make(shape=(20, 20, 20)))
    data = bytearray((tmp_path / "a.nii.gz").read_bytes())
    data[len(data) // 2] ^= 0x10
    (tmp_path / "a.nii.gz").write_bytes(data)
    with pytest.raises(DataError, match="cut off or damaged"):
        read_volume(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("suffix", WRITTEN)
def test_the_digest_of_a_reading_is_that_of_the_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_volume(path, make(shape=(40, 50, 60)))
    if suffix == ".nii.gz":
        path.write_bytes(path.read_bytes() + gzip.compress(bytes(3 << 20)))  # what stands behind the voxels counts too
    digest = hashlib.sha256()
    read_volume(path, digest=digest)
    assert digest.hexdigest() == file_sha256(path)


def test_a_bomb_behind_the_voxels_is_not_unpacked(tmp_path):
    write_volume(tmp_path / "a.nii.gz", make())
    whole = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(whole + gzip.compress(bytes(200 << 20)))
    tracemalloc.start()
    read_volume(tmp_path / "a.nii.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20


def test_where_sform_and_qform_differ_the_sform_decides(tmp_path):
    image = nib.Nifti1Image(np.zeros((2, 3, 4), np.int16), np.diag([2.0, 2, 3, 1]))
    image.set_sform(np.diag([2.0, 2, 3, 1]), code=1)
    image.set_qform(np.diag([-1.0, -1, 1, 1]), code=1)
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_grid(tmp_path / "a.nii").affine, np.diag([2.0, 2, 3, 1]))


def test_announced_size_is_checked_before_allocation(tmp_path):
    huge = nifti_bytes(np.zeros((2, 2, 2), np.int16), dim=[3, 30000, 30000, 1000, 1, 1, 1, 1])
    (tmp_path / "a.nii").write_bytes(huge)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(huge))
    middle = nifti_bytes(np.zeros((2, 2, 2), np.int16), dim=[3, 500, 500, 500, 1, 1, 1, 1])
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(middle))
    (tmp_path / "b.nii").write_bytes(middle)
    (tmp_path / "b.nrrd").write_bytes(
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 9000 9000 9000\nencoding: gzip\nendian: little\n\nxx"
    )
    for name in ("a.nii", "a.nii.gz"):
        with pytest.raises(DataError, match="too many voxels"):
            read_volume(tmp_path / name)
    for name in ("b.nii", "b.nii.gz", "b.nrrd"):
        with pytest.raises(DataError, match=r"more voxels than the file can hold|too many voxels"):
            read_volume(tmp_path / name)
    assert limits.MAXIMUM_BYTES < 2**40


@pytest.mark.parametrize("where", ["/etc/hostname", "../other.raw", "LIST", "sub/x.raw"])
def test_metaimage_header_cannot_point_elsewhere(tmp_path, where):
    header = "ObjectType = Image\nNDims = 3\nDimSize = 1 1 1\nElementType = MET_UCHAR\nElementDataFile = "
    (tmp_path / "a.mhd").write_text(header + where + "\n")
    with pytest.raises(DataError, match="outside its own folder"):
        read_volume(tmp_path / "a.mhd")


def test_metaimage_header_with_voxels_beside_it(tmp_path):
    image = sitk.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    sitk.WriteImage(image, str(tmp_path / "a.mhd"))
    assert read_volume(tmp_path / "a.mhd").array.shape == (4, 3, 2)
    (tmp_path / "a.raw").unlink()
    with pytest.raises(DataError, match="does not exist"):
        read_volume(tmp_path / "a.mhd")


def test_nrrd_header_cannot_point_elsewhere(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(
        b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 1 1 1\ndata file: /etc/hostname\n\n"
    )
    with pytest.raises(DataError, match="another file"):
        read_volume(tmp_path / "a.nrrd")


def test_colours_are_refused(tmp_path):
    sitk.WriteImage(sitk.Image([4, 4, 4], sitk.sitkVectorUInt8, 3), str(tmp_path / "a.mha"))
    with pytest.raises(DataError, match="one number per voxel"):
        read_volume(tmp_path / "a.mha")


def test_unknown_suffix_and_missing_file(tmp_path):
    with pytest.raises(DataError, match="suffix"):
        read_volume(tmp_path / "a.png")
    with pytest.raises(DataError, match="does not exist"):
        read_volume(tmp_path / "a.mha")
    with pytest.raises(DataError, match=r"\.mha"):
        write_volume(tmp_path / "a.mhd", make())
    for suffix in WRITTEN:
        with pytest.raises(DataError, match="cannot be written"):
            write_volume(tmp_path / f"a{suffix}", make(np.complex64))
        assert not (tmp_path / f"a{suffix}").exists()


@pytest.mark.parametrize(("dtype", "becomes"), [(bool, np.uint8), (np.float16, np.float32)])
@pytest.mark.parametrize("suffix", WRITTEN)
def test_types_that_formats_lack(tmp_path, dtype, becomes, suffix):
    write_volume(tmp_path / f"a{suffix}", make(dtype))
    assert read_volume(tmp_path / f"a{suffix}").array.dtype == becomes


def test_stem():
    assert [stem(Path(name)) for name in ("a.b.nii.gz", "CT.NII", "x.mha")] == ["a.b", "CT", "x"]


@pytest.mark.real
def test_real_volumes(real_data):
    root = real_data
    torso = read_volume(root / "ct" / "torso.nii.gz")
    assert torso.array.dtype == np.int16 and torso.array.min() == -3024
    assert read_volume(root / "ct" / "abdomen.nii.gz").array.dtype == np.int32
    met = [read_volume(path) for path in sorted((root / "mr").glob("brain_met_*.nii.gz"))]
    assert all(grid_difference(v.grid, met[0].grid) == "" for v in met)
