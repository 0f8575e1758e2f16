"""What needs no ITK: field of view, extents of scans, sideways cuts, materials, scatter, motion, settings."""

import numpy as np
import pytest
from pydantic import ValidationError
from scanner import affine, settings

from pipeline.simulation.axial import lateral_cuts, scan_extents, worst_cut
from pipeline.simulation.gantry import axial_length_mm, detector_shape, field_of_view, radius_mm, view_angles
from pipeline.simulation.motion import displace, phases
from pipeline.simulation.scan import film_grid
from pipeline.simulation.scatter import scatter


@pytest.mark.parametrize("slices", [10, 77, 78, 80, 100, 154, 155, 296])
def test_scans_are_as_long_as_the_field_of_view_and_cover_every_slice_evenly(slices):
    extents = scan_extents(slices, 2.5, 192.0, "split")
    covered = np.zeros(slices, int)
    for extent in extents:
        covered[extent] += 1
    assert covered.min() == 1 or len(extents) > 1
    assert (covered > 0).all()
    lengths = {extent.stop - extent.start for extent in extents}
    assert lengths == {min(slices, 77)}, "no sliver"
    steps = np.diff([extent.start for extent in extents])
    assert len(steps) == 0 or steps.max() - steps.min() <= 1
    np.testing.assert_array_equal(covered, covered[::-1]) if len(extents) < 3 else None


def test_crop_keeps_the_middle():
    assert scan_extents(100, 2.5, 192.0, "crop") == [slice(11, 88)]


def test_field_of_view_is_a_cylinder_with_cones_cut_off():
    half, full = settings("torso"), settings("head")
    assert 185 < axial_length_mm(half) < 195
    assert 220 < radius_mm(half) < 232
    assert 120 < radius_mm(full) < 130
    shape, spacing = (101, 251, 251), (2.0, 2.0, 2.0)
    seen = field_of_view(shape, spacing, (50, 125, 125), half)
    along_axis = seen[:, 125, 125].sum() * 2.0
    assert along_axis == pytest.approx(axial_length_mm(half), abs=4)
    off_axis = seen[:, 125, 225].sum() * 2.0  # 200 mm from the axis
    assert off_axis == pytest.approx(0.8 * axial_length_mm(half), abs=4)
    assert not seen[50, 125, 125 + 118] and seen[50, 125, 125 + 110]
    np.testing.assert_array_equal(seen, seen[::-1, ::-1, ::-1])


def test_field_of_view_follows_the_isocentre():
    seen = field_of_view((3, 200, 200), (2.0, 2.0, 2.0), (1, 80, 120), settings("head"))
    rows, columns = np.nonzero(seen[1])
    assert rows.mean() == pytest.approx(80, abs=0.5) and columns.mean() == pytest.approx(120, abs=0.5)


def test_views_cover_a_turn_once_and_a_short_arc_with_its_end():
    assert view_angles(settings())[[0, -1]].tolist() == [0.0, 356.0]
    assert view_angles(settings("head"))[-1] == 200.0
    assert detector_shape(settings("torso")) == (96, 128)


def test_sideways_cuts_are_measured_on_each_face():
    body = np.zeros((10, 20, 30), bool)
    body[:, :10, 5:25] = True
    assert lateral_cuts(body) == {"anterior": pytest.approx(20 / 30), "posterior": 0, "right": 0, "left": 0}
    assert worst_cut(body)[0] == "anterior"


def test_the_film_grid_covers_the_volume_and_keeps_its_own_spacing():
    from pipeline.geometry import Grid, Volume, reorder

    ras = np.diag([2.0, 2.0, 3.0, 1.0])
    grid = Grid((40, 50, 60), ras)
    same = film_grid(grid, (3.0, 2.0, 2.0))
    np.testing.assert_allclose(same.affine, reorder(Volume(np.zeros(grid.shape), ras)).affine)
    coarse = film_grid(grid, (6.0, 4.0, 4.0))
    assert coarse.shape == (30, 25, 20) and coarse.axes == "SPL"
    middle = coarse.affine @ [14.5, 12, 9.5, 1]
    np.testing.assert_allclose(middle[:3], (ras @ [19.5, 24.5, 29.5, 1])[:3])


