"""Whole miniature scans: calibration, accuracy without noise, scatter, seeds, truncation, the picture."""

import numpy as np
import pytest
from scanner import ellipsoid, settings
from scipy import ndimage

pytestmark = [
    pytest.mark.simulate,
    # SWIG's generated types carry no __module__; nothing in this project can change that.
    pytest.mark.filterwarnings("ignore:builtin type .*has no __module__:DeprecationWarning"),
]

SHAPE = (13, 64, 64)
QUIET = {"photons_per_mm2": 0, "scatter_to_primary": 0}


def scan(chosen, volume, body, seed=0, case_id="case", number=0):
    from pipeline.simulation.scan import Simulator

    simulator = Simulator(chosen, seed)
    return simulator, simulator.scan(volume, body, slice(0, volume.array.shape[0]), case_id, number)


def test_water_is_calibrated_on_a_cylinder_with_noise_and_scatter():
    volume, body = ellipsoid(SHAPE, (1e6, 23.3, 23.3))
    simulator, result = scan(settings(), volume, body)
    found = simulator.calibration
    assert abs(found.water_centre_hu) <= 10 and abs(found.air_hu + 1000) <= 20
    assert abs(found.uncorrected_centre_hu) > 10, "the calibration does something"
    # The same cylinder in voxels, through the forward projection and whole reconstruction.
    middle = result.cbct.array[6].astype(float)
    distance = np.hypot(*(np.indices(SHAPE[1:]) - 31.5)) * 6
    assert abs(middle[distance < 35].mean()) <= 10
    assert abs(middle[(distance > 165) & (distance < 185)].mean() + 1000) <= 20


def test_without_noise_and_scatter_an_ellipsoid_comes_back_in_place():
    volume, body = ellipsoid(SHAPE, (30, 14, 20), centre=(6, 28, 35))
    array = volume.array.copy()
    array[3:6, 24:29, 40:46] = -300  # an asymmetric mark shows a flip or a shift
    volume = volume.with_array(array)
    _, result = scan(settings(**QUIET), volume, body)
    inner = ndimage.binary_erosion(body, iterations=3) & (result.field_of_view.array > 0)
    inner &= ~ndimage.binary_dilation(array == -300, iterations=2)
    error = result.cbct.array.astype(float) - result.ct.array
    assert abs(error[inner].mean()) < 8 and np.abs(error[inner]).mean() < 20
    region = ndimage.binary_dilation(body, iterations=2) & (result.field_of_view.array > 0)
    for axis in range(3):
        slope = np.gradient(result.ct.array.astype(float), axis=axis)[region]
        shift = -(slope * error[region]).sum() / (slope**2).sum()
        assert abs(shift) < 0.25, f"shifted by {shift:.2f} voxels along axis {axis}"


def test_the_same_seed_and_case_give_the_same_bytes_and_another_does_not():
    volume, body = ellipsoid(SHAPE, (30, 16, 20))
    _, first = scan(settings(), volume, body, seed=3)
    _, again = scan(settings(), volume, body, seed=3)
    _, other = scan(settings(), volume, body, seed=3, number=1)
    assert first.cbct.array.tobytes() == again.cbct.array.tobytes()
    assert first.cbct.array.tobytes() != other.cbct.array.tobytes()


def test_more_scatter_makes_more_cupping_and_correction_removes_it():
    from pipeline.simulation.scan import Simulator

    def cupping(**changes):
        return Simulator(settings(photons_per_mm2=0, **changes), 0).calibration.cupping_hu

    none, some, more = (cupping(scatter_to_primary=s, scatter_correction=0.5) for s in (0.0, 0.5, 1.5))
    assert abs(none) < 10 and none < some < more
    assert cupping(scatter_to_primary=1.5, scatter_correction=1.0) == pytest.approx(none, abs=1)


def test_fewer_photons_make_more_noise():
    from pipeline.simulation.scan import Simulator

    noise = [Simulator(settings(photons_per_mm2=n), 0).calibration.noise_hu for n in (10000, 500)]
    assert noise[1] > 2 * noise[0]


def test_half_fan_covers_a_body_that_full_fan_truncates():
    volume, body = ellipsoid(SHAPE, (30, 20, 30))  # 36 cm wide
    _, half = scan(settings(**QUIET), volume, body)
    full_settings = settings(fan="full", detector_offset_mm=0, arc_degrees=360, calibration_diameter_mm=160, **QUIET)
    _, full = scan(full_settings, volume, body)
    middle = body[6]
    assert (half.field_of_view.array[6] > 0)[middle].all()
    assert not (full.field_of_view.array[6] > 0)[middle].all()
    inner = ndimage.binary_erosion(middle, iterations=3)
    assert np.abs(half.cbct.array[6][inner]).mean() < 20
    assert (full.cbct.array[full.field_of_view.array == 0] == -1000).all()


def test_motion_blurs_and_the_neighbouring_anatomy_is_in_place():
    volume, body = ellipsoid((40, 48, 48), (1e6, 15, 18))
    array = volume.array.copy()
    array[20:24, 18:26, 20:28] = -700
    volume = volume.with_array(array)
    from pipeline.simulation.scan import Simulator

    extent = slice(14, 30)
    still = Simulator(settings(**QUIET), 0).scan(volume, body, extent, "case", 0)
    moving = Simulator(settings(motion_mm=15, **QUIET), 0).scan(volume, body, extent, "case", 0)
    assert np.abs(still.cbct.array[4:12].astype(int) - moving.cbct.array[4:12]).max() > 100
    # The scan's ends see water beyond them, so the last slices inside the field of view are water too.
    seen = (still.field_of_view.array > 0) & ndimage.binary_erosion(body[extent], iterations=3) & (array[extent] == 0)
    for end in (0, -1):
        if seen[end].any():
            assert abs(still.cbct.array[end][seen[end]].mean()) < 25
    np.testing.assert_allclose(still.ct.affine[:3, 3], (volume.affine @ [14, 0, 0, 1])[:3])


def test_the_picture_is_drawn(tmp_path):
    from pipeline.simulation.picture import draw
    from pipeline.simulation.scan import Scan

    volume, body = ellipsoid(SHAPE, (30, 16, 20))
    ct = volume.with_array(volume.array.astype(np.int16))
    draw(tmp_path / "case.png", Scan(ct, ct, volume.with_array(body.astype(np.uint8))), body, "case")
    assert (tmp_path / "case.png").read_bytes()[:4] == b"\x89PNG"
