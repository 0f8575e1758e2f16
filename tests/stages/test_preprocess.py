"""From a cohort to shards: what is stored, what is refused, and what a second run does."""

import json
from pathlib import Path

import numpy as np
import pytest
from makers import SHAPE, SPACING, body, configuration, film_affine, pair, state, write_cohort

from pipeline.__main__ import main
from pipeline.errors import ArtifactError, CinevoxError, DataError
from pipeline.geometry import Volume, reorder
from pipeline.io import write_volume
from pipeline.records import Cohort, Fingerprint, Plan, ShardIndex
from pipeline.stages import preprocess
from pipeline.stream.store import SliceStore

OPTIONS = ("preprocess.spacing_mm=[4,5,5]", "preprocess.size=[24,26]", "preprocess.minimum_slices=2")
WORDS = {word.partition("=")[0]: word for word in OPTIONS}


def run(cohort, output, *overrides, **more):
    words = {**WORDS, **{w.partition("=")[0]: w for w in overrides}}
    preprocess.run(configuration(*words.values(), input=[cohort], output=output, **more))
    return output


def film(output, case_id, *names):
    with SliceStore(output) as store:
        return store.film(case_id, *names)


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".tar", ".npy") or p.name == "index.json"}


@pytest.fixture
def cohort(tmp_path):
    return write_cohort(tmp_path / "cohort", {"a": pair(0), "b": pair(1), "c": pair(2)}, splits={"c": "test"})


# --- What is stored --------------------------------------------------------------------------------------------------


def test_at_the_same_spacing_frames_are_the_voxels_of_the_source(tmp_path, cohort):
    output = run(cohort, tmp_path / "out")
    index = ShardIndex.load(output)
    assert [(c.case_id, c.split, c.slices, c.shard) for c in index.cases] == [
        ("a", "train", 10, 0), ("b", "train", 10, 1), ("c", "test", 10, 2),
    ]  # fmt: skip
    assert (index.spacing_mm, index.size, index.axes) == ((4.0, 5.0, 5.0), (24, 26), "SPL")
    for seed, case_id in enumerate("abc"):
        for modality, array in film(output, case_id, "ct", "cbct").items():
            np.testing.assert_array_equal(array, pair(seed)[modality].array.clip(-1024))


def test_the_index_says_where_each_film_was_cut_from(tmp_path, cohort):
    output = run(cohort, tmp_path / "out", "preprocess.size=[20,20]")
    case = ShardIndex.load(output).cases[0]
    start = np.linalg.solve(film_affine(), [*np.array(case.film_grid.affine)[:, 3], 1])[:3]
    first = start.round().astype(int)
    np.testing.assert_allclose(first, start, atol=1e-9)
    expected = pair(0)["ct"].array[:, first[1] : first[1] + 20, first[2] : first[2] + 20]
    np.testing.assert_array_equal(film(output, "a", "ct")["ct"], expected)
    assert case.source_grids["cbct"].shape == SHAPE


@pytest.mark.parametrize("axes", ["LPS", "RAS", "LAI", "PIR"])
def test_orientation_on_disk_does_not_matter(tmp_path, cohort, axes):
    turned = {name: reorder(volume, axes) for name, volume in pair(0).items()}
    other = write_cohort(tmp_path / "turned", {"a": turned})
    expected = film(run(cohort, tmp_path / "out"), "a", "ct", "cbct", "mask")
    found = film(run(other, tmp_path / "out2"), "a", "ct", "cbct", "mask")
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_the_percentiles_are_those_inside_the_mask(tmp_path, cohort):
    output = run(cohort, tmp_path / "out")
    frames = film(output, "a", "ct", "mask")
    expected = np.percentile(frames["ct"][frames["mask"] > 0], [0.5, 99.5])
    np.testing.assert_allclose(ShardIndex.load(output).cases[0].percentiles["ct"], expected)
    assert frames["mask"].any()


def test_a_field_of_view_is_combined_with_the_body(tmp_path):
    half = np.zeros(SHAPE, np.uint8)
    half[:, :, :13] = 1
    masks = {"a": {"field_of_view": Volume(half, film_affine(), "1")}}
    with_view = write_cohort(tmp_path / "one", {"a": pair()}, masks=masks)
    without = write_cohort(tmp_path / "two", {"a": pair()})
    seen = film(run(with_view, tmp_path / "out"), "a", "mask")["mask"]
    whole = film(run(without, tmp_path / "out2"), "a", "mask")["mask"]
    np.testing.assert_array_equal(seen, whole & half)
    assert 0 < seen.sum() < whole.sum()