def test_scatter_is_broad_proportional_and_absent_in_air():
    chosen = settings()
    primary = np.ones((1, *detector_shape(chosen)), np.float32)
    assert scatter(primary, 1.0, chosen).max() == 0
    primary[:, :, 20:40] = 0.1
    found = scatter(primary, 1.0, chosen)
    assert found.min() > 0, "scatter reaches where nothing absorbs"
    np.testing.assert_allclose(scatter(primary, 2.0, chosen), 2 * found, rtol=1e-5)


def test_motion_moves_the_front_and_not_the_back():
    hu = np.full((40, 9, 4), -1000, np.float32)
    hu[10:20] = 0
    moved = displace(hu, 8.0, 2.0)
    np.testing.assert_array_equal(moved[:, 0], np.roll(hu, 4, axis=0)[:, 0])
    np.testing.assert_array_equal(moved[:, -1], hu[:, -1])
    chosen = settings(motion_mm=8)
    views = np.sort(np.concatenate([v for _, v in phases(chosen)]))
    np.testing.assert_array_equal(views, np.arange(chosen.angles))
    assert max(abs(d) for d, _ in phases(chosen)) <= 8
    assert len(phases(settings())) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arc_degrees": 200}, "half fan needs"),
        ({"fan": "full"}, "detector_offset_mm 0"),
        ({"fan": "full", "detector_offset_mm": 0, "arc_degrees": 185}, "at least 194"),
        ({"source_detector_mm": 900}, "larger than source_axis_mm"),
        ({"calibration_diameter_mm": 900}, "calibration_diameter_mm"),
    ],
)
def test_impossible_geometry_is_refused(changes, words):
    with pytest.raises(ValidationError, match=words):
        settings(**changes)


@pytest.mark.simulate
def test_water_and_bone_attenuate_together_as_the_ct_says():
    from pipeline.simulation.materials import CT_KEV, bone_mass_attenuation, decompose, water_mu

    hu = np.array([-1000, -500, 0, 100, 800, 1500, 3000, np.nan], np.float32)
    water, bone = np.moveaxis(decompose(hu), -1, 0)
    energy = np.array([CT_KEV])
    attenuation = water + bone * bone_mass_attenuation(energy)[0] / 10 / water_mu(energy)[0]
    np.testing.assert_allclose(attenuation, [0, 0.5, 1, 1.1, 1.8, 2.5, 4, 0], atol=1e-5)
    assert (bone[:4] == 0).all() and (water[5:7] < 1e-6).all()
    assert 1.6 < bone[5] < 2.1, "cortical bone of 1500 HU has the density of cortical bone"


@pytest.mark.simulate
def test_spectrum_and_water_correction():
    from pipeline.simulation.detector import make_detector
    from pipeline.simulation.spectrum import tube_spectrum

    soft, hard = tube_spectrum(100, {"Al": 2.0}), tube_spectrum(100, {"Al": 2.0, "Cu": 0.5})
    assert 40 < soft.mean_kev < hard.mean_kev < 80
    assert soft.photons.sum() == pytest.approx(1)
    detector = make_detector(soft)
    lengths = np.array([0, 1, 50, 200, 400], np.float32)
    primary, gain = detector.primary(lengths, np.zeros_like(lengths))
    assert primary[0] == pytest.approx(1) and (np.diff(primary) < 0).all()
    np.testing.assert_allclose(detector.water_length(primary), lengths, atol=0.1)
    assert (np.diff(gain) > 0).all(), "a hardened beam carries more energy per quantum"
    assert detector.water_length(np.array([1.05]))[0] < 0, "noise above the open beam is not cut off"


@pytest.mark.simulate
def test_an_unknown_filter_is_named():
    from pipeline.errors import ConfigError
    from pipeline.simulation.spectrum import tube_spectrum

    with pytest.raises(ConfigError, match="unobtainium"):
        tube_spectrum(100, {"unobtainium": 1.0})


def test_a_missing_extra_says_how_to_install_it():
    from pipeline.errors import CinevoxError
    from pipeline.simulation.spectrum import need

    with pytest.raises(CinevoxError, match=r"pip install 'cinevox\[simulate\]'"):
        need("rtk_that_is_not_there")


def test_affine_of_the_tests_is_film_order():
    from pipeline.geometry import axis_codes

    assert axis_codes(affine((4, 2, 2))) == "SPL"
