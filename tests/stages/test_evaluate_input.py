"""Evaluate meets what people have: volumes that do not fit, cannot be scored, or are named to do harm."""

import csv
import re

import numpy as np
import pytest
from scored_case import SHAPE, affine, ellipse, settings

from pipeline.__main__ import main
from pipeline.errors import ConfigError, DataError, GeometryError
from pipeline.geometry import Volume, reorder
from pipeline.io import read_volume, write_volume
from pipeline.records import Scores
from pipeline.reporting.latex import escape
from pipeline.stages import evaluate

BODY = np.where(ellipse(), 30.0, -1000.0)
OPTIONS = ("metrics.metrics=[mae,psnr]", "metrics.extra=[ncc]", "metrics.regions=[mask,body,whole]")


def write(path, array, matrix=None, dtype=np.int16):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, Volume(np.asarray(array).astype(dtype), affine() if matrix is None else matrix))
    return path


def score(tmp_path, *overrides, prediction=None, mask=None, **more):
    """Evaluate ``p`` against ``r`` and return the scores that were written, also where cases were left out."""
    paths = {"prediction": prediction or [tmp_path / "p"], "reference": tmp_path / "r", "mask": mask, **more}
    try:
        evaluate.run(settings(*OPTIONS, *overrides, **paths, output=tmp_path / "s"))
    finally:
        written = (tmp_path / "s/scores.json").exists()
        scores = Scores.load(tmp_path / "s") if written else None
    return scores


def value(scores, metric="mae", region="whole", case="x"):
    (found,) = (s for s in scores.scores if (s.metric, s.region, s.case) == (metric, region, case))
    return found.value, found.reason


GRIDS = {
    "shape": (BODY[:, ::2], affine((4.0, 12.0, 6.0)), r"size \(10, 32, 36\) and \(10, 16, 36\)"),
    "spacing": (BODY, affine((4.0, 6.0, 6.5)), r"spacing \(4.0, 6.0, 6.0\) and \(4.0, 6.0, 6.5\) mm"),
    "origin": (BODY, affine(origin=(100.0, 90.0, -16.0)), "origin .*-20.0.* and .*-16.0"),
}


@pytest.mark.parametrize("name", GRIDS)
def test_another_grid_is_refused_with_both_and_resampled_on_request(tmp_path, name):
    array, matrix, message = GRIDS[name]
    for case in ("x", "y"):
        write(tmp_path / "p" / f"{case}.nii.gz", BODY + 5)
        write(tmp_path / "r" / f"{case}.nii.gz", BODY)
    write(tmp_path / "r/x.nii.gz", array, matrix)
    with pytest.raises(DataError, match=f"case 'x'.*{message}.*prediction: size.*reference: size.*evaluate.resample"):
        score(tmp_path)
    assert {s.case for s in Scores.load(tmp_path / "s").scores} == {"y"}  # the other case is scored
    (tmp_path / "s").rename(tmp_path / "first")
    scores = score(tmp_path, "evaluate.resample=true")
    assert any("x" in note and "resampled onto the prediction's grid" in note for note in scores.notes)
    assert value(scores)[0] is not None


def test_a_direction_that_is_not_a_change_of_axes_is_refused(tmp_path):
    turn = affine()
    angle = np.radians(10)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    turn[:3, :3] = rotation @ turn[:3, :3]
    prediction = write(tmp_path / "p.nii.gz", BODY)
    write(tmp_path / "r.nii.gz", BODY, turn)
    with pytest.raises(GeometryError, match=r"direction .* 10\.00 degrees apart"):
        score(tmp_path, prediction=[prediction], reference=tmp_path / "r.nii.gz")


def test_a_mask_on_another_grid_is_refused_too(tmp_path):
    write(tmp_path / "p/x.nii.gz", BODY)
    write(tmp_path / "r/x.nii.gz", BODY)
    write(tmp_path / "m/x.nii.gz", ellipse()[:, ::2], affine((4.0, 12.0, 6.0)))
    with pytest.raises(DataError, match="Prediction and mask differ in grid"):
        score(tmp_path, mask=tmp_path / "m")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1), (-1.02, 0.98)])
def test_a_normalised_prediction_is_no_prediction_in_hu(tmp_path, low, high):
    write(tmp_path / "p/x.nii.gz", low + (BODY + 1000) / 1030 * (high - low), dtype=np.float32)
    write(tmp_path / "r/x.nii.gz", BODY)
    with pytest.raises(DataError, match=r"The prediction is normalised, and HU are expected.*Found: values from") as e:
        score(tmp_path)
    assert "Map the prediction back to HU" in str(e.value)


