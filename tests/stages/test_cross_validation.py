"""Cross-validation: shards once, a run per fold, every patient tested by a run that never saw them."""

from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.records import Cohort, Scores, ShardIndex, Translation
from pipeline.stream.store import SliceStore

FOLDS = 3
PHANTOMS = [
    "cohort=phantom",
    "cohort.patients=4",
    "cohort.anatomy=head",
    "cohort.modalities=[t1n,ct]",
    "cohort.size=[8,32,32]",
    "cohort.spacing_mm=[20,8,8]",
    f"cohort.split.folds={FOLDS}",
    "preprocess.spacing_mm=[20,8,8]",
    "preprocess.size=[32,32]",
    "source=t1n",
    "workers=1",
]
TRAIN = [
    "source=t1n",
    "model=regression",
    "model.module.network.widths=[4,8]",
    "model.module.network.residual_units=1",
    "tracking=none",
    "trainer.precision=fp32",
    "trainer.budget={steps: 4, minutes: 0}",
    "trainer.validations=1",
    "trainer.threads=1",
    "trainer.panels=false",
    "stream.clip_length=1",
    "stream.clip_growth=1",
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("folds")
    assert main(["cohort", *PHANTOMS, f"output={folder / 'cohort'}"]) == 0
    assert main(["preprocess", *PHANTOMS, f"input={folder / 'cohort'}", f"output={folder / 'shards'}"]) == 0
    return folder / "shards"


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory) -> dict[int, Path]:
    """One run and its translation per fold; the cases that a training read are in ``read``."""
    folder, out = tmp_path_factory.mktemp("runs"), {}
    for fold in range(1, FOLDS + 1):
        out[fold] = folder / str(fold)
        seen: set[str] = set()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SliceStore, "read", _spy(SliceStore.read, seen))
            assert main(["train", *TRAIN, f"fold={fold}", f"input={shards}", f"output={out[fold] / 'run'}"]) == 0
        (out[fold] / "read").write_text("\n".join(seen))
        where = [f"checkpoint={out[fold] / 'run'}", f"input={shards}", f"output={out[fold] / 'test'}"]
        assert main(["translate", *where]) == 0
    return out


def _spy(read, seen):
    def reading(self, case_id, *arguments):
        seen.add(case_id)
        return read(self, case_id, *arguments)

    return reading


def test_every_patient_is_tested_once_by_a_run_that_never_read_them(shards, runs):
    index = ShardIndex.load(shards)
    assert index.folds == Cohort.load(Path(index.cohort)).folds == FOLDS
    tested = {fold: Translation.load(out / "test") for fold, out in runs.items()}
    assert [record.fold for record in tested.values()] == [1, 2, 3]
    patients = [case.patient for record in tested.values() for case in record.cases]
    assert sorted(patients) == sorted(case.patient for case in index.cases)
    for fold, out in runs.items():
        own = {case.case_id for case in tested[fold].cases}
        read = set((out / "read").read_text().split())
        assert read == {case.case_id for case in index.cases} - own  # the others train or validate


def test_one_table_joins_the_folds(runs, tmp_path, capsys):
    inputs = [f"input={out / 'test'}" for out in runs.values()]
    options = ["metrics.metrics=[mae]", "metrics.extra=[]", "metrics.regions=[body]", "workers=1"]
    assert main(["evaluate", *inputs, *options, f"output={tmp_path / 'scores'}"]) == 0
    scores = Scores.load(tmp_path / "scores")
    assert [(s.method, s.n, s.cases) for s in scores.summary] == [("regression", 4, 4)]
    patients = [score.patient for score in scores.scores]
    assert len(set(patients)) == len(patients) == 4
    assert {score.cohort for score in scores.scores} == {"phantom"}
    assert "'regression' is a cross-validation: folds 1, 2, 3, a run each." in scores.notes
    # The same fold twice is an error, as two inputs of one label are.
    assert main(["evaluate", inputs[0], inputs[0], *options, f"output={tmp_path / 'twice'}"]) == 2
    assert "Two inputs have the label 'regression'" in capsys.readouterr().err


def test_a_run_translates_no_other_fold_as_its_test(shards, runs, tmp_path, capsys):
    command = ["translate", f"checkpoint={runs[1] / 'run'}", f"output={tmp_path / 'out'}"]
    assert main([*command, f"input={shards}", "fold=2"]) == 2
    assert "Found: fold=2. Allowed: fold=1" in capsys.readouterr().err
    index = ShardIndex.load(shards)
    (tmp_path / "others").mkdir()
    for shard in index.shards:
        for name in (shard.file, shard.table):
            (tmp_path / "others" / name).symlink_to(shards / name)
    index.model_copy(update={"config_hash": "others"}).save(tmp_path / "others")
    assert main([*command, f"input={tmp_path / 'others'}"]) == 2
    assert "The run tested fold 1 of other shards" in capsys.readouterr().err
    assert main([*command, f"input={tmp_path / 'others'}", "translate.split=all"]) == 0
    assert len(Translation.load(tmp_path / "out").cases) == 4
    assert Translation.load(tmp_path / "out").fold == 0