@pytest.mark.parametrize("name", ["body", "mask"])
def test_a_stored_body_takes_the_place_of_the_computed_one(tmp_path, name):
    given = np.zeros(SHAPE, np.uint8)
    given[2:8, 6:18, 8:20] = 1
    masks = {"a": {name: Volume(given, film_affine(), "1")}}
    cohort = write_cohort(tmp_path / "cohort", {"a": pair()}, masks=masks)
    found = film(run(cohort, tmp_path / "out", "preprocess.size=[12,12]"), "a", "mask")["mask"]
    np.testing.assert_array_equal(found, given[:, 6:18, 8:20])


def test_mr_is_stored_with_its_scale_and_not_clipped_like_ct(tmp_path):
    ct = body()
    mr = Volume((ct.array.astype(np.float32) + 1000) * 0.01 - 20, ct.affine, "a.u.")
    cohort = write_cohort(tmp_path / "cohort", {"a": {"ct": ct, "t1n": mr}}, units={"t1n": "a.u."})
    output = run(cohort, tmp_path / "out", "source=t1n")
    index = ShardIndex.load(output)
    assert index.modalities["t1n"].unit == "a.u."
    scale = index.cases[0].scale["t1n"]
    assert scale < 0.01
    physical = film(output, "a", "t1n")["t1n"] * scale
    np.testing.assert_allclose(physical, mr.array, atol=scale * 0.51)


def test_another_spacing_is_resampled(tmp_path, cohort):
    output = run(cohort, tmp_path / "out", "preprocess.spacing_mm=[2,2.5,2.5]", "preprocess.size=[48,52]")
    assert ShardIndex.load(output).cases[0].slices == 19
    frames = film(output, "a", "ct", "mask")
    inside = frames["ct"][frames["mask"] > 0]
    assert abs(inside.mean() - body().array[body().array > -900].mean()) < 60


# --- What is refused -------------------------------------------------------------------------------------------------


def failing(cohort, output, *overrides, error=DataError):
    with pytest.raises(error) as caught:
        run(cohort, output, *overrides)
    return str(caught.value)


def shifted():
    volumes = pair(1)
    affine = film_affine(origin=(63.0, 50.0, -20.0))
    return {**volumes, "cbct": Volume(volumes["cbct"].array, affine)}


def test_modalities_on_different_grids_are_refused_with_both_grids(tmp_path):
    cohort = write_cohort(tmp_path / "cohort", {"a": pair(0), "b": shifted()})
    message = failing(cohort, tmp_path / "out")
    assert "1 of 2 cases were left out" in message
    assert "'ct' and 'cbct' of case 'b' differ in origin" in message
    assert "ct: size (10, 24, 26), spacing (4, 5, 5) mm, origin (60, 50, -20) mm" in message
    assert "cbct: size (10, 24, 26), spacing (4, 5, 5) mm, origin (63, 50, -20) mm" in message
    assert "preprocess.resample=true" in message


def test_with_resample_they_are_put_onto_the_targets_grid(tmp_path):
    cohort = write_cohort(tmp_path / "cohort", {"a": pair(0), "b": shifted()})
    output = run(cohort, tmp_path / "out", "preprocess.resample=true")
    frames = film(output, "b", "ct", "cbct")
    np.testing.assert_array_equal(frames["ct"], pair(1)["ct"].array)
    # 3 mm to the right of the patient's right is 0.6 of a 5 mm column.
    source = pair(1)["cbct"].array.clip(-1024).astype(float)
    expected = 0.4 * source[:, :, 3:12] + 0.6 * source[:, :, 4:13]
    np.testing.assert_allclose(frames["cbct"][:, :, 3:12], expected, atol=0.51)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_volume_that_is_not_finite_is_refused_with_its_place(tmp_path, value):
    array = body().array.astype(np.float32)
    array[3, 4, 5] = value
    cohort = write_cohort(tmp_path / "cohort", {"a": pair(0), "b": {**pair(1), "ct": Volume(array, film_affine())}})
    message = failing(cohort, tmp_path / "out")
    assert "'ct' of case 'b' holds 1 voxels that are NaN or infinite" in message
    assert [c.case_id for c in ShardIndex.load(tmp_path / "out").cases] == ["a"]


