"""Shards: a plain WebDataset, read at random, and never silently short or altered."""

import gc
import io
import re
import sys
import tarfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from makers import alter_index, film, write_shards

from pipeline.artifacts import file_sha256
from pipeline.errors import ArtifactError
from pipeline.records import ShardIndex
from pipeline.stream import store as store_module
from pipeline.stream.codec import webdataset_decoder
from pipeline.stream.store import SliceStore
from pipeline.stream.tar import write_shard

OPEN_FILES = Path("/proc/self/fd")

FILMS = [film("b", 5), film("a", 9), film("long_name-1", 3)]
PARTS = ("cbct", "ct", "mask")


def stored(one, part):
    return one.mask if part == "mask" else one.frames[part]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), FILMS, per_shard=2)


@pytest.fixture
def fresh(tmp_path):
    return lambda **options: write_shards(tmp_path / "s", FILMS, per_shard=2, **options)


def read_everything(folder):
    with SliceStore(folder) as store:
        return {one.case_id: store.film(one.case_id, *PARTS) for one in FILMS}


def test_films_come_back_as_they_were(shards):
    films = read_everything(shards)
    for one in FILMS:
        for part in PARTS:
            np.testing.assert_array_equal(films[one.case_id][part], stored(one, part))


@pytest.mark.parametrize("kind", ["tar", "zarr"])
def test_cases_may_hold_different_modalities(tmp_path, kind):
    mixed = [film("only_ct", 4, modalities=("ct",)), film("both", 5), film("only_cbct", 3, modalities=("cbct",))]
    with SliceStore(write_shards(tmp_path, mixed, per_shard=3, store=kind)) as store:
        assert sorted(store.index.modalities) == ["cbct", "ct"]
        for one in mixed:
            assert store.cases[one.case_id].modalities == tuple(one.frames)
            for name, found in store.film(one.case_id, *one.frames, "mask").items():
                np.testing.assert_array_equal(found, stored(one, name))
        with pytest.raises(ArtifactError, match=r"hold no 'cbct' of case 'only_ct'\. Allowed: ct, mask"):
            store.film("only_ct", "cbct")


@pytest.mark.parametrize("codec", ["lz4", "none"])
def test_the_same_films_give_the_same_bytes(tmp_path, codec):
    one, two = (write_shard(tmp_path / name, "shard", iter(FILMS), codec) for name in "ab")
    assert one == two
    assert one.members == 3 * (5 + 9 + 3)
    for suffix in ("tar", "npy"):
        assert (tmp_path / "a" / f"shard.{suffix}").read_bytes() == (tmp_path / "b" / f"shard.{suffix}").read_bytes()


def test_a_film_that_fails_leaves_no_shard_behind(tmp_path):
    def films():
        yield FILMS[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_shard(tmp_path, "shard", films(), "lz4")
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".partial")] == []


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves them to the collector
def test_webdataset_reads_every_slice_in_order_with_all_of_its_parts(shards):
    urls = [str(shards / f"shard-{i:05d}.tar") for i in (0, 1)]
    dataset = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).map(webdataset_decoder)
    samples = list(dataset)
    del dataset
    gc.collect()
    expected = [(one.case_id, k) for one in FILMS for k in range(len(one.mask))]
    assert [(s["case_id"], s["slice_index"]) for s in samples] == expected
    by_name = {one.case_id: one for one in FILMS}
    for sample in samples:
        assert set(PARTS) <= set(sample)
        for part in PARTS:
            expected_slice = stored(by_name[sample["case_id"]], part)[sample["slice_index"]]
            np.testing.assert_array_equal(sample[part], expected_slice)
            assert sample[part].dtype == expected_slice.dtype


@given(st.sampled_from(FILMS), st.data(), st.sets(st.sampled_from(PARTS), min_size=1))
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


def test_a_long_film_is_read_in_pieces(shards, monkeypatch):
    monkeypatch.setattr(store_module, "_SLICES_AT_ONCE", 4)
    np.testing.assert_array_equal(read_everything(shards)["a"]["ct"], FILMS[1].frames["ct"])


@pytest.mark.parametrize(("start", "count"), [(-1, 2), (0, 10), (8, 2), (0, 0), (9, 1)])
def test_a_clip_outside_the_film_is_refused(shards, start, count):
    with SliceStore(shards) as store, pytest.raises(IndexError):
        store.read("a", start, count, {"ct": np.zeros((max(count, 1), 6, 8), np.int16)})