def test_swapped_volumes_are_noticed_too(tmp_path):
    write(tmp_path / "p/x.nii.gz", BODY)
    write(tmp_path / "r/x.nii.gz", (BODY + 1000) / 1030, dtype=np.float32)
    with pytest.raises(DataError, match="The reference is normalised, and HU are expected"):
        score(tmp_path)


def test_values_without_air_are_scored_with_a_doubt(tmp_path):
    write(tmp_path / "p/x.nii.gz", BODY + 1024)
    write(tmp_path / "r/x.nii.gz", BODY)
    scores = score(tmp_path)
    assert value(scores)[0] == 1024
    assert any("the prediction has no value below 0 HU (24 to 1054)" in note for note in scores.notes)


def test_nan_in_a_prediction_has_no_value_and_in_a_reference_is_not_scored(tmp_path):
    broken = BODY.copy()
    broken[5, 16, 10:14] = np.nan
    write(tmp_path / "p/x.nii.gz", broken, dtype=np.float32)
    write(tmp_path / "r/x.nii.gz", BODY)
    write(tmp_path / "p/y.nii.gz", BODY + 5)
    write(tmp_path / "r/y.nii.gz", broken, dtype=np.float32)
    scores = score(tmp_path)
    assert value(scores) == (None, "the prediction holds 4 voxels that are not finite")
    assert value(scores, case="y")[0] == 5
    assert any("'y'" in note and "the reference is finite in" in note for note in scores.notes)
    (row,) = (r for r in scores.summary if (r.region, r.metric) == ("whole", "mae"))
    assert (row.n, row.cases, row.undefined) == (1, 1, 1)


def test_an_empty_mask_and_constant_volumes_have_no_value_rather_than_zero(tmp_path):
    write(tmp_path / "p/x.nii.gz", BODY + 5)
    write(tmp_path / "r/x.nii.gz", BODY)
    write(tmp_path / "m/x.nii.gz", np.zeros(SHAPE))
    write(tmp_path / "p/y.nii.gz", np.full(SHAPE, -1000))
    write(tmp_path / "r/y.nii.gz", np.full(SHAPE, -1000))
    write(tmp_path / "m/y.nii.gz", np.ones(SHAPE))
    scores = score(tmp_path, mask=tmp_path / "m")
    assert value(scores, region="mask") == (None, "the mask is empty")
    assert value(scores, region="whole")[0] == 5
    assert value(scores, "ncc", "mask", "y")[0] is None
    assert value(scores, "mae", "mask", "y")[0] == 0
    assert "no body was found" in value(scores, "mae", "body", "y")[1]


def test_one_missing_case_is_named_and_the_others_are_scored(tmp_path):
    for case in ("x", "y", "z"):
        write(tmp_path / "r" / case / "ct.nii.gz", BODY)
        write(tmp_path / "r" / case / "mask.nii.gz", ellipse())
        write(tmp_path / "a" / f"sct_{case}.nii.gz", BODY + 5)
        write(tmp_path / "b" / f"{case}.mha", BODY + 10)
    (tmp_path / "b/y.mha").unlink()
    places = {"reference": tmp_path / "r/*/ct.nii.gz", "mask": tmp_path / "r/*/mask.nii.gz"}
    with pytest.raises(DataError, match=r"1 comparison could not be scored\. Left out: case 'y': no prediction by 'b'"):
        score(tmp_path, prediction=[tmp_path / "a/sct_*.nii.gz", tmp_path / "b"], **places)
    scores = Scores.load(tmp_path / "s")
    assert {
        m: [s.case for s in scores.scores if (s.method, s.metric, s.region) == (m, "mae", "mask")] for m in "ab"
    } == {
        "a": ["x", "y", "z"],
        "b": ["x", "z"],
    }
    assert any("scored on different cases (a 3, b 2)" in note for note in scores.notes)
    (pair,) = (c for c in scores.comparisons if (c.region, c.metric) == ("mask", "mae"))
    assert (pair.a, pair.b, pair.n, pair.difference, pair.p) == ("a", "b", 2, -5, None)
    assert [p.name for p in sorted((tmp_path / "s").glob("volumes*.json"))] == ["volumes.json", "volumes_2.json"]


def test_many_left_out_are_counted_and_ten_named(tmp_path):
    for number in range(13):
        write(tmp_path / "r" / f"c{number:02}.nii.gz", BODY)
    write(tmp_path / "p/c00.nii.gz", BODY)
    with pytest.raises(DataError, match=r"12 comparisons could not be scored.*case 'c10'.*; and 2 more") as e:
        score(tmp_path)
    assert "c11" not in str(e.value)


