"""What is on disk is checked when it is read."""

import json

import pytest
from makers import body, write_cohort
from pydantic import ValidationError

from pipeline.errors import ArtifactError
from pipeline.records import Case, Cohort, ShardIndex, split_in, unique


def changed(root, change):
    """Change the cohort record of a folder as plain data."""
    path = root / "cohort.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return root


@pytest.fixture
def cohort(tmp_path):
    volume = body(shape=(2, 4, 4))
    return write_cohort(tmp_path, {"a": {"ct": volume}, "b": {"ct": volume}}, splits={"b": "test"})


def test_a_record_is_read_from_its_folder_or_its_file(cohort):
    assert Cohort.load(cohort) == Cohort.load(cohort / "cohort.json")
    assert [case.case_id for case in Cohort.load(cohort).select("test")] == ["b"]
    assert len(Cohort.load(cohort).select("all")) == 2


@pytest.mark.parametrize("schema", [2, 0, "1", None])
def test_another_schema_version_is_refused(cohort, schema):
    changed(cohort, lambda d: d.update(schema=schema))
    with pytest.raises(ArtifactError, match="another schema version"):
        Cohort.load(cohort)


def test_a_patient_in_two_splits_is_refused(cohort):
    changed(cohort, lambda d: d["cases"][1].update(patient=d["cases"][0]["patient"]))
    with pytest.raises(ArtifactError, match="a patient of case 'b' is in two splits"):
        Cohort.load(cohort)


@pytest.mark.parametrize(("folds", "fold"), [(0, 1), (3, 0), (3, 4)])
def test_a_case_in_no_fold_of_the_cohort_is_refused(cohort, folds, fold):
    changed(cohort, lambda d: d.update(folds=folds) or [case.update(fold=fold) for case in d["cases"]])
    with pytest.raises(ArtifactError, match=f"case 'a' is in fold {fold} of {folds}"):
        Cohort.load(cohort)


def test_in_every_turn_one_fold_tests_the_next_validates_and_the_others_train():
    cases = [Case(case_id=f"c{fold}", patient="p", split="train", fold=fold, volumes={}) for fold in (1, 2, 3, 4)]
    turns = {fold: [split_in(case, fold, 4) for case in cases] for fold in range(5)}
    assert turns[0] == ["train"] * 4
    assert turns[1] == ["test", "validation", "train", "train"]
    assert turns[4] == ["validation", "train", "train", "test"]
    assert all(turns[fold].count("test") == turns[fold].count("validation") == 1 for fold in range(1, 5))


def test_case_names_that_differ_in_case_only_are_refused(cohort):
    changed(cohort, lambda d: d["cases"][1].update(case_id="A"))
    with pytest.raises(ArtifactError, match="'A' is listed twice"):
        Cohort.load(cohort)


@pytest.mark.parametrize("name", ["", "a b", "ä", "../evil", "/abs", "a.b", "a\n", "x" * 65, "a/b", "a\x00", ".."])
def test_unsafe_case_names_are_refused(cohort, name):
    changed(cohort, lambda d: d["cases"][0].update(case_id=name))
    with pytest.raises(ArtifactError, match=r"not valid at 'cases\.0\.case_id'"):
        Cohort.load(cohort)


@pytest.mark.parametrize("name", ["a", "A-1_b", "x" * 64])
def test_safe_case_names_are_taken(name):
    assert Case(case_id=name, patient="p", split="train", volumes={}).case_id == name


@pytest.mark.parametrize("name", ["CT", "c.t", "", "ct/../x", "1ct"])
def test_unsafe_modality_names_are_refused(name):
    with pytest.raises(ValidationError, match="volumes"):
        Case(case_id="a", patient="p", split="train", volumes={name: None})


def test_an_unknown_key_and_a_missing_one_are_refused(cohort):
    changed(cohort, lambda d: d.update(extra=1))
    with pytest.raises(ArtifactError, match="not valid at 'extra'"):
        Cohort.load(cohort)
    changed(cohort, lambda d: (d.pop("extra"), d.pop("root")))
    with pytest.raises(ArtifactError, match="not valid at 'root'"):
        Cohort.load(cohort)


def test_a_list_in_the_place_of_a_record_is_refused(tmp_path):
    (tmp_path / "index.json").write_text("[]")
    with pytest.raises(ArtifactError, match="shard index"):
        ShardIndex.load(tmp_path)


def test_a_missing_record_says_what_to_run(tmp_path):
    with pytest.raises(ArtifactError, match="run the stage that writes it"):
        Cohort.load(tmp_path / "nowhere")


def test_saving_and_loading_changes_nothing(cohort):
    before = (cohort / "cohort.json").read_bytes()
    Cohort.load(cohort).save(cohort)
    assert (cohort / "cohort.json").read_bytes() == before


def test_unique_keeps_the_order_of_first_appearance():
    assert unique("banana") == ["b", "a", "n"]
