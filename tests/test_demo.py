"""The demo's own commands, taken from the Makefile, at a size that takes seconds."""

import re
import shlex
from pathlib import Path

import pytest
from makers import state

from pipeline.__main__ import main
from pipeline.records import Cohort, Scores

MAKEFILE = Path(__file__).parents[1] / "Makefile"
MINIATURE = [
    "cohort.patients=3",
    "cohort.size=[12,40,40]",
    "cohort.spacing_mm=[10,10,10]",
    "cohort.split.fractions={train: 0.34, validation: 0.33, test: 0.33}",
    "simulate.spacing_mm=[10,10,10]",
    "simulate.angles=40",
    "simulate.detector_pixel_mm=12.4",
    "preprocess.spacing_mm=[10,10,10]",
    "preprocess.size=[32,48]",
    "stream.clip_limit=7",
    "model.module.generator.width=4",
    "model.module.generator.blocks=2",
    "model.module.image_discriminator.width=4",
    "model.module.temporal_discriminator.width=4",
    "trainer.budget={minutes: 0, steps: 2}",
    "workers=1",
]


def demo_commands(folder: Path) -> list[list[str]]:
    recipe = re.search(r"^demo:.*?\n((?:\t.*\n)+)", MAKEFILE.read_text(), re.MULTILINE)
    assert recipe is not None
    lines = [line.strip().replace("$(DEMO)", str(folder)) for line in recipe.group(1).splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("$(BIN)/cinevox")]


@pytest.mark.simulate
@pytest.mark.filterwarnings("ignore:builtin type .*has no __module__:DeprecationWarning")
def test_the_demo_goes_from_phantoms_to_a_report(tmp_path, capsys):
    commands = demo_commands(tmp_path / "demo")
    assert [c[0] for c in commands] == ["cohort", "simulate", "preprocess", "train", "translate", "evaluate", "report"]
    for command in commands:
        before = state(tmp_path / "demo") if (tmp_path / "demo").exists() else {}
        assert main([*command, *MINIATURE]) == 0, command
        assert before.items() - {(tmp_path / "demo", before.get(tmp_path / "demo"))} <= state(tmp_path / "demo").items()
    assert Cohort.load(tmp_path / "demo" / "simulated").cases[0].masks["field_of_view"]
    scores = Scores.load(tmp_path / "demo" / "scores")
    assert scores.methods() == ["source", "vid2vid"]
    assert {s.region for s in scores.scores} >= {"mask", "body", "whole"}
    assert all(s.value is not None for s in scores.scores if s.metric == "mae")
    page = (tmp_path / "demo" / "report" / "report.html").read_text()
    assert "vid2vid" in page and "Content-Security-Policy" in page
    assert "MAE" in capsys.readouterr().out