def arguments(cohort, output, *overrides):
    words = {**WORDS, **{w.partition("=")[0]: w for w in overrides}}
    return ["preprocess", *words.values(), f"input={cohort}", f"output={output}"]


def test_a_broken_file_costs_its_case_only_and_is_said_again_until_it_is_repaired(tmp_path, cohort, capsys):
    path = cohort / "b" / "ct.nii"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    output = tmp_path / "out"
    for _ in range(2):
        assert main(arguments(cohort, output)) == 2
        shown = capsys.readouterr().err
        assert "1 of 3 cases were left out (the others are written): b: " in shown
        assert "Traceback" not in shown
        assert [c.case_id for c in ShardIndex.load(output).cases] == ["a", "c"]
        assert film(output, "c", "ct")["ct"].shape == SHAPE
    path.write_bytes(whole)
    assert main(arguments(cohort, output)) == 0
    clean = run(cohort, tmp_path / "clean")
    assert content(output) == content(clean)


def test_a_file_that_is_no_longer_the_one_of_the_record_is_refused(tmp_path, cohort):
    write_volume(cohort / "a" / "ct.nii", body(99))
    message = failing(cohort, tmp_path / "out")
    assert "'ct' of case 'a' is not the file that the cohort record speaks of" in message


@pytest.mark.parametrize("name", ["body", "field_of_view"])
def test_a_mask_that_is_no_longer_the_one_of_the_record_is_refused(tmp_path, name):
    mask = Volume(np.ones(SHAPE, np.uint8), film_affine(), "1")
    cohort = write_cohort(tmp_path / "cohort", {"a": pair()}, masks={"a": {name: mask}})
    other = mask.array.copy()
    other[:5] = 0
    write_volume(cohort / "a" / f"{name}.nii", mask.with_array(other))
    message = failing(cohort, tmp_path / "out")
    assert f"'{name}' of case 'a' is not the file that the cohort record speaks of" in message


def test_when_every_case_fails_there_is_no_index(tmp_path, cohort):
    for path in cohort.glob("*/ct.nii"):
        path.write_bytes(b"")
    assert "No case could be prepared" in failing(cohort, tmp_path / "out")
    assert not (tmp_path / "out" / "index.json").exists()


def short_cohort(tmp_path):
    return write_cohort(tmp_path / "cohort", {"a": pair(0), "b": pair(1, (4, 24, 26))})


def test_a_short_case_is_an_error_that_names_the_way_out(tmp_path):
    message = failing(short_cohort(tmp_path), tmp_path / "out", "preprocess.minimum_slices=5")
    assert "Case 'b' has 4 slices at 4 mm" in message
    assert "preprocess.short_cases=skip" in message


def test_a_short_case_can_be_skipped_and_is_counted(tmp_path, capsys):
    options = ("preprocess.minimum_slices=5", "preprocess.short_cases=skip")
    output = run(short_cohort(tmp_path), tmp_path / "out", *options)
    index = ShardIndex.load(output)
    assert [c.case_id for c in index.cases] == ["a"]
    assert [e.case_id for e in index.excluded] == ["b"]
    assert index.excluded[0].reason.startswith("skipped: ")
    assert json.loads((output / "stage.json").read_text())["results"] == {"cases": 1, "excluded": 1}
    run(tmp_path / "cohort", output, *options)
    assert "nothing to do" in capsys.readouterr().err


def test_a_case_without_a_body_is_named(tmp_path):
    air = body().with_array(np.full(SHAPE, -1000, np.int16))
    cohort = write_cohort(tmp_path / "cohort", {"a": pair(0), "b": {"ct": air, "cbct": air}})
    assert "No body was found in case 'b'" in failing(cohort, tmp_path / "out")


def test_a_mask_that_leaves_nothing_is_named(tmp_path):
    corner = np.zeros(SHAPE, np.uint8)
    corner[:, 0, 0] = 1
    masks = {"a": {"field_of_view": Volume(corner, film_affine(), "1")}}
    cohort = write_cohort(tmp_path / "cohort", {"a": pair()}, masks=masks)
    assert "The mask of case 'a' (body and field of view) is empty" in failing(cohort, tmp_path / "out")


def test_a_body_that_does_not_fit_names_a_size_that_fits(tmp_path, cohort):
    message = failing(cohort, tmp_path / "out", "preprocess.size=[10,26]")
    assert "Set preprocess.size=[16,26]" in message
    run(cohort, tmp_path / "out2", "preprocess.size=[16,26]")
    assert len(ShardIndex.load(tmp_path / "out2").cases) == 3


