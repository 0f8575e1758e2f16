"""The programs under benchmarks/ run, in miniature."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import intervals
import metrics
import reference_flow

MINIATURE = [
    "source=t1n",
    "trainer.precision=fp32",
    "trainer.threads=1",
    "trainer.validation_segments=1",
    "trainer.validation_slices=2",
    "trainer.panels=false",
    "stream.clip_length=3",
    "stream.clip_growth=1",
    "model.module.generator.width=4",
    "model.module.generator.downsamplings=1",
    "model.module.generator.blocks=2",
    "model.module.image_discriminator.width=4",
    "model.module.temporal_discriminator.width=4",
    "model.module.temporal_scales=1",
    "model.module.perceptual=null",
]


def test_reference_flow_prints_a_row_per_kind_and_trains_nothing_twice(tiny_shards, tmp_path, capsys):
    arguments = [str(tiny_shards), str(tmp_path), "--steps", "2", *MINIATURE]
    assert reference_flow.main(arguments) == 0
    first = capsys.readouterr().out
    lines = first.splitlines()
    assert lines[0].startswith("1 test films, 2 steps, 1 seed(s), HU")
    rows = {line.split()[0]: [float(value) for value in line.split()[1:]] for line in lines[2:5]}
    assert set(rows) == {"none", "dis", "learned"}
    assert all(len(row) == len(reference_flow.TITLES) and min(row) > 0 for row in rows.values())
    none, dis = (rows[kind][reference_flow.TITLES.index("reference error")] for kind in ("none", "dis"))
    assert dis < none
    assert reference_flow.main(arguments) == 0
    assert capsys.readouterr().out == first


def test_reference_flow_ends_with_the_stages_code(tmp_path, capsys):
    with pytest.raises(SystemExit):
        reference_flow.main([])
    assert reference_flow.main([str(tmp_path), str(tmp_path / "out"), *MINIATURE]) == 2
    capsys.readouterr()


def test_intervals_print_a_share_per_number_of_patients(capsys):
    intervals.main(["--draws", "40"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [int(row[0]) for row in rows] == list(intervals.PATIENTS)
    assert all(0.5 < float(cell.rstrip("%")) / 100 <= 1 for row in rows for cell in row[1:])


def test_metrics_agree_with_their_plain_transcription_and_take_less_memory(capsys):
    metrics.main(["--rounds", "1", "--shape", "40", "98", "97"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["body", "whole"]
    assert all(0 < float(row[7]) < float(row[6]) for row in rows)
