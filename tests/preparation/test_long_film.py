"""Volumes of any length: the memory of a few planes beside what is read and what is kept."""

import tracemalloc

import numpy as np
import pytest
from makers import film_affine

from pipeline.geometry import Grid, Volume
from pipeline.imaging.film import to_stored
from pipeline.imaging.mask import body_mask
from pipeline.imaging.resample import resample
from pipeline.io import nifti, read_volume, write_volume

SHAPE, SPACING = (1200, 40, 44), (1.0, 2.0, 2.0)


def long_volume():
    _, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij", sparse=True)
    noise = np.random.default_rng(0).integers(-80, 400, SHAPE)
    return Volume(np.where(x**2 + y**2 < 0.5, noise, -1000).astype(np.int16), film_affine(SPACING))


def coarser(volume, shape=(800, 32, 36)):
    affine = volume.affine.copy()
    affine[:3, :3] *= np.array([1.5, 1.2, 1.2])
    return Grid(shape, affine)


def peak_of(function):
    tracemalloc.start()
    try:
        result = function()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("turn", [0.0, 0.02])
def test_a_thousand_slices_plane_by_plane_are_what_each_part_gives_by_itself(turn):
    volume = long_volume()
    grid = coarser(volume)
    if turn:
        rotation = np.eye(4)
        rotation[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
        grid = Grid(grid.shape, rotation @ grid.affine)
    whole = resample(volume, grid, outside=-1024).array
    start, count = 320, 48
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, 0] * start
    part = resample(volume, Grid((count, *grid.shape[1:]), affine), outside=-1024).array
    np.testing.assert_allclose(whole[start : start + count], part, atol=2e-3 if turn else 1e-3)


def test_what_is_stored_costs_no_more_than_itself_and_a_few_planes():
    volume = long_volume()
    plane = 4 * SHAPE[1] * SHAPE[2]
    (stored, _), peak = peak_of(lambda: to_stored(volume, coarser(volume)))
    assert peak < stored.nbytes + 60 * plane


def test_the_body_costs_its_own_mask_and_its_parts():
    volume = long_volume()
    body, peak = peak_of(lambda: body_mask(volume, -300))
    assert body.mean() > 0.3
    assert peak < 2.5 * body.nbytes


def test_reading_a_compressed_file_costs_one_volume(tmp_path):
    volume = long_volume()
    write_volume(tmp_path / "a.nii.gz", volume)
    back, peak = peak_of(lambda: read_volume(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(back.array, volume.array)
    assert peak < volume.array.nbytes + 4 * 2**20


def test_a_large_plain_file_stays_on_disk(tmp_path, monkeypatch):
    volume = long_volume()
    write_volume(tmp_path / "a.nii", volume)
    monkeypatch.setattr(nifti, "_MAPPED_BYTES", 1000)
    mapped, peak = peak_of(lambda: read_volume(tmp_path / "a.nii"))
    np.testing.assert_array_equal(mapped.array, volume.array)
    assert peak < volume.array.nbytes / 2
    mapped.array[0, 0, 0] = 7  # a copy of that page: the file is not written to
    assert read_volume(tmp_path / "a.nii").array[0, 0, 0] == volume.array[0, 0, 0]
