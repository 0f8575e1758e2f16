"""What is submitted, to a stand-in for SLURM that notes every word it is given."""

import json
import os
import re
import sys
from functools import lru_cache
from pathlib import Path

import pytest
from makers import PHANTOMS
from small_training import TRAINING

from pipeline import members
from pipeline.__main__ import main
from pipeline.artifacts import write_json
from pipeline.cluster.job import template

GOLDEN = Path(__file__).parents[1] / "golden"
# Notes the words of every call; sbatch counts jobs, squeue says what the file 'queue' says.
STAND_IN = """#!{python}
import json, sys
from pathlib import Path
here = Path(__file__).parent
name, words = Path(sys.argv[0]).name, sys.argv[1:]
calls = here / "calls.json"
known = json.loads(calls.read_text()) if calls.exists() else []
calls.write_text(json.dumps([*known, [name, *words]]))
if name == "sbatch":
    print(sum(call[0] == "sbatch" for call in known) + 101)
if name == "squeue" and (here / "queue").exists():
    print((here / "queue").read_text())
"""


class Slurm:
    def __init__(self, folder):
        self.folder = folder

    def calls(self, name):
        path = self.folder / "calls.json"
        return [call[1:] for call in json.loads(path.read_text()) if call[0] == name] if path.exists() else []

    def names(self):
        return [next(w for w in call if w.startswith("--job-name=")).partition("-job-name=cinevox-")[2]
                for call in self.calls("sbatch")]  # fmt: skip

    def forget(self):
        (self.folder / "calls.json").unlink()

    def queue(self, *rows):
        (self.folder / "queue").write_text("\n".join(rows))


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "squeue", "scancel"):
        (folder / name).write_text(STAND_IN.format(python=sys.executable))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return Slurm(folder)


def array(call):
    (word,) = [word for word in call if word.startswith("--array=")]
    return word.partition("=")[2]


def waits_for(call):
    return [word.partition("=")[2] for word in call if word.startswith("--dependency=")]


def submit(output, *words):
    return main(["submit", *PHANTOMS, *words, f"output={output}"])


def finish(folder, verb):
    write_json(folder / "stage.json", {"verb": verb, "finished": True})


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("submit_chain", ["experiment=demo", "trainer.nodes=2", "trainer.devices=4", "stream.global_batch=8"]),
        ("submit_folds", ["experiment=demo", "cohort.split.folds=3"]),
        ("submit_sweep", ["sweep", "experiment=demo", "+sweep.members={a: ['seed=1'], b: ['model=regression']}"]),
    ],
)
def test_every_jobs_text_is_that_of_the_record(record, words, tmp_path, monkeypatch, capsys):
    """Written anew with CINEVOX_GOLDEN=write."""
    monkeypatch.chdir(tmp_path)
    path = GOLDEN / f"{record}.txt"
    places = [f"output={tmp_path / 'chain'}", *(["input=."] if "sweep" in words else [])]
    assert main(["submit", "cluster=example", *words, *places, "--dry-run"]) == 0
    text = capsys.readouterr().out.partition("\n# ")[2]
    text = "# " + text.replace(str(template()), "job.sh").replace(str(tmp_path), "/home/me")
    if os.environ.get("CINEVOX_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()
    assert list(tmp_path.iterdir()) == []


def test_the_chain_waits_in_order_and_a_join_for_any_end_of_its_array(slurm, tmp_path):
    assert submit(tmp_path / "chain") == 0
    assert slurm.names() == [
        "cohort", "preprocess-parts", "preprocess-join", "train", "translate-parts", "translate-join",
        "evaluate-parts", "evaluate-join", "report",
    ]  # fmt: skip
    assert [waits_for(call) for call in slurm.calls("sbatch")] == [
        [], ["afterok:101"], ["afterok:101,afterany:102"], ["afterok:103"], ["afterok:104"],
        ["afterok:104,afterany:105"], ["afterok:106"], ["afterok:106,afterany:107"], ["afterok:108"],
    ]  # fmt: skip


def test_patients_without_cone_beam_ct_are_simulated(slurm, tmp_path):
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "ct.nii.gz").touch()
    words = ["submit", "--dry-run", f"input={tmp_path / 'in'}"]
    for name, simulated in (("ct", True), ("cbct", False)):
        (tmp_path / "in" / "a" / f"{name}.nii.gz").touch()
        assert main([*words, f"output={tmp_path / name}"]) == 0
        assert main(["submit", f"input={tmp_path / 'in'}", f"output={tmp_path / name}"]) == 0
        assert ("simulate-parts" in slurm.names()) == simulated
        slurm.forget()


