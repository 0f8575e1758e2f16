"""Cases are found, named and given to patients; names that may identify someone do not get out."""

import pytest
from cohort_makers import settings

from pipeline.cohorts.folder import NAMES_CSV, discover, write_names
from pipeline.errors import CinevoxError, ConfigError, DataError
from pipeline.records import CASE_ID


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def found(root, **changes):
    return {case.name: case for case in discover(root, settings(**changes)).cases}


def test_case_folders_with_modalities_and_masks(tmp_path):
    touch(tmp_path, "a/CT.nii.gz", "a/cbct.mha", "a/mask.nrrd", "a/notes.txt", "b/ct.nii", "b/field_of_view.mha")
    touch(tmp_path, "readme.md", ".hidden/ct.mha", "a/.partial.t1n.nii.gz", "empty/readme.md")
    cases = found(tmp_path)
    assert sorted(cases) == ["a", "b"]
    assert sorted(cases["a"].volumes) == ["cbct", "ct"] and sorted(cases["a"].masks) == ["body"]
    assert sorted(cases["b"].masks) == ["field_of_view"]
    assert discover(tmp_path, settings()).ignored == 3


def test_flat_folder(tmp_path):
    touch(tmp_path, "one.nii.gz", "two.mha", "text.txt")
    assert [(c.case_id, list(c.volumes)) for c in found(tmp_path, modality="ct").values()] == [
        ("one", ["ct"]),
        ("two", ["ct"]),
    ]
    with pytest.raises(ConfigError, match=r"cohort\.modality"):
        found(tmp_path)


def test_the_same_modality_twice_is_a_problem_of_the_case(tmp_path):
    touch(tmp_path, "a/ct.nii.gz", "a/ct.mha", "b/ct.mha")
    cases = found(tmp_path)
    assert "twice" in cases["a"].problem and not cases["b"].problem
    touch(tmp_path / "flat", "a.nii", "a.mha", "b.mha")
    flat = discover(tmp_path / "flat", settings(modality="ct")).cases
    assert len({case.case_id for case in flat}) == 3
    assert [bool(case.problem) for case in flat] == [True, True, False]


NAMES = [
    "Müller Ä",
    "a\\..\\b",
    "tab\there",
    "y" * 250,
    "Doe^John 1970-01-01",
    "x" * 200,
    "a.b",
    "Case1",
    "case1",
    "=cmd",
    "ok_1",
]


def test_unsafe_names_get_pseudonyms(tmp_path):
    touch(tmp_path / "in", *[f"{name}/ct.mha" for name in NAMES])
    cases = found(tmp_path / "in")
    ids = [case.case_id for case in cases.values()]
    assert all(CASE_ID.fullmatch(name) for name in ids)
    assert len({name.lower() for name in ids}) == len(NAMES)
    assert cases["ok_1"].case_id == "ok_1"
    assert all(CASE_ID.fullmatch(case.patient) for case in cases.values())
    assert [c.case_id for c in found(tmp_path / "in").values()] == ids
    assert write_names(tmp_path, cases.values())
    text = (tmp_path / NAMES_CSV).read_text()
    assert "Müller Ä" in text and "'=cmd" in text and "ok_1" not in text


def test_case_folders_that_are_links_to_nowhere_or_to_themselves_are_left_alone(tmp_path):
    touch(tmp_path, "a/ct.mha")
    (tmp_path / "a" / "cbct.mha").symlink_to(tmp_path / "a" / "cbct.mha")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    cases = found(tmp_path)
    assert set(cases) == {"a"} and set(cases["a"].volumes) == {"ct"}


def test_no_mapping_without_need(tmp_path):
    touch(tmp_path / "in", "a/ct.mha")
    assert not write_names(tmp_path, found(tmp_path / "in").values())
    assert not (tmp_path / NAMES_CSV).exists()


@pytest.mark.parametrize(
    "text",
    [
        "case,patient,split\na,p1,train\nb,p1,train\nc,p2,val\n",
        "\ufeffCase;Patient;Split\r\na;p1;train\r\nb;p1;Train\r\nc;p2;validation\r\n",
        "split\tpatient\tcase\ntrain\tp1\ta\ntrain\tp1\tb\n\t\t\nvalid\tp2\tc\n",
    ],
)
def test_table_of_patients(tmp_path, text):
    touch(tmp_path, "a/ct.mha", "b/ct.mha", "c/ct.mha")
    (tmp_path / "cases.csv").write_text(text, encoding="utf-8", newline="")
    cases = found(tmp_path)
    assert [(c.patient, c.split) for c in cases.values()] == [("p1", "train"), ("p1", "train"), ("p2", "validation")]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("case,patient\na,Erika Mustermann\n", "does not list case 'b'"),
        ("name,patient\n", "lacks a column"),
        ("", "lacks a column"),
        ("case,patient\na,p\na,q\nb,p\n", "contradicts"),
        ("case,patient,split\na,Erika Mustermann,train\nb,Erika Mustermann,test\n", "two splits"),
        ("case,patient,split\na,p,Mustermann\nb,p,\n", "Line 2"),
        ("case,patient\na,\nb,p\n", "Line 2"),
    ],
)
def test_bad_tables(tmp_path, text, match):
    touch(tmp_path, "a/ct.mha", "b/ct.mha")
    (tmp_path / "cases.csv").write_text(text)
    with pytest.raises(DataError, match=match) as caught:
        found(tmp_path)
    assert "Mustermann" not in str(caught.value)


def test_patients_by_pattern(tmp_path):
    touch(tmp_path, "p1_week1/ct.mha", "p1_week2/ct.mha", "p2_week1/ct.mha")
    cases = found(tmp_path, patient_pattern="^([^_]+)_")
    assert [c.patient for c in cases.values()] == ["p1", "p1", "p2"]
    for pattern in ("(", "p1", "^(q)"):
        with pytest.raises(ConfigError, match="patient_pattern"):
            found(tmp_path, patient_pattern=pattern)


def test_include_and_exclude(tmp_path):
    touch(tmp_path, "aa/ct.mha", "bb/ct.mha", "Bär/ct.mha")
    assert set(found(tmp_path, include=["aa", "Bär"])) == {"aa", "Bär"}
    assert set(found(tmp_path, exclude=["aa"])) == {"bb", "Bär"}
    with pytest.raises(ConfigError, match="Did you mean 'aa'"):
        found(tmp_path, include=["aaa"])
    with pytest.raises(ConfigError, match="leave no case"):
        found(tmp_path, include=["aa"], exclude=["aa"])


def test_nothing_there(tmp_path):
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CinevoxError):
            found(place)


def test_symlink_loop_is_survived(tmp_path):
    touch(tmp_path, "a/ct.mha")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path)
    assert set(found(tmp_path)) == {"a"}
