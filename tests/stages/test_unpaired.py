"""Unpaired cohorts: a case may lack the source or the target, from the folder to the translation."""

from pathlib import Path

import numpy as np
import pytest
from makers import body, write_cohort

from pipeline.__main__ import main
from pipeline.records import Cohort, ShardIndex, Translation
from pipeline.stream.store import SliceStore

UNPAIRED = ["stream.pairing=unpaired", "workers=1"]
SIZES = ["preprocess.spacing_mm=[4,5,5]", "preprocess.size=[24,26]", "preprocess.minimum_slices=1"]


def volume(seed, name):
    """Air, and soft tissue around 0 HU that is a little darker in a CBCT."""
    film = body(seed)
    tissue = film.array // 8 - (10 if name == "cbct" else 0)
    return film.with_array(np.where(film.array > -500, tissue, -1000).astype(np.int16))


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Of two patients with CBCT alone, one with CT alone and two with both."""
    folder = tmp_path_factory.mktemp("unpaired")
    have = {"a": ["cbct"], "b": ["ct"], "c": ["cbct", "ct"], "d": ["cbct"], "e": ["cbct", "ct"]}
    cases = {case: {name: volume(seed, name) for name in names} for seed, (case, names) in enumerate(have.items())}
    write_cohort(folder / "volumes", cases)
    (folder / "volumes" / "cohort.json").unlink()
    command = [*UNPAIRED, "cohort.split.fractions={train: 1, validation: 0, test: 0}", f"input={folder / 'volumes'}"]
    assert main(["cohort", *command, f"output={folder / 'cohort'}"]) == 0
    command = [*UNPAIRED, *SIZES, f"input={folder / 'cohort'}"]
    assert main(["preprocess", *command, f"output={folder / 'shards'}"]) == 0
    return folder / "shards"


def test_every_case_is_kept_with_what_it_has(shards):
    index = ShardIndex.load(shards)
    assert {case.case_id: case.modalities for case in index.cases} == {
        "a": ("cbct",),
        "b": ("ct",),
        "c": ("cbct", "ct"),
        "d": ("cbct",),
        "e": ("cbct", "ct"),
    }
    assert sorted(index.modalities) == ["cbct", "ct"]
    with SliceStore(shards) as store:
        assert all(store.film(case.case_id, *case.modalities, "mask")["mask"].any() for case in index.cases)


def test_paired_stages_name_the_cases_that_lack_something(shards, tmp_path, capsys):
    cohort = Path(ShardIndex.load(shards).cohort).parent
    assert main(["preprocess", *SIZES, "workers=1", f"input={cohort}", f"output={tmp_path / 'shards'}"]) == 2
    assert "1 of 5 cases lack 'cbct': b" in capsys.readouterr().err
    training = ["model=identity", "trainer.budget.steps=1", "tracking=none", "stream.clip_length=1"]
    assert main(["train", *training, f"input={shards}", f"output={tmp_path / 'run'}"]) == 2
    assert "3 of the training cases have only one of 'cbct' and 'ct': a, b, d." in capsys.readouterr().err
    # Found again for paired training, the cohort has the complete cases only.
    volumes = Cohort.load(cohort).root
    assert main(["cohort", "workers=1", f"input={volumes}", f"output={tmp_path / 'cohort'}"]) == 2
    assert [case.case_id for case in Cohort.load(tmp_path / "cohort").cases] == ["c", "e"]


def test_what_has_a_source_is_translated(shards, tmp_path, capsys):
    training = [*UNPAIRED, "model=identity", "trainer.budget.steps=1", "tracking=none", "stream.clip_length=1"]
    assert main(["train", *training, f"input={shards}", f"output={tmp_path / 'run'}"]) == 0
    command = ["translate", f"checkpoint={tmp_path / 'run'}", f"input={shards}", "translate.split=all"]
    assert main([*command, f"output={tmp_path / 'out'}"]) == 0
    assert "1 case(s) without 'cbct' are not translated: b" in capsys.readouterr().err
    cases = Translation.load(tmp_path / "out").cases
    assert [(case.case_id, bool(case.reference)) for case in cases] == [
        ("a", False),
        ("c", True),
        ("d", False),
        ("e", True),
    ]