def test_a_second_submit_does_only_what_is_missing(slurm, tmp_path, capsys):
    chain = tmp_path / "chain"
    assert submit(chain) == 0
    slurm.forget()
    finish(chain / "cohort", "cohort")
    for number in (1, 3):
        write_json(chain / "shards" / "parts" / f"{number}-of-3.json", {"schema": 1, "left_out": {}})
    # 103 and 104 still wait; the array and the rest have ended without an end.
    slurm.queue("102|2|NODE_FAIL|None", "103|N/A|PENDING|Dependency", "104|N/A|PENDING|Dependency")
    assert submit(chain) == 0
    again = slurm.calls("sbatch")
    assert slurm.names() == [
        "preprocess-parts", "translate-parts", "translate-join", "evaluate-parts", "evaluate-join", "report",
    ]  # fmt: skip
    assert "--array=2" in again[0]
    assert not any(w.startswith("--dependency=") for w in again[0])
    assert "--dependency=afterok:104" in again[1]
    said = capsys.readouterr().err
    assert "cohort: finished" in said and "train: job 104 is PENDING" in said
    assert main(["status", str(chain)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[2] for row in rows[:4]] == ["finished", "ended", "PENDING", "PENDING"]


def test_a_submit_with_other_settings_is_refused(slurm, tmp_path, capsys):
    assert submit(tmp_path / "chain") == 0
    slurm.forget()
    assert submit(tmp_path / "chain", "seed=3") == 2
    assert "submitted with other settings" in capsys.readouterr().err
    assert submit(tmp_path / "chain", "cluster.parts=4") == 2
    assert slurm.calls("sbatch") == []
    assert submit(tmp_path / "chain", "cluster.account=other") == 0


HOSTILE = "a b;$(touch hit) `touch hit` 'q' \"w\" & | > hit %j \\ *"


def test_hostile_names_stay_single_words_everywhere(slurm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = HOSTILE.replace("\\", "")
    output = tmp_path / f"{name}\nnew line"
    command = ["submit", *PHANTOMS, *TRAINING, "trainer.budget.steps=1", f"output={output}"]
    escaped = HOSTILE.replace("'", "\\'")
    assert main([*command, f"cluster.account='{escaped}'", f"+cluster.environment.NAME='{escaped}'"]) == 0
    first = slurm.calls("sbatch")[0]
    assert f"--account={HOSTILE}" in first
    assert f"NAME={HOSTILE}" in first
    assert f"output={output}/cohort" in first
    assert f"--output={str(output).replace('%', '%%')}/jobs/cohort-%j.log" in first
    assert main(["submit", *PHANTOMS, f"output={tmp_path / HOSTILE}"]) == 2  # a backslash ends SLURM's patterns
    assert not list(tmp_path.rglob("hit"))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ('cluster.account="a\nb"', "newline"),
        ('cluster.gpu.partition="a\tb"', "control characters"),
        ("+cluster.environment.WANDB_API_KEY=x", "looks like a secret"),
        ("+cluster.environment.A-B=x", "no name of an environment variable"),
        ("cluster.gpu.time=soon", "cluster.gpu.time"),
        ("cluster.gpu.memory=much", "cluster.gpu.memory"),
        ("cluster.gpu.time=00:01:00", "leaves no time to train"),
        ("cluster.options=[rm]", "cluster.options"),
        ("cluster.acount=x", "Did you mean 'cluster.account'?"),
        ('label="a\nb"', "newline"),
    ],
)
def test_what_no_cluster_could_mean_is_refused_before_anything_is_submitted(word, message, slurm, tmp_path, capsys):
    assert submit(tmp_path / "chain", word) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert slurm.calls("sbatch") == []
    assert not (tmp_path / "chain").exists()


def test_a_single_verb_has_its_log_beside_its_output_and_no_cluster_among_its_words(slurm, tmp_path):
    words = ["submit", "train", *TRAINING, "trainer.budget.steps=2", "cluster.account=a", f"input={tmp_path}"]
    assert main([*words, f"output={tmp_path / 'run'}"]) == 0
    (call,) = slurm.calls("sbatch")
    assert f"--output={tmp_path / 'run.jobs'}/train-%j.log" in call
    assert "--signal=USR1@60" in call
    command = call[call.index("--") + 1 :]
    assert command[1:4] == ["-m", "pipeline", "train"]
    assert not any("cluster" in word for word in command)
    assert not (tmp_path / "run").exists()
    assert main(["submit", "trian", f"output={tmp_path / 'other'}"]) == 2


