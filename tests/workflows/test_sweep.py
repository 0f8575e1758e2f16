"""Sweeps on one machine: every member in folders of its own, one report, what fails is listed, what is there stays."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import lru_cache
from pathlib import Path

import pytest

from pipeline import members as members_module
from pipeline.__main__ import main
from pipeline.artifacts import write_json
from pipeline.config import compose, conf_folder
from pipeline.errors import ConfigError
from pipeline.members import sweep_members, together
from pipeline.records import Scores
from pipeline.workflows import sweep
from pipeline.workflows.command import ended, start

COMMON = [
    "source=t1n",
    "model=identity",
    "trainer.budget.steps=1",
    "trainer.budget.minutes=0",
    "trainer.panels=false",
    "trainer.threads=1",
    "tracking=none",
    "stream.clip_length=1",
    "stream.clip_growth=1",
    "metrics.metrics=[mae]",
    "metrics.extra=[]",
    "metrics.regions=[body]",
    "report.films=false",
    "workers=1",
]
TOO_LONG = "stream.clip_length=99"
CASES_LACK = "seed=13"


_composed = lru_cache(compose)


def members(**given):
    listed = ", ".join(f"{name}: {json.dumps(words)}" for name, words in given.items())
    return f"+sweep.members={{{listed}}}"


@pytest.fixture
def commands(monkeypatch):
    """Note the commands; they do nothing but end, the one with TOO_LONG with an error."""
    found = []

    def stand_in(words, log):
        output = Path(words[-1].partition("=")[2])
        found.append(f"{words[0]} {output.parent.name}")
        if TOO_LONG in words:
            with log.open("a") as stream:
                stream.write("Error: an earlier one\nError: of the command\n")
            return 2
        write_json(output / "stage.json", {"verb": words[0], "finished": True})
        (output / "scores.json").write_text(str(words))
        log.touch()
        return 2 if words[0] == "evaluate" and CASES_LACK in words else 0

    monkeypatch.setattr(sweep, "start", stand_in)
    return found


@pytest.fixture
def run(tiny_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(members_module, "compose", _composed)
    return lambda *words: main(["sweep", *COMMON, *words, f"input={tiny_shards}", f"output={tmp_path / 'out'}"])


def stages(*names):
    return [f"{verb} {name}" for name in names for verb in ("train", "translate", "evaluate")]


def test_members_are_trained_scored_and_reported(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "start", lambda words, log: log.touch() or main(list(words)))
    assert run(members(a=["seed=1"], broken=["stream.clip_length=99", "stream.clip_limit=99"])) == 2
    assert "Left out: broken: train ended with code 2" in capsys.readouterr().err
    assert Scores.load(tmp_path / "out" / "a" / "scores").methods() == ["a"]
    report = tmp_path / "out" / "report-incomplete"
    assert "1 of 2 members are missing: broken" in (report / "report.html").read_text()
    assert [line.split(",")[0] for line in (report / "tables" / "summary.csv").read_text().splitlines()[1:]] == ["a"]


def test_a_failure_stops_no_other_and_is_tried_again(run, commands, tmp_path, capsys):
    given = members(a=["seed=1"], broken=[TOO_LONG], b=["seed=2"])
    assert run(given) == 2
    said = capsys.readouterr().err
    assert commands == [*stages("a"), "train broken", *stages("b"), "report out"]
    assert "Left out: broken: train ended with code 2: Error: of the command" in said
    assert "1 of 3 members were not finished: broken" in said
    reported = (tmp_path / "out" / "report-incomplete" / "scores.json").read_text()
    assert [name for name in ("a", "b", "broken") if f"/{name}/scores'" in reported] == ["a", "b"]
    assert "report.notes=['1 of 3 members are missing: broken']" in reported
    commands.clear()
    assert run(given) == 2  # nothing new: not even a report
    assert commands == ["train broken"]


def test_scores_that_lack_cases_are_scores(run, commands, tmp_path, capsys):
    assert run(members(a=[CASES_LACK])) == 0
    assert "a: evaluate ended with code 2; see a/evaluate.log" in capsys.readouterr().err
    assert commands == [*stages("a"), "report out"]
    assert (tmp_path / "out" / "report").is_dir()


def test_a_second_call_does_what_is_missing_and_more_members_may_be_added(run, commands, tmp_path, capsys):
    assert run(members(a=["seed=1"])) == 0
    first = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert list(first["reported"]) == ["a"]
    commands.clear()
    assert run(members(a=["seed=1"])) == 0
    assert commands == []
    assert run(members(a=["seed=1"], b=["seed=2"])) == 0
    assert commands == [*stages("b"), "report out"]
    assert set(json.loads((tmp_path / "out" / "sweep.json").read_text())["reported"]) == {"a", "b"}
    commands.clear()
    assert run(members(a=["seed=7"], b=["seed=2"])) == 2
    assert "holds a sweep with other settings: a: seed=1: given -> (absent); a: seed=7" in capsys.readouterr().err
    assert commands == []


def test_parts_do_their_members_and_the_join_reports(run, commands, tmp_path, capsys):
    given = members(a=["seed=1"], b=["seed=2"], c=["seed=3"])
    assert run(given, "part=1/2") == 0
    assert commands == stages("a", "c")
    assert run(given, "part=join") == 0
    assert "Left out: b: train has not finished" in capsys.readouterr().err
    assert run(given, "part=2/2") == 0
    assert run(given, "part=join") == 0
    assert commands[6:] == ["report out", *stages("b"), "report out"]
    assert (tmp_path / "out" / "report").is_dir()
    assert not (tmp_path / "out" / "report-incomplete").exists()


def test_a_join_of_nothing_is_an_error(run, commands, capsys):
    assert run(members(a=["seed=1"]), "part=join") == 2
    assert "1 of 1 members were not finished: a" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": ["sed=1"]}, "Member 'a' of the sweep: Unknown setting 'sed'"),
        ({"a": ["model=none_such"]}, "Member 'a' of the sweep: No configuration 'model/none_such'"),
        ({"a": ["input=x"]}, "Member 'a' of the sweep: 'input' is no setting"),
        ({"a": ["seed=1"], "b": ["translate.label=a"]}, "Members 'a' and 'b' have the same label"),
        ({"a": ["metrics=synthrad2023"]}, "Member 'a' would be scored differently"),
        ({"a": ["seed=1"], "A": ["seed=2"]}, "differ in capitals only"),
        ({"report": ["seed=1"]}, "A member cannot be called so. Found: report"),
        ({"a": ["no words"]}, "'sweep.members.a.0' is not valid"),
    ],
)
def test_a_mistake_is_met_before_anything_is_trained(given, message, run, commands, tmp_path, capsys):
    assert run(members(a0=["seed=0"], **given)) == 2
    assert message in capsys.readouterr().err
    assert commands == []
    assert not (tmp_path / "out").exists()


def test_a_sweep_of_nothing_and_a_dry_run(run, tmp_path, capsys):
    assert run() == 2
    assert "The sweep has no members" in capsys.readouterr().err
    assert run(members(a=["seed=1"]), "--dry-run") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cinevox ")]
    assert [line.split()[1] for line in lines] == ["train", "translate", "evaluate"]
    assert all(" label=a seed=1 " in line for line in lines)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("common", "own", "expected"),
    [
        (["seed=1", "model=a"], ["seed=2"], ["model=a", "seed=2"]),
        (["+x.y=1"], ["x.y=2"], ["x.y=2"]),
        (["experiment=data", "seed=1"], ["experiment=[m,n]"], ["experiment=[data,m,n]", "seed=1"]),
        (["experiment=null"], ["experiment=m"], ["experiment=m"]),
        (["experiment=[a, b]"], [], ["experiment=[a,b]"]),
        (["seed=1"], ["seed=2", "seed=3"], ["seed=3"]),
    ],
)
def test_a_members_settings_take_the_place_of_the_common_ones_and_its_experiments_are_added(common, own, expected):
    assert together(common, own) == expected


@pytest.mark.parametrize("name", sorted(path.stem for path in (conf_folder() / "sweep").glob("*.yaml")))
def test_every_sweep_that_ships_is_valid(name, tmp_path):
    alone = name == "cyclegan_transfer"  # its members are of one experiment, which sets the data too
    words = [f"experiment={name if alone else 'phantom_ct'}", f"sweep={name}"]
    config = compose(words).model_copy(update={"output": tmp_path})
    if name == "none":
        with pytest.raises(ConfigError, match="no members"):
            sweep_members(config, words)
        return
    assert [member.name for member in sweep_members(config, words)] == list(config.sweep.members)


def script(tmp_path, monkeypatch, text):
    """Put a shell script in the interpreter's place."""
    path = tmp_path / "interpreter"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    return tmp_path / "log"


