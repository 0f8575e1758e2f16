"""Two live processes never write into one folder, and a killed one blocks nobody."""

import errno
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from makers import film

from pipeline import locks
from pipeline.artifacts import LOCK_FILE, claim_output
from pipeline.errors import ArtifactError
from pipeline.locks import lock
from pipeline.stream.store import write_shard

pytestmark = pytest.mark.skipif(locks.fcntl is None, reason="no flock on this system")


class Other:
    """Another process that runs a few lines, says when it is ready and waits."""

    def __init__(self, code, *words):
        code = textwrap.dedent(code) + "\nprint('ready', flush=True)\ninput()\n"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "ready\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self):
        self.process.communicate("\n")


CLAIM = """
    import pathlib, sys
    from pipeline.artifacts import claim_output
    claim = claim_output(pathlib.Path(sys.argv[1]), "train", {"a": 1})
"""
HOLD = """
    import pathlib, sys
    from pipeline.locks import lock
    held = lock(pathlib.Path(sys.argv[1]), "It")
"""


def test_a_folder_that_another_process_writes_is_refused_and_free_when_that_is_killed(tmp_path):
    with Other(CLAIM, tmp_path / "run") as other:
        before = (tmp_path / "run" / "stage.json").read_bytes()
        with pytest.raises(ArtifactError, match=rf"written by another process. Found: process {other.process.pid} on "):
            claim_output(tmp_path / "run", "train", {"a": 1})
        with pytest.raises(ArtifactError, match="written by another process"):
            claim_output(tmp_path / "run", "train", {"a": 2}, force=True)
        assert (tmp_path / "run" / "stage.json").read_bytes() == before
        other.kill()
        claim = claim_output(tmp_path / "run", "train", {"a": 1})
        assert claim.continued
        claim.finish()
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["stage.json"]


def test_the_end_of_a_process_removes_its_lock_and_the_folder_goes_on(tmp_path):
    with Other(CLAIM, tmp_path / "run") as other:
        other.end()
        assert [p.name for p in (tmp_path / "run").iterdir()] == ["stage.json"]
        assert claim_output(tmp_path / "run", "train", {"a": 1}).continued


def test_a_finished_folder_needs_no_lock(tmp_path):
    claim_output(tmp_path, "train", {"a": 1}).finish()
    with Other(HOLD, tmp_path / LOCK_FILE):
        assert claim_output(tmp_path, "train", {"a": 1}).finished


@pytest.mark.parametrize("kind", ["tar", "zarr"])
def test_a_shard_has_one_writer(tmp_path, kind):
    with Other(HOLD, tmp_path / ".shard-00000.lock"):
        with pytest.raises(ArtifactError, match="Shard 'shard-00000' is being written by another process"):
            write_shard(tmp_path, "shard-00000", iter([film("a", 2)]), "lz4", kind)
        write_shard(tmp_path, "shard-00001", iter([film("a", 2)]), "lz4", kind)  # by jobs beside one another
    write_shard(tmp_path, "shard-00000", iter([film("a", 2)]), "lz4", kind)
    assert not list(tmp_path.glob(".*"))


def test_within_a_process_a_lock_is_shared_and_ends_with_its_last_user(tmp_path):
    one, two = lock(tmp_path / "x", "It"), lock(tmp_path / "x", "It")
    del one
    assert two.held
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(HOLD), tmp_path / "x"], check=True, stderr=subprocess.PIPE
        )
    del two
    subprocess.run([sys.executable, "-c", textwrap.dedent(HOLD), tmp_path / "x"], check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_released_lock_can_be_taken_again(tmp_path):
    one = lock(tmp_path / "x", "It")
    one.release()
    one.release()
    two = lock(tmp_path / "x", "It")
    assert two.held
    assert not one.held


def test_a_lock_whose_file_its_holder_removed_in_between_is_taken_on_the_new_file(tmp_path, monkeypatch):
    real, raced = locks.fcntl.flock, []

    def flock(descriptor, how):
        real(descriptor, how)
        if not raced:
            raced.append((tmp_path / "x").unlink())

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    held = lock(tmp_path / "x", "It")
    assert held.held
    assert (tmp_path / "x").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_worked_on_without(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    assert lock(tmp_path / "x", "It").held


def test_workers_end_with_the_process_that_started_them(tmp_path):
    # The worker holds a lock and sleeps: it is free when the worker is gone.
    code = """
        import pathlib, sys, time
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context
        from pipeline.locks import die_with_parent, lock

        def work(place):
            held = lock(place, "It")
            time.sleep(60)

        place = pathlib.Path(sys.argv[1])
        pool = ProcessPoolExecutor(1, get_context("fork"), die_with_parent)
        pool.submit(work, place)
        while not place.exists() or not place.read_text():
            time.sleep(0.01)
    """
    with Other(code, tmp_path / "x") as other:
        with pytest.raises(ArtifactError, match="It is being written by another process"):
            lock(tmp_path / "x", "It")
        other.kill()
        for _ in range(200):
            try:
                assert lock(tmp_path / "x", "It").held
                return
            except ArtifactError:
                time.sleep(0.05)
        pytest.fail("the worker lives on")
