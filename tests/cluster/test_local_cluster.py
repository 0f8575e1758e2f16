"""On a real SLURM: the chain, preemption, a dead node, cancelling. The cluster is slurm/test-cluster.sh's."""

import ctypes
import os
import re
import signal
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
    path = output.with_name(f"{output.name}.jobs") / f"train-{number}.log"
    return path.read_text() if path.exists() else ""


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


@pytest.mark.parametrize("which", ["the first, with the job's script", "the other"])
def test_a_node_that_dies_costs_at_most_one_interval(which, cluster, tiny_shards, tmp_path):
    run = tmp_path / "run"
    number = train(run, tiny_shards, "trainer.budget.steps=400")
    running(run, number)
    first = ask("squeue", "--noheader", f"--jobs={number}", "--format=%B").strip()
    nodes = ask("scontrol", "show", "hostnames", ask("squeue", "--noheader", f"--jobs={number}", "--format=%N").strip())
    (other,) = set(nodes.split()) - {first}
    reached = checkpoint(run)["progress"]["step"]
    killed, _ = (cluster / "run" / (other if which == "the other" else first)).read_text().split()
    os.kill(int(killed), 9)
    try:
        assert ended(number) == "COMPLETED", log(run, number)
    finally:
        subprocess.run([SCRIPT, "start", cluster], check=True)
    assert starts(run, number) == 2
    assert continued(run, number) >= reached
    assert checkpoint(run)["progress"]["step"] == 400


def continued(output, number):
    """Wait until a job has gone on; the step that its last start went on from."""
    steps = until(lambda: re.findall(r"Continuing at step (\d+)", log(output, number)))
    return int(steps[-1])


def rank(number, which):
    """Wait for a rank's process; its id, as seen from outside its node."""

    def find():
        for place in Path("/proc").glob("[0-9]*"):
            try:
                words = (place / "cmdline").read_bytes().split(b"\0")
                known = (place / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"python" in words[0] and {f"SLURM_JOB_ID={number}".encode(), f"SLURM_PROCID={which}".encode()} <= {
                *known
            }:
                return int(place.name)
        return None

    return until(find)


def freeze(pid):
    """Stop a process as a step does that takes too long: SIGCONT, which SLURM sends before SIGTERM, wakes it not."""
    assert ctypes.CDLL(None).ptrace(16, pid, None, None) == 0  # PTRACE_ATTACH
    assert os.WIFSTOPPED(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("frozen", [False, True])
def test_preempted_it_saves_or_loses_at_most_one_interval(frozen, cluster, tiny_shards, tmp_path):
    """By a job of a partition that goes first: SIGTERM, and SIGKILL for those that cannot save in time."""
    run = tmp_path / "run"
    number = train(run, tiny_shards, "trainer.budget.steps=150", "cluster.gpu.partition=spot")
    running(run, number)
    pids = [rank(number, which) for which in (0, 1)] if frozen else []
    for pid in pids:
        freeze(pid)
    reached = checkpoint(run)["progress"]["step"]
    urgent = ["sbatch", "--parsable", "--partition=gpu", "--nodes=4", "--exclusive", "--output=/dev/null"]
    urgent = ask(*urgent, "--wrap=true").strip()
    for pid in pids:
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert ended(urgent) == "COMPLETED"
    assert ended(number) == "COMPLETED", log(run, number)
    assert starts(run, number) == 2
    said = re.findall(r"Told to stop by SIGTERM: saved at step (\d+)", log(run, number))
    assert continued(run, number) == (reached if frozen else int(said[-1]))
    assert bool(said) != frozen
    assert checkpoint(run)["progress"]["step"] == 150


def test_slurm_warns_before_a_time_limit(cluster, tiny_shards, tmp_path):
    """It looks at limits twice a minute: the warning may find a start that does not listen yet."""
    run = tmp_path / "run"
    limit = ["cluster.gpu.time=00:03:00", "cluster.warning_s=150", "trainer.budget.steps=100000"]
    number = train(run, tiny_shards, *limit)
    until(lambda: state(number) == "RUNNING")
    until(lambda: starts(run, number) == 2)
    step = int(re.search(r"Told to stop by SIGUSR1: saved at step (\d+)", log(run, number)).group(1))
    assert continued(run, number) == step
    ask("scancel", number)


def test_a_warning_that_comes_while_it_starts_is_kept(cluster, tiny_shards, tmp_path):
    run = tmp_path / "run"
    number = train(run, tiny_shards, "trainer.budget.steps=20")
    for which in (0, 1):
        place = Path(f"/proc/{rank(number, which)}")
        until(lambda place=place: holds(place))
    ask("scancel", "--signal=USR1", number)
    assert ended(number) == "COMPLETED", log(run, number)
    assert starts(run, number) == 2
    assert "Told to stop by SIGUSR1: saved at step 1;" in log(run, number)


def holds(place):
    held = int(re.search(r"SigBlk:\s+(\w+)", (place / "status").read_text()).group(1), 16)
    return held >> (signal.SIGUSR1 - 1) & 1


def test_a_dead_rank_holds_no_node_and_without_progress_it_ends(cluster, tiny_shards, tmp_path):
    run = tmp_path / "run"
    number = train(run, tiny_shards, "trainer.budget.steps=100000", "trainer.checkpoint_steps=0", "trainer.attempts=2")
    for start in (1, 2):
        until(lambda start=start: log(run, number).count("epoch 1:") == start)
        os.kill(rank(number, 1), signal.SIGKILL)
        killed = time.monotonic()
        until(lambda: state(number) != "RUNNING")
        assert time.monotonic() - killed < 60
    assert ended(number) == "FAILED"
    assert starts(run, number) == 3
    assert "The run was started 2 times at step 0" in log(run, number)


def test_a_hung_rank_is_given_up_and_the_job_goes_on(cluster, tiny_shards, tmp_path):
    run = tmp_path / "run"
    number = train(run, tiny_shards, "trainer.budget.steps=150", "trainer.rank_timeout_s=40")
    running(run, number)
    os.kill(rank(number, 1), signal.SIGSTOP)
    hung = time.monotonic()
    until(lambda: state(number) != "RUNNING")
    assert time.monotonic() - hung < 40 + 60
    assert ended(number) == "COMPLETED", log(run, number)
    assert "Rank 0 lost the connection to the others" in log(run, number)
    assert starts(run, number) == 2


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