def test_a_case_that_lacks_the_source_is_refused_another_modality_is_left_out_aloud(tmp_path, capsys):
    cohort = write_cohort(tmp_path / "cohort", {"a": pair(0), "b": {"ct": body(1)}})
    assert "1 of 2 cases lack 'cbct': b" in failing(cohort, tmp_path / "out")
    extra = write_cohort(tmp_path / "extra", {"a": {**pair(0), "mr": body(5)}, "b": pair(1)})
    output = run(extra, tmp_path / "out2")
    assert sorted(ShardIndex.load(output).modalities) == ["cbct", "ct"]
    assert "'mr' is not stored: 1 of 2 cases lack it" in capsys.readouterr().err


def test_a_cohort_without_cases_is_refused(tmp_path):
    Cohort(schema=1, name="none", root=str(tmp_path), cases=[]).save(tmp_path / "cohort")
    assert "The cohort has no case" in failing(tmp_path / "cohort", tmp_path / "out")


# --- Again -----------------------------------------------------------------------------------------------------------


def test_two_runs_give_the_same_bytes(tmp_path, cohort):
    one, two = run(cohort, tmp_path / "one"), run(cohort, tmp_path / "two")
    assert content(one) == content(two)
    assert len(content(one)) == 7


def test_processes_give_the_same_bytes(tmp_path, cohort):
    parallel = run(cohort, tmp_path / "two", workers=2)
    assert content(run(cohort, tmp_path / "one")) == content(parallel)


def test_patients_stay_together_in_a_shard(tmp_path):
    cases = {name: pair(i) for i, name in enumerate("abcde")}
    patients = {"a": "p", "b": "q", "c": "p", "d": "q", "e": "r"}
    cohort = write_cohort(tmp_path / "cohort", cases, patients=patients)
    index = ShardIndex.load(run(cohort, tmp_path / "out", "preprocess.patients_per_shard=2"))
    assert [shard.cases for shard in index.shards] == [["a", "c", "b", "d"], ["e"]]
    assert {c.case_id: c.shard for c in index.cases} == {"a": 0, "b": 0, "c": 0, "d": 0, "e": 1}
    assert len(film(tmp_path / "out", "d", "ct")["ct"]) == 10


def unfinished(output):
    """Make a finished folder look like that of a run that was killed."""
    (output / "index.json").unlink()
    path = output / "stage.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "finished": False}))