@pytest.mark.parametrize("verb", ["simulate", "preprocess", "translate", "evaluate"])
def test_a_single_verb_that_works_in_parts_is_an_array_and_a_join(verb, slurm, tmp_path):
    (tmp_path / "run").mkdir()
    places = [f"input={tmp_path}", f"checkpoint={tmp_path / 'run'}", f"output={tmp_path / 'out'}"]
    assert main(["submit", verb, "cluster.parts=5", *places]) == 0
    parts, join = slurm.calls("sbatch")
    assert slurm.names() == [f"{verb}-parts", f"{verb}-join"]
    assert "--array=1,2,3,4,5" in parts
    assert f"--output={tmp_path / 'out.jobs'}/{verb}-parts-%A_%a.log" in parts
    assert "--dependency=afterany:101" in join
    assert (parts[-1], join[-1]) == (f"output={tmp_path / 'out'}", "part=join")
    # A GPU is for those that translate, not for the one that lists what they made.
    partitions = [next(word for word in call if word.startswith("--partition=")) for call in (parts, join)]
    assert partitions == ["--partition=gpu" if verb == "translate" else "--partition=cpu", "--partition=cpu"]
    slurm.forget()
    assert main(["submit", verb, "cluster.parts=1", *places[:2], f"output={tmp_path / 'other'}"]) == 0
    assert slurm.names() == [verb]
    assert not any(word.startswith(("--array", "part=")) for word in slurm.calls("sbatch")[0])


def test_the_pair_of_modalities_reaches_the_job_and_latents_are_made_on_a_gpu(slurm, tmp_path):
    for name in ("run", "shards", "more"):
        (tmp_path / name).mkdir()
    paths = [f"checkpoint={tmp_path / 'run'}", f"input={tmp_path / 'shards'}"]
    pair = ["source_modality=t1n", "target_modality=t2w"]
    words = ["submit", "translate", "cluster=example", "cluster.parts=1", *pair, *paths]
    assert main([*words, f"output={tmp_path / 'out'}"]) == 0
    assert main(["submit", "encode", "cluster=example", *paths, f"output={tmp_path / 'latents'}"]) == 0
    both = [paths[1], f"input={tmp_path / 'more'}"]
    assert main(["submit", "train", *TRAINING, "trainer.budget.steps=2", *both, f"output={tmp_path / 'trained'}"]) == 0
    translate, encode, train = slurm.calls("sbatch")
    assert set(both) <= set(train)
    assert set(pair) <= set(translate)
    assert "encode" in encode and "--partition=gpu" in encode and set(paths) <= set(encode)


def test_cancel_ends_what_has_not_ended(slurm, tmp_path, capsys):
    assert submit(tmp_path / "chain") == 0
    slurm.queue("101|N/A|COMPLETED|None", "102|4-8,11%2|PENDING|Dependency", "102|1|RUNNING|None")
    assert main(["cancel", str(tmp_path / "chain")]) == 0
    assert slurm.calls("scancel") == [["102"]]
    assert main(["status", str(tmp_path / "chain")]) == 0
    assert "6 PENDING, 1 RUNNING (Dependency)" in capsys.readouterr().out
    assert main(["cancel", str(tmp_path)]) == 2
    assert "Nothing was submitted" in capsys.readouterr().err


def test_a_training_shows_its_last_checkpoint_its_speed_and_the_time_left(slurm, tmp_path, capsys):
    assert submit(tmp_path / "chain") == 0
    progress = {"schema": 1, "step": 300, "seconds": 100.0, "share": 0.25}
    write_json(tmp_path / "chain" / "run" / "progress.json", progress)
    assert main(["status", str(tmp_path / "chain")]) == 0
    shown = re.search(r"step 300, saved \d+ s ago, 3 steps/s, 5 min 00 s left from there", capsys.readouterr().out)
    assert shown is not None


def test_without_slurm_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert submit(tmp_path / "chain") == 2
    assert "There is no 'squeue' here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_folds_are_trained_and_translated_each_on_its_own_and_scored_together(slurm, tmp_path):
    chain = tmp_path / "chain"
    words = ["cohort.split.folds=3", "cluster.parts=2"]
    assert submit(chain, *words) == 0
    calls = dict(zip(slurm.names(), slurm.calls("sbatch"), strict=True))
    names = ["train-folds", "translate-folds", "evaluate-parts", "evaluate-join", "report"]
    assert slurm.names() == ["cohort", "preprocess-parts", "preprocess-join", *names]
    train, translate, evaluate = (calls[name] for name in names[:3])
    assert (array(train), array(translate)) == ("1,2,3", "1,2,3")
    assert (waits_for(train), waits_for(translate)) == (["afterok:103"], ["aftercorr:104"])
    assert waits_for(evaluate) == ["afterok:105"]
    assert "--signal=USR1@60" in train
    assert [word for word in evaluate if word.startswith("input=")] == [
        f"input={chain}/fold{k}/translated" for k in (1, 2, 3)
    ]
    # One fold alone is a chain without arrays over folds.
    slurm.forget()
    assert submit(tmp_path / "one", *words, "fold=2") == 0
    assert "train" in slurm.names()


