"""Tar to zarr and back: nothing is lost, a killed conversion goes on, and a training does not see the difference."""

import json
import shutil

import numpy as np
import pytest
import tensorstore
from makers import configuration, film, write_shards

from pipeline.__main__ import main
from pipeline.errors import ArtifactError
from pipeline.geometry import reorder
from pipeline.io import read_volume
from pipeline.records import ShardIndex
from pipeline.stages import convert, verify
from pipeline.stream.shard import Film
from pipeline.stream.store import SliceStore

FILMS = [film("b", 5), film("a", 9), film("c", 3, modalities=("ct",))]  # a case may lack a modality


@pytest.fixture
def shards(tmp_path):
    options = {"units": {"ct": "a.u."}, "scale": {"ct": 0.37}, "splits": {"c": "test"}}
    return lambda codec="lz4", kind="tar": write_shards(
        tmp_path / "shards", FILMS, per_shard=2, codec=codec, store=kind, **options
    )


def run(folder, output, kind, **more):
    convert.run(configuration(f"convert.store={kind}", input=[folder], output=output, **more))
    return output


def content(folder):
    """The bytes of what a conversion must keep: shards, tables, index."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix in (".tar", ".npy")]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in [*files, folder / "index.json"]}


@pytest.mark.parametrize("codec", ["lz4", "none"])
def test_tar_to_zarr_to_tar_gives_the_same_bytes(tmp_path, shards, codec):
    tar = shards(codec)
    zarr = run(tar, tmp_path / "zarr", "zarr")
    assert sorted(p.name for p in zarr.glob("*.zarr")) == ["shard-00000.zarr", "shard-00001.zarr"]
    assert content(run(zarr, tmp_path / "tar", "tar")) == content(tar)


def test_zarr_shards_are_those_that_preprocess_would_have_written(tmp_path, shards):
    converted = run(shards(), tmp_path / "converted", "zarr")
    written = write_shards(tmp_path / "written", FILMS, per_shard=2, store="zarr")
    assert [s.model_dump() for s in ShardIndex.load(converted).shards] == [
        s.model_dump() for s in ShardIndex.load(written).shards
    ]


def test_films_and_what_the_index_says_of_them_stay_the_same(tmp_path, shards):
    tar = shards()
    with SliceStore(tar) as one, SliceStore(run(tar, tmp_path / "zarr", "zarr")) as two:
        assert one.cases == two.cases
        assert one.index.config_hash == two.index.config_hash  # a training that was begun goes on
        for case_id in one.cases:
            for part, array in one.film(case_id, *one.parts[case_id]).items():
                np.testing.assert_array_equal(two.film(case_id, part)[part], array)


def test_a_finished_conversion_is_left_alone_and_an_unfinished_one_goes_on(tmp_path, shards, capsys):
    tar, output = shards(), tmp_path / "zarr"
    run(tar, output, "zarr")
    expected = content(output)
    written = {p: p.stat().st_mtime_ns for p in output.rglob("*")}
    run(tar, output, "zarr")
    assert "nothing to do" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in output.rglob("*")} == written
    # As if killed in the second shard.
    stage = json.loads((output / "stage.json").read_text())
    (output / "stage.json").write_text(json.dumps({**stage, "finished": False}))
    (output / "index.json").unlink()
    (output / "shard-00001.json").unlink()
    shutil.move(output / "shard-00001.zarr", output / ".partial.shard-00001.zarr")
    first = output / "shard-00000.zarr" / "a" / "ct" / "c.0.0.0"
    before = first.stat().st_ino
    run(tar, output, "zarr")
    assert content(output) == expected
    assert first.stat().st_ino == before
    assert not list(output.glob(".partial*"))


def test_a_shard_that_was_lost_is_written_again_and_asks_for_its_own_space_only(tmp_path, shards, monkeypatch):
    asked = []
    monkeypatch.setattr(convert, "check_free_space", lambda folder, size: asked.append(size - 10_000_000))
    tar, output = shards(), tmp_path / "zarr"
    run(tar, output, "zarr")
    expected = content(output)
    shutil.rmtree(output / "shard-00000.zarr")
    run(tar, output, "zarr")
    assert content(output) == expected
    assert 0 < asked[1] < asked[0]


def test_a_shard_that_was_damaged_meanwhile_is_written_again(tmp_path, shards):
    tar, output = shards(), tmp_path / "zarr"
    run(tar, output, "zarr")
    (output / "index.json").unlink()
    victim = output / "shard-00000.zarr" / "a" / "ct" / "c.0.0.0"
    sound = victim.read_bytes()
    victim.write_bytes(sound[:20] + b"?" + sound[21:])
    run(tar, output, "zarr")
    assert victim.read_bytes() == sound


def test_other_shards_or_another_kind_are_refused_in_the_same_folder(tmp_path, shards):
    tar, output = shards(), tmp_path / "out"
    run(tar, output, "zarr")
    with pytest.raises(ArtifactError, match="store: zarr -> tar"):
        run(tar, output, "tar")
    other = write_shards(tmp_path / "other", [film("a", 4)])
    with pytest.raises(ArtifactError, match="made with other settings: shards"):
        run(other, output, "zarr")


def test_a_damaged_shard_is_not_converted(tmp_path, shards):
    tar = shards("none")
    path = tar / "shard-00000.tar"
    damaged = bytearray(path.read_bytes())
    damaged[600] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ArtifactError, match=r"shard-00000\.tar"):
        run(tar, tmp_path / "zarr", "zarr")
    assert not (tmp_path / "zarr" / "index.json").exists()


def test_a_dry_run_writes_nothing(tmp_path, shards, capsys):
    run(shards(), tmp_path / "zarr", "zarr", dry_run=True)
    assert not (tmp_path / "zarr").exists()
    assert "3 cases in 2 shards to zarr, at most" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["tar", "zarr"])
def test_verify_reads_all_and_names_what_differs(shards, capsys, kind):
    folder = shards(kind=kind)
    verify.run(configuration(input=[folder]))
    assert "2 shards of 3 cases are as they were written" in capsys.readouterr().err
    victim = max(
        (p for p in folder.rglob("*") if p.is_file() and p.suffix in (".tar", ".0")), key=lambda p: p.stat().st_size
    )
    content = victim.read_bytes()
    victim.write_bytes(content[:1] + bytes([content[1] ^ 1]) + content[2:])
    assert main(["verify", f"input={folder}"]) == 2
    shown = capsys.readouterr().err
    assert f"Shard file '{victim.relative_to(folder).as_posix()}' does not match its SHA-256" in shown


def test_a_relative_path_may_be_given_from_anywhere(tmp_path, shards, monkeypatch):
    tar = shards()
    monkeypatch.chdir(tar.parent)
    assert main(["convert", "input=shards", "output=sub/zarr"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["convert", "input=../sub/zarr", "output=../tar", "convert.store=tar"]) == 0
    assert content(tmp_path / "tar") == content(tar)


@pytest.mark.real
def test_a_real_torso_survives_both_ways_and_tensorstore_finds_its_voxels(tmp_path, real_data):
    volume = reorder(read_volume(real_data / "ct" / "torso.nii.gz", "HU"))
    hu = volume.array[100:124].clip(-1024).astype(np.int16)
    one = Film("torso", {"ct": hu}, (hu > -300).astype(np.uint8))
    tar = write_shards(tmp_path / "shards", [one])
    zarr = run(tar, tmp_path / "zarr", "zarr")
    path = zarr / "shard-00000.zarr" / "torso" / "ct"
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    np.testing.assert_array_equal(tensorstore.open(spec, read=True).result().read().result(), hu)
    assert content(run(zarr, tmp_path / "tar", "tar")) == content(tar)
