"""A cross-validation's jobs in miniature, one after another, with the words that a task of an array gets."""

import pytest
from makers import PHANTOMS

from pipeline.__main__ import main
from pipeline.cluster.chain import chain
from pipeline.cluster.job import Job
from pipeline.config import compose
from pipeline.records import Scores

WORDS = [
    *PHANTOMS,
    "model=identity",
    "tracking=none",
    "stream.clip_length=1",
    "stream.clip_growth=1",
    "trainer.budget.steps=1",
    "cohort.split.folds=3",
    "cluster.parts=2",
    "trainer.budget.minutes=0",
    "trainer.panels=false",
    "trainer.threads=1",
    "metrics.metrics=[mae]",
    "metrics.extra=[]",
    "metrics.regions=[body]",
    "report.films=false",
    "workers=1",
]


def commands(job: Job) -> list[list[str]]:
    """What job.sh makes of a job."""
    if job.tasks:
        return [[job.verb, *job.words, *task.words] for task in job.tasks]
    if job.parts:
        return [[job.verb, *job.words, f"part={number}/{job.parts}"] for number in range(1, job.parts + 1)]
    return [[job.verb, *job.words]]


@pytest.mark.long
def test_every_patient_is_tested_once_and_a_fold_that_is_requeued_goes_on_in_its_folder(tmp_path, capsys):
    config = compose(WORDS).model_copy(update={"output": tmp_path})
    for job in chain(config, WORDS):
        for command in commands(job):
            assert main(command) == 0, capsys.readouterr().err
            if command[0] == "train" and "fold=2" in command:
                capsys.readouterr()
                assert main(command) == 0
                assert f"'{tmp_path / 'fold2' / 'run'}' is finished already" in capsys.readouterr().err
    scores = Scores.load(tmp_path / "scores")
    assert [(s.method, s.n) for s in scores.summary] == [("identity", 4)]
    assert "'identity' is a cross-validation: folds 1, 2, 3, a run each." in scores.notes
    assert (tmp_path / "report" / "report.html").is_file()
