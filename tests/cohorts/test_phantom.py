"""Phantoms: reproducible, plausible in HU, with air around them, films that are continuous along the slices."""

import numpy as np
import pytest
from cohort_makers import settings

from pipeline.cohorts.phantom import make_patient, write_patient
from pipeline.cohorts.phantom_canvas import MODALITIES
from pipeline.cohorts.plausibility import check_couch, check_hu, check_values
from pipeline.errors import ConfigError
from pipeline.geometry import grid_difference, reorder
from pipeline.imaging.mask import body_mask
from pipeline.io import read_volume

SMALL = {"size": (24, 48, 48), "spacing_mm": (8.0, 8.0, 8.0)}


def patient(seed=0, index=0, **changes):
    return make_patient(settings(layout="phantom", **{**SMALL, **changes}), seed, index)


@pytest.mark.parametrize("anatomy", ["torso", "head"])
@pytest.mark.parametrize("index", [0, 1])
def test_ct_is_plausible_and_has_air_around_it(anatomy, index):
    film = reorder(patient(index=index, anatomy=anatomy)["ct"])
    assert film.array.dtype == np.int16 and film.unit == "HU"
    assert check_values(film) == []
    assert [f for f in check_hu(film) if "metal" not in f] == []
    body = body_mask(film, -400)
    assert check_couch(film, body) == []
    # Lateral, anterior and posterior borders; the couch may come near them.
    assert not body[:, :2].any() and not body[:, -2:].any()
    assert not body[:, :, :2].any() and not body[:, :, -2:].any()
    assert body.any(axis=(1, 2)).all()
    inside = film.array[body]
    assert (inside > 400).mean() > 0.01 and (inside < -600).mean() > 0.002
    assert abs(np.median(inside[(inside > -50) & (inside < 150)]) - 45) < 20


@pytest.mark.parametrize("size", [(8, 32, 32), (6, 24, 40)])
@pytest.mark.parametrize("spacing", [4.0, 12.0])
def test_small_fields_hold_a_smaller_body(size, spacing):
    film = reorder(patient(size=size, spacing_mm=(spacing,) * 3)["ct"])
    body = body_mask(film, -400)
    assert film.array.shape == size and body.any()
    border = np.concatenate([body[:, [0, 1, -2, -1]].ravel(), body[:, :, [0, 1, -2, -1]].ravel()])
    assert not border.any()


@pytest.mark.parametrize("anatomy", ["torso", "head"])
def test_a_film_changes_slowly(anatomy):
    film = reorder(patient(anatomy=anatomy, size=(24, 48, 48), spacing_mm=(4.0, 8.0, 8.0))["ct"]).array.astype(float)
    film = np.clip(film, -1000, 1000)
    near = np.abs(film[1:] - film[:-1]).mean()
    far = np.abs(film[12:] - film[:-12]).mean()
    assert 0 < near < 0.6 * far


def test_modalities_share_grid_and_anatomy():
    volumes = patient(modalities=list(MODALITIES), anatomy="head")
    assert set(volumes) == set(MODALITIES)
    films = {m: reorder(v) for m, v in volumes.items()}
    bodies = {}
    for modality, film in films.items():
        assert grid_difference(film.grid, films["ct"].grid) == ""
        assert film.unit == ("HU" if modality == "ct" else "a.u.")
        bodies[modality] = film.array > (-400 if modality == "ct" else 60)
    overlap = (bodies["ct"] & bodies["t2w"]).sum() / bodies["t2w"].sum()
    assert overlap > 0.85
    # The tumour's rim takes up contrast.
    assert np.percentile(films["t1c"].array.astype(int) - films["t1n"].array, 99.9) > 100


def test_same_seed_same_patient_whatever_is_asked_for():
    tiny = {"size": (6, 24, 24), "spacing_mm": (16.0,) * 3}
    one, other = patient(**tiny), patient(**tiny, modalities=["t1n", "ct"])
    np.testing.assert_array_equal(one["ct"].array, other["ct"].array)
    assert not np.array_equal(one["ct"].array, patient(seed=1, **tiny)["ct"].array)
    assert not np.array_equal(reorder(one["ct"]).array, reorder(patient(index=1, **tiny)["ct"]).array)


def test_files_have_both_usual_orientations_and_are_not_made_twice(tmp_path):
    chosen = settings(layout="phantom", size=(6, 24, 24), spacing_mm=(16.0,) * 3)
    files = [write_patient(chosen, 0, index, tmp_path)["ct"] for index in (0, 1)]
    assert [read_volume(path).grid.axes for path in files] == ["RAS", "LPS"]
    before = files[0].stat().st_mtime_ns
    write_patient(chosen, 0, 0, tmp_path)
    assert files[0].stat().st_mtime_ns == before


def test_modalities_that_phantoms_lack():
    for modalities in (["cbct"], [], ["ct", "ct"]):
        with pytest.raises(ConfigError, match=r"cohort\.modalities"):
            patient(modalities=modalities)
    with pytest.raises(ConfigError, match="no room"):
        patient(size=(4, 4, 4))
