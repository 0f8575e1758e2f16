"""Nothing that names a patient, a place, a person or a key is in what W&B is given."""

import getpass
import json
import platform

import pytest
from chain import HOST, LEFT_OUT, PATIENT, SECRETS, STAGES
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import configuration

from pipeline.__main__ import main
from pipeline.config import public
from pipeline.tracking.segments import offline_files, read_records
from pipeline.tracking.words import OWN_TEXT, known_words, shareable


def test_no_byte_of_any_stage_names_a_patient_a_place_a_person_a_word_or_a_key(chain):
    planted = [PATIENT, PATIENT.lower(), "19500101", HOST, "argv_geheimnis", "geheimrat", SECRETS["WANDB_API_KEY"]]
    planted += [str(chain.parent), "chain.py"]
    planted += [name for name in (platform.node(), getpass.getuser()) if len(name) > 6]  # shorter ones are in any file
    for stage in STAGES:
        files = [path for path in (chain / stage / "wandb").rglob("*") if path.is_file()]
        assert files, stage
        for path in files:
            content = path.read_bytes()
            found = [word for word in planted if word.encode() in content or word in str(path.relative_to(chain))]
            assert not found, f"{stage}: {path.name} holds {found}"


def test_no_file_of_a_run_names_whom_the_cohort_left_out(chain):
    files = [path for path in (chain / "run").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path.name for path in files if LEFT_OUT.encode() in path.read_bytes()]


def test_stages_are_runs_of_one_group_each_with_its_own_name_for_the_job(chain):
    runs = {}
    for stage in STAGES:
        (record,) = [r.run for file in offline_files(chain / stage) for r in read_records(file) if r.HasField("run")]
        runs[stage] = record
    assert [run.job_type for run in runs.values()] == [
        "simulate", "preprocess", "train", "translate", "evaluate", "report",
    ]  # fmt: skip
    assert {run.run_group for run in runs.values()} == {"vid2vid"}
    assert len({run.run_id for run in runs.values()}) == len(STAGES)
    assert all(run.run_id == json.loads((chain / stage / "run.json").read_text())["id"] for stage, run in runs.items())


def test_the_cohort_is_an_artifact_of_its_hash_alone(chain):
    for stage in ("simulated", "shards", "run"):
        records = [record for file in offline_files(chain / stage) for record in read_records(file)]
        (artifact,) = [record.artifact for record in records if record.HasField("artifact")]
        sha256 = json.loads(artifact.metadata)["sha256"]
        assert (artifact.type, artifact.name, len(sha256)) == ("cohort", f"cohort-{sha256[:12]}", 64)
        assert not artifact.manifest.contents
    index = json.loads((chain / "shards" / "index.json").read_text())
    assert sha256 == index["cohort_hash"]


def test_own_text_stays_here_and_numbers_and_known_words_go():
    config = configuration(
        "model=vid2vid_fine",
        "model.module.coarse_checkpoint='/data/Mustermann.ckpt'",
        "report.title=Mustermann",
        "+stream.window.mustermann=[0,1]",
        "evaluate.patient_pattern='(Muster.*)'",
        "trainer.budget.steps=7",
    )
    shown = shareable(public(config))
    assert "ustermann" not in json.dumps(shown) and "Muster" not in json.dumps(shown)
    assert shown["model"]["module"]["coarse_checkpoint"] == shown["report"]["title"] == OWN_TEXT
    assert shown["trainer"]["budget"]["steps"] == 7
    assert shown["trainer"]["precision"] == "auto" and shown["model"]["name"] == "vid2vid_fine"
    assert shown["stream"]["window"] == {"ct": [-1024, 2048], "cbct": [-1024, 2048]}


@settings(max_examples=30)
@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_whatever_the_settings_are_only_known_words_go(data):
    def texts(node):
        if isinstance(node, dict):
            yield from node
            node = list(node.values())
        if isinstance(node, list):
            for item in node:
                yield from texts(item)
        elif isinstance(node, str):
            yield node

    assert set(texts(shareable(data))) <= known_words() | {OWN_TEXT}


@pytest.mark.parametrize("word", ["tracking.api_key=0123secret", "+tracking.api_key=0123secret"])
def test_a_key_on_the_command_line_is_refused_and_not_repeated(word, tmp_path, capsys):
    assert main(["train", f"input={tmp_path}", f"output={tmp_path / 'run'}", word]) == 2
    error = capsys.readouterr().err
    assert "api_key" in error and "0123secret" not in error
