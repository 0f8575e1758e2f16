"""One model of many pairs: what it was trained on stands in its checkpoint, and translate takes any of them."""

from pathlib import Path

import numpy as np
import pytest
from makers import alter_index, pair, write_cohort

from pipeline.__main__ import main
from pipeline.io import read_volume
from pipeline.records import Scores, ShardIndex, Translation

WORDS = ["model=identity", "tracking=none", "workers=1", "stream.pairing=every_pair"]
SHORT = ["stream.clip_length=1", "stream.clip_growth=1", "trainer.budget.steps=1"]


def prepared(place: Path, cases: dict, spacing: str, **more) -> Path:
    cohort = write_cohort(place / "cohort", cases, splits={next(iter(cases)): "test"}, **more)
    size = f"preprocess.size=[32,32] preprocess.spacing_mm={spacing}".split()
    assert main(["preprocess", *WORDS, *size, f"input={cohort}", f"output={place / 'shards'}"]) == 0
    return place / "shards"


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> tuple[list[Path], Path]:
    """Shards of CT and CBCT at one spacing, of T1 and T2 at another, and a run on all pairs of both."""
    place = tmp_path_factory.mktemp("pairs")
    ct = prepared(place / "ct", {"a": pair(1), "b": pair(2)}, "[4,5,5]")
    heads = {name: {"t1n": pair(seed)["ct"], "t2w": pair(seed)["cbct"]} for name, seed in (("c", 3), ("d", 4))}
    masks = {name: {"body": head["t1n"].with_array(head["t1n"].array > -500)} for name, head in heads.items()}
    mr = prepared(place / "mr", heads, "[4,5,6]", units={"t1n": "a.u.", "t2w": "a.u."}, masks=masks)
    command = ["train", *WORDS, *SHORT, f"input={ct}", f"input={mr}", f"output={place / 'run'}"]
    assert main(command) == 0
    return [ct, mr], place / "run"


@pytest.mark.parametrize(("source", "target", "folder"), [("ct", "cbct", 0), ("cbct", "ct", 0), ("t2w", "t1n", 1)])
def test_any_pair_that_it_was_trained_on_is_translated_at_its_own_spacing(many, tmp_path, source, target, folder):
    shards, run = many
    words = [f"checkpoint={run}", f"input={shards[folder]}", f"source_modality={source}", f"target_modality={target}"]
    assert main(["translate", *words, f"output={tmp_path / 'out'}"]) == 0
    record = Translation.load(tmp_path / "out")
    assert (record.source_modality, record.target_modality) == (source, target)
    (case,) = record.cases
    assert Path(case.source).stem == source and Path(case.reference).stem == target
    volume = read_volume(Path(case.source))
    assert (
        main(["translate", f"checkpoint={run}", f"input={case.source}", *words[2:], f"output={tmp_path / 'one'}"]) == 0
    )
    (alone,) = Translation.load(tmp_path / "one").cases
    one, other = (read_volume(tmp_path / p).array for p in (f"out/{case.prediction}", f"one/{alone.prediction}"))
    assert one.shape == volume.array.shape
    assert np.median(np.abs(one.astype(float) - other)) <= (1.0 if target in ("ct", "cbct") else 0.02)


def test_the_runs_own_pair_needs_no_words(many, tmp_path):
    shards, run = many
    assert main(["translate", f"checkpoint={run}", f"input={shards[0]}", f"output={tmp_path / 'out'}"]) == 0
    assert Translation.load(tmp_path / "out").target_modality == "ct"


def test_a_pair_that_it_was_not_trained_on_is_refused_with_those_that_it_was(many, tmp_path, capsys):
    shards, run = many
    words = ["translate", f"checkpoint={run}", f"input={shards[1]}", f"output={tmp_path / 'out'}"]
    assert main([*words, "source_modality=t2w", "target_modality=ct"]) == 2
    assert "Found: t2w:ct. Allowed: cbct:ct, ct:cbct, t1n:t2w, t2w:t1n." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words, "source_modality=T2", "target_modality=ct"]) == 2


def test_shards_at_another_spacing_than_the_modalitys_are_refused(many, tmp_path, capsys):
    shards, run = many
    other = tmp_path / "other"
    other.mkdir()
    for path in shards[1].iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    alter_index(other, lambda index: index.update(spacing_mm=[4.0, 5.0, 5.0]))
    words = ["source_modality=t1n", "target_modality=t2w", f"output={tmp_path / 'out'}"]
    assert main(["translate", f"checkpoint={run}", f"input={other}", *words]) == 2
    assert "prepared differently" in capsys.readouterr().err


def test_an_mr_target_in_the_range_of_the_cases_own_is_scored(many, tmp_path, capsys):
    shards, run = many
    words = [
        "translate",
        f"checkpoint={run}",
        "source_modality=t2w",
        "target_modality=t1n",
        "translate.range=reference",
    ]
    assert main([*words, f"input={shards[1]}", f"output={tmp_path / 'out'}"]) == 0
    record = Translation.load(tmp_path / "out")
    (case,) = record.cases
    assert record.unit == "a.u."
    reference, found = (read_volume(Path(p)).array for p in (case.reference, tmp_path / "out" / case.prediction))
    index = ShardIndex.load(shards[1])
    low, high = next(c.percentiles["t1n"] for c in index.cases if c.case_id == case.case_id)
    inside = read_volume(Path(case.mask)).array > 0
    assert found[inside].max() == pytest.approx(high, rel=1e-4)
    assert found.min() >= low - 0.1
    assert (found[~inside] == 0).mean() > 0.9  # where nothing was imaged is no tissue's darkest value
    assert np.corrcoef(reference[inside], found[inside])[0, 1] > 0.6
    scoring = ["evaluate", "metrics=brats", "tracking=none", "workers=1", f"input={tmp_path / 'out'}"]
    assert main([*scoring, f"output={tmp_path / 'scores'}"]) == 0
    scores = {(s.region, s.metric): s.value for s in Scores.load(tmp_path / "scores").scores}
    assert scores["whole", "psnr"] > 5
    assert case.mask_kind == "given" and scores["mask", "psnr"] > 5  # the body that came with the case
    capsys.readouterr()
    assert main([*words, f"input={case.source}", f"output={tmp_path / 'alone'}"]) == 2
    assert "Nothing is known of the range of 't1n'" in capsys.readouterr().err
