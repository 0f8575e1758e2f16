"""Zarr shards: any zarr v3 library reads them, and they serve what tar shards serve."""

import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import given
from hypothesis import strategies as st
from makers import alter_index, film, write_shards
from numcodecs import blosc

from pipeline.artifacts import file_sha256
from pipeline.errors import ArtifactError, DataError
from pipeline.records import ShardIndex
from pipeline.stream import shard
from pipeline.stream.store import SliceStore, write_shard
from pipeline.stream.zarr import google_crc32c

FILMS = [film("b", 5), film("a", 9), film("long_name-1", 3)]
PARTS = ("cbct", "ct", "mask")
CODECS = ("lz4", "none")


def stored(one, part):
    return one.mask if part == "mask" else one.frames[part]


@pytest.fixture(scope="module", params=CODECS)
def shards(tmp_path_factory, request):
    return write_shards(tmp_path_factory.mktemp("zarr"), FILMS, per_shard=2, store="zarr", codec=request.param)


@pytest.fixture
def fresh(tmp_path):
    return lambda **options: write_shards(tmp_path / "s", FILMS, per_shard=2, store="zarr", **options)


def chunk(folder, case_id="a", part="ct", number=0):
    return folder / f"shard-{number:05d}.zarr" / case_id / part / "c.0.0.0"


@given(one=st.sampled_from(FILMS), data=st.data(), names=st.sets(st.sampled_from(PARTS), min_size=1))
def test_any_clip_of_any_parts_is_the_films(shards, one, data, names):
    start = data.draw(st.integers(0, len(one.mask) - 1))
    count = data.draw(st.integers(1, len(one.mask) - start))
    out = {n: np.full((count, 6, 8), 77, stored(one, n).dtype) for n in names}
    with SliceStore(shards) as store:
        store.read(one.case_id, start, count, out)
    for name in names:
        np.testing.assert_array_equal(out[name], stored(one, name)[start : start + count])


def test_threads_that_read_at_once_get_the_same(shards):
    def clip(job):
        one, start = job
        out = {n: np.zeros((2, 6, 8), stored(one, n).dtype) for n in PARTS}
        store.read(one.case_id, start, 2, out)
        return all(np.array_equal(out[n], stored(one, n)[start : start + 2]) for n in PARTS)

    jobs = [(one, start) for one in FILMS for start in range(len(one.mask) - 1)] * 20
    with SliceStore(shards) as store, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(clip, jobs))


@pytest.mark.parametrize(("start", "count"), [(-1, 2), (0, 10), (8, 2), (0, 0), (9, 1)])
def test_a_clip_outside_the_film_is_refused(shards, start, count):
    with SliceStore(shards) as store, pytest.raises(IndexError):
        store.read("a", start, count, {"ct": np.zeros((max(count, 1), 6, 8), np.int16)})


def test_buffers_of_another_shape_or_dtype_are_refused(shards):
    with SliceStore(shards) as store:
        for out in (np.zeros((2, 8, 6), np.int16), np.zeros((2, 6, 8), np.float32), np.zeros((3, 6, 8), np.int16)):
            with pytest.raises(ArtifactError, match="holds other images"):
                store.read("a", 0, 2, {"ct": out})


@pytest.mark.parametrize("codec", CODECS)
def test_index_and_order_are_those_of_tar_shards(tmp_path, codec):
    folders = [write_shards(tmp_path / kind, FILMS, per_shard=2, store=kind, codec=codec) for kind in ("tar", "zarr")]
    tar, zarred = (ShardIndex.load(folder) for folder in folders)
    assert tar.model_dump(exclude={"shards", "seal"}) == zarred.model_dump(exclude={"shards", "seal"})
    assert [(s.cases, s.members) for s in tar.shards] == [(s.cases, s.members) for s in zarred.shards]


@pytest.mark.parametrize("codec", CODECS)
def test_the_same_films_give_the_same_bytes(tmp_path, codec):
    one, two = (write_shard(tmp_path / name, "shard", iter(FILMS), codec, "zarr") for name in "ab")
    assert one == two
    assert {p: file_sha256(tmp_path / "a" / p) for p in one.contents()} == {
        p: s for p, (_, s) in one.contents().items()
    }


