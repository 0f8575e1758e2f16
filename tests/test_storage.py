"""Full disks, flaky, read-only and hostile storage: what was good stays good, and one line says what happened."""

import errno
import io
import os
import pickle
import shutil
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import alter_index, configuration, film, pair, write_cohort, write_shards

from pipeline.__main__ import main
from pipeline.artifacts import atomic_folder, atomic_path, claim_output, file_sha256
from pipeline.errors import ArtifactError
from pipeline.records import Cohort, ShardFile, ShardIndex
from pipeline.stages import convert
from pipeline.stream import shard
from pipeline.stream.codec import encode, member_name, stated
from pipeline.stream.store import SliceStore
from pipeline.stream.tar import TABLE
from pipeline.training.checkpoint import Checkpoints, load_checkpoint

resource = pytest.importorskip("resource", reason="limits on files are a Unix matter")

FILMS = [film("b", 5), film("a", 9)]
PARTS = ("cbct", "ct", "mask")
KINDS = ("tar", "zarr")


def stored(one, part):
    return one.mask if part == "mask" else one.frames[part]


def assert_right(store):
    for one in FILMS:
        for part, array in store.film(one.case_id, *PARTS).items():
            np.testing.assert_array_equal(array, stored(one, part))


# --- Full disk, quota, largest file ----------------------------------------------------------------------------------


