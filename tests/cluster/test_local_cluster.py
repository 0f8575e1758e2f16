"""On a real SLURM: the chain, preemption, a dead node, cancelling. The cluster is slurm/test-cluster.sh's."""

import os
import re
import subprocess
import time
from pathlib import Path

import pytest
from makers import PHANTOMS
from runs import assert_equal_ends, checkpoint, finish
from small_training import TRAINING

from pipeline.__main__ import main
from pipeline.cluster.record import find_jobs
from pipeline.records import ShardIndex

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "slurm" / "test-cluster.sh"
NODE_BY_NODE = ["trainer.nodes=2", "trainer.checkpoint_steps=10", "trainer.rank_timeout_s=60"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([SCRIPT, "start", folder], check=True)
    before = {name: os.environ.get(name) for name in ("SLURM_CONF", "PYTHONPATH")}
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    os.environ["PYTHONPATH"] = str(ROOT)
    yield folder
    subprocess.run([SCRIPT, "stop", folder], check=True)
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def until(true, seconds=400):
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
    return found


def ask(*words):
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def state(number):
    return ask("squeue", "--noheader", "--states=all", f"--jobs={number}", "--format=%T").split()[-1]


def rows(output, capsys):
    capsys.readouterr()
    assert main(["status", str(output)]) == 0
    return {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}


def train(output, shards, *extra):
    words = ["submit", "train", "cluster=local", *TRAINING, *NODE_BY_NODE, *extra, f"input={shards}"]
    assert main([*words, f"output={output}"]) == 0
    return find_jobs(output)[1].jobs[0].number


def log(output, number):
    return (output.with_name(f"{output.name}.jobs") / f"train-{number}.log").read_text()


def running(output, number):
    """Wait for the first checkpoint of a job that has not ended."""
    until(lambda: (output / "checkpoints" / "last.ckpt").exists() or state(number) not in ("PENDING", "RUNNING"))
    assert state(number) == "RUNNING", log(output, number)


def ended(number):
    until(lambda: state(number) not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED"))
    return state(number)


def starts(output, number):
    return len(re.findall(rf"^Job {number}, start \d", log(output, number), re.MULTILINE))


def test_a_chain_with_a_broken_case_and_a_hostile_name_ends_with_a_report(cluster, tmp_path, capsys):
    chain = tmp_path / "a b;$(touch hit) 'q' %j & > hit"
    assert main(["cohort", *PHANTOMS, f"output={chain / 'cohort'}"]) == 0
    index = (chain / "cohort" / "cohort.json").read_text()
    broken = re.search(r'"case_id": "([^"]+)",\s+"patient": "[^"]+",\s+"split": "train"', index).group(1)
    (volume,) = (chain / "cohort").rglob(f"{broken}/ct.*")
    volume.write_bytes(volume.read_bytes()[:200])
    words = ["submit", "cluster=local", *PHANTOMS, *TRAINING, "trainer.nodes=2", "trainer.budget.steps=3"]
    words += [f"output={chain}", f"cluster.options=['--comment=$(touch {tmp_path}/hit); x']"]
    assert main(words) == 0
    numbers = {job.name: job.number for job in find_jobs(chain)[1].jobs}
    assert numbers["cohort"] == ""
    assert ended(numbers["report"]) == "COMPLETED", rows(chain, capsys)
    found = rows(chain, capsys)
    assert f"1 case(s) left out: {broken}" in found["preprocess-parts"]
    assert broken not in {case.case_id for case in ShardIndex.load(chain / "shards").cases}
    assert len(ShardIndex.load(chain / "shards").cases) == 3
    assert all("finished" in found[name] for name in ("train", "translate-join", "evaluate-join", "report"))
    assert (chain / "report" / "report.html").is_file()
    assert f"Left out: {broken}" in (chain / "jobs" / f"preprocess-join-{numbers['preprocess-join']}.log").read_text()
    assert "on 2 ranks" in log_of(chain, "train", numbers)
    assert not list(tmp_path.rglob("hit"))
    assert main(words) == 0
    again = {job.name: job.number for job in find_jobs(chain)[1].jobs}
    assert {name for name in again if again[name] != numbers[name]} == {"preprocess-parts", "preprocess-join"}


def log_of(chain, name, numbers):
    return (chain / "jobs" / f"{name}-{numbers[name]}.log").read_text()


def test_warned_in_mid_epoch_it_goes_on_to_the_end_of_an_unbroken_run(cluster, tiny_shards, tmp_path):
    whole, broken, extra = tmp_path / "whole", tmp_path / "broken", ["trainer.budget.steps=400"]
    number = train(broken, tiny_shards, *extra)
    running(broken, number)
    ask("scancel", "--signal=USR1", number)
    alone = ["train", f"input={tiny_shards}", *TRAINING, *extra, "trainer.devices=2", "trainer.checkpoint_steps=10"]
    finish([*alone, f"output={whole}"])
    assert ended(number) == "COMPLETED", log(broken, number)
    assert starts(broken, number) == 2
    said = log(broken, number)
    step = int(re.search(r"Told to stop by SIGUSR1: saved at step (\d+)", said).group(1))
    assert f"Continuing at step {step}" in said
    assert_equal_ends(checkpoint(whole), checkpoint(broken))


def test_a_node_that_dies_costs_at_most_one_interval(cluster, tiny_shards, tmp_path):
    run = tmp_path / "run"
    number = train(run, tiny_shards, "trainer.budget.steps=400")
    running(run, number)
    first = ask("squeue", "--noheader", f"--jobs={number}", "--format=%B").strip()
    nodes = ask("scontrol", "show", "hostnames", ask("squeue", "--noheader", f"--jobs={number}", "--format=%N").strip())
    (other,) = set(nodes.split()) - {first}
    reached = checkpoint(run)["progress"]["step"]
    killed, _ = (cluster / "run" / other).read_text().split()
    os.kill(int(killed), 9)
    try:
        assert ended(number) == "COMPLETED", log(run, number)
    finally:
        subprocess.run([SCRIPT, "start", cluster], check=True)
    assert starts(run, number) == 2
    assert int(re.search(r"Continuing at step (\d+)", log(run, number)).group(1)) >= reached
    assert checkpoint(run)["progress"]["step"] == 400


def test_a_cancelled_training_is_saved_and_does_not_come_back(cluster, tiny_shards, tmp_path):
    run = tmp_path / "run"
    number = train(run, tiny_shards, "trainer.budget.steps=100000")
    running(run, number)
    assert main(["cancel", str(run)]) == 0
    assert ended(number) == "CANCELLED"
    step = int(re.search(r"Told to stop by SIGTERM: saved at step (\d+)", log(run, number)).group(1))
    assert checkpoint(run)["progress"]["step"] == step
    time.sleep(8)  # a requeued job would be back by now
    assert state(number) == "CANCELLED"
    assert starts(run, number) == 1


def test_a_crash_is_no_reason_to_come_back(cluster, tiny_shards, tmp_path):
    run = tmp_path / "run"
    number = train(run, tiny_shards, "trainer.budget.steps=10", "stream.clip_length=99", "stream.clip_limit=99")
    assert ended(number) == "FAILED"
    assert starts(run, number) == 1