def test_a_film_that_fails_leaves_no_shard_behind_and_can_be_tried_again(tmp_path):
    def films():
        yield FILMS[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_shard(tmp_path, "shard", films(), "lz4", "zarr")
    assert [p.name for p in tmp_path.iterdir()] == [".partial.shard.zarr"]
    record = write_shard(tmp_path, "shard", iter(FILMS[1:]), "lz4", "zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shard.npy", "shard.zarr"]
    assert sorted(p.name for p in (tmp_path / "shard.zarr").iterdir()) == ["a", "long_name-1", "zarr.json"]
    assert write_shard(tmp_path, "shard", iter(FILMS[1:]), "lz4", "zarr") == record  # over an older one


@pytest.mark.parametrize(("part", "value"), [("ct", -32768), ("mask", 255)])
def test_the_value_that_marks_missing_slices_is_never_written(tmp_path, part, value):
    one = film("a", 3)
    stored(one, part)[1, 2, 3] = value
    with pytest.raises(DataError, match=rf"'{part}' of case 'a' holds {value}"):
        write_shard(tmp_path, "shard", iter([one]), "lz4", "zarr")
    assert not (tmp_path / "shard.zarr").exists()


# --- Independent readers ---------------------------------------------------------------------------------------------


def by_zarr(place, case_id, part):
    return zarr.open_group(place, mode="r")[f"{case_id}/{part}"][:]


def by_zarrs(place, case_id, part):
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        return zarr.open_group(place, mode="r")[f"{case_id}/{part}"][:]


def by_tensorstore(place, case_id, part):
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(place / case_id / part)}}
    return tensorstore.open(spec, read=True).result().read().result()


READERS = [by_zarr, by_zarrs, by_tensorstore]


@pytest.mark.parametrize("reader", READERS)
def test_other_libraries_open_them_and_find_the_same(shards, reader):
    for number, group in enumerate((FILMS[:2], FILMS[2:])):
        for one in group:
            for part in PARTS:
                found = reader(shards / f"shard-{number:05d}.zarr", one.case_id, part)
                np.testing.assert_array_equal(found, stored(one, part))
                assert found.dtype == stored(one, part).dtype


def test_a_group_tells_its_cases_parts_and_axes(shards):
    group = zarr.open_group(shards / "shard-00000.zarr", mode="r")
    assert sorted(group.group_keys()) == ["a", "b"]
    assert sorted(group["a"].array_keys()) == sorted(PARTS)
    array = group["a/ct"]
    assert (array.shape, array.chunks, array.shards) == ((9, 6, 8), (1, 6, 8), (9, 6, 8))
    assert array.metadata.dimension_names == ("slice", "row", "column")


@pytest.mark.parametrize("reader", READERS)
def test_where_a_chunk_is_missing_they_find_what_no_tissue_is(fresh, reader):
    folder = fresh()
    chunk(folder).unlink()
    assert (reader(folder / "shard-00000.zarr", "a", "ct") == -32768).all()
    chunk(folder, part="mask").unlink()
    assert (reader(folder / "shard-00000.zarr", "a", "mask") == 255).all()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("codec", CODECS)
def test_they_notice_an_altered_byte_by_the_crc32c(fresh, reader, codec):
    folder = fresh(codec=codec)
    content = bytearray(chunk(folder).read_bytes())
    content[30] ^= 0x10
    chunk(folder).write_bytes(content)
    with pytest.raises((ValueError, RuntimeError)), warnings.catch_warnings():
        reader(folder / "shard-00000.zarr", "a", "ct")


