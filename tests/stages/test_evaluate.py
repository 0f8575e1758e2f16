"""evaluate: with a cohort, without one, regions, grids, broken cases, and what is written."""

import csv
import json

import numpy as np
import pytest
from scored_case import SHAPE, affine, ellipse, make_translation, settings

from pipeline.config import conf_folder
from pipeline.errors import ArtifactError, ConfigError, DataError, GeometryError
from pipeline.geometry import Volume
from pipeline.io import write_volume
from pipeline.metrics import check_metrics
from pipeline.metrics.pairing import safe_case
from pipeline.records import Scores, Translation
from pipeline.stages import evaluate


def values(scores, metric="mae"):
    return {(s.case, s.method, s.region): s.value for s in scores.scores if s.metric == metric}


def test_scores_of_a_translation(tmp_path, capsys):
    folder = make_translation(tmp_path / "t")
    evaluate.run(settings(input=[folder], output=tmp_path / "s"))
    scores = Scores.load(tmp_path / "s")
    assert scores.methods() == ["source", "vid2vid"]
    mae = values(scores)
    assert mae["case_1", "vid2vid", "mask"] == 20
    assert mae["case_1", "source", "body"] == 60
    assert mae["case_2", "vid2vid", "whole"] < 20
    assert {s.unit for s in scores.scores if s.metric == "slice_continuity"} == {"HU"}
    row = next(s for s in scores.summary if (s.method, s.region, s.metric) == ("vid2vid", "mask", "mae"))
    assert (row.mean, row.sd, row.n) == (20, 0, 2)
    assert scores.profile["data_range"] == 4095 and "sample covariance" in scores.profile["window"]
    assert scores.profile["metrics"]["ssim"]["origin"] == "Cinevox"
    assert scores.translations == [str(folder.resolve())] and scores.notes == []
    data = json.loads((tmp_path / "s/scores.json").read_text())
    assert data["schema"] == 1 and set(data) >= {"profile", "scores", "summary"}
    with (tmp_path / "s/scores.csv").open() as stream:
        of_volumes = [entry for entry in scores.profile["metrics"].values() if entry["needs"] == "volumes"]
        assert len(list(csv.DictReader(stream))) == len(scores.scores) == 2 * 2 * 3 * len(of_volumes)
    out = capsys.readouterr().out
    assert "Region mask" in out and "20.0 ± 0.0" in out


def test_mask_is_body_and_field_of_view(tmp_path):
    folder = make_translation(tmp_path / "t", cases=("case_1",), error=0)
    # An error outside the field of view but inside the body changes 'body' and not 'mask'.
    body, fov = ellipse(), ellipse(size=0.5)
    reference = np.zeros(SHAPE, np.int16)
    reference[~body] = -1000
    wrong = reference + np.where(body & ~fov, 100, 0).astype(np.int16)
    write_volume(folder / "case_1_reference.nii.gz", Volume(reference, affine()))
    write_volume(folder / "case_1_prediction.nii.gz", Volume(wrong, affine()))
    evaluate.run(settings("evaluate.source=false", input=[folder], output=tmp_path / "s"))
    mae = values(Scores.load(tmp_path / "s"))
    assert mae["case_1", "vid2vid", "mask"] == 0
    assert mae["case_1", "vid2vid", "body"] > 10


def test_no_mask_means_no_mask_region_and_source_is_optional(tmp_path):
    folder = make_translation(tmp_path / "t", fov=False)
    evaluate.run(settings("evaluate.source=false", input=[folder], output=tmp_path / "s"))
    scores = Scores.load(tmp_path / "s")
    assert {s.region for s in scores.scores} == {"body", "whole"}
    assert scores.methods() == ["vid2vid"]


def test_empty_body_is_undefined_with_a_reason(tmp_path):
    folder = make_translation(tmp_path / "t", empty=("case_2",))
    evaluate.run(settings(input=[folder], output=tmp_path / "s"))
    for score in Scores.load(tmp_path / "s").scores:
        if score.case == "case_2" and score.region != "whole":
            assert score.value is None and "no body was found" in score.reason


