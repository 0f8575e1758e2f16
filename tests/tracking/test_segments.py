"""W&B's offline files: read, cut at what comes again, written so that W&B's own records come back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wandb.proto import wandb_internal_pb2 as protocol

from pipeline.tracking.segments import _contents, _packed, forget_after, logged, read_records

sizes = st.lists(st.sampled_from([0, 1, 7, 500, 32754, 32755, 32761, 32768, 70000]) | st.integers(0, 300), max_size=8)


@given(sizes)
def test_what_is_packed_comes_back(lengths):
    contents = [bytes([number % 251]) * length for number, length in enumerate(lengths)]
    assert list(_contents(_packed(contents))) == contents


@given(sizes, st.data())
def test_a_cut_or_altered_file_gives_the_whole_records_before_the_damage(lengths, data):
    contents = [bytes([number % 251]) * length for number, length in enumerate(lengths)]
    packed = _packed(contents)
    cut = data.draw(st.integers(0, len(packed)))
    found = list(_contents(packed[:cut]))
    assert found == contents[: len(found)]
    at = data.draw(st.integers(7, max(7, len(packed) - 1)))
    altered = bytearray(packed)
    if at < len(packed):
        altered[at] ^= 0x10
        found = list(_contents(bytes(altered)))
        assert found == contents[: len(found)] and len(found) <= len(contents)


def write_rows(folder, start, steps):
    path = folder / "wandb" / f"offline-run-{start}-abcd1234" / "run-abcd1234.wandb"
    path.parent.mkdir(parents=True)
    records = [protocol.Record(header=protocol.HeaderRecord())]
    for step in steps:
        items = [protocol.HistoryItem(nested_key=["step"], value_json=json.dumps(step))]
        records.append(protocol.Record(num=step, history=protocol.HistoryRecord(item=items)))
    path.write_bytes(_packed(record.SerializeToString() for record in records))
    return path


def steps_of(path):
    return [json.loads(row["step"]) for record in read_records(path) if (row := logged(record))]


def test_rows_that_come_again_are_dropped_from_every_file_and_what_was_sent_stays(tmp_path):
    first, second, sent = (
        write_rows(tmp_path, f"2026110{day}_000000", steps)
        for day, steps in ((1, [1, 2, 3, 4]), (2, [3, 4, 5]), (3, [1, 9]))
    )
    sent.with_suffix(".wandb.synced").touch()
    before = sent.read_bytes()
    assert forget_after(tmp_path, 2) == 5
    assert (steps_of(first), steps_of(second)) == ([1, 2], [])
    assert sent.read_bytes() == before
    kept = first.read_bytes()
    assert forget_after(tmp_path, 2) == 0 and first.read_bytes() == kept


@pytest.mark.parametrize("content", [b"", b":W&B", b"something else"])
def test_a_file_that_is_none_has_no_records_and_is_left_alone(tmp_path, content):
    path = write_rows(tmp_path, "20261101_000000", [1])
    path.write_bytes(content)
    assert forget_after(tmp_path, 0) == 0 and path.read_bytes() == content
