"""The verb 'cohort': what it writes, what it refuses, and that one bad case does not stop the others."""

import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline.cohorts.phantom import write_patient
from pipeline.config import compose
from pipeline.errors import ArtifactError, ConfigError, DataError
from pipeline.records import Cohort
from pipeline.stages import cohort

TINY = ["cohort.size=[6,24,24]", "cohort.spacing_mm=[16,16,16]"]
SECRET = "Erika Mustermann 1970-01-01"


def phantom(output, *overrides, dry_run=False):
    words = ["cohort=phantom", "workers=1", "source=t1n", "cohort.patients=3", "cohort.modalities=[ct,t1n]", *TINY]
    return compose([*words, *overrides], {"output": output}, dry_run=dry_run)


def folder(root, output, *overrides, dry_run=False):
    return compose(["workers=1", "source=t1n", *overrides], {"input": [root], "output": output}, dry_run=dry_run)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three phantoms in folders, one of them under a name that must not get out."""
    place = tmp_path_factory.mktemp("made") / "in"
    settings = phantom(place).cohort
    for index in range(3):
        write_patient(settings, 0, index, place)
    (place / "phantom_001").rename(place / SECRET)
    return place


@pytest.fixture
def root(tmp_path, made):
    return Path(shutil.copytree(made, tmp_path / "in"))


def files(place):
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())


def test_phantoms(tmp_path, capsys):
    cohort.run(phantom(tmp_path / "a"))
    record = Cohort.load(tmp_path / "a")
    assert [case.case_id for case in record.cases] == [f"phantom_00{i}" for i in range(3)]
    assert {case.split for case in record.cases} == {"train", "validation", "test"}
    assert all(record.path(v).is_file() for case in record.cases for v in case.volumes.values())
    assert not record.excluded
    said = capsys.readouterr().err
    assert "Modalities: ct, t1n" in said and "validation" in said
    # The same settings: nothing is done again.
    before = (tmp_path / "a" / "cohort.json").stat().st_mtime_ns
    cohort.run(phantom(tmp_path / "a"))
    assert "nothing to do" in capsys.readouterr().err
    assert (tmp_path / "a" / "cohort.json").stat().st_mtime_ns == before
    # Other settings: refused, with the difference.
    with pytest.raises(ArtifactError, match="seed: 0 -> 1"):
        cohort.run(phantom(tmp_path / "a", "seed=1"))


def test_phantoms_continue_after_a_kill(tmp_path):
    cohort.run(phantom(tmp_path / "a"))
    first = (tmp_path / "a" / "cohort.json").read_bytes()
    marker = json.loads((tmp_path / "a" / "stage.json").read_text())
    marker["finished"] = False
    (tmp_path / "a" / "stage.json").write_text(json.dumps(marker))
    (tmp_path / "a" / "phantom_002" / "ct.nii.gz").unlink()
    (tmp_path / "a" / "cohort.json").unlink()
    cohort.run(phantom(tmp_path / "a"))
    assert (tmp_path / "a" / "cohort.json").read_bytes() == first


def test_workers_do_not_change_the_result(tmp_path):
    cohort.run(phantom(tmp_path / "one", "cohort.patients=2"))
    cohort.run(phantom(tmp_path / "two", "cohort.patients=2", "workers=2"))
    one, two = (Cohort.load(tmp_path / name) for name in ("one", "two"))
    assert one.cases == two.cases


def test_folder_with_an_unsafe_name(tmp_path, root, capsys):
    cohort.run(folder(root, tmp_path / "out"))
    record = Cohort.load(tmp_path / "out")
    (hidden,) = (case for case in record.cases if case.case_id.startswith("case_"))
    assert hidden.patient == hidden.case_id
    assert files(tmp_path / "out") == ["case_names.csv", "cohort.json", "stage.json"]
    assert SECRET in (tmp_path / "out" / "case_names.csv").read_text()
    assert SECRET not in (tmp_path / "out" / "stage.json").read_text()
    assert SECRET not in capsys.readouterr().err
    # Only the path of the file itself holds the name.
    text = (tmp_path / "out" / "cohort.json").read_text()
    assert text.count(SECRET) == len(hidden.volumes)


def test_bad_cases_are_named_at_the_end(tmp_path, root, capsys):
    (root / SECRET / "ct.nii.gz").write_bytes(b"<html>")
    (root / "phantom_002" / "t1n.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match="2 of 3 cases were left out") as caught:
        cohort.run(folder(root, tmp_path / "out"))
    message = str(caught.value)
    assert "web page" in message and "'phantom_002'" in message and "0 bytes" in message
    assert SECRET not in message + capsys.readouterr().err
    record = Cohort.load(tmp_path / "out")
    assert [case.case_id for case in record.cases] == ["phantom_000"]
    assert len(record.excluded) == 2
    # Not finished: another run says it again.
    with pytest.raises(DataError):
        cohort.run(folder(root, tmp_path / "out"))


def test_a_case_without_its_pair_is_counted(tmp_path, root, capsys):
    (root / "phantom_002" / "t1n.nii.gz").unlink()
    with pytest.raises(DataError, match="case 'phantom_002': The case lacks 't1n'"):
        cohort.run(folder(root, tmp_path / "out"))
    assert "1 cases lack 't1n'" in capsys.readouterr().err


def test_changed_files_are_noticed(tmp_path, root):
    cohort.run(folder(root, tmp_path / "out"))
    os.utime(root / "phantom_000" / "ct.nii.gz", (0, 0))
    with pytest.raises(ArtifactError, match="other settings"):
        cohort.run(folder(root, tmp_path / "out"))


def test_table_decides_patients_and_splits(tmp_path, root):
    rows = ["case;patient;split", "phantom_000;a;train", f"{SECRET};a;train", "phantom_002;b;test"]
    (root / "cases.csv").write_text("\n".join(rows), encoding="utf-8-sig")
    cohort.run(folder(root, tmp_path / "out"))
    record = Cohort.load(tmp_path / "out")
    assert sorted((case.patient, case.split) for case in record.cases) == [
        ("a", "train"),
        ("a", "train"),
        ("b", "test"),
    ]


def test_folds_are_dealt_by_patient_and_not_beside_a_table_of_splits(tmp_path, root, capsys):
    rows = ["case,patient", "phantom_000,a", f"{SECRET},b", "phantom_002,c"]
    (root / "cases.csv").write_text("\n".join(rows), encoding="utf-8")
    cohort.run(folder(root, tmp_path / "out", "cohort.split.folds=3"))
    record = Cohort.load(tmp_path / "out")
    assert sorted(case.fold for case in record.cases) == [1, 2, 3]
    assert "Folds 1 to 3 have 1, 1, 1 patients." in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"number of patients\. Found: 4\. Allowed: at most 3"):
        cohort.run(folder(root, tmp_path / "more", "cohort.split.folds=4"))
    table = "\n".join(f"{row},{'split' if n == 0 else 'train'}" for n, row in enumerate(rows))
    (root / "cases.csv").write_text(table, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"cases\.csv states splits"):
        cohort.run(folder(root, tmp_path / "table", "cohort.split.folds=3"))


def test_lists_hold_patients(tmp_path, root):
    with pytest.raises(ConfigError, match="Did you mean 'phantom_000'"):
        cohort.run(folder(root, tmp_path / "out", "cohort.split.test=[phantom_0000]"))
    assert not (tmp_path / "out").exists()
    cohort.run(folder(root, tmp_path / "out", "cohort.split.test=[phantom_000]"))
    split_of = {case.case_id: case.split for case in Cohort.load(tmp_path / "out").cases}
    assert split_of["phantom_000"] == "test"


def test_dry_run_writes_nothing(tmp_path, root, capsys):
    cohort.run(folder(root, tmp_path / "out", dry_run=True))
    cohort.run(phantom(tmp_path / "out", dry_run=True))
    assert not (tmp_path / "out").exists()
    said = capsys.readouterr().err
    assert "3 cases of 3 patients" in said and "MB" in said


def test_what_is_missing(tmp_path, root):
    for config in (
        folder(root, None),
        compose(["workers=1"], {"output": tmp_path / "out"}),
        compose(["cohort=phantom"], {"output": tmp_path / "out", "input": [root]}),
    ):
        with pytest.raises(ConfigError):
            cohort.run(config)
    assert not (tmp_path / "out").exists()


def test_a_used_output_is_refused(tmp_path, root):
    with pytest.raises(ArtifactError, match="already in use"):
        cohort.run(folder(root, root))


@pytest.mark.real
def test_real_volumes(real_data, tmp_path):
    place = real_data / "ct"
    cohort.run(folder(place, tmp_path / "out", "cohort.modality=ct", "cohort.exclude=[torso,head_neck]"))
    record = Cohort.load(tmp_path / "out")
    assert {case.case_id for case in record.cases} == {"abdomen", "cranium", "lung_crop"}
    # This head's header really has front and back exchanged: its nose points to where the couch should be.
    assert any("flipped" in flag for case in record.cases if case.case_id == "cranium" for flag in case.flags)