def test_shards_that_are_there_need_no_space(tmp_path, cohort, monkeypatch):
    asked = []
    monkeypatch.setattr(preprocess, "check_free_space", lambda folder, size: asked.append(size - 10_000_000))
    output = run(cohort, tmp_path / "out")
    unfinished(output)
    (output / "shard-00001.json").unlink()
    run(cohort, output)
    run(cohort, output)  # finished: not even asked
    assert asked[1:] == [asked[0] // 3]


DAMAGE = {
    "its note is not there yet": lambda o: (o / "shard-00001.json").unlink(),
    "its files are not there": lambda o: [(o / f"shard-00001.{s}").unlink() for s in ("json", "tar", "npy")],
    "its tar is cut": lambda o: (o / "shard-00001.tar").write_bytes((o / "shard-00001.tar").read_bytes()[:3000]),
    "its table is gone": lambda o: (o / "shard-00001.npy").unlink(),
    "its tar is altered": lambda o: (o / "shard-00001.tar").write_bytes(bytes((o / "shard-00001.tar").stat().st_size)),
    "its note is damaged": lambda o: (o / "shard-00001.json").write_text('{"shard": 3}'),
    "it was being written": lambda o: (o / "shard-00001.tar").rename(o / ".partial.shard-00001.tar"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_killed_run_redoes_only_the_shard_that_is_not_whole(tmp_path, cohort, damage, capsys):
    output = run(cohort, tmp_path / "out")
    before = content(output)
    times = {p.name: p.stat().st_mtime_ns for p in output.glob("shard-*.tar")}
    unfinished(output)
    DAMAGE[damage](output)
    run(cohort, output)
    assert "Continuing: 2 of 3 shards are there" in capsys.readouterr().err
    assert content(output) == before
    after = {p.name: p.stat().st_mtime_ns for p in output.glob("shard-*.tar")}
    assert {name for name in times if after[name] != times[name]} == {"shard-00001.tar"}


def test_a_finished_folder_is_left_alone(tmp_path, cohort, capsys):
    output = run(cohort, tmp_path / "out")
    times = {p.name: p.stat().st_mtime_ns for p in output.iterdir()}
    run(cohort, output)
    assert "finished already; nothing to do" in capsys.readouterr().err
    assert {p.name: p.stat().st_mtime_ns for p in output.iterdir()} == times


@pytest.mark.parametrize("name", ["shard-00001.tar", "shard-00001.npy", "index.json"])
def test_what_was_deleted_from_a_finished_folder_is_written_again(tmp_path, cohort, name):
    output = run(cohort, tmp_path / "out")
    before = content(output)
    (output / name).unlink()
    run(cohort, output)
    assert content(output) == before


def test_other_settings_into_the_same_folder_are_refused_with_the_difference(tmp_path, cohort):
    output = run(cohort, tmp_path / "out")
    before = content(output)
    message = failing(cohort, output, "preprocess.body_threshold_hu=-250", error=ArtifactError)
    assert "preprocess.body_threshold_hu: -300.0 -> -250.0" in message
    assert content(output) == before


def test_another_cohort_into_the_same_folder_is_refused_another_place_of_it_is_not(tmp_path, cohort, capsys):
    output = run(cohort, tmp_path / "out")
    other = write_cohort(tmp_path / "other", {"a": pair(7)})
    assert "cohort: " in failing(other, output, error=ArtifactError)
    moved = tmp_path / "moved"
    cohort.rename(moved)
    record = Cohort.load(moved).model_copy(update={"root": str(moved)})
    record.save(moved)
    run(moved, output)
    assert "nothing to do" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(tmp_path, cohort, capsys):
    before = sorted(tmp_path.rglob("*"))
    run(cohort, tmp_path / "out", dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert "3 cases of 3 patients, cbct, ct; 3 shards" in capsys.readouterr().err


def test_no_path_of_a_patients_file_is_in_the_shards_or_messages(tmp_path, cohort, capsys):
    (cohort / "b").rename(cohort / "Doe^John")
    data = json.loads((cohort / "cohort.json").read_text().replace('"b/', '"Doe^John/'))
    (cohort / "cohort.json").write_text(json.dumps(data))
    (cohort / "Doe^John" / "ct.nii").write_bytes(b"broken")
    output = tmp_path / "out"
    message = failing(cohort, output, error=CinevoxError)
    assert "Doe" not in message + capsys.readouterr().err
    assert all(b"Doe" not in p.read_bytes() for p in output.iterdir())


# --- Zarr ------------------------------------------------------------------------------------------------------------


def test_zarr_shards_hold_what_tar_shards_hold(tmp_path, cohort, capsys):
    tar, zarr = run(cohort, tmp_path / "tar"), run(cohort, tmp_path / "zarr", "preprocess.store=zarr")
    assert sorted(p.name for p in zarr.glob("shard-*.zarr")) == [f"shard-0000{i}.zarr" for i in range(3)]
    indices = [ShardIndex.load(folder).model_dump(exclude={"shards", "seal"}) for folder in (tar, zarr)]
    assert indices[0] == indices[1]  # also the hash that a training compares
    for case_id in "abc":
        for part, array in film(tar, case_id, "ct", "cbct", "mask").items():
            np.testing.assert_array_equal(film(zarr, case_id, part)[part], array)
    capsys.readouterr()
    run(cohort, zarr, "preprocess.store=zarr")
    assert "nothing to do" in capsys.readouterr().err
    with pytest.raises(ArtifactError, match=r"preprocess\.store: zarr -> tar"):
        run(cohort, zarr)


def test_a_zarr_shard_that_lost_a_file_is_written_again(tmp_path, cohort):
    output = run(cohort, tmp_path / "out", "preprocess.store=zarr")
    lost = output / "shard-00001.zarr" / "b" / "ct" / "c.0.0.0"
    kept = output / "shard-00000.zarr" / "a" / "ct" / "c.0.0.0"
    content, inode = lost.read_bytes(), kept.stat().st_ino
    lost.unlink()
    run(cohort, output, "preprocess.store=zarr")
    assert lost.read_bytes() == content
    assert kept.stat().st_ino == inode


# --- The plan --------------------------------------------------------------------------------------------------------

AUTO = ("preprocess.spacing_mm=auto", "preprocess.size=auto", "preprocess.memory_gib=auto")


def test_a_plan_is_made_said_and_kept(tmp_path, cohort, capsys):
    output = run(cohort, tmp_path / "out", *AUTO)
    shown = capsys.readouterr().err
    plan = Plan.load(output)
    assert (plan.spacing_mm, plan.size) == (SPACING, (16, 32))
    assert ShardIndex.load(output).plan == plan
    assert all(reason in shown for reason in plan.reasons)
    found = Fingerprint.load(output).cases
    assert [case.case_id for case in found] == ["a", "b", "c"]
    assert (found[0].shape, found[0].spacing_mm) == (SHAPE, SPACING)
    assert found[0].body_mm[0] == SHAPE[0] * SPACING[0] and 60 < found[0].body_mm[1] < 120
    explicit = run(cohort, tmp_path / "two", "preprocess.size=[16,32]")
    for name in ("a", "b", "c"):
        np.testing.assert_array_equal(film(output, name, "ct")["ct"], film(explicit, name, "ct")["ct"])


def test_a_begun_folder_keeps_its_plan_on_a_machine_with_other_memory(tmp_path, cohort, monkeypatch, capsys):
    output = run(cohort, tmp_path / "out", *AUTO)
    before = content(output)
    unfinished(output)
    (output / "shard-00001.json").unlink()
    monkeypatch.setattr(preprocess, "training_memory", lambda gib: pytest.fail("planned again"))
    run(cohort, output, *AUTO)
    assert content(output) == before
    run(cohort, output, *AUTO)
    assert "nothing to do" in capsys.readouterr().err
    monkeypatch.undo()
    message = failing(cohort, output, *AUTO, "preprocess.size=[64,64]", error=ArtifactError)
    assert "preprocess.size: [16, 32] -> [64, 64]" in message


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, cohort, capsys):
    before = sorted(tmp_path.rglob("*"))
    run(cohort, tmp_path / "out", *AUTO, dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
    shown = capsys.readouterr().err
    assert "spacing 4 x 5 x 5 mm: the median of 3 cases" in shown
    assert "size 16 x 32: the smallest multiples of 16" in shown


def test_a_case_that_cannot_be_looked_at_has_no_part_in_the_plan_and_is_named(tmp_path, cohort):
    (cohort / "b" / "ct.nii").write_bytes(b"")
    message = failing(cohort, tmp_path / "out", *AUTO)
    assert "1 of 3 cases were left out" in message
    fingerprint = Fingerprint.load(tmp_path / "out")
    assert [case.case_id for case in fingerprint.excluded] == ["b"]


def test_workers_are_as_many_as_the_memory_holds(tmp_path, cohort, monkeypatch, capsys):
    monkeypatch.setattr(preprocess, "job_bytes", lambda: 500 * 2**20)
    run(cohort, tmp_path / "out", workers=4, dry_run=True)
    assert "2 instead of 4 workers: each needs up to 0.2 GB of 0.5 GB" in capsys.readouterr().err


# --- Where the data lie ----------------------------------------------------------------------------------------------


def test_a_cohort_named_by_a_relative_path_is_found_from_elsewhere(tmp_path, cohort, monkeypatch):
    monkeypatch.chdir(cohort.parent)
    output = run(Path(cohort.name), tmp_path / "out")
    monkeypatch.chdir("/")
    index = ShardIndex.load(output)
    assert Path(index.cohort).is_absolute() and Cohort.load(Path(index.cohort)).cases
    assert film(output, "a", "ct")["ct"].shape == SHAPE


def test_data_that_cannot_be_written_to_are_only_read(tmp_path, cohort):
    places = [cohort, *cohort.rglob("*")]
    for place in places:
        place.chmod(0o555 if place.is_dir() else 0o444)
    before = state(cohort)  # root may write whatever the mode says
    try:
        run(cohort, tmp_path / "out")
        assert state(cohort) == before
    finally:
        for place in places:
            place.chmod(0o755 if place.is_dir() else 0o644)


def test_header_noise_in_the_direction_of_one_modality_is_survived(tmp_path):
    noisy = film_affine()
    noisy[:3, :3] += np.random.default_rng(0).uniform(-1e-6, 1e-6, (3, 3))
    volumes = pair(0)
    cohort = write_cohort(tmp_path / "cohort", {"a": {**volumes, "cbct": Volume(volumes["cbct"].array, noisy)}})
    frames = film(run(cohort, tmp_path / "out"), "a", "cbct")
    np.testing.assert_array_equal(frames["cbct"], volumes["cbct"].array.clip(-1024))
