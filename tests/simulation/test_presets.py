"""The frozen torso preset on a real CT, by the command line: its error lies where a CBCT's does."""

import numpy as np
import pytest

from pipeline.__main__ import main
from pipeline.imaging.mask import body_mask
from pipeline.io import read_volume
from pipeline.records import Cohort


@pytest.mark.real
@pytest.mark.simulate
@pytest.mark.filterwarnings("ignore:builtin type .*has no __module__:DeprecationWarning")
def test_the_torso_is_imaged_with_the_error_and_the_place_of_a_cbct(real_data, tmp_path):
    common = ["cohort.modality=ct", "cohort.include=[torso]", "simulate=torso", "simulate.axial=crop"]
    assert main(["cohort", *common, f"input={real_data / 'ct'}", f"output={tmp_path / 'cohort'}"]) == 0
    assert main(["simulate", *common, f"input={tmp_path / 'cohort'}", f"output={tmp_path / 'sim'}"]) == 0
    cohort = Cohort.load(tmp_path / "sim")
    assert abs(cohort.made_by["calibration"]["water_centre_hu"]) <= 10
    assert abs(cohort.made_by["calibration"]["air_hu"] + 1000) <= 20
    case = cohort.cases[0]
    ct, cbct = (read_volume(cohort.path(case.volumes[name])) for name in ("ct", "cbct"))
    inside = body_mask(ct, -300) & (read_volume(cohort.path(case.masks["field_of_view"])).array > 0)
    difference = cbct.array.astype(float) - ct.array
    assert 50 <= np.abs(difference[inside]).mean() <= 150
    # In place: any shift by a voxel, along any axis, fits worse.
    shifted = [
        np.abs(np.roll(cbct.array, step, axis).astype(float) - ct.array)[inside].mean()
        for axis in range(3)
        for step in (-1, 1)
    ]
    assert np.abs(difference[inside]).mean() < min(shifted)
