"""The job script itself, with stand-ins for what SLURM gives it: a task of an array is always the same thing."""

import os
import subprocess
import sys

import pytest

from pipeline.cluster.job import template

# srun notes its words and ends as it is told; squeue knows the whole array by its number, a task by its place.
STAND_IN = """#!{python}
import json, os, sys
from pathlib import Path
here = Path(__file__).parent
name, words = Path(sys.argv[0]).name, sys.argv[1:]
with (here / "calls").open("a") as stream:
    stream.write(json.dumps([name, *words]) + "\\n")
if name == "squeue":
    print("RUNNING" if "--jobs=70_2" in words or "--jobs=70" in words and "LONE" in os.environ else "RUNNING\\nPENDING")
if name == "srun":
    sys.exit(int(os.environ["CODE"]))
"""


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("srun", "squeue", "scontrol"):
        (folder / name).write_text(STAND_IN.format(python=sys.executable))
        (folder / name).chmod(0o755)

    def start(*words, code=0, **environment):
        slurm = {"SLURM_JOB_ID": "70", "SLURM_JOB_NODELIST": "n1", "CODE": str(code), **environment}
        path = f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin"
        done = subprocess.run(
            ["bash", template(), *words], env={"PATH": path, **slurm}, capture_output=True, text=True, timeout=30
        )
        calls = [eval(line) for line in (folder / "calls").read_text().splitlines()]
        (folder / "calls").unlink()
        return done, {name: [call[1:] for call in calls if call[0] == name] for name in ("srun", "squeue", "scontrol")}

    return start


TASKS = ["--task", "1", "fold=1", "--task", "1", "output=/a b/fold1", "--task", "2", "fold=2"]
TASKS += ["--task", "2", "output=/a b/fold2;$(touch hit)", "--task", "12", "fold=12"]
SECOND = {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "2"}


def test_a_task_of_an_array_gets_its_own_words_and_the_same_ones_after_it_was_requeued(run):
    first, calls = run(*TASKS, "--", "python", "train", "seed=0", code=75, **SECOND)
    words = calls["srun"][0][2:]
    assert words == ["python", "train", "seed=0", "fold=2", "output=/a b/fold2;$(touch hit)"]
    # The number of the array stands for all of its tasks: this one alone is asked for and goes back.
    assert calls["scontrol"] == [["requeue", "70_2"]]
    assert first.returncode == 75
    assert "Job 70_2, start 1," in first.stdout
    second, calls = run(*TASKS, "--", "python", "train", "seed=0", SLURM_RESTART_COUNT="1", **SECOND)
    assert calls["srun"][0][2:] == words
    assert calls["scontrol"] == []
    assert (second.returncode, "Job 70_2, start 2," in second.stdout) == (0, True)


def test_a_share_of_the_cases_and_a_lone_job(run):
    _, calls = run("--parts", "3", "--", "python", "translate", **SECOND)
    assert calls["srun"][0][2:] == ["python", "translate", "part=2/3"]
    _, calls = run("--", "python", "train", code=75, LONE="1")
    assert calls["scontrol"] == [["requeue", "70"]]
    done, calls = run("--", "python", "train", code=2)
    assert (done.returncode, calls["scontrol"]) == (2, [])