def test_methods_need_names_of_their_own(tmp_path):
    for folder in ("one/out", "two/out"):
        write(tmp_path / folder / "x.nii.gz", BODY)
    write(tmp_path / "r/x.nii.gz", BODY)
    both = [tmp_path / "one/out", tmp_path / "two/out"]
    with pytest.raises(ConfigError, match=r"Every prediction needs a name of its own.*out, out.*evaluate\.labels"):
        score(tmp_path, prediction=both)
    scores = score(tmp_path, "evaluate.labels=[one,two]", prediction=both)
    assert scores.methods() == ["one", "two"]


@pytest.mark.parametrize("label", ["=cmd()", "<img src=x onerror=alert(1)>", r"\input{x}", "100%", "a & b", "@SUM(1)"])
def test_a_hostile_name_is_text_in_every_file(tmp_path, label):
    write(tmp_path / "p/x.nii.gz", BODY)
    write(tmp_path / "r/x.nii.gz", BODY)
    evaluate.run(
        settings(*OPTIONS, output=tmp_path / "s", prediction=[tmp_path / "p"], reference=tmp_path / "r")
        .model_copy(update={"label": label})
    )  # fmt: skip
    for name in ("scores.csv", "summary.csv"):
        with (tmp_path / "s" / name).open() as stream:
            methods = {line["method"] for line in csv.DictReader(stream)}
        assert methods == {"'" + label if label[0] in "=@" else label}
    rows = [line for line in (tmp_path / "s/summary.tex").read_text().splitlines() if line.startswith(escape(label))]
    assert len(rows) == 2 and all(len(re.findall(r"(?<!\\)&", row)) == 3 for row in rows)


def test_patients_and_cohorts_are_read_from_names(tmp_path):
    for number, case in enumerate(("p1_a", "p1_b", "p2_a")):
        write(tmp_path / "p" / f"{case}.nii.gz", BODY + 3 * number)
        write(tmp_path / "r" / f"{case}.nii.gz", BODY)
    scores = score(tmp_path, "evaluate.patient_pattern='^(p.)'", "evaluate.cohort_pattern='_(.)$'")
    rows = {r.cohort: r for r in scores.summary if (r.region, r.metric) == ("whole", "mae")}
    assert {c: (r.n, r.cases, r.mean) for c, r in rows.items()} == {
        "": (2, 3, 3.75),
        "a": (2, 2, 3.0),
        "b": (1, 1, 3.0),
    }


def test_the_command_line_takes_several_predictions_and_ends_with_2(tmp_path, capsys):
    for case in ("x", "y"):
        write(tmp_path / "r" / case / "ct.nii.gz", BODY)
        write(tmp_path / "a" / f"{case}.nii.gz", BODY + 5)
    write(tmp_path / "b [new]/sct_x.nii.gz", BODY + 10)
    words = [f"prediction={tmp_path / 'a'}", f"prediction={tmp_path / 'b [new]'}/sct_*.nii.gz", "evaluate.labels=[a,b]"]
    assert (
        main(["evaluate", *words, f"reference={tmp_path / 'r'}", "workers=1", *OPTIONS, f"output={tmp_path / 's'}"])
        == 2
    )
    captured = capsys.readouterr()
    assert "Error: 1 comparison could not be scored. Left out: case 'y': no prediction by 'b'" in captured.err
    assert Scores.load(tmp_path / "s").methods() == ["a", "b"]


@pytest.mark.real
def test_real_volumes_turned_in_storage_and_in_another_unit(tmp_path, real_data):
    reference = read_volume(real_data / "mr_ct/template_ct.nii.gz")
    turned = reorder(reference, "LAI")
    write_volume(tmp_path / "ct.mha", turned.with_array(np.rint(turned.array + 10).astype(np.int16)))
    scaled = np.clip((reference.array.astype(np.float32) + 1024) / 4095, 0, 1)
    write_volume(tmp_path / "unit.nii.gz", reference.with_array(scaled))
    place = {"reference": real_data / "mr_ct/template_ct.nii.gz"}
    scores = score(tmp_path, prediction=[tmp_path / "ct.mha"], **place)
    assert value(scores, case="ct")[0] == pytest.approx(10, abs=0.1)  # the template is not in whole HU
    (tmp_path / "s").rename(tmp_path / "first")
    with pytest.raises(DataError, match="The prediction is normalised, and HU are expected"):
        score(tmp_path, prediction=[tmp_path / "unit.nii.gz"], **place)
