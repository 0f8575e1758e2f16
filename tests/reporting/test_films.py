"""Films: codes survive packing exactly, fit their budget, keep their place in the patient, and say what was thinned."""

import base64
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_case import film_affine, film_gallery, film_page, picture

from pipeline.errors import DataError
from pipeline.reporting.film import make_film, pack, quantise

LIMITS = (-1024.0, 3071.0)
ROOMY = 10**7


def unpack(text, shape):
    """Restore codes as the format is described, voxel by voxel."""
    raw = zlib.decompress(base64.b64decode(text, validate=True), wbits=-15)
    slices, rows, columns = shape
    count = slices * rows * columns
    assert len(raw) == 2 * count
    codes = np.zeros((slices, rows + 1, columns + 1), int)
    for i in range(count):
        k, r, c = i // (rows * columns), i // columns % rows + 1, i % columns + 1
        left, above, corner = codes[k, r, c - 1], codes[k, r - 1, c], codes[k, r - 1, c - 1]
        guess = sorted((left, above, left + above - corner))[1]
        folded = raw[i] + 256 * raw[count + i]
        codes[k, r, c] = guess + (-(folded + 1) // 2 if folded % 2 else folded // 2)
    return codes[:, 1:, 1:]


def values(film, kind):
    track = next(t for t in film.tracks if t.kind == kind)
    codes = unpack(track.data, film.shape)
    return np.where(codes > 0, track.low + (codes - 1) * track.step, np.nan)


@settings(max_examples=40)
@given(st.tuples(*[st.integers(1, 6)] * 3), st.integers(0, 2**32 - 1), st.sampled_from([1, 40, 4096, 32767]))
def test_packing_is_lossless(shape, seed, largest):
    codes = np.random.default_rng(seed).integers(0, largest, shape, endpoint=True).astype(np.uint16)
    assert np.array_equal(unpack(pack(codes), shape), codes)


def test_values_are_rounded_to_the_step_clipped_and_unknown_where_not_finite():
    codes = quantise(np.array([np.nan, -3000, -1024, -1022.6, 0, 3071, 9000, np.inf]), *LIMITS, 2.0)
    assert codes.tolist() == [0, 1, 1, 2, 513, 2049, 2049, 0]


def test_film_with_room_is_exact_to_one_hu_and_keeps_its_place():
    case = picture(affine=film_affine((3.0, 1.0, 2.0), origin=(50.0, 60.0, -70.0)))
    film = make_film(case, LIMITS, ROOMY)
    # Slices of the frame only; rows 5..15 and columns 6..18 with a margin of 8 mm.
    assert film.shape == (5, 20, 20) and (film.first, film.total) == ((2, 0, 2), (8, 20, 24))
    assert film.nearest((4, 9, 11)) == [2, 9, 9] and film.nearest((0, 0, 23)) == [0, 0, 19]
    assert film.affine @ [0, 0, 0, 1] == pytest.approx(case.affine @ [2, 0, 2, 1])
    assert np.abs(values(film, "target") - case.target[2:7, :, 2:22]).max() <= 0.5
    inside = unpack(film.tracks[-1].data, film.shape)
    assert np.array_equal(inside == 1, case.region[2:7, :, 2:22])
    assert [t.kind for t in film.tracks] == ["source", "method", "target", "region"]
    assert film.describe().startswith(
        "every slice, 3 mm apart; pixels of 1 × 2 mm; values from -1024 to 3071 HU in steps of 1 HU"
    )


def test_tight_budget_first_rounds_then_thins_and_says_so():
    case = picture()
    roomy = make_film(case, LIMITS, ROOMY)
    rounded = make_film(case, LIMITS, int(roomy.bytes * 0.9))
    assert rounded.shape == roomy.shape and rounded.cut.step > 1
    thin = make_film(case, LIMITS, roomy.bytes // 6)
    assert thin.bytes <= roomy.bytes // 6
    assert thin.cut.block > 1 and f"means of {thin.cut.block} × {thin.cut.block}" in thin.describe()
    assert thin.spacing_mm == pytest.approx((3.0 * thin.cut.stride, thin.cut.block, 2.0 * thin.cut.block))
    # The error of a slice is the scored one, whatever was thinned.
    mae = np.abs(case.error("source"))[2][case.region[2]].mean()
    assert thin.header()["tracks"][0]["errors"][0] == roomy.errors["source"][0] == pytest.approx(mae, rel=1e-3)
    with pytest.raises(DataError, match="Raise report"):
        make_film(case, LIMITS, 10)


def test_thinned_pixels_are_means_at_the_middle_of_their_blocks():
    rng = np.random.default_rng(1)
    target = rng.normal(0, 300, (4, 10, 12)).astype(np.float32)
    target[:, 0, 0] = np.nan
    everywhere = np.ones(target.shape, bool)
    case = picture(everywhere, target=target, volumes={"a": target}, affine=film_affine((9.0, 1.0, 1.0)))
    film = make_film(case, LIMITS, make_film(case, LIMITS, ROOMY).bytes // 3)
    block = film.cut.block
    assert block > 1 and film.cut.stride == 1
    corner = target[0, :block, :block]
    assert values(film, "target")[0, 0, 0] == pytest.approx(np.nanmean(corner), abs=film.cut.step / 2 + 1e-3)
    middle = (block - 1) / 2
    assert film.affine @ [0, 0, 0, 1] == pytest.approx(case.affine @ [0, middle, middle, 1])


def test_source_in_another_unit_has_its_own_scale():
    case = picture()
    mr = np.linspace(0, 900, case.target.size, dtype=np.float32).reshape(case.target.shape)
    film = make_film(picture(volumes={"a": case.volumes["a"]}, other_source=mr), LIMITS, ROOMY)
    source, *rest = film.tracks
    low, high = np.percentile(mr[case.region], (1, 99))
    window = ((low + high) / 2, high - low)
    assert source.kind == "source" and source.window == pytest.approx(window, rel=1e-4)
    assert source.step == pytest.approx(900 / 4095) and all(t.window is None for t in rest)
    assert np.abs(values(film, "source") - mr[2:7, :, 2:22]).max() <= source.step


def test_units_without_natural_steps_are_divided_as_finely_as_twelve_bits():
    target = np.random.default_rng(0).random((4, 8, 8)).astype(np.float32)
    case = picture(np.ones(target.shape, bool), target=target, volumes={"a": target}, unit="a.u.")
    film = make_film(case, (0.0, 1.0), ROOMY)
    assert np.abs(values(film, "target") - target).max() <= 0.5 / 4095 + 1e-6
    assert film.tracks[0].levels == 4096


def test_empty_and_unknown_volumes_make_a_film():
    unknown = np.full((4, 8, 8), np.nan, np.float32)
    empty = np.zeros(unknown.shape, bool)
    case = picture(empty, target=unknown, volumes={"a": unknown}, other_source=unknown)
    film = make_film(case, LIMITS, ROOMY)
    assert film.shape == (4, 8, 8) and np.isnan(values(film, "target")).all()


def test_no_film_no_player(tmp_path):
    case = picture()
    gallery = film_gallery(case, tmp_path)
    assert "class Player" in film_page(gallery, case)
    assert gallery.film(case, 10) is None and "No film of case 'c1' fits" in gallery.notes[0]
    page = film_page(film_gallery(case, tmp_path, "report.films=false"), case)
    assert "class Player" not in page and 'class="film' not in page