# --- Damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lost", ["shard-00000.zarr/a/ct/c.0.0.0", "shard-00000.zarr/a/ct", "shard-00000.zarr/a/zarr.json",
             "shard-00001.zarr", "shard-00000.npy"]
)  # fmt: skip
def test_a_missing_file_is_named_and_never_zeros(fresh, lost):
    folder = fresh()
    shutil.rmtree(folder / lost, ignore_errors=True)
    (folder / lost).unlink(missing_ok=True)
    with pytest.raises(ArtifactError, match=rf"Shard file '{lost.split('/c.')[0]}.*' is missing"):
        SliceStore(folder)


def test_a_cut_file_is_named_with_both_sizes(fresh):
    folder = fresh()
    path = chunk(folder)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=rf"a/ct/c.0.0.0' is truncated or altered. Found: {size - 1} bytes"):
        SliceStore(folder)


def test_a_file_that_vanishes_or_shrinks_while_it_is_used_is_an_error(fresh, monkeypatch):
    monkeypatch.setattr(shard, "RETRY_SECONDS", (0, 0))
    folder = fresh()
    with SliceStore(folder) as store:
        chunk(folder).write_bytes(chunk(folder).read_bytes()[:100])
        with pytest.raises(ArtifactError, match="ended while being read"):
            store.film("a", "ct")
        chunk(folder).unlink()
        with pytest.raises(ArtifactError, match="cannot be read"):
            store.film("a", "ct")


def test_a_file_of_another_case_in_its_place_is_noticed(tmp_path):
    films = [film("a", 4), film("b", 4)]
    folder = write_shards(tmp_path, films, per_shard=2, store="zarr", codec="none")
    shutil.copy(chunk(folder, "b"), chunk(folder, "a"))  # of one size, with sound checksums
    with SliceStore(folder) as store, pytest.raises(ArtifactError, match=r"Slice 0 \('ct'\) of case 'a'"):
        store.film("a", "ct")
    with SliceStore(folder) as store, pytest.raises(ArtifactError, match="does not match its SHA-256"):
        store.verify()


def test_every_file_is_verified(fresh):
    folder = fresh()
    with SliceStore(folder) as store:
        store.verify()
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".npy" and p.parent != folder):
            content = path.read_bytes()
            path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
            with pytest.raises(ArtifactError, match="does not match its SHA-256"):
                store.verify()
            path.write_bytes(content)


def hostile(folder, payload):
    """Put a payload in the place of the first slice of 'a/ct', with every checksum and size set right."""
    alter_index(folder, lambda index: _put(index, folder, payload))
    return folder


def _put(index, folder, payload):
    record = next(s for s in index["shards"] if "a" in s["cases"])
    table_path = folder / record["table"]
    table = np.load(table_path)
    row = 5 * len(PARTS) + 9  # behind all of 'b' and the CBCT of 'a'
    path, crc = chunk(folder), google_crc32c.value(payload)
    rest = path.read_bytes()[int(table["stop"][row]) :]
    path.write_bytes(payload + crc.to_bytes(4, "little") + rest)
    added = len(payload) + 4 - int(table["stop"][row])
    table["stop"][row : row + 9] = table["stop"][row : row + 9].astype(np.int64) + added
    table["crc"][row] = crc
    np.save(table_path, table)
    record["table_sha256"] = file_sha256(table_path)
    record["bytes"] += added
    next(f for f in record["files"] if f["path"] == "a/ct/c.0.0.0")["bytes"] += added


def test_a_decompression_bomb_is_refused_by_what_its_header_claims(fresh):
    bomb = blosc.compress(np.zeros(64_000_000, np.uint8), b"lz4", 5, blosc.SHUFFLE)
    lying = bytearray(blosc.compress(np.zeros((6, 8), np.int16), b"lz4", 5, blosc.SHUFFLE))
    lying[4:8] = (2**31 - 1).to_bytes(4, "little")
    for payload in (bomb, bytes(lying), b"\0", b"\0" * 15, b"\xff" * 40):
        with SliceStore(hostile(fresh(), payload)) as store:
            with pytest.raises(ArtifactError, match="checksum or its size"):
                store.film("a", "ct")
            np.testing.assert_array_equal(store.film("a", "mask")["mask"], FILMS[1].mask)
