"""Translate and evaluate in parts: the join makes what one run makes, lists what failed, and loses nothing else."""

import json

import numpy as np
import pytest
from scored_case import make_translation, settings
from test_translate import ct_run, run, train_identity  # noqa: F401 - the run is this file's too

from pipeline.__main__ import main
from pipeline.errors import ArtifactError, DataError
from pipeline.metrics import scored
from pipeline.metrics.scoring import CaseResult
from pipeline.parts import missing_parts
from pipeline.records import Score, Scores, Translation
from pipeline.stages import evaluate

METRICS = ("metrics.metrics=[mae,ncc]", "metrics.extra=[frechet_efficientnet_lite0]", "metrics.regions=[mask,body]")
CASES = ("a", "b", "c", "d")


def content(folder):
    notes = {"translation.json", "stage.json"}
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "parts")
    return {path.relative_to(folder): path.read_bytes() for path in files if path.name not in notes}


def finished(folder):
    return json.loads((folder / "stage.json").read_text())["finished"]


def translate(run, shards, output, part):  # noqa: F811
    words = ["translate", f"checkpoint={run}", f"input={shards}", f"output={output}", "translate.split=all"]
    return main([*words, *([f"part={part}"] if part else [])])


def without_times(folder):
    record = Translation.load(folder)
    return record.model_copy(update={"cases": [case.model_copy(update={"seconds": 0.0}) for case in record.cases]})


def test_translations_of_parts_are_those_of_one_run(run, tiny_shards, tmp_path):  # noqa: F811
    for part in ("", "3/3", "1/3", "2/3", "join"):
        assert translate(run, tiny_shards, tmp_path / ("joined" if part else "whole"), part) == 0
    assert content(tmp_path / "joined") == content(tmp_path / "whole")
    assert without_times(tmp_path / "joined") == without_times(tmp_path / "whole")
    assert len(Translation.load(tmp_path / "joined").cases) == 4
    assert finished(tmp_path / "joined")
    notes = [json.loads(path.read_text()) for path in (tmp_path / "joined" / "parts").iterdir()]
    taken = {case: seconds for note in notes for case, seconds in note["seconds"].items()}
    assert {case.case_id: case.seconds for case in Translation.load(tmp_path / "joined").cases} == taken


def test_a_volume_that_fails_is_listed_and_tried_again(ct_run, tmp_path, capsys):  # noqa: F811
    volumes = make_translation(tmp_path / "in", cases=CASES)
    source = tmp_path / "ct"
    source.mkdir()
    for case in CASES:
        (volumes / f"{case}_reference.nii.gz").rename(source / f"{case}.nii.gz")
    whole = (source / "b.nii.gz").read_bytes()
    (source / "b.nii.gz").write_bytes(whole[:-100])

    def part(which):
        return main(["translate", f"checkpoint={ct_run}", f"input={source}", f"output={tmp_path / 'out'}",
                     f"part={which}"])  # fmt: skip

    assert part("2/2") == 2  # b and d: d is made all the same
    assert "1 of 2 cases were left out (the others are written): b: " in capsys.readouterr().err
    assert part("join") == 0  # the first part has not come to its end
    said = capsys.readouterr().err
    assert "Left out: b: " in said and "Left out: a: the part that translates it did not end" in said
    assert part("1/2") == 0
    assert part("join") == 0
    record = Translation.load(tmp_path / "out")
    assert [case.case_id for case in record.cases] == ["a", "c", "d"]
    assert [case.case_id for case in record.excluded] == ["b"]
    assert missing_parts(tmp_path / "out", 2) == [2]
    assert not finished(tmp_path / "out")


def test_a_join_of_no_translation_is_an_error(run, tiny_shards, tmp_path, capsys):  # noqa: F811
    assert translate(run, tiny_shards, tmp_path / "out", "join") == 2
    assert "4 of 4 cases were left out" in capsys.readouterr().err
    assert not (tmp_path / "out" / Translation.FILE).exists()


def score(translation, output, part=""):
    evaluate.run(settings(*METRICS, input=[translation], output=output, part=part))


def test_scores_of_parts_are_those_of_one_run_with_sets_and_statistics(tmp_path):
    translation = make_translation(tmp_path / "t", cases=CASES)
    score(translation, tmp_path / "whole")
    for part in ("2/3", "3/3", "1/3", "join"):
        score(translation, tmp_path / "joined", part)
    assert content(tmp_path / "joined") == content(tmp_path / "whole")
    scores = Scores.load(tmp_path / "joined")
    assert {s.n for s in scores.sets} == {4 * 10}  # all slices of all cases, whoever scored them
    assert finished(tmp_path / "joined")
    score(translation, tmp_path / "joined", "1/3")  # nothing to do, and nothing is undone
    assert content(tmp_path / "joined") == content(tmp_path / "whole")


def test_a_case_that_cannot_be_scored_is_listed_and_tried_again(tmp_path, capsys):
    translation = make_translation(tmp_path / "t", cases=CASES)
    broken = translation / "b_prediction.nii.gz"
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"1 of 2 cases could not be scored .*case 'b'"):
        score(translation, tmp_path / "s", "2/2")
    score(translation, tmp_path / "s", "join")
    assert "Left out: case 'a' (vid2vid): the part that scores it did not end" in capsys.readouterr().err
    score(translation, tmp_path / "s", "1/2")
    score(translation, tmp_path / "s", "join")
    scores = Scores.load(tmp_path / "s")
    assert {s.case for s in scores.scores if s.method == "vid2vid"} == {"a", "c", "d"}
    assert [note for note in scores.notes if note.startswith("Left out: case 'b'")]
    assert missing_parts(tmp_path / "s", 2) == [2]
    assert not finished(tmp_path / "s")


def test_a_join_of_no_score_is_an_error(tmp_path):
    with pytest.raises(DataError, match="did not end"):
        score(make_translation(tmp_path / "t", cases=("a",)), tmp_path / "s", "join")


def test_a_killed_evaluation_goes_on_at_the_cases_that_it_had_not_scored(tmp_path, monkeypatch):
    translation = make_translation(tmp_path / "t", cases=CASES)
    calls = []
    real = evaluate.score_case

    def until_the_third(job):
        calls.append(job.case)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(job)

    monkeypatch.setattr(evaluate, "score_case", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        score(translation, tmp_path / "s")
    score(translation, tmp_path / "s")
    assert calls == ["a", "b", "c", "c", "d"]
    score(translation, tmp_path / "whole")
    assert content(tmp_path / "s") == content(tmp_path / "whole")


def test_a_result_comes_back_equal_and_a_damaged_one_is_named(tmp_path):
    row = {"case": "a", "patient": "p", "method": "m", "region": "body", "metric": "mae", "unit": "HU"}
    values = [Score(**row, value=0.1 + 0.2, better="lower"), Score(**row, value=None, better="lower", reason="none")]
    arrays = tuple(np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32))
    result = CaseResult(values, ["a note"], ["left out"], {("m", "body", "frechet"): arrays})
    scored.save_result(tmp_path, "a", result)
    back = scored.load_result(tmp_path, "a")
    assert (back.scores, back.notes, back.excluded) == (values, ["a note"], ["left out"])
    (features,) = back.features.values()
    assert all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(features, arrays, strict=True))
    assert scored.load_result(tmp_path, "b") is None
    (tmp_path / "scored" / "a.npz").write_bytes(b"no archive")
    with pytest.raises(ArtifactError, match="result of case 'a' is damaged"):
        scored.load_result(tmp_path, "a")
