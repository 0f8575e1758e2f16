"""The programs under benchmarks/ run, in miniature."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import every_pair
import intervals
import latent_mapping
import metrics
import reference_flow
import scaling
import transfer
from miniatures import MINIATURE as MODELS

from pipeline.__main__ import main
from pipeline.config import build, compose

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

LATENT = [*MODELS["latent_translator"], "model.module.transformer.modalities=[cbct,ct]"]


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


def test_the_scaling_on_paper_follows_its_formulae():
    machine = scaling.Machine(flops=1e12, inside=1e9, network=1e8, latency=1e-3, per_node=4)
    method = scaling.Method(flops=2e12, parameters=1_000_000, exchanges=3, frames=5)
    assert scaling.exchanged_bytes(1_000_000, 1) == 0
    assert scaling.exchanged_bytes(1_000_000, 4) == 6e6  # 2 x 3/4 of 4 MB
    assert scaling.exchange_seconds(method, 4, machine) == pytest.approx(3 * (6e6 / 1e9 + 6e-3))
    assert scaling.exchange_seconds(method, 8, machine) == pytest.approx(3 * (7e6 / 1e8 + 14e-3))
    assert scaling.efficiency(method, 1, machine) == 1
    assert scaling.efficiency(method, 8, machine) == pytest.approx(2 / (2 + 0.252))
    assert scaling.steps_per_epoch(100, 5, 16) == 125
    assert scaling.steps_per_epoch(100, 5, scaling.knee(100, 5)) == scaling.STEPS_PER_EPOCH
    clip = 5 * scaling.SLICE_PAIR_MB * 1e6
    assert scaling.shard_bytes_per_second(method, 1, machine, 256) == pytest.approx(clip / 2)
    assert scaling.shard_bytes_per_second(method, 1, machine, 512) == pytest.approx(4 * clip / 2)
    rows = scaling.table("x", method, machine, 256).splitlines()
    assert rows[4].startswith("| 1 | 1 | 2.000 | 0.000 | 0 | 1.00 |")
    assert "40 ranks for 100 patients, 400 ranks for 1000 patients" in rows[-1]


def test_what_a_method_does_is_counted_in_a_real_step(monkeypatch):
    own = ["model.module.network.widths=[4,8]"]
    monkeypatch.setitem(scaling.METHODS, "regression", {"clip": 2, "own": own})
    small, large = scaling.count("regression", 64), scaling.count("regression", 128)
    assert large.flops == 4 * small.flops > 0
    assert (small.exchanges, small.frames) == (1, 2)
    with torch.device("meta"):
        network = build(compose(["model=regression", *own]).model.module).network
    assert small.parameters == sum(p.numel() for p in network.parameters())


def test_transfer_trains_a_natural_pair_and_prints_a_row_per_number_of_patients(tiny_shards, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        assert cv2.imwrite(str(pictures / f"{number}.png"), rng.integers(0, 255, (40, 50), np.uint8))
    words = [w for w in MINIATURE if not w.startswith("model.")]
    words += ["model=cyclegan", "model.module.generator.width=2", "model.module.generator.blocks=1"]
    words += ["model.module.discriminator.width=2", "model.module.discriminator.layers=1"]
    sizes = ["--steps", "1", "--seeds", "1", "--natural-steps", "3", "--natural-size", "16"]
    command = [str(tmp_path / "out"), f"2={tiny_shards}", *words, *sizes, "--photographs", str(pictures)]
    assert transfer.main(command) == 0
    first = capsys.readouterr().out
    row = first.splitlines()[-1].strip("| ").split(" | ")
    assert row[:2] == ["2", "1"]
    scratch, natural, difference = map(float, row[2:5])
    assert natural - scratch == pytest.approx(difference, abs=0.2)  # rounded to four digits
    assert row[5:7] == ["too few patients", f"{row[4]} to {row[4]}"]  # one seed
    started = torch.load(tmp_path / "out" / "2-natural-0" / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert started["start"]["backward"].startswith(f"'{transfer.BACK}'")
    assert transfer.main(command) == 0  # nothing is done twice
    assert capsys.readouterr().out.splitlines()[-4:] == first.splitlines()[-4:]
    assert (tmp_path / "out" / "table.md").read_text().splitlines() == first.splitlines()[-3:]


def test_latent_mapping_prints_what_encoding_before_saves_and_where_translating_spends_its_time(capsys):
    latent_mapping.main(["--rounds", "1", "--sizes", "32", "--frames", "1", "2", "--threads", "1", *LATENT])
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    steps, volume = lines[2:4], {row[0]: float(row[1]) for row in lines[6:]}
    assert [(row[1], row[2]) for row in steps] == [("1", "256"), ("2", "512")]
    assert all(float(row[7]) > 1 and float(row[4]) > 0 for row in steps)
    assert set(volume) == {"encoding", "mapping", "decoding", "latent mapping", "regression"}


def test_every_pair_is_translated_scored_and_reported_for_the_runs_that_have_it(
    tiny_shards, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(every_pair, "cinevox", lambda verb, *words: main([verb, "tracking=none", "workers=1", *words]))
    for name, words in {"both": ["stream.pairing=every_pair"], "one": []}.items():
        run = [
            "model=identity",
            "tracking=none",
            "source=t1n",
            "trainer.budget.steps=1",
            "stream.clip_length=1",
            *words,
        ]
        assert main(["train", *run, "stream.clip_growth=1", f"input={tiny_shards}", f"output={tmp_path / name}"]) == 0
    capsys.readouterr()
    runs = [f"{name}={tmp_path / name}" for name in ("both", "one")]
    every_pair.main([f"input={tiny_shards}", f"output={tmp_path / 'out'}", *runs, "translate.precision=fp32"])
    table = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    pairs = [row[:3] for row in table[1:]]
    assert pairs == [["ct to t1n", "whole", "both"], ["t1n to ct", "body", "both"], ["t1n to ct", "body", "one"]]
    assert table[2][3:] == table[3][3:] and float(table[2][3]) > 1  # two identities, in HU
    assert 0 < float(table[1][3]) < 1  # MR, between the reference's percentiles
    for report in ("report-hu", "report-mr", "ct-t1n/report", "t1n-ct/report"):
        page = tmp_path / "out" / report / "report.html"
        assert page.is_file()
        # What is held against two targets in one picture would be wrong in one of them.
        drawn = [path for path in (page.parent / "figures").iterdir() if path.name.endswith("_differences.png")]
        assert bool(drawn) is report.endswith("/report")
    with pytest.raises(SystemExit, match="0 of the shard folders hold ct and t1n"):
        every_pair.main([f"output={tmp_path / 'out'}", *runs])
