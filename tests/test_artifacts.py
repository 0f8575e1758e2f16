"""Files appear whole or not at all, and a folder belongs to one stage with one set of settings."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import artifacts
from pipeline.artifacts import (
    atomic_path,
    check_free_space,
    claim_output,
    content_hash,
    difference,
    read_json,
    write_json,
)
from pipeline.errors import ArtifactError


def test_a_file_appears_under_its_name_when_it_is_complete(tmp_path):
    target = tmp_path / "new" / "a.tar.gz"
    with atomic_path(target) as partial:
        partial.write_text("x")
        assert partial.parent == target.parent
        assert partial.name.endswith(".tar.gz")
        assert not target.exists()
    assert target.read_text() == "x"
    assert [p.name for p in target.parent.iterdir()] == ["a.tar.gz"]


def test_an_exception_leaves_the_target_untouched(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"


def test_json_with_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError, match=r"JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_a_new_folder_is_claimed_and_says_what_it_is_made_of(tmp_path):
    claim = claim_output(tmp_path / "out", "train", {"a": 1})
    assert (claim.finished, claim.continued) == (False, False)
    stored = json.loads((tmp_path / "out" / "stage.json").read_text())
    assert stored["verb"] == "train"
    assert stored["settings"] == {"a": 1}
    assert stored["finished"] is False


def test_an_unfinished_folder_is_continued_and_a_finished_one_left_alone(tmp_path):
    claim_output(tmp_path, "train", {"a": (1, 2)})
    again = claim_output(tmp_path, "train", {"a": [1, 2]})
    assert (again.finished, again.continued) == (False, True)
    again.finish(cases=3)
    done = claim_output(tmp_path, "train", {"a": [1, 2]})
    assert done.finished
    assert done.record["results"] == {"cases": 3}


def test_a_foreign_folder_is_refused_and_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="already in use"):
        claim_output(tmp_path, "train", {})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ArtifactError, match="already in use"):
        claim_output(tmp_path / "out", "train", {})


def test_the_folder_of_another_stage_is_refused(tmp_path):
    claim_output(tmp_path, "train", {})
    with pytest.raises(ArtifactError, match="belongs to 'cinevox train'"):
        claim_output(tmp_path, "report", {})


def test_a_run_killed_in_its_very_first_write_can_be_started_again(tmp_path):
    (tmp_path / ".partial.stage.json").write_text('{"sch')
    assert not claim_output(tmp_path, "train", {}).continued


def test_other_settings_are_refused_with_their_difference(tmp_path):
    claim_output(tmp_path, "train", {"a": {"b": 1, "c": 2}, "gone": None})
    with pytest.raises(ArtifactError, match=r"a\.b: 1 -> 5; gone: None -> \(absent\); new: \(absent\) -> x"):
        claim_output(tmp_path, "train", {"a": {"b": 5, "c": 2}, "new": "x"})


def test_force_takes_other_settings_and_every_time_is_recorded(tmp_path):
    claim_output(tmp_path, "train", {"a": 1}).finish()
    claim = claim_output(tmp_path, "train", {"a": 2}, force=True)
    assert (claim.finished, claim.continued) == (False, True)
    claim_output(tmp_path, "train", {"a": 3}, force=True).finish()
    stored = read_json(tmp_path / "stage.json", what="stage")
    assert stored["forced"] == [["a: 1 -> 2"], ["a: 2 -> 3"]]
    assert stored["settings"] == {"a": 3}
    assert claim_output(tmp_path, "train", {"a": 3}).finished


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b"[" * 200_000, b'{"a": ' + b"9" * 5000 + b"}", b'{"a": 1} x']
)
def test_damaged_json_is_an_error_that_names_the_artifact(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"cohort record at .* is damaged"):
        read_json(tmp_path / "a.json", what="cohort record")


@pytest.mark.parametrize("content", ["{", "[1]", "3"])
def test_a_damaged_claim_is_refused(tmp_path, content):
    (tmp_path / "stage.json").write_text(content)
    with pytest.raises(ArtifactError, match="damaged"):
        claim_output(tmp_path, "train", {})


def test_what_cannot_be_read_is_the_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="No scores at"):
        read_json(tmp_path / "none.json", what="scores")
    for place in (tmp_path, tmp_path / "file" / "below.json"):
        with pytest.raises(ArtifactError, match="cannot be read"):
            read_json(place, what="scores")


keys = st.sampled_from("abc")
values = st.sampled_from([None, 0, 1, 1.0, True, "1", "", "(absent)", [], [1]])
plain = st.dictionaries(keys, values | st.dictionaries(keys, values, max_size=2), max_size=3)


@settings(max_examples=200)
@given(plain, plain)
def test_settings_with_another_hash_always_show_a_difference(old, new):
    assert bool(difference(old, new)) == (content_hash(old) != content_hash(new))


def test_a_full_disk_is_refused_before_the_start(tmp_path):
    check_free_space(tmp_path / "not" / "there", 1)
    with pytest.raises(ArtifactError, match=r"Not enough disk space.*at least 1000000000.00 GB"):
        check_free_space(tmp_path / "not" / "there", 10**18)
    assert not (tmp_path / "not").exists()


def test_the_stage_file_is_the_one_that_other_tools_look_for():
    assert artifacts.STAGE_FILE == "stage.json"