def test_a_modality_that_the_shards_do_not_hold_is_refused_not_left_unfilled(shards):
    with (
        SliceStore(shards) as store,
        pytest.raises(ArtifactError, match=r"hold no 't1n' of case '\w+'\. Allowed: cbct, ct, mask"),
    ):
        store.film("a", "ct", "t1n")


# --- Damage ----------------------------------------------------------------------------------------------------------


def first_shard(folder):
    return folder / "shard-00000.tar"


def rewrite_tar(path, keep):
    """Write a tar again with only the members that ``keep(name)`` wants, and pad it to its old size."""
    size = path.stat().st_size
    with tarfile.open(path) as archive:
        members = [(m, archive.extractfile(m).read()) for m in archive if keep(m.name)]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    content = path.read_bytes()
    path.write_bytes(content + b"\0" * max(0, size - len(content)))


@pytest.mark.parametrize("members", [1, 5, 41])
def test_a_tar_cut_at_a_members_edge_says_how_many_there_should_be_and_are(fresh, members):
    folder = fresh()
    path = first_shard(folder)
    with tarfile.open(path) as archive:
        edge = archive.getmembers()[members].offset
    path.write_bytes(path.read_bytes()[:edge])
    with pytest.raises(ArtifactError, match=rf"index says 42 members, found {members}\."):
        SliceStore(folder)


@pytest.mark.parametrize("zeros", [False, True])
def test_a_tar_cut_in_a_members_data_or_header_is_refused(fresh, zeros):
    folder = fresh()
    path = first_shard(folder)
    content = path.read_bytes()
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    for cut in (members[7].offset_data + 9, members[7].offset + 100, members[-1].offset_data + 30, 0, 700):
        path.write_bytes(content[:cut] + (b"\0" * (len(content) - cut) if zeros else b""))
        with pytest.raises(ArtifactError):
            read_everything(folder)


def test_a_lost_element_of_a_pair_is_noticed_though_the_size_is_the_same(fresh):
    folder = fresh(codec="none")
    rewrite_tar(first_shard(folder), lambda name: name != "a_00003.ct.slice")
    with SliceStore(folder) as store, pytest.raises(ArtifactError, match=r"shard-00000\.tar"):
        store.verify()
    with pytest.raises(ArtifactError, match="does not match its checksum"):
        read_everything(folder)


def test_a_lost_slice_never_becomes_its_neighbour(fresh):
    folder = fresh(codec="none")  # without compression all members have one size: offsets stay plausible
    rewrite_tar(first_shard(folder), lambda name: not name.startswith("a_00003"))
    with SliceStore(folder) as store:
        for k in range(3):
            store.read("a", k, 1, {"ct": np.zeros((1, 6, 8), np.int16)})
        for k in range(3, 9):
            with pytest.raises(ArtifactError):
                store.read("a", k, 1, {"ct": np.zeros((1, 6, 8), np.int16)})


def test_slices_that_changed_places_are_noticed(fresh):
    folder = fresh(codec="none")
    path = first_shard(folder)
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        places = {member.name: member.offset for member in archive}
    one, two = places["a_00003.ct.slice"], places["a_00004.ct.slice"]
    length = 1024  # a header's block and one of data: 24 + 96 bytes
    content[one : one + length], content[two : two + length] = content[two : two + length], content[one : one + length]
    path.write_bytes(content)
    with SliceStore(folder) as store, pytest.raises(ArtifactError, match=r"'a_00003\.ct\.slice' in shard"):
        store.film("a", "ct")


def test_an_index_that_was_altered_is_refused(fresh):
    folder = fresh()
    record = folder / "index.json"
    record.write_text(record.read_text().replace('"ct": 1.0', '"ct": 1.5', 1))
    with pytest.raises(ArtifactError, match="does not match its seal"):
        ShardIndex.load(folder)
    record.write_text(re.sub(r'"seal": "\w+"', '"seal": ""', record.read_text()))
    with pytest.raises(ArtifactError, match=r"has lost its seal\. Copy it again"):
        ShardIndex.load(folder)


def moved(table, blocks):
    table["block"] += blocks
    return table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table[:-1], "lacks members: its cases need 42"),
        (lambda table: table["block"].astype("<u8"), "lacks members"),
        (lambda table: moved(table, table["block"][-1]), "leads out of it"),
        (lambda table: table[::-1].copy(), "leads out of it"),
        (lambda table: np.repeat(table[:1], len(table)), "leads out of it"),
    ],
)
def test_a_table_that_does_not_fit_its_shard_is_refused(fresh, change, message):
    folder = fresh()
    table = folder / "shard-00000.npy"
    np.save(table, change(np.load(table)))
    with pytest.raises(ArtifactError, match=r"table of shard 'shard-00000.tar' does not match"):
        SliceStore(folder)
    alter_index(folder, lambda d: d["shards"][0].update(table_sha256=file_sha256(table)))
    with pytest.raises(ArtifactError, match=message):
        SliceStore(folder)