@contextmanager
def largest_file(size):
    """Let no file grow beyond ``size`` bytes: the system's own 'File too large'."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_one_line(shown):
    line = shown.splitlines()[-1]
    assert line.startswith("Error: File too large. Free some space")
    assert line.endswith("the same command continues.")
    assert "/" not in line


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != "stage.json"
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_fills_up_in_preprocess_is_one_line_and_the_same_command_continues(tmp_path, kind, capsys):
    cohort = write_cohort(tmp_path / "cohort", {"a": pair(0), "b": pair(1)})
    words = [
        "workers=1",
        "preprocess.spacing_mm=[4,5,5]",
        "preprocess.size=[24,26]",
        f"preprocess.store={kind}",
        f"input={cohort}",
    ]
    assert main(["preprocess", *words, f"output={tmp_path / 'whole'}"]) == 0
    output = tmp_path / "out"
    capsys.readouterr()
    with largest_file(5000):
        assert main(["preprocess", *words, f"output={output}"]) == 2
    assert_one_line(capsys.readouterr().err)
    left = {p.name for p in output.iterdir()}
    assert not [n for n in left if n.startswith((".", "shard-", "index"))]  # nothing half, or that fills the disk
    assert main(["preprocess", *words, f"output={output}"]) == 0
    assert contents(output) == contents(tmp_path / "whole")


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_fills_up_in_convert_keeps_the_shards_that_are_whole(tmp_path, kind, capsys):
    source = "tar" if kind == "zarr" else "zarr"
    folder = write_shards(tmp_path / "in", [film("a", 2), film("b", 60)], store=source, codec="none")
    words = ["convert", f"convert.store={kind}", "workers=1", f"input={folder}", f"output={tmp_path / 'out'}"]
    with largest_file({"tar": 12_000, "zarr": 5500}[kind]):  # the first shard fits, the second does not
        assert main(words) == 2
    assert_one_line(capsys.readouterr().err)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"stage.json", f"shard-00000.{kind}", "shard-00000.npy", "shard-00000.json"}
    assert main(words) == 0
    with SliceStore(tmp_path / "out") as store:
        store.verify()


def test_a_disk_that_fills_up_in_a_checkpoint_keeps_the_last_good_one(tmp_path, tiny_shards, capsys, monkeypatch):
    run, saves, save = tmp_path / "run", [], Checkpoints.save

    def filling_up(self, trainer):
        saves.append(self.budget.step)
        with largest_file(1 << 40 if len(saves) == 1 else 2000):
            save(self, trainer)

    monkeypatch.setattr(Checkpoints, "save", filling_up)
    words = [
        "train", f"input={tiny_shards}", f"output={run}", "model=regression", "model.module.network.widths=[4,8]",
        "model.module.network.residual_units=1", "source=t1n", "tracking=none", "trainer.precision=fp32",
        "trainer.threads=1", "trainer.budget.minutes=0", "trainer.budget.steps=4", "trainer.checkpoint_steps=1",
        "trainer.validations=1", "stream.clip_length=3", "stream.clip_growth=1",
    ]  # fmt: skip
    assert main(words) == 2
    assert saves == [1, 2]
    assert_one_line(capsys.readouterr().err)
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert load_checkpoint(run)["progress"]["step"] == 1
    monkeypatch.setattr(Checkpoints, "save", save)
    assert main(words) == 0
    assert load_checkpoint(run)["progress"]["step"] == 4


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_what_fills_the_disk_is_removed_and_what_stood_there_is_kept(tmp_path, number):
    (tmp_path / "a.ckpt").write_text("good")
    with pytest.raises(OSError, match="full"), atomic_path(tmp_path / "a.ckpt") as partial:
        partial.write_text("half")
        raise OSError(number, "full")
    with pytest.raises(OSError, match="full"), atomic_folder(tmp_path / "a.zarr") as partial:
        (partial / "half").write_text("half")
        raise OSError(number, "full")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.ckpt": "good"}


def test_a_full_disk_that_a_library_hides_in_an_error_of_its_own_is_found(tmp_path):
    with largest_file(5000), pytest.raises(OSError, match="too large"), atomic_path(tmp_path / "a.ckpt") as partial:
        torch.save({"x": torch.zeros(10_000)}, partial)  # a RuntimeError without a number
    assert list(tmp_path.iterdir()) == []


def test_another_error_of_a_library_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="mine"), atomic_path(tmp_path / "a") as partial:
        partial.write_text("half")
        raise RuntimeError("mine")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["half"]


# --- Flaky -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(shard, "RETRY_SECONDS", (0, 0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_read_that_fails_for_a_moment_is_tried_again_and_then_named(tmp_path, monkeypatch, impatient, kind, number):
    real, failures = os.pread, []

    def flaky(*arguments):
        if len(failures) < allowed:
            failures.append(1)
            raise OSError(number, os.strerror(number))
        return real(*arguments)

    monkeypatch.setattr(os, "pread", flaky)
    with SliceStore(write_shards(tmp_path, FILMS, per_shard=2, store=kind)) as store:
        allowed = 2
        assert_right(store)
        failures.clear()
        allowed = 3
        message = rf"Shard 'shard-00000.{kind}' cannot be read. Found: {os.strerror(number)}"
        with pytest.raises(ArtifactError, match=message):
            store.film("a", "ct")


@pytest.mark.parametrize("kind", KINDS)
def test_a_stale_handle_is_opened_again(tmp_path, monkeypatch, impatient, kind):
    """As on NFS: a handle on a file that was replaced (copied anew) is stale for good."""
    real = os.pread

    def pread(descriptor, *arguments):
        if os.fstat(descriptor).st_nlink == 0:
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(descriptor, *arguments)

    monkeypatch.setattr(os, "pread", pread)
    with SliceStore(write_shards(tmp_path / "s", FILMS, per_shard=2, store=kind)) as store:
        assert_right(store)
        for path in [p for p in (tmp_path / "s").rglob("*") if p.is_file()]:
            shutil.copy(path, tmp_path / "copy")
            (tmp_path / "copy").replace(path)
        assert_right(store)


# --- Read-only, relative, in a loop ----------------------------------------------------------------------------------


@contextmanager
def nobody():
    """Give up the rights of root, for whom nothing is read-only."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def read_only():
    """A folder whose content nobody may change once ``seal()`` was called."""
    place = Path(tempfile.mkdtemp())

    def seal(mode=0o555):
        for path in (place, *place.rglob("*")):
            path.chmod(mode if path.is_dir() else 0o444)
        return place

    yield place, seal
    seal(0o755)
    shutil.rmtree(place)


