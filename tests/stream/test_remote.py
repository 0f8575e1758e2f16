"""Shards on a server: an error or the right bytes, in bounded time, and a cache that ranks share."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
from makers import alter_index, configuration, film, write_shards
from shard_server import serving

from pipeline.errors import ArtifactError, ConfigError
from pipeline.stream import remote_files
from pipeline.stream.remote import RemoteStore
from pipeline.stream.remote_files import RemoteFolder
from pipeline.stream.shard_cache import ShardCache, cache_folder

FILMS = [film(name, 4) for name in "abcd"]
QUICK = ("stream.remote.timeout_s=20", "stream.remote.attempts=3")
SLOW = ("stall", "drip")  # faults that only time ends


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(remote_files, "PAUSE_SECONDS", 0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("served"), FILMS, per_shard=2)


@pytest.fixture
def server(folder):
    with serving(folder) as running:
        yield running


def settings(*overrides):
    return configuration(*QUICK, *overrides).stream.remote


def patience(fault, attempts=3):
    """A busy machine must not look like a slow server, so that an answer in time is waited for longer than needed."""
    wait = ("stream.remote.timeout_s=0.4",) if fault in SLOW else ()
    return (*wait, f"stream.remote.attempts={attempts}")


def store(server, place, *overrides):
    return RemoteStore(server.url, settings(*overrides), cache=place)


def assert_right(found, name):
    one = next(one for one in FILMS if one.case_id == name)
    np.testing.assert_array_equal(found["ct"], one.frames["ct"])
    np.testing.assert_array_equal(found["mask"], one.mask)


def test_films_come_out_as_they_were_written_and_each_file_is_fetched_once(server, tmp_path):
    with store(server, tmp_path) as opened:
        for name in "abcdba":
            assert_right(opened.film(name, "ct", "mask"), name)
    with store(server, tmp_path) as again:
        assert_right(again.film("a", "ct", "mask"), "a")
    files = [name for name in server.asked if name != "index.json"]
    assert sorted(files) == ["shard-00000.npy", "shard-00000.tar", "shard-00001.npy", "shard-00001.tar"]
    assert server.asked.count("index.json") == 2  # once per store


@pytest.mark.parametrize("fault", ["cut", "stall", "drip", "html", "byte", "long", 500, 503, 429])
def test_a_server_that_recovers_gives_the_right_film(server, tmp_path, fault):
    server.faults["shard-00000.tar"] = [fault, fault]
    with store(server, tmp_path, *patience(fault, attempts=8)) as opened:
        assert_right(opened.film("a", "ct", "mask"), "a")
    assert server.asked.count("shard-00000.tar") >= 3


ALWAYS = ["cut", "stall", "drip", "html", "byte", 500, 404, 403]


@pytest.mark.parametrize(
    ("name", "fault"),
    [(f"shard-00001.{kind}", f) for kind in ("tar", "npy") for f in ALWAYS] + [("shard-00001.tar", "long")],
)
def test_a_server_that_does_not_recover_is_an_error_in_bounded_time(server, tmp_path, name, fault):
    server.faults[name] = fault
    began = time.monotonic()
    message = rf"'{name}' cannot be fetched"
    with store(server, tmp_path, *patience(fault)) as opened, pytest.raises(ArtifactError, match=message) as error:
        opened.film("c", "ct")
    assert time.monotonic() - began < 10
    assert server.asked.count(name) == (1 if fault in (404, 403) else 3)
    assert str(tmp_path) not in str(error.value)
    assert not list(tmp_path.glob(f"*{name[-4:]}"))
    assert not list(tmp_path.glob(".partial*"))


@pytest.mark.parametrize(
    ("fault", "message"),
    [("html", "is no shard index.*<html>"), (404, "not there"), (500, "HTTP 500, after 3"), ("cut", "after 3")],
)
def test_an_index_that_is_none_says_what_came_instead(server, tmp_path, fault, message):
    server.faults["index.json"] = fault
    with pytest.raises(ArtifactError, match=message):
        store(server, tmp_path)


def test_an_altered_index_is_refused(server, tmp_path):
    server.faults["index.json"] = "byte"
    with pytest.raises(ArtifactError):
        store(server, tmp_path)


def test_a_host_that_does_not_answer_is_an_error_in_bounded_time(tmp_path):
    began = time.monotonic()
    with pytest.raises(ArtifactError, match="cannot be fetched"):
        RemoteStore("http://127.0.0.1:9/shards", settings(), cache=tmp_path)
    assert time.monotonic() - began < 5


def test_zarr_and_shards_beyond_the_cache_are_refused_before_they_are_fetched(tmp_path, server):
    with pytest.raises(ConfigError, match=r"cache_gib is smaller.*at least"):
        store(server, tmp_path, "stream.remote.cache_gib=1e-7")
    with (
        serving(write_shards(tmp_path / "zarr", FILMS[:1], store="zarr")) as other,
        pytest.raises(ConfigError, match=r"convert\.store=tar"),
    ):
        store(other, tmp_path)


def test_an_index_whose_shard_lacks_members_is_refused(tmp_path):
    folder = write_shards(tmp_path / "short", FILMS[:1])
    alter_index(folder, lambda index: index["shards"][0].update(members=3))
    with serving(folder) as other, pytest.raises(ArtifactError, match="lacks members"):
        store(other, tmp_path)


def test_what_was_damaged_in_the_cache_is_fetched_again(server, tmp_path):
    with store(server, tmp_path) as opened:
        opened.film("a", "ct")
    kept = next(tmp_path.glob("*.tar"))
    kept.write_bytes(kept.read_bytes()[:-600])
    with store(server, tmp_path) as opened:
        assert_right(opened.film("a", "ct", "mask"), "a")
    assert server.asked.count("shard-00000.tar") == 2


def test_the_least_recently_used_makes_room_and_what_is_open_stays_readable(tmp_path):
    films = [film(name, 4) for name in "abcd"]
    folder = write_shards(tmp_path / "served", films, codec="none")  # all of one size
    size = next(folder.glob("*.tar")).stat().st_size
    with serving(folder) as other:
        limit = (2 * size + 20_000) / 2**30
        opened = store(other, tmp_path / "cache", f"stream.remote.cache_gib={limit}")
        records = opened.index.shards
        first = opened.open_shard(0)
        opened.open_shard(1).close()
        opened.open_shard(0).close()  # used again: the other one is the oldest
        opened.open_shard(2).close()
        here = {path.name for path in (tmp_path / "cache").glob("*.tar")}
        assert here == {f"{records[n].sha256}.tar" for n in (0, 2)}
        opened.open_shard(3).close()
        assert {path.name for path in (tmp_path / "cache").glob("*.tar")} == {
            f"{records[n].sha256}.tar" for n in (2, 3)
        }
        assert len(first.read()) == size
        first.close()
        (tmp_path / "cache" / f".partial.{size}.dead.{records[1].sha256}.tar").write_bytes(b"of a killed process")
        opened.open_shard(0).close()
        assert not list((tmp_path / "cache").glob(".partial*"))
        opened.close()


def size_of(one, number):
    with one.open_shard(number) as shard:
        return len(shard.read())


def test_ranks_of_a_machine_fetch_each_shard_once(server, folder, tmp_path):
    stores = [store(server, tmp_path) for _ in range(3)]  # locks are per open file
    with ThreadPoolExecutor(3) as ranks:
        read = list(ranks.map(lambda one: [size_of(one, number) for number in (0, 1)], stores))
    assert read == [[(folder / f"shard-0000{n}.tar").stat().st_size for n in (0, 1)]] * 3
    assert [server.asked.count(f"shard-0000{n}.tar") for n in (0, 1)] == [1, 1]


def test_threads_of_a_rank_fetch_a_shard_once(server, tmp_path):
    with store(server, tmp_path) as opened:
        threads = [threading.Thread(target=lambda: opened.open_shard(0).close()) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert server.asked.count("shard-00000.tar") == 1


def test_a_lock_that_is_held_too_long_is_an_error(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.stream.shard_cache._GRACE_SECONDS", 0.2)
    remote = RemoteFolder("memory://nothing", settings("stream.remote.attempts=1", "stream.remote.timeout_s=0.05"))
    cache = ShardCache(remote, 10**9, tmp_path)
    sha = "0" * 64
    with cache._locked(f"{sha}.tar", 0), pytest.raises(ArtifactError, match="longer than it may"):
        cache.open("shard-00000.tar", sha, 10)


def test_another_file_system_of_fsspec_serves_the_same_films(folder, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.put(f"{folder}/", "/bucket/shards", recursive=True)
    try:
        with RemoteStore("memory://bucket/shards", settings(), cache=tmp_path) as opened:
            assert_right(opened.film("d", "ct", "mask"), "d")
        memory.rm("/bucket/shards/shard-00000.tar")
        with (
            RemoteStore("memory://bucket/shards", settings(), cache=tmp_path) as opened,
            pytest.raises(ArtifactError, match="not there"),
        ):
            opened.film("a", "ct")
    finally:
        memory.rm("/bucket", recursive=True)


def test_options_of_s3_come_from_the_settings_and_keys_from_nowhere(monkeypatch):
    asked = {}
    monkeypatch.setattr(remote_files, "find_spec", lambda name: object())
    monkeypatch.setattr(remote_files.fsspec, "filesystem", lambda scheme, **how: asked.update(how, scheme=scheme))
    RemoteFolder("s3://bucket/shards", settings("stream.remote.endpoint_url='https://s3.site.example'"))
    assert asked["scheme"] == "s3"
    assert asked["endpoint_url"] == "https://s3.site.example"
    assert not {"key", "secret", "token", "anon"} & asked.keys()
    RemoteFolder("s3://bucket/shards", settings("stream.remote.anonymous=true"))
    assert asked["anon"] is True
    monkeypatch.setattr(remote_files, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'cinevox\[remote\]'"):
        RemoteFolder("s3://bucket/shards", settings())


@pytest.mark.parametrize("word", ["key=abc", "secret=abc", "token=abc"])
def test_a_key_is_no_setting(word):
    with pytest.raises(ConfigError, match="Unknown setting"):
        configuration(f"+stream.remote.{word}")


@pytest.mark.parametrize("url", ["https://me:pass@host", "ftp://host", "https://host/?token=a", "host"])
def test_an_endpoint_holds_no_secret(url):
    with pytest.raises(ConfigError, match="endpoint_url"):
        configuration(f"stream.remote.endpoint_url='{url}'")


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CINEVOX_CACHE", raising=False)
    assert cache_folder() == tmp_path / "cinevox" / "shards"
    monkeypatch.setenv("CINEVOX_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


@pytest.mark.parametrize(("fault", "message"), [(None, ""), (404, "not there"), (503, "after 3"), ("byte", "SHA-256")])
def test_s3_through_s3fs(server, tmp_path, fault, message):
    """The GET of S3 is one of HTTP: the server of these tests stands for a store on the site."""
    pytest.importorskip("s3fs", reason="the extra 'remote' is not installed")
    own = settings(f"stream.remote.endpoint_url='{server.url.partition('/site')[0]}'", "stream.remote.anonymous=true")
    server.faults["shard-00000.tar"] = fault
    with RemoteStore("s3://site/shards", own, cache=tmp_path) as opened:
        if fault is None:
            assert_right(opened.film("a", "ct", "mask"), "a")
        else:
            with pytest.raises(ArtifactError, match=message):
                opened.film("a", "ct")