def test_shards_of_an_older_version_say_what_to_do(fresh):
    folder = fresh()
    alter_index(folder, lambda d: d.update(schema=1))
    with pytest.raises(ArtifactError, match=r"another schema version. Found: 1. Allowed: 2. Write it again"):
        SliceStore(folder)


@pytest.mark.parametrize("codec", ["lz4", "none"])
def test_an_altered_byte_in_the_data_is_found_when_it_is_read(fresh, codec):
    folder = fresh(codec=codec)
    path = first_shard(folder)
    content = path.read_bytes()
    with tarfile.open(path) as archive:
        victim = archive.getmembers()[19]
    for place in (victim.offset_data, victim.offset_data + 20, victim.offset_data + victim.size - 1):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError):
            read_everything(folder)
        with SliceStore(folder) as store, pytest.raises(ArtifactError, match="SHA-256"):
            store.verify()
    path.write_bytes(content)
    with SliceStore(folder) as store:
        store.verify()


@pytest.mark.parametrize("name", ["shard-00001.tar", "shard-00001.npy"])
def test_a_missing_file_is_named(fresh, name):
    folder = fresh()
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"Shard file '{name}' is missing"):
        SliceStore(folder)


def test_a_folder_without_an_index_says_what_to_run(tmp_path):
    with pytest.raises(ArtifactError, match="Run 'cinevox preprocess' first"):
        SliceStore(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["cases"].pop(),
        lambda d: d["shards"].pop(),
        lambda d: d["shards"][0]["cases"].pop(),
        lambda d: d["cases"][0].update(shard=1),
        lambda d: d["cases"][0].update(shard=7),
        lambda d: d["cases"][0].update(shard=-2),
        lambda d: d["cases"].append(d["cases"][0]),
        lambda d: d["cases"][0].update(slices=4),
    ],
)
def test_an_index_that_disagrees_with_its_shards_is_refused(fresh, change):
    folder = fresh()
    alter_index(folder, change)
    with pytest.raises(ArtifactError):
        SliceStore(folder)


def kept_by_open_store(folder):
    """Bytes that an open store holds; its imports and caches are warm."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        with SliceStore(folder):
            gc.collect()
            return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def test_an_open_store_keeps_bytes_per_slice_and_a_few_kilobytes_per_patient(tmp_path):
    def folder(cases, slices):
        films = [film(f"case_{i:03d}", slices, size=(2, 2)) for i in range(cases)]
        return write_shards(tmp_path / f"{cases}_{slices}", films, per_shard=4, codec="none")

    kept_by_open_store(folder(1, 2))
    short, long, many = (kept_by_open_store(folder(*shape)) for shape in ((4, 10), (4, 210), (24, 10)))
    assert (long - short) / (4 * 200) < 10  # bytes per slice: eight of the table
    assert (many - short) / 20 < 8192  # bytes per patient


@pytest.mark.skipif(sys.platform != "linux", reason="counts /proc/self/io")
def test_opening_reads_tables_and_no_shard(tmp_path):
    def bytes_read():
        return int(Path("/proc/self/io").read_text().split()[1])

    folder = write_shards(tmp_path, [film("a", 200, size=(64, 64))])
    before = bytes_read()
    with SliceStore(folder):
        assert bytes_read() - before < 0.02 * (folder / "shard-00000.tar").stat().st_size


@pytest.mark.skipif(sys.platform != "linux", reason="counts /proc/self/fd")
def test_one_open_file_per_shard(shards):
    folder = Path("/proc/self/fd")
    before = len(list(folder.iterdir()))
    with SliceStore(shards):
        assert len(list(folder.iterdir())) - before == 2
    assert len(list(folder.iterdir())) == before


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is a Unix one")
def test_more_shards_than_files_may_be_open_raise_the_limit(shards):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))
    try:
        with SliceStore(shards):
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(514, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="this system does not list a process's open files")
def test_a_folder_that_is_refused_leaves_no_file_open(tmp_path):
    folder = write_shards(tmp_path / "shards", [film("a"), film("b")])
    (folder / "shard-00001.tar").unlink()
    before = len(list(OPEN_FILES.iterdir()))
    with pytest.raises(ArtifactError, match=r"shard-00001\.tar"):
        SliceStore(folder)
    assert len(list(OPEN_FILES.iterdir())) == before
