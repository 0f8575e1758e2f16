"""Whatever byte of a shard is altered, cut or lost: an error or the right values, never a silent change."""

import json
import shutil
import tarfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from makers import film, write_shards

from pipeline.errors import ArtifactError
from pipeline.records import ShardIndex
from pipeline.stream import shard
from pipeline.stream.codec import HEADER
from pipeline.stream.store import SliceStore

FILMS = [film("a", 3), film("b", 2)]
PARTS = ("cbct", "ct", "mask")
BLOCK = 512
CRC = 4


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(shard, "RETRY_SECONDS", (0, 0))


@pytest.fixture(scope="module", params=["lz4", "none"])
def folders(tmp_path_factory, request):
    place = tmp_path_factory.mktemp("corruption")
    return {k: write_shards(place / k, FILMS, per_shard=1, store=k, codec=request.param) for k in ("tar", "zarr")}


def ranges(folder):
    """Byte class -> stretches (file, start, stop) of it, over all shards of a folder."""
    found = {}

    def add(name, path, start, stop):
        found.setdefault(name, []).append((path, start, stop))

    def whole(name, path):
        add(name, path, 0, path.stat().st_size)

    whole("index", folder / "index.json")
    for path in folder.glob("*.npy"):
        whole("table", path)
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as archive:
            for member in archive:
                begin, end = member.offset_data, member.offset_data + member.size
                padded = begin + -(-member.size // BLOCK) * BLOCK
                add("member header", path, member.offset, begin)
                add("slice header", path, begin, begin + HEADER.size)
                add("payload", path, begin + HEADER.size, end)
                add("padding", path, end, padded)
        add("end", path, padded, path.stat().st_size)
    for path in folder.glob("*.zarr/**/zarr.json"):
        whole("metadata", path)
    for path in folder.glob("*.zarr/**/c.0.0.0"):
        slices, size = next(len(one.mask) for one in FILMS if one.case_id in path.parts), path.stat().st_size
        index = size - 16 * slices - CRC
        entries = np.frombuffer(path.read_bytes()[index:-CRC], "<u8").reshape(slices, 2).astype(int).tolist()
        for offset, length in entries:
            add("chunk", path, offset, offset + length - CRC)
            add("chunk's crc32c", path, offset + length - CRC, offset + length)
        add("shard index", path, index, size)
    return found


CLASSES = [
    *(("tar", c) for c in ("member header", "slice header", "payload", "padding", "end", "table", "index")),
    *(("zarr", c) for c in ("metadata", "chunk", "chunk's crc32c", "shard index", "table", "index")),
]


def read_everything(folder):
    with SliceStore(folder) as store:
        films = {one.case_id: store.film(one.case_id, *PARTS) for one in FILMS}
        return films, store.index.model_dump()


def right_or_refused(folder, index):
    """Whether the folder is refused, or gives exactly what was written, in films and in what the index says."""
    try:
        films, found = read_everything(folder)
    except ArtifactError:
        return True
    return found == index and all(
        np.array_equal(films[one.case_id][part], one.mask if part == "mask" else one.frames[part])
        for one in FILMS
        for part in PARTS
    )


def damaged(data, content, start, stop):
    """Draw a damage to a file's bytes that begins between ``start`` and ``stop``."""
    place = data.draw(st.integers(start, stop - 1), "place")
    kind = data.draw(st.sampled_from(["bit", "byte", "bytes", "zeros", "cut", "lost stretch"]), "kind")
    if kind == "cut":
        return content[:place]
    if kind == "bit":
        new = bytes([content[place] ^ 1 << data.draw(st.integers(0, 7))])
    elif kind == "byte":
        new = bytes([data.draw(st.integers(0, 255))])
    elif kind == "bytes":
        new = data.draw(st.binary(min_size=1, max_size=stop - place))
    else:
        new = bytes(data.draw(st.integers(1, stop - place)))
    if kind == "lost stretch":  # what follows moves up, and the size stays
        return content[:place] + content[place + len(new) :] + new
    return content[:place] + new + content[place + len(new) :]


@pytest.mark.parametrize(("kind", "of"), CLASSES)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_goes_unnoticed(folders, kind, of, data):
    folder = folders[kind]
    index = ShardIndex.load(folder).model_dump()
    path, start, stop = data.draw(st.sampled_from([r for r in ranges(folder)[of] if r[2] > r[1]]), "where")
    content = path.read_bytes()
    try:
        path.write_bytes(damaged(data, content, start, stop))
        assert right_or_refused(folder, index)
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("kind", ["tar", "zarr"])
def test_every_class_of_bytes_is_covered(folders, kind):
    found = ranges(folders[kind])
    assert set(found) == {of for k, of in CLASSES if k == kind}
    for path in {p for stretches in found.values() for p, _, _ in stretches}:
        covered = sorted((a, b) for stretches in found.values() for p, a, b in stretches if p == path)
        assert [a for a, _ in covered] == [0, *(b for _, b in covered[:-1])]
        assert covered[-1][1] == path.stat().st_size


@pytest.mark.parametrize("kind", ["tar", "zarr"])
def test_every_lost_file_is_noticed(folders, kind, tmp_path):
    files = [p.relative_to(folders[kind]) for p in folders[kind].rglob("*") if p.is_file()]
    for number, path in enumerate(files):
        copy = tmp_path / str(number)
        shutil.copytree(folders[kind], copy)
        (copy / path).unlink()
        with pytest.raises(ArtifactError):
            read_everything(copy)


@pytest.mark.parametrize("kind", ["tar", "zarr"])
def test_every_emptied_or_swapped_file_is_noticed_or_harmless(folders, kind, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folders[kind], copy)
    index = ShardIndex.load(copy).model_dump()
    files = [p for p in copy.rglob("*") if p.is_file()]
    for path in files:
        content = path.read_bytes()
        for other in [b"", *(p.read_bytes() for p in files if p != path)]:
            path.write_bytes(other)
            assert right_or_refused(copy, index)
        path.write_bytes(content)
    read_everything(copy)


@pytest.mark.parametrize("small", [["index.json"], ["index.json", "shard-00000.npy", "shard-00001.npy"]])
@pytest.mark.parametrize("kind", ["tar", "zarr"])
def test_the_small_files_of_one_folder_with_the_large_ones_of_another_are_refused(kind, small, tmp_path):
    others = [film(one.case_id, len(one.mask), seed=1) for one in FILMS]  # of the same names and sizes
    one = write_shards(tmp_path / "one", FILMS, store=kind, codec="none")
    two = write_shards(tmp_path / "two", others, store=kind, codec="none")
    for name in small:
        shutil.copy(two / name, one / name)
    with pytest.raises(ArtifactError):
        read_everything(one)


@pytest.mark.parametrize("kind", ["tar", "zarr"])
def test_a_folder_of_which_half_was_copied_is_refused(kind, tmp_path):
    folder = write_shards(tmp_path, FILMS, store=kind)
    for path in folder.glob("shard-00001*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ArtifactError, match=r"'shard-00001.* is missing"):
        SliceStore(folder)
    index = json.loads((folder / "index.json").read_text())
    index["shards"].pop()
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match="seal"):
        SliceStore(folder)
