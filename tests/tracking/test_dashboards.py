"""Dashboards as code: the workspaces are those of the record, and every panel shows what runs really log."""

import json
import re
import sys
from pathlib import Path

import pytest
from makers import configuration

from pipeline.__main__ import main
from pipeline.errors import ConfigError
from pipeline.stages import dashboard
from pipeline.tracking.dashboards import as_plain_data, build_workspace

# wandb-workspaces itself uses what pydantic deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces")

GOLDEN = Path(__file__).parents[1] / "golden" / "dashboards.json"
NAMES = ("training", "quality", "throughput", "comparison")
VERB_OF = {
    "simulated": "simulate",
    "shards": "preprocess",
    "run": "train",
    "translated": "translate",
    "scores": "evaluate",
    "report": "report",
}


def build_all():
    """The record; written anew by ``python tests/tracking/test_dashboards.py`` with ``tests`` on the path."""
    config = configuration()
    return {name: as_plain_data(build_workspace(config.dashboard[name], config.tracking)) for name in NAMES}


def test_the_workspaces_are_those_of_the_record(tmp_path):
    assert main(["dashboard", f"output={tmp_path / 'out'}"]) == 0
    built = {name: json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in NAMES}
    assert built == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_shows_keys_that_runs_of_its_verbs_log(name, keys):
    board = configuration().dashboard[name]
    logged = {key for stage, found in keys.items() if VERB_OF[stage] in board.verbs for key in found}
    for panel in (panel for section in board.sections for panel in section.panels):
        if panel.pattern:
            assert [key for key in logged if re.fullmatch(panel.pattern, key)], panel.title
        assert set(panel.keys) <= logged, f"{panel.title}: {set(panel.keys) - logged}"
    assert set(board.verbs) == {VERB_OF[s] for s, found in keys.items() if _shown(board, found) & found}


def _shown(board, found):
    panels = [panel for section in board.sections for panel in section.panels]
    matched = {key for panel in panels if panel.pattern for key in found if re.fullmatch(panel.pattern, key)}
    return matched | {key for panel in panels for key in panel.keys}


def test_what_a_training_is_judged_by_is_logged(keys):
    assert {
        "learning_rate/generator",
        "gradient_norm/image_discriminator",
        "learning_rate/temporal_discriminators_0",
    } <= (keys["run"])
    assert {"speed/slices_per_s", "speed/loader_wait_share", "memory/peak_gb", "validation/mae_hu"} <= keys["run"]
    assert {"train/l1_loss", "train/gan_loss", "train/discriminator_loss"} & keys["run"]
    assert {"scores/mask/mae", "source/mask/mae"} <= keys["scores"]


def test_some_dashboards_are_chosen_and_an_unknown_one_is_refused(tmp_path, capsys):
    assert main(["dashboard", "dashboard=[quality]", f"output={tmp_path / 'out'}"]) == 0
    assert [path.name for path in (tmp_path / "out").glob("*.json") if path.name != "stage.json"] == ["quality.json"]
    assert main(["dashboard", "dashboard=[qualty]", f"output={tmp_path / 'other'}"]) == 2
    assert "quality" in capsys.readouterr().err


def test_a_dry_run_writes_nothing_and_online_needs_an_entity(tmp_path, capsys):
    assert main(["dashboard", "--dry-run", f"output={tmp_path / 'out'}"]) == 0
    assert not (tmp_path / "out").exists()
    assert main(["dashboard", "tracking=online", f"output={tmp_path / 'out'}"]) == 2
    assert "tracking.entity" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_without_the_extra_the_error_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(ConfigError, match=r"cinevox\[dashboards\]"):
        dashboard.run(configuration(output=tmp_path / "out"))


@pytest.mark.parametrize(
    ("panel", "reason"),
    [
        ("{title: a, kind: lines}", "either keys or a pattern"),
        ("{title: a, kind: lines, pattern: '('}", "no regular expression"),
        ("{title: a, kind: bars, keys: [a, b]}", "one key"),
        ("{title: a, kind: media, pattern: a}", "of lines"),
    ],
)
def test_a_panel_that_cannot_be_is_refused(panel, reason):
    with pytest.raises(ConfigError, match=reason):
        configuration(f"dashboard.training.sections=[{{title: s, panels: [{panel}]}}]")


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(build_all(), indent=1) + "\n", encoding="utf-8")