def test_several_methods_share_one_source_and_two_workers_agree(tmp_path):
    inputs = [make_translation(tmp_path / "a", "first"), make_translation(tmp_path / "b", "second", error=10.0)]
    evaluate.run(settings(input=inputs, output=tmp_path / "s"))
    evaluate.run(settings("workers=2", input=inputs, output=tmp_path / "s2"))
    one, two = Scores.load(tmp_path / "s"), Scores.load(tmp_path / "s2")
    assert one == two
    assert one.methods() == ["source", "first", "second"]
    keys = [(s.case, s.method, s.region, s.metric) for s in one.scores]
    assert len(keys) == len(set(keys))
    with pytest.raises(ConfigError, match="Two inputs have the label 'first'"):
        evaluate.run(settings(input=[inputs[0], inputs[0]], output=tmp_path / "s3"))


def test_reference_on_another_grid_is_resampled_and_recorded(tmp_path):
    def half(array):  # every second column, and the upper slices only
        return array[2:, :, ::2], affine((4.0, 6.0, 12.0), (100.0, 90.0, -12.0))

    folder = make_translation(tmp_path / "t", reference_grid=half, error=0.0)
    evaluate.run(settings(input=[folder], output=tmp_path / "s"))
    scores = Scores.load(tmp_path / "s")
    assert any("resampled onto the prediction's grid" in note for note in scores.notes)
    assert any("80.0 %" in note for note in scores.notes)
    # What the reference does not cover is no error: scores stay near those of the covered part.
    assert values(scores)["case_1", "vid2vid", "mask"] < 40


def test_a_broken_case_does_not_take_the_others_down(tmp_path, capsys):
    folder = make_translation(tmp_path / "t")
    (folder / "case_1_prediction.nii.gz").write_bytes(b"not an image")
    config = settings(input=[folder], output=tmp_path / "s")
    with pytest.raises(DataError, match="case 'case_1'") as caught:
        evaluate.run(config)
    assert caught.value.exit_code == 2 and str(tmp_path / "t") not in str(caught.value)
    scores = Scores.load(tmp_path / "s")
    assert {s.case for s in scores.scores if s.method == "vid2vid"} == {"case_2"}
    assert any(note.startswith("Left out: case 'case_1'") for note in scores.notes)
    # A second run does not compute again and tells the same.
    with pytest.raises(DataError, match="case 'case_1'"):
        evaluate.run(config)
    assert "finished already" in capsys.readouterr().err


def test_rerun_and_changed_settings(tmp_path, capsys):
    folder = make_translation(tmp_path / "t", cases=("case_1",))
    evaluate.run(settings(input=[folder], output=tmp_path / "s"))
    stamp = (tmp_path / "s/scores.json").stat().st_mtime_ns
    evaluate.run(settings(input=[folder], output=tmp_path / "s"))
    assert (tmp_path / "s/scores.json").stat().st_mtime_ns == stamp
    assert "nothing to do" in capsys.readouterr().err
    with pytest.raises(ArtifactError, match=r"evaluate\.source: True -> False"):
        evaluate.run(settings("evaluate.source=false", input=[folder], output=tmp_path / "s"))


def test_dry_run_writes_nothing(tmp_path, capsys):
    folder = make_translation(tmp_path / "t", cases=("case_1",))
    evaluate.run(settings(dry_run=True, input=[folder], output=tmp_path / "s"))
    assert not (tmp_path / "s").exists()
    assert "case_1" in capsys.readouterr().err


def pair(folder, name, array, matrix=None):
    folder.mkdir(exist_ok=True)
    write_volume(folder / name, Volume(array.astype(np.int16), affine() if matrix is None else matrix))
    return folder / name


BODY = np.where(ellipse(), 30, -1000)


