"""evaluate: labels, sets of slices and normalised profiles, from files to scores.json."""

import numpy as np
import pytest
from scored_case import SHAPE, affine, ellipse, make_translation, settings

from pipeline.errors import ArtifactError, ConfigError, DataError
from pipeline.geometry import Volume
from pipeline.io import write_volume
from pipeline.records import Scores
from pipeline.stages import evaluate

BODY = np.where(ellipse(), 30, -1000)


def write(folder, name, array):
    folder.mkdir(exist_ok=True)
    write_volume(folder / f"{name}.nii.gz", Volume(array.astype(np.int16), affine()))
    return folder


def labelled(tmp_path, predicted, real):
    """A pair with label volumes beside it."""
    paths = {
        "prediction": [write(tmp_path / "p", "x", BODY + 5)],
        "reference": write(tmp_path / "r", "x", BODY),
        "prediction_labels": [write(tmp_path / "pl", "x", predicted)],
        "reference_labels": write(tmp_path / "rl", "x", real),
    }
    return {**paths, "output": tmp_path / "s"}


def of_labels(folder):
    scores = [s for s in Scores.load(folder).scores if s.metric in ("dice", "hd95")]
    return {(s.metric, s.region): s.value for s in scores}, {s.region: s.reason for s in scores if s.metric == "hd95"}


def organs(*numbers):
    array = np.zeros(SHAPE)
    for place, number in enumerate(numbers):
        array[2:6, 4 + 9 * place : 10 + 9 * place, 5:15] = number
    return array


def test_labels_are_scored_one_by_one_and_as_a_mean(tmp_path, capsys):
    real = organs(2, 7)
    predicted = real.copy()
    predicted[:, 12:16] = 0  # half of label 7
    evaluate.run(settings("label=mine", **labelled(tmp_path, predicted, real)))
    # A table has the columns of its region.
    table = capsys.readouterr().out.split("Region labels")[1]
    assert "Dice" in table and "MAE" not in table
    values, _ = of_labels(tmp_path / "s")
    assert values["dice", "label_2"] == 1 and values["hd95", "label_2"] == 0
    assert values["dice", "labels"] == pytest.approx((1 + values["dice", "label_7"]) / 2)
    assert values["hd95", "label_7"] > 0


def test_a_lost_label_is_not_perfect(tmp_path):
    named = "+metrics.labels={liver: 2, spleen: 7, aorta: 9}"
    evaluate.run(settings("label=mine", named, **labelled(tmp_path, organs(2), organs(2, 7))))
    values, reasons = of_labels(tmp_path / "s")
    assert values["dice", "spleen"] == 0 and values["hd95", "spleen"] is None
    assert values["dice", "aorta"] is None and "does not hold" in reasons["aorta"]
    assert values["dice", "labels"] == 0.5  # the aorta is not in the reference
    assert values["hd95", "labels"] is None and reasons["labels"] == "1 of 2 labels have no value"


def test_labels_need_a_metric_and_one_grid(tmp_path):
    paths = labelled(tmp_path, organs(2), organs(2))
    with pytest.raises(ConfigError, match="no metric of labels"):
        evaluate.run(settings("metrics=synthrad2023", **paths))
    write_volume(tmp_path / "rl/x.nii.gz", Volume(organs(2)[1:].astype(np.int16), affine()))
    with pytest.raises(DataError, match="label volumes of prediction and reference differ in grid"):
        evaluate.run(settings("label=mine", **paths))


def test_a_frechet_distance_is_one_value_per_method(tmp_path, capsys):
    folder = make_translation(tmp_path / "t", error=200.0)
    profile = ["metrics=liang2025_style", "metrics.regions=[body]", "workers=2"]
    evaluate.run(settings(*profile, input=[folder], output=tmp_path / "s"))
    scores = Scores.load(tmp_path / "s")
    assert {s.metric for s in scores.scores} == {"mae", "psnr", "ssim"}
    source, vid2vid = scores.sets
    assert (source.method, vid2vid.method) == ("source", "vid2vid")
    assert vid2vid.n == 2 * SHAPE[0] and vid2vid.value > 0 and vid2vid.metric == "frechet_efficientnet_lite0"
    entry = scores.profile["metrics"][vid2vid.metric]
    assert entry["parameters"] == {"weights": {"file": "packaged"}}
    assert scores.profile["comparable"] == "not comparable with the paper"
    assert f"region body, {vid2vid.n} slices: vid2vid {vid2vid.value:.4f}" in capsys.readouterr().out


def test_a_case_without_the_region_has_no_part_in_a_set(tmp_path):
    folder = make_translation(tmp_path / "t", empty=("case_2",))
    profile = ["metrics=liang2025_style", "metrics.regions=[body]", "evaluate.source=false"]
    evaluate.run(settings(*profile, input=[folder], output=tmp_path / "s"))
    scores = Scores.load(tmp_path / "s")
    assert [s.n for s in scores.sets] == [SHAPE[0]]
    assert any("has no part in Frechet" in note for note in scores.notes)


def test_weights_that_are_not_there(tmp_path):
    folder = make_translation(tmp_path / "t", cases=("case_1",))
    lpips = ["metrics.metrics=[mae,lpips]"]
    with pytest.raises(ConfigError, match=r"Add \+metrics\.weights\.lpips=FILE"):
        evaluate.run(settings(*lpips, input=[folder], output=tmp_path / "s"))
    with pytest.raises(ArtifactError, match=r"do not exist\. Found: lpips\.pth") as caught:
        evaluate.run(settings(*lpips, "+metrics.weights.lpips=/secret/lpips.pth", input=[folder], output="s"))
    assert "secret" not in str(caught.value)


def test_mr_is_normalised_by_the_reference(tmp_path):
    rng = np.random.default_rng(0)
    real = np.where(ellipse(), 300 + 100 * rng.random(SHAPE), 0)
    paths = {
        "prediction": [write(tmp_path / "p", "x", real + 20 * ellipse())],
        "reference": write(tmp_path / "r", "x", real),
    }
    evaluate.run(settings("metrics=brats", "label=mine", **paths, output=tmp_path / "s"))
    found = {s.metric: s for s in Scores.load(tmp_path / "s").scores if s.region == "whole"}
    low, high = np.percentile(real.astype(np.int16), [0.5, 99.5])
    change = np.clip(real.astype(np.int16) + 20 * ellipse(), low, high) - np.clip(real.astype(np.int16), low, high)
    assert found["mae"].value == pytest.approx(np.abs(change).mean() / (high - low), rel=1e-5)
    assert found["mae"].unit == "" and found["psnr"].unit == "dB"
