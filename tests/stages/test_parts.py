"""Stages in parts: the join makes what one run makes, and lists what failed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers import body, configuration, pair, write_cohort
from test_preprocess import OPTIONS as PREPARED
from test_simulate import OPTIONS as SIMULATED
from test_simulate import cut, scanner  # noqa: F401 - the stand-in takes the simulator's place here too

from pipeline.__main__ import main
from pipeline.errors import ConfigError, DataError
from pipeline.parts import left_out_by_parts, missing_parts, share_of
from pipeline.records import Cohort, ShardIndex
from pipeline.stages import preprocess, simulate

STAGES = {simulate: SIMULATED, preprocess: PREPARED}


def run(stage, source, output, part=""):
    stage.run(configuration(*STAGES[stage], input=[source], output=output, part=part))


def content(folder):
    notes = {"cohort.json", "stage.json"}  # where they lie, and what the last command was
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != "parts" and path.name not in notes
    }


@given(st.lists(st.integers(), max_size=20), st.integers(1, 25))
def test_parts_deal_every_item_once(items, count):
    dealt = [item for number in range(1, count + 1) for item in share_of(items, f"{number}/{count}")]
    assert sorted(dealt) == sorted(items)
    assert share_of(items, "") == items
    assert share_of(items, "join") == []


@pytest.mark.parametrize("stage", [simulate, preprocess], ids=["simulate", "preprocess"])
def test_parts_in_any_order_and_a_join_make_what_one_run_makes(stage, tmp_path):
    source = write_cohort(tmp_path / "in", {name: pair(seed) for seed, name in enumerate("abcd")})
    run(stage, source, tmp_path / "whole")
    for number in (3, 1, 2):
        run(stage, source, tmp_path / "joined", f"{number}/3")
    run(stage, source, tmp_path / "joined", "join")
    assert content(tmp_path / "joined") == content(tmp_path / "whole")
    assert json.loads((tmp_path / "joined" / "stage.json").read_text())["finished"]
    assert missing_parts(tmp_path / "joined", 3) == []
    if stage is simulate:
        one, other = (Cohort.load(tmp_path / name) for name in ("whole", "joined"))
        assert one.model_copy(update={"root": ""}) == other.model_copy(update={"root": ""})


def test_a_simulation_that_fails_is_listed_by_the_join_which_does_not_fail(tmp_path):
    source = write_cohort(tmp_path / "in", {"a": {"ct": body()}, "b": {"ct": cut()}, "c": {"ct": body(2)}})
    run(simulate, source, tmp_path / "out", "1/2")
    with pytest.raises(DataError, match=r"1 case\(s\) were left out .*: b"):
        run(simulate, source, tmp_path / "out", "2/2")
    assert missing_parts(tmp_path / "out", 2) == [2]
    run(simulate, source, tmp_path / "out", "join")
    cohort = Cohort.load(tmp_path / "out")
    assert [case.case_id for case in cohort.cases] == ["a", "c"]
    assert "cuts the body" in cohort.excluded[0].reason
    assert left_out_by_parts(tmp_path / "out") == {"b": cohort.excluded[0].reason}


def test_a_film_that_cannot_be_made_is_listed_and_made_by_the_next_try(tmp_path, capsys):
    source = write_cohort(tmp_path / "in", {name: pair(seed) for seed, name in enumerate("abc")})
    volume = source / "b" / "ct.nii"
    whole = volume.read_bytes()
    volume.write_bytes(whole[:-100])
    run(preprocess, source, tmp_path / "out", "1/2")
    with pytest.raises(DataError, match="b: "):
        run(preprocess, source, tmp_path / "out", "2/2")
    run(preprocess, source, tmp_path / "out", "join")
    assert "Left out: b: " in capsys.readouterr().err
    index = ShardIndex.load(tmp_path / "out")
    assert [case.case_id for case in index.cases] == ["a", "c"]
    assert [case.case_id for case in index.excluded] == ["b"]
    volume.write_bytes(whole)
    assert missing_parts(tmp_path / "out", 2) == [2]
    run(preprocess, source, tmp_path / "out", "2/2")
    run(preprocess, source, tmp_path / "out", "join")
    assert [case.case_id for case in ShardIndex.load(tmp_path / "out").cases] == ["a", "b", "c"]


@pytest.mark.parametrize("stage", [simulate, preprocess], ids=["simulate", "preprocess"])
def test_a_part_that_never_ended_is_no_reason_to_lose_the_others(stage, tmp_path):
    source = write_cohort(tmp_path / "in", {name: pair(seed) for seed, name in enumerate("ab")})
    run(stage, source, tmp_path / "out", "2/2")
    run(stage, source, tmp_path / "out", "join")
    record = (Cohort if stage is simulate else ShardIndex).load(tmp_path / "out")
    assert [case.case_id for case in record.cases] == ["b"]
    assert "did not end" in record.excluded[0].reason
    assert not json.loads((tmp_path / "out" / "stage.json").read_text())["finished"]
    run(stage, source, tmp_path / "out", "1/2")
    run(stage, source, tmp_path / "out", "join")
    assert json.loads((tmp_path / "out" / "stage.json").read_text())["finished"]


def test_a_join_of_nothing_is_an_error(tmp_path):
    source = write_cohort(tmp_path / "in", {"a": pair()})
    for stage in STAGES:
        with pytest.raises(DataError, match="did not end"):
            run(stage, source, tmp_path / stage.__name__, "join")


def test_parts_that_are_none_are_refused(tmp_path, capsys):
    for part, message in (("3/2", "There is no such part"), ("0/2", "'part' is not valid"), ("x", "'part'")):
        assert main(["simulate", f"input={tmp_path}", f"output={tmp_path / 'out'}", f"part={part}"]) == 2
        assert message in capsys.readouterr().err
    assert main(["train", f"input={tmp_path}", f"output={tmp_path / 'out'}", "part=1/2"]) == 2
    assert "does not work in parts" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="'part' is no setting"):
        configuration("+part=1/2")