def test_a_second_submit_of_folds_runs_those_that_are_missing(slurm, tmp_path, capsys):
    chain, words = tmp_path / "chain", ["cohort.split.folds=3", "cluster.parts=2"]
    assert submit(chain, *words) == 0
    slurm.forget()
    finish(chain / "cohort", "cohort")
    finish(chain / "shards", "preprocess")
    for fold, verbs in ((1, ("run", "translated")), (2, ("run",))):
        for name in verbs:
            finish(chain / f"fold{fold}" / name, "")
    progress = {"schema": 1, "step": 300, "seconds": 100.0, "share": 0.25}
    write_json(chain / "fold3" / "run" / "progress.json", progress)
    assert submit(chain, *words) == 0
    train, translate = slurm.calls("sbatch")[:2]
    # The training of fold 2 is there and ends at once: its translation waits for the task of its own number.
    assert (array(train), array(translate)) == ("2,3", "2,3")
    capsys.readouterr()
    assert main(["status", str(chain)]) == 0
    shown = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(shown) if line.startswith("train-folds"))
    assert "2 of 3 finished" in shown[first]
    assert [line.split()[:2] for line in shown[first + 1 : first + 4]] == [
        ["fold1", "finished"], ["fold2", "finished"], ["fold3", "begun"],
    ]  # fmt: skip
    assert re.search(r"step 300, saved \d+ s ago, 3 steps/s, 5 min 00 s left", shown[first + 3])
    assert [line.split()[:2] for line in shown[first + 5 : first + 8]] == [
        ["fold1", "finished"], ["fold2", "-"], ["fold3", "-"],
    ]  # fmt: skip


MEMBERS = "+sweep.members={a: ['seed=1'], b: ['seed=2', 'trainer.budget.steps=9'], c: []}"


def test_a_sweep_is_an_array_per_verb_and_a_report_whatever_failed(slurm, tmp_path, monkeypatch):
    monkeypatch.setattr(members, "compose", lru_cache(members.compose))
    shards, out = tmp_path / "shards", tmp_path / "out"
    shards.mkdir()
    words = ["submit", "sweep", MEMBERS, "seed=0", f"input={shards}", f"output={out}"]
    assert main(words) == 0
    assert slurm.names() == ["train-members", "translate-members", "evaluate-members", "sweep-join"]
    calls = slurm.calls("sbatch")
    assert [waits_for(call) for call in calls] == [[], ["aftercorr:101"], ["aftercorr:102"], ["afterany:103"]]
    assert calls[-1][-3:] == [f"input={shards}", f"output={out}", "part=join"]
    assert calls[-1][calls[-1].index("pipeline") + 1] == "sweep"
    assert MEMBERS in calls[-1]
    slurm.forget()
    for name in ("a", "b"):
        for stage in ("run", "translated", "scores"):
            finish(out / name / stage, "")
    assert main(words) == 0
    assert [array(call) for call in slurm.calls("sbatch")[:3]] == ["3", "3", "3"]
    slurm.forget()
    for stage in ("run", "translated"):
        finish(out / "c" / stage, "")
    assert main(words) == 0
    assert slurm.names() == ["evaluate-members", "sweep-join"]
    slurm.forget()
    finish(out / "c" / "scores", "")
    (out / "a" / "run" / "stage.json").unlink()  # removed to save space: nothing is made of it any more
    finish(out / "report", "report")
    assert main(words) == 0
    assert slurm.names() == []
    assert main([*words[:2], MEMBERS.replace("seed=2", "seed=5"), *words[3:]]) == 2


def test_a_sweep_with_a_mistake_is_not_submitted(slurm, tmp_path, capsys):
    words = ["submit", "sweep", f"input={tmp_path}", f"output={tmp_path / 'out'}"]
    for member, message in (("['sed=1']", "Member 'a' of the sweep"), ("['trainer.nodes=2']", "other machines")):
        assert main([*words, f"+sweep.members={{a: {member}}}"]) == 2
        assert message in capsys.readouterr().err
    assert main(["submit", "sweep", MEMBERS, f"output={tmp_path / 'out'}"]) == 2
    assert "needs input=SHARDS" in capsys.readouterr().err
    assert slurm.calls("sbatch") == []


def test_an_address_of_shards_reaches_the_job_of_a_verb_that_reads_it_and_no_chain(tmp_path, capsys):
    url = "https://host/cohort/shards"
    words = ["--dry-run", f"input={url}", f"output={tmp_path / 'run'}"]
    assert main(["submit", "train", *words]) == 0
    assert f"input={url}" in capsys.readouterr().out
    assert main(["submit", "verify", *words]) == 2
    assert main(["submit", "convert", *words]) == 2
    assert "'cinevox convert' reads folders only" in capsys.readouterr().err
    assert main(["submit", *words]) == 2
    assert "submit train input=URL" in capsys.readouterr().err
