"""The memory at hand: what a job's control group allows, wherever in the tree it stands."""

import pytest

from pipeline.preparation import memory


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Return a function that puts this process into a control group of a made tree of limits."""
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(memory, "_MINE", tmp_path / "cgroup")

    def make(line, limits):
        (tmp_path / "cgroup").write_text(f"9:name=systemd:/elsewhere\n{line}\n")
        for path, limit in limits.items():
            file = tmp_path / "fs" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{limit}\n")

    return make


SLURM = "system.slice/slurmstepd.scope/job_7/step_0"
JOB, STEP = "system.slice/slurmstepd.scope/job_7/memory.max", f"{SLURM}/user/memory.max"


@pytest.mark.parametrize(
    ("line", "limits", "expected"),
    [
        (f"0::/{SLURM}/user", {JOB: 3 * 2**20, STEP: "max"}, 3 * 2**20),
        (f"0::/{SLURM}/user", {JOB: 3 * 2**20, STEP: 2**20}, 2**20),
        ("0::/", {"memory.max": 5 * 2**20}, 5 * 2**20),
        (f"0::/{SLURM}", {"memory.max": 5 * 2**20}, 5 * 2**20),
        ("4:memory:/slurm/uid_1/job_7", {"memory/slurm/uid_1/memory.limit_in_bytes": 2**20}, 2**20),
    ],
    ids=["a SLURM job", "the smaller of two", "a container", "a container that sees another tree", "version 1"],
)
def test_a_control_group_s_limit_counts(group, line, limits, expected):
    group(line, limits)
    assert memory.job_bytes() == expected


def test_without_a_limit_it_is_the_machine_s(group):
    group("0::/user", {"user/memory.max": "max", "job_8/memory.max": 5})
    assert memory.job_bytes() > 2**28
