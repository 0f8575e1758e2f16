"""Volumes of any tool, found and paired by name."""

from pathlib import Path

import pytest

from pipeline.errors import ConfigError, DataError
from pipeline.metrics.pairing import Places, find_volumes, pair_cases, safe_case


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(place):
    return {name: path.name for name, path in find_volumes(Path(place), "reference").items()}


@pytest.fixture
def synthrad(tmp_path):
    """Folders as SynthRAD gives them, and predictions as its participants write them."""
    for case in ("1BA001", "1BA002", "1HNA01"):
        touch(tmp_path / "data" / case, "ct.mha", "cbct.mha", "mask.mha")
        touch(tmp_path / "out", f"sct_{case}.mha")
        touch(tmp_path / "nested" / case, "prediction.nii.gz")
    return tmp_path


def test_a_folder_of_files_of_folders_or_a_pattern(synthrad):
    touch(synthrad / "out", "._sct_1BA001.mha", "notes.txt")  # a Mac's companion, and no volume
    assert list(names(synthrad / "out")) == ["sct_1BA001", "sct_1BA002", "sct_1HNA01"]
    assert list(names(synthrad / "out/sct_*.mha")) == ["1BA001", "1BA002", "1HNA01"]
    assert names(synthrad / "nested")["1BA001"] == "prediction.nii.gz"
    assert names(synthrad / "data/*/ct.mha") == {"1BA001": "ct.mha", "1BA002": "ct.mha", "1HNA01": "ct.mha"}
    assert list(names(synthrad / "data/1B*/ct.mha")) == ["A001", "A002"]


def test_a_place_that_is_not_clear_says_so(synthrad, tmp_path):
    with pytest.raises(DataError, match=r"Case '1BA001' has several volumes.*Found: 3.*reference='.*/\*/NAME\.mha'"):
        find_volumes(synthrad / "data", "reference")
    with pytest.raises(DataError, match=r"one '\*'.*\*/\*"):
        find_volumes(tmp_path / "*/*.mha", "reference")
    with pytest.raises(DataError, match="There is no folder"):
        find_volumes(tmp_path / "nowhere/*.mha", "reference")
    with pytest.raises(DataError, match="No prediction labels at"):
        find_volumes(tmp_path / "nowhere", "prediction_labels")
    with pytest.raises(DataError, match="There is no volume of the mask"):
        find_volumes(tmp_path / "out/x_*.mha", "mask")
    touch(tmp_path / "two", "x.mha", "x.nii.gz")
    with pytest.raises(DataError, match="case 'x' in two formats"):
        find_volumes(tmp_path / "two", "reference")


def test_methods_masks_and_labels_meet_by_name(synthrad):
    touch(synthrad / "segmented", "1BA001.nii.gz")
    touch(synthrad / "true", "1BA001.nii.gz", "1BA002.nii.gz")
    methods, excluded = pair_cases(
        Places(
            predictions={"flat": synthrad / "out/sct_*.mha", "nested": synthrad / "nested"},
            reference=synthrad / "data/*/ct.mha",
            mask=synthrad / "data/*/mask.mha",
            prediction_labels={"flat": synthrad / "segmented"},
            reference_labels=synthrad / "true",
            patient=r"^(\w+)\d$",
            cohort=r"^1([A-Z]+)",
        )
    )
    assert excluded == []
    first = methods["flat"][0]
    assert (first.case, first.patient, first.cohort) == ("1BA001", "1BA00", "BA")
    assert (first.prediction.name, first.reference.parent.name, first.mask.name) == (
        "sct_1BA001.mha",
        "1BA001",
        "mask.mha",
    )
    assert [f.prediction_labels is None for f in methods["flat"]] == [False, True, True]
    assert [f.reference_labels is None for f in methods["nested"]] == [False, False, True]
    assert [f.cohort for f in methods["nested"]] == ["BA", "BA", "HNA"]


def test_a_case_without_a_partner_is_named_for_the_method_that_lacks_it(synthrad):
    (synthrad / "out/sct_1BA002.mha").unlink()
    (synthrad / "data/1HNA01/ct.mha").unlink()
    (synthrad / "data/1BA001/mask.mha").unlink()
    places = {"flat": synthrad / "out/sct_*.mha", "nested": synthrad / "nested"}
    methods, excluded = pair_cases(Places(places, synthrad / "data/*/ct.mha", mask=synthrad / "data/*/mask.mha"))
    assert {m: [f.case for f in cases] for m, cases in methods.items()} == {"flat": [], "nested": ["1BA002"]}
    assert excluded == [
        "case '1BA001': no mask",
        "case '1BA002': no prediction by 'flat'",
        "case '1HNA01': no reference",
    ]


def test_no_name_in_common_says_what_the_names_are(synthrad):
    with pytest.raises(DataError, match=r"predictions: 3, such as 'sct_1BA001'; references: 3, such as '1BA001'.*\*"):
        pair_cases(Places({"a": synthrad / "out"}, synthrad / "data/*/ct.mha"))


def test_single_files_are_a_pair_whatever_their_names(synthrad):
    folder = synthrad / "data/1BA001"
    one = Places(
        {"a": synthrad / "out/sct_1BA001.mha", "b": folder / "cbct.mha"}, folder / "ct.mha", folder / "mask.mha"
    )
    methods, excluded = pair_cases(one)
    assert excluded == [] and {m: f.case for m, (f,) in methods.items()} == {"a": "sct_1BA001", "b": "sct_1BA001"}
    assert methods["a"][0].mask.name == "mask.mha"
    with pytest.raises(ConfigError, match="two files or two folders"):
        pair_cases(Places({"a": synthrad / "out"}, folder / "ct.mha"))
    with pytest.raises(ConfigError, match="A single prediction goes with single files"):
        pair_cases(Places({"a": folder / "cbct.mha"}, folder / "ct.mha", synthrad / "data/*/mask.mha"))


@pytest.mark.parametrize(
    ("pattern", "match"),
    [("(", "not a regular expression"), ("^1", "needs one group"), ("^(9)", "does not fit the name of case '1BA001'")],
)
def test_an_expression_that_does_not_fit(synthrad, pattern, match):
    with pytest.raises(ConfigError, match=match):
        pair_cases(Places({"a": synthrad / "nested"}, synthrad / "data/*/ct.mha", patient=pattern))


def test_a_name_that_is_not_safe_goes_nowhere(tmp_path):
    hostile = "=cmd() <img onerror=x> Müller"
    touch(tmp_path / "p", f"{hostile}.nii.gz", "a.nii.gz")
    touch(tmp_path / "r", f"{hostile}.nii.gz")
    methods, excluded = pair_cases(Places({"m": tmp_path / "p"}, tmp_path / "r", patient=r"(.*)"))
    (files,) = methods["m"]
    assert files.case == files.patient == safe_case(hostile) and "Müller" not in files.case
    assert excluded == ["case 'a': no reference"]