def test_a_command_is_a_process_of_its_own_whose_words_reach_it_whole(tmp_path, monkeypatch):
    log = script(tmp_path, monkeypatch, 'printf "[%s]" "$@"; echo "Error: so" >&2; exit 2')
    log.write_text("Error: before\n")
    assert start(["train", "a b;$(x)"], log) == 2
    assert log.read_text() == "Error: before\n[-m][pipeline][train][a b;$(x)]Error: so\n"
    assert ended(2, log, 14).endswith("code 2; see " + f"{tmp_path.name}/log")
    assert ended(-9, log, log.stat().st_size) == f"was killed by SIGKILL; see {tmp_path.name}/log"


@pytest.mark.parametrize(("text", "received"), [("trap 'exit 75' TERM", "TERM"), ("trap 'exit 1' USR1", "USR1")])
def test_a_signal_is_passed_on_and_the_sweep_is_to_be_continued(text, received, tmp_path, monkeypatch):
    log = script(tmp_path, monkeypatch, f"{text}\necho ready\nwhile :; do sleep 0.05; done")

    number = getattr(signal, f"SIG{received}")

    def send():
        while not (log.exists() and log.read_text()):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGTERM)
    sender = threading.Thread(target=send)
    sender.start()
    assert start(["train"], log) == sweep.TO_BE_CONTINUED
    sender.join()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_that_comes_while_a_command_is_started_is_for_it(number, tmp_path, monkeypatch):
    log = script(tmp_path, monkeypatch, "exec sleep 30")
    popen = subprocess.Popen

    def told_first(*words, **settings):
        os.kill(os.getpid(), number)
        return popen(*words, **settings)

    monkeypatch.setattr(subprocess, "Popen", told_first)
    assert start(["train"], log) == sweep.TO_BE_CONTINUED


def test_a_stopped_member_stops_the_sweep(run, monkeypatch):
    monkeypatch.setattr(sweep, "start", lambda words, log: log.touch() or sweep.TO_BE_CONTINUED)
    with pytest.raises(SystemExit) as stopped:
        run(members(a=["seed=1"], b=["seed=2"]))
    assert stopped.value.code == 75