def test_pairs_of_files_need_no_cohort(tmp_path):
    for name in ("x", "Müller, Anna"):
        pair(tmp_path / "p", f"{name}.nii.gz", BODY + 5)
        pair(tmp_path / "r", f"{name}.mha", BODY)
        pair(tmp_path / "m", f"{name}.nii.gz", ellipse(size=0.3))
    paths = {"prediction": [tmp_path / "p"], "reference": tmp_path / "r", "mask": tmp_path / "m"}
    evaluate.run(settings("label=mine", **paths, output=tmp_path / "s"))
    scores = Scores.load(tmp_path / "s")
    assert values(scores)["x", "mine", "mask"] == 5
    # A file's name that is not a safe case name may be a patient's: it becomes a pseudonym.
    assert {s.case for s in scores.scores} == {"x", safe_case("Müller, Anna")}
    assert "Anna" not in (tmp_path / "s/scores.csv").read_text()
    assert len(Translation.load(tmp_path / "s/volumes.json").cases) == 2


def test_missing_partner_is_counted(tmp_path):
    for name in ("x", "y"):
        pair(tmp_path / "r", f"{name}.nii.gz", BODY)
    pair(tmp_path / "p", "x.nii.gz", BODY + 5)
    with pytest.raises(DataError, match="case 'y': no prediction"):
        evaluate.run(settings(prediction=[tmp_path / "p"], reference=tmp_path / "r", output=tmp_path / "s"))
    assert {s.case for s in Scores.load(tmp_path / "s").scores} == {"x"}


def test_single_pair_on_two_grids(tmp_path):
    p = pair(tmp_path / "p", "x.nii.gz", BODY)
    r = pair(tmp_path / "r", "y.nii.gz", BODY[:, ::2], affine((4.0, 12.0, 6.0)))
    with pytest.raises(GeometryError, match=r"size \(10, 32, 36\).*size \(10, 16, 36\).*evaluate.resample"):
        evaluate.run(settings(prediction=[p], reference=r, output=tmp_path / "s"))
    assert not (tmp_path / "s").exists()
    evaluate.run(settings("evaluate.resample=true", prediction=[p], reference=r, output=tmp_path / "s"))
    assert any("resampled" in note for note in Scores.load(tmp_path / "s").notes)


def test_other_axis_order_is_the_same_grid(tmp_path):
    flipped = affine()
    flipped[:3, 3] += flipped[:3, 2] * (SHAPE[2] - 1)
    flipped[:3, 2] *= -1
    rng = np.random.default_rng(0)
    array = BODY + rng.integers(-20, 20, SHAPE)
    p = pair(tmp_path / "p", "x.nii.gz", array[:, :, ::-1], flipped)
    r = pair(tmp_path / "r", "y.nii.gz", array)
    evaluate.run(settings(prediction=[p], reference=r, output=tmp_path / "s"))
    assert values(Scores.load(tmp_path / "s"))["x", "prediction", "whole"] == 0


@pytest.mark.parametrize(
    ("overrides", "paths", "message"),
    [
        ([], {}, "either translations or pairs"),
        ([], {"prediction": ["p"]}, "needs reference"),
        (["metrics.metrics=[mae,ssimm]"], {"input": ["t"]}, "Did you mean 'ssim'"),
        (["metrics.regions=[bdy]"], {"input": ["t"]}, "Did you mean 'body'"),
        (["metrics.unit=a.u."], {"input": ["t"]}, "within_50_hu"),
        (["metrics.unit=a.u.", "metrics.metrics=[mae]", "metrics.extra=[]"], {"input": ["t"]}, "for volumes in a.u."),
    ],
)
def test_settings_that_cannot_work(tmp_path, monkeypatch, overrides, paths, message):
    monkeypatch.chdir(tmp_path)
    make_translation(tmp_path / "t", cases=("case_1",))
    with pytest.raises(ConfigError, match=message):
        evaluate.run(settings(*overrides, **paths, output=tmp_path / "s"))
    assert not (tmp_path / "s").exists()


def test_every_profile_names_metrics_that_exist():
    for path in sorted((conf_folder() / "metrics").glob("[!_]*.yaml")):
        config = settings(f"metrics={path.stem}")
        check_metrics(config.metrics)
        assert config.metrics.profile == path.stem
        assert config.metrics.title and config.metrics.note and config.metrics.comparable