@pytest.mark.parametrize("kind", KINDS)
def test_read_only_shards_are_read_verified_and_converted(read_only, tmp_path, kind):
    place, seal = read_only
    folder = write_shards(place / "shards", FILMS, per_shard=2, store=kind)
    (place / "out").mkdir()
    seal()
    (place / "out").chmod(0o777)
    with nobody():
        with SliceStore(folder) as store:
            assert_right(store)
            store.verify()
        other = "tar" if kind == "zarr" else "zarr"
        convert.run(configuration(f"convert.store={other}", input=[folder], output=place / "out" / "converted"))
    with SliceStore(place / "out" / "converted") as store:
        assert_right(store)


def test_a_finished_read_only_folder_is_left_alone_and_an_unfinished_one_is_one_line(read_only, capsys):
    place, seal = read_only
    cohort = write_cohort(place / "cohort", {"a": pair(0)})
    words = [
        "workers=1",
        "preprocess.spacing_mm=[4,5,5]",
        "preprocess.size=[24,26]",
        f"input={cohort}",
        f"output={place / 'out'}",
    ]
    claim_output(place / "run", "train", {"a": 1}).finish()
    claim_output(place / "unfinished", "train", {"a": 1})
    seal()
    with nobody():
        assert claim_output(place / "run", "train", {"a": 1}).finished
        with pytest.raises(PermissionError):
            claim_output(place / "unfinished", "train", {"a": 1})
        capsys.readouterr()
        assert main(["preprocess", *words]) == 2
    shown = capsys.readouterr().err.splitlines()
    assert shown[-1] == "Error: Permission denied. What was written stays; the same command continues."
    assert not (place / "out").exists()


