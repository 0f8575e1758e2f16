"""The command line: quick help, exit codes, and one line instead of a traceback."""

import errno
import re
import subprocess
import sys
from pathlib import Path

import pytest
from makers import pair, write_cohort

from pipeline.__main__ import VERBS, main
from pipeline.arguments import parse
from pipeline.errors import ConfigError

HEAVY = ("torch", "pytorch_lightning", "monai", "wandb", "matplotlib", "scipy", "itk")


def run_fresh(code):
    code += f"\nimport sys\nloaded = [m for m in {HEAVY!r} if m in sys.modules]\nassert not loaded, loaded\n"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_the_package_and_the_help_pull_in_nothing_heavy():
    verbs = "".join(f"assert main(['{verb}', '--help']) == 0\n" for verb in VERBS)
    done = run_fresh(f"import pipeline\nfrom pipeline.__main__ import main\nassert main(['--help']) == 0\n{verbs}")
    assert done.returncode == 0, done.stderr
    assert all(f"cinevox {verb}\n" in done.stdout for verb in VERBS)


def test_help_and_version(capsys):
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert main(words) == 0
        shown = capsys.readouterr()
        assert shown.err == ""
        assert all(f"\n  {verb} " in shown.out for verb in VERBS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("cinevox 0.")


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_says_what_it_reads_and_writes(verb, capsys):
    assert main([verb, "--help"]) == 0
    described, usage, options = capsys.readouterr().out.partition("cinevox VERB [")
    assert "Reads" in described
    assert re.search(r"\bWrites?\b", described)
    assert "dry_run=" not in described
    assert usage
    assert "--dry-run" in options


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "Unknown verb 'trian'. Did you mean 'train'? Allowed: cohort, "),
        (["train"], "'cinevox train' needs input=PATH"),
        (["train", "input=x"], "'cinevox train' needs output=PATH"),
        (["preprocess", "-i"], "'-i' needs a path after it"),
        (["preprocess", "--dryrun"], "Unknown option '--dryrun'"),
        (["preprocess", "input=", "output=x"], "'input' is empty"),
        (["preprocess", "-i", "x", "-o", ""], "'-o' is empty"),
        (["preprocess", "input=x", "output=a", "-o", "b"], "'output' is given twice"),
        (["preprocess", "input=x", "input=y", "output=a"], "'cinevox preprocess' takes one input. Found: 2"),
        (["preprocess", "input=x", "output=a", "preproces.size=[1,1]"], "Did you mean 'preprocess.size'?"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_one_line_and_exit_code_2(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.startswith("Error: ")
    assert "Traceback" not in shown.err
    assert list(tmp_path.iterdir()) == []


MISSING = {
    "cohort": ["input=IN", "output=OUT"],
    "simulate": ["input=IN", "output=OUT"],
    "preprocess": ["input=IN", "output=OUT"],
    "convert": ["input=IN", "output=OUT"],
    "verify": ["input=IN"],
    "encode": ["checkpoint=IN", "input=IN", "output=OUT"],
    "train": ["input=IN", "output=OUT", "model=identity"],
    "translate": ["checkpoint=IN", "input=IN", "output=OUT"],
    "evaluate": ["input=IN", "output=OUT"],
    "report": ["input=IN", "output=OUT"],
    "sweep": ["input=IN", "output=OUT", "+sweep.members={a: ['seed=1']}"],
    "weights": ["verify", "input=IN"],
    "submit": ["input=IN", "output=OUT"],
    "status": ["IN"],
    "cancel": ["IN"],
}  # the dashboard reads conf/ alone


def test_every_verb_that_reads_a_path_is_tried_below():
    assert set(MISSING) == set(VERBS) - {"dashboard"}


@pytest.mark.parametrize("verb", MISSING)
def test_a_missing_path_is_the_users_error_and_nothing_is_written(verb, tmp_path, capsys):
    names = {"IN": str(tmp_path / "nowhere"), "OUT": str(tmp_path / "out")}
    words = [w.replace("IN", names["IN"]).replace("OUT", names["OUT"]) for w in MISSING[verb]]
    assert main([verb, *words]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def broken(monkeypatch, error):
    def run(config):
        raise error

    monkeypatch.setattr("pipeline.stages.preprocess.run", run)
    return ["preprocess", "input=x", "output=y"]


def test_our_own_fault_is_exit_code_1_and_a_traceback_only_with_debug(monkeypatch, capsys):
    words = broken(monkeypatch, KeyError("Doe^John"))
    assert main(words) == 1
    shown = capsys.readouterr().err
    assert shown == "Internal error (KeyError). Run again with --debug and report the traceback.\n"
    assert main([*words, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EMFILE])
def test_the_machines_limits_are_said_in_one_line_without_a_path(number, monkeypatch, capsys):
    assert main(broken(monkeypatch, OSError(number, "No luck", "/data/Doe^John/ct.nii"))) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Error: No luck. ")
    assert shown.endswith("What was written stays; the same command continues.\n")
    assert ("Free some space" in shown) == (number == errno.ENOSPC)
    assert "Doe" not in shown
    assert shown.count("\n") == 1


def test_a_user_who_stops_it_is_told_that_it_continues(monkeypatch, capsys):
    assert main(broken(monkeypatch, KeyboardInterrupt())) == 130
    assert "the same command continues" in capsys.readouterr().err


def test_inputs_may_be_repeated_and_keep_their_order():
    words, paths, dry_run = parse(["input=a", "-i", "b", "seed=3", "--dry-run", "-o", "c"])
    assert words == ["seed=3"]
    assert paths == {"input": [Path("a"), Path("b")], "output": Path("c")}
    assert dry_run


def test_an_option_is_no_setting():
    with pytest.raises(ConfigError, match="Unknown option '--input=a'"):
        parse(["--input=a"])


def test_a_dry_run_of_cohort_writes_nothing(tmp_path, capsys):
    assert main(["cohort", "cohort=phantom", f"output={tmp_path / 'out'}", "--dry-run"]) == 0
    assert list(tmp_path.iterdir()) == []
    assert '"patients": 8' in capsys.readouterr().out


def test_a_dry_run_of_preprocess_writes_nothing_and_says_what_it_would_do(tmp_path, capsys):
    cohort = write_cohort(tmp_path / "cohort", {"a": pair()})
    before = sorted(tmp_path.rglob("*"))
    assert main(["preprocess", f"input={cohort}", f"output={tmp_path / 'out'}", "--dry-run"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert "1 cases of 1 patients, cbct, ct; 1 shards, at most" in capsys.readouterr().err