def test_a_relative_path_is_found_again_from_another_folder(tmp_path, monkeypatch):
    write_cohort(tmp_path / "cohort", {"a": pair(0)})
    monkeypatch.chdir(tmp_path)
    words = ["workers=1", "preprocess.spacing_mm=[4,5,5]", "preprocess.size=[24,26]"]
    assert main(["preprocess", *words, "input=cohort", "output=shards"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with SliceStore(Path("../shards")) as store:
        assert [case.case_id for case in Cohort.load(Path(store.index.cohort)).cases] == ["a"]
        monkeypatch.chdir(tmp_path)  # while it is open, too
        store.film("a", "ct")
        store.verify()


@pytest.mark.parametrize("kind", KINDS)
def test_links_in_a_loop_are_the_users_error(tmp_path, kind, capsys):
    (tmp_path / "loop").symlink_to(tmp_path / "pool")
    (tmp_path / "pool").symlink_to(tmp_path / "loop")
    folder = write_shards(tmp_path / "shards", FILMS, per_shard=2, store=kind)
    for words in (
        ["verify", f"input={tmp_path / 'loop'}"],
        ["convert", f"input={tmp_path / 'loop'}", f"output={tmp_path / 'out'}"],
        ["convert", f"input={folder}", f"output={tmp_path / 'loop'}"],
        ["convert", f"input={folder}", f"output={tmp_path / 'loop' / 'below'}"],
        ["preprocess", f"input={tmp_path / 'loop'}", f"output={tmp_path / 'out'}"],
    ):
        assert main(words) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("Error: ")
    for path in [p for p in folder.rglob("*") if p.suffix in (".tar", ".npy", ".0")]:
        path.unlink()
        path.symlink_to(path)
        with pytest.raises(ArtifactError, match="is missing"):
            SliceStore(folder)


# --- Hostile ---------------------------------------------------------------------------------------------------------

UNSAFE = ["../../evil.tar", "/abs/evil.tar", "pipe:touch evil.tar", "a b.tar", "x.pkl", "", ".", "..", "evil.tar\n",
          "http://example.org/x.tar", "a/b.tar", "a\\b.tar", "x.tar;id", "$(id).tar", "ä.tar", "\0.tar"]  # fmt: skip


@pytest.mark.parametrize("key", ["file", "table"])
@pytest.mark.parametrize("name", UNSAFE)
def test_an_index_names_no_other_place_and_no_command(tmp_path, key, name):
    folder = write_shards(tmp_path, FILMS[:1])
    alter_index(
        folder, lambda index: index["shards"][0].update({key: name.replace(".tar", ".npy") if key == "table" else name})
    )
    with pytest.raises(ArtifactError, match=rf"not valid at 'shards\.0\.{key}'"):
        SliceStore(folder)


@pytest.mark.parametrize(
    "name", ["../../evil", "/etc/passwd", "a/../../c.0.0.0", "a//c.0.0.0", "x", "", "a/ct/c.0.0.0\n"]
)
def test_a_zarr_shard_names_no_file_outside(tmp_path, name):
    folder = write_shards(tmp_path, FILMS[:1], store="zarr")
    alter_index(folder, lambda index: index["shards"][0]["files"][0].update(path=name))
    with pytest.raises(ArtifactError, match=r"not valid at 'shards\.0\.files\.0\.path'"):
        SliceStore(folder)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def test_a_pickle_in_the_place_of_a_table_is_not_opened(tmp_path):
    folder = write_shards(tmp_path / "shards", FILMS[:1])
    table, trap = folder / "shard-00000.npy", tmp_path / "sprung"
    for write in (
        lambda: np.save(table, np.array([Trap(trap)], object), allow_pickle=True),
        lambda: table.write_bytes(pickle.dumps(Trap(trap))),
        lambda: table.write_bytes(b""),
    ):
        write()
        alter_index(folder, lambda index: index["shards"][0].update(table_sha256=file_sha256(table)))
        with pytest.raises(ArtifactError, match=r"table of shard 'shard-00000\.tar'"):
            SliceStore(folder)
    assert not trap.exists()


def hostile_tar(folder, trap):
    """A tar whose members lead out, link, are devices or hold pickles, around the slices that its index speaks of."""
    kinds = [
        ("../../evil", tarfile.REGTYPE, ""), (str(trap), tarfile.REGTYPE, ""), ("link", tarfile.SYMTYPE, "/etc"),
        ("link/passwd", tarfile.REGTYPE, ""), ("hard", tarfile.LNKTYPE, "/etc/passwd"), ("null", tarfile.CHRTYPE, ""),
        ("pipe", tarfile.FIFOTYPE, ""), ("b_00000.pkl", tarfile.REGTYPE, ""), ("b_00000.pyd", tarfile.REGTYPE, ""),
    ]  # fmt: skip
    one, rows = FILMS[0], []
    path = folder / "shard-00000.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:

        def add(name, data, kind=tarfile.REGTYPE, target=""):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, len(data)
            archive.addfile(info, io.BytesIO(data))

        for name, kind, target in kinds:
            add(name, pickle.dumps(Trap(trap)) if kind == tarfile.REGTYPE else b"", kind, target)
        for k in range(len(one.mask)):
            begin, total = archive.offset // 512, 0
            for part in PARTS:
                name = member_name(one.case_id, k, part)
                data = encode(stored(one, part)[k], name)
                add(name, data)
                total += stated(data, 0, name)[1]
            rows.append((begin, total % 2**32))
        rows.append((archive.offset // 512, 0))
    np.save(folder / "shard-00000.npy", np.array(rows, TABLE))
    record = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
    alter_index(folder, lambda i: i["shards"][0].update(record, table_sha256=file_sha256(folder / "shard-00000.npy")))
    return folder


def test_hostile_members_of_a_tar_are_neither_written_nor_followed_nor_run(tmp_path):
    folder, trap = write_shards(tmp_path / "in" / "shards", FILMS[:1]), tmp_path / "sprung"
    hostile_tar(folder, trap)
    before = sorted(tmp_path.rglob("*"))
    with SliceStore(folder) as store:
        for part, array in store.film("b", *PARTS).items():
            np.testing.assert_array_equal(array, stored(FILMS[0], part))
        store.verify()
    path = folder / "shard-00000.tar"
    content = path.read_bytes()
    path.write_bytes(content[:-2048])
    with pytest.raises(ArtifactError, match="truncated"):  # its members are counted, not taken out
        SliceStore(folder)
    path.write_bytes(content)
    assert sorted(tmp_path.rglob("*")) == before
    convert.run(configuration("convert.store=zarr", input=[folder], output=tmp_path / "out"))
    assert not trap.exists()
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out"}
    assert ShardFile.model_validate(ShardIndex.load(tmp_path / "out").shards[0]).cases == ["b"]
