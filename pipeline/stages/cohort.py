"""Find or make the cases of a cohort, check every volume, and split the patients.

  cinevox cohort input=FOLDER output=FOLDER [cohort.KEY=VALUE ...]
  cinevox cohort cohort=phantom output=FOLDER [cohort.patients=8 ...]
  cinevox cohort --check input=COHORT output=FOLDER

Reads ROOT/CASE/MODALITY.nii.gz (or .nii, .mha, .mhd, .nrrd), or a flat folder in which each file is a case of
cohort.modality. ROOT/cases.csv (columns case, patient and, optionally, split) or cohort.patient_pattern says which
cases are of one patient. Files named mask, body or field_of_view in a case's folder are masks.
With cohort=phantom it makes random patients instead and writes their volumes into the output folder.

Writes cohort.json (cases, patients, splits, flags, hashes), checks/CASE.png where the volumes of a case lie on
different grids, and case_names.csv where a name was replaced by a pseudonym. Cases with a fault are left out and
named at the end, with exit code 2; the others can be used.

--check measures how well the volumes of every case fit together (shift in mm, overlap, edges, mutual information),
flags what is remarkable, and writes pair_quality.json, .csv, .html and pair_quality/*.png beside cohort.json; with
an input that is a cohort already (of 'cinevox simulate', too) only those. No volume is changed, no case left out.

Main options:
  cohort.split.fractions   shares of patients in train, validation and test
  cohort.split.train=[..]  patients that are there in any case (also validation, test)
  cohort.split.folds=5     also deal the patients to folds, of which a training chooses one to test (fold=1, 2, ...)
  cohort.include, exclude  names of cases
  stream.pairing=unpaired  keep cases that lack a modality
  cohort.similarity_check  compare source and target within and between cases
  cohort.pair_limits       beyond which --check flags a pair
  source, target           the pair that is compared
  workers, seed, --dry-run
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.artifacts import check_free_space, claim_output, content_hash
from pipeline.cohorts.checks import (
    CaseReport,
    CheckSettings,
    check_case,
    check_complete,
    check_duplicates,
    flag_similarity,
)
from pipeline.cohorts.folder import CASES_CSV, Discovery, FoundCase, safe, write_names
from pipeline.cohorts.pair_check import check_pairs, pair_settings, pairs_hash
from pipeline.cohorts.pair_quality import worker_bytes
from pipeline.cohorts.pair_sheet import HTML, table
from pipeline.cohorts.phantom import case_name, check_settings, write_patient
from pipeline.cohorts.split import SPLITS, assign_splits, deal_folds
from pipeline.config import conf_folder
from pipeline.errors import ConfigError, DataError, nearest
from pipeline.preparation.memory import job_bytes
from pipeline.processes import parallel
from pipeline.progress import say
from pipeline.records import Case, Cohort, Excluded, PairQualities, Split, unique
from pipeline.settings import CohortSettings, Config

_SHOWN = 8


def run(config: Config) -> None:
    """Carry out ``cinevox cohort``.

    Raises:
        ConfigError: A setting does not fit the data.
        ArtifactError: The output folder holds something else.
        DataError: At the very end, when cases were left out.
    """
    output = config.output
    if output is None:
        raise ConfigError("'cinevox cohort' needs an output folder", remedy="Set output=FOLDER")
    if config.cohort.check and len(config.input) == 1 and _holds_record(config.input[0]):
        _check_record(config, config.input[0], output)
        return
    phantom = config.cohort.layout == "phantom"
    root, cases, ignored = _phantoms(config, output) if phantom else _folders(config)
    given: dict[str, Split] = {c.patient: c.split for c in cases if c.split is not None}
    names = {c.patient_name: c.patient for c in cases}
    split_of = assign_splits((c.patient for c in cases), config.cohort.split, config.seed, given=given, names=names)
    fold_of = _folds(config, cases)
    if config.dry_run:
        _show_plan(config, cases, split_of, ignored)
        return
    settings = _settings(config, root, cases)
    if phantom:
        check_free_space(output, _phantom_bytes(config.cohort))
    claim = claim_output(output, "cohort", settings)
    if claim.finished:
        say(f"The cohort at '{output}' is complete and was made with the same settings: nothing to do.")
        if config.cohort.check:
            _check_pairs(config, Cohort.load(output), output)
        return
    checks = CheckSettings(
        source=config.source,
        target=config.target,
        body_threshold_hu=config.preprocess.body_threshold_hu,
        similarity=config.cohort.similarity_check,
        pictures=output / "checks",
    )
    if phantom:
        job = partial(_make_and_check, root=root, checks=checks, settings=config.cohort, seed=config.seed)
        reports = list(parallel(job, list(enumerate(cases)), config.workers, "Making and checking phantoms"))
    else:
        reports = list(
            parallel(partial(check_case, root=root, settings=checks), cases, config.workers, "Checking cases")
        )
    lacking = check_complete(reports) if config.stream.pairing == "paired" else {}
    check_duplicates(reports)
    if checks.similarity:
        flag_similarity(reports, *_pair(reports, config))
    cohort = _record(config, root, cases, reports, split_of, fold_of, settings)
    replaced = write_names(output, cases)
    cohort.save(output)
    _show(cohort, output, ignored=ignored, lacking=lacking, replaced=replaced)
    if config.cohort.check:
        _check_pairs(config, cohort, output)
    _raise_for(cohort)
    claim.finish(cases=len(cohort.cases))


def _folders(config: Config) -> tuple[Path, list[FoundCase], int]:
    if len(config.input) != 1:
        raise ConfigError(
            "'cinevox cohort' reads one folder", value=f"{len(config.input)} inputs", remedy="Set input=FOLDER"
        )
    root = config.input[0].resolve()
    found = _layout(config.cohort.layout)(root, config.cohort)
    return root, found.cases, found.ignored


def _layout(name: str) -> Callable[[Path, CohortSettings], Discovery]:
    """Return the ``discover`` of ``pipeline/cohorts/NAME.py``: a new layout is that file and nothing else."""
    spec = importlib.util.find_spec(f"pipeline.cohorts.{name}")
    discover = getattr(importlib.import_module(f"pipeline.cohorts.{name}"), "discover", None) if spec else None
    if discover is None:
        names = sorted(path.stem for path in (conf_folder() / "cohort").glob("[a-z]*.yaml"))
        raise ConfigError("Unknown cohort.layout", value=name, allowed=", ".join(names), remedy=nearest(name, names))
    return discover


def _phantoms(config: Config, output: Path) -> tuple[Path, list[FoundCase], int]:
    if config.input:
        raise ConfigError("Phantoms are made, not read", remedy="Leave input out, or set cohort=folder")
    check_settings(config.cohort)
    names = [case_name(index) for index in range(config.cohort.patients)]
    return output.resolve(), [FoundCase(n, n, patient=n, patient_name=n) for n in names], 0


def _folds(config: Config, cases: list[FoundCase]) -> dict[str, int]:
    """Return the fold of every patient; 0 without a cross-validation."""
    folds = config.cohort.split.folds
    if folds and any(case.split is not None for case in cases):
        raise ConfigError(
            f"{CASES_CSV} states splits, and cohort.split.folds deals every patient",
            value=f"{folds} folds",
            allowed="one of the two",
            remedy=f"Take the column 'split' out of {CASES_CSV}, or set cohort.split.folds=0",
        )
    return deal_folds((case.patient for case in cases), folds, config.seed)


def _make_and_check(
    job: tuple[int, FoundCase], root: Path, checks: CheckSettings, settings: CohortSettings, seed: int
) -> CaseReport:
    index, case = job
    case.volumes = write_patient(settings, seed, index, root)
    return check_case(case, root, checks)


def _settings(config: Config, root: Path, cases: list[FoundCase]) -> dict[str, Any]:
    """Return what decides the cohort's content; names that may identify a patient are replaced or hashed."""
    cohort = config.cohort.model_dump(mode="json", exclude={"check", "pair_limits"})
    for key in ("include", "exclude"):
        cohort[key] = [safe("case", name) for name in cohort[key]]
    for split in SPLITS:
        cohort["split"][split] = [safe("patient", name) for name in cohort["split"][split]]
    settings: dict[str, Any] = {
        "cohort": cohort,
        "seed": config.seed,
        "source": config.source,
        "target": config.target,
        "pairing": config.stream.pairing,
        "body_threshold_hu": config.preprocess.body_threshold_hu,
    }
    if config.cohort.layout != "phantom":
        files = [path for case in cases for path in (*case.volumes.values(), *case.masks.values())]
        files += [table for table in [root / CASES_CSV] if table.exists()]
        listing = [(p.relative_to(root).as_posix(), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
        settings["files"] = {"count": len(listing), "names_sizes_times": content_hash(sorted(listing))}
    return settings


def _pair(reports: list[CaseReport], config: Config) -> tuple[str, str]:
    """Return the configured pair, or the cohort's first two modalities where it has another one."""
    have = unique(modality for report in reports for modality in sorted(report.volumes))
    if config.source in have and config.target in have:
        return config.source, config.target
    return (have[0], have[1]) if len(have) > 1 else (config.source, config.target)


def _record(
    config: Config,
    root: Path,
    cases: list[FoundCase],
    reports: list[CaseReport],
    split_of: dict[str, Split],
    fold_of: dict[str, int],
    settings: dict[str, Any],
) -> Cohort:
    good = [
        Case(
            case_id=report.case_id,
            patient=case.patient,
            split=split_of[case.patient],
            fold=fold_of[case.patient],
            volumes=report.volumes,
            masks=report.masks,
            flags=report.flags,
        )
        for case, report in zip(cases, reports, strict=True)
        if not report.problem
    ]
    return Cohort(
        schema=1,
        name="phantom" if config.cohort.layout == "phantom" else safe("cohort", root.name),
        root=str(root),
        folds=config.cohort.split.folds,
        cases=good,
        excluded=[Excluded(case_id=r.case_id, reason=r.problem) for r in reports if r.problem],
        made_by={"verb": "cohort", "cinevox": __version__, "settings": settings},
    )


def _holds_record(place: Path) -> bool:
    return place.name == Cohort.FILE or (place / Cohort.FILE).is_file()


def _check_record(config: Config, place: Path, output: Path) -> None:
    """Check the pairs of a cohort that is there already, beside it or into a folder of their own."""
    cohort = Cohort.load(place)
    if config.dry_run:
        pairs = sum(len(case.volumes) * (len(case.volumes) - 1) // 2 for case in cohort.cases)
        say(f"Would compare {pairs} pairs of volumes of {len(cohort.cases)} cases. Nothing was written.")
        return
    if output.resolve() == (place if place.is_dir() else place.parent).resolve():
        _check_pairs(config, cohort, output)
        return
    claim = claim_output(output, "cohort", {"pairs_of": pairs_hash(cohort), **pair_settings(config)})
    _check_pairs(config, cohort, output)
    if not claim.finished:
        claim.finish(cases=len(cohort.cases))


def _check_pairs(config: Config, cohort: Cohort, output: Path) -> None:
    """Check and show every pair of volumes; DataError at the end for what cannot be read."""
    need = max((worker_bytes(case) for case in cohort.cases), default=1)
    record = check_pairs(config, cohort, output, min(config.workers, max(1, job_bytes() // need)))
    if not record.pairs and not record.excluded:
        say("No case has two volumes to compare.")
        return
    _say_some(table(record.pairs), "pairs", PairQualities.FILE)
    _say_some((f"  flag   {p.case_id}: {flag}" for p in record.pairs for flag in p.flags), "flags", PairQualities.FILE)
    flagged = sum(bool(pair.flags) for pair in record.pairs)
    say(f"{flagged} of {len(record.pairs)} pairs are flagged; pictures of all: '{output / HTML}'.")
    if record.excluded:
        raise DataError(
            f"{len(record.excluded)} cases could not be checked: "
            + "; ".join(f"case '{e.case_id}': {e.reason}" for e in record.excluded[:_SHOWN]),
            remedy="Repair them, then the same command tries again",
        )


def _phantom_bytes(settings: CohortSettings) -> int:
    a, b, c = settings.size
    return settings.patients * len(settings.modalities) * a * b * c * 2


def _show_plan(config: Config, cases: list[FoundCase], split_of: dict[str, Split], ignored: int) -> None:
    modalities = (
        config.cohort.modalities if config.cohort.layout == "phantom" else sorted({m for c in cases for m in c.volumes})
    )
    say(f"Would check {len(cases)} cases of {len(split_of)} patients: {', '.join(modalities)}.")
    for split in SPLITS:
        say(f"  {split:<10} {sum(s == split for s in split_of.values())} patients")
    if folds := config.cohort.split.folds:
        say(f"  {'folds':<10} {folds} of about {len(split_of) / folds:.3g} patients")
    if config.cohort.layout == "phantom":
        say(f"  disk       at most {_phantom_bytes(config.cohort) / 1e6:.0f} MB in '{config.output}'")
    else:
        size = sum(path.stat().st_size for case in cases for path in case.volumes.values())
        say(f"  disk       reads {size / 1e6:.0f} MB, writes below {1 + len(cases) // 100} MB to '{config.output}'")
        if ignored:
            say(f"  ignored    {ignored} files and folders that are no volumes of a modality")
    say("Nothing was written.")


def _show(cohort: Cohort, output: Path, *, ignored: int, lacking: dict[str, int], replaced: bool) -> None:
    modalities = unique(m for case in cohort.cases for m in case.volumes)
    say(f"{'split':<12}{'patients':>9}{'cases':>7}{'flagged':>9}")
    for split in (*SPLITS, "all"):
        chosen = cohort.select(split)
        flagged = sum(bool(case.flags) for case in chosen)
        say(f"{split:<12}{len({c.patient for c in chosen}):>9}{len(chosen):>7}{flagged:>9}")
    if cohort.folds:
        patients = {case.patient: case.fold for case in cohort.cases}.values()
        sizes = ", ".join(str(sum(fold == number for fold in patients)) for number in range(1, cohort.folds + 1))
        say(f"Folds 1 to {cohort.folds} have {sizes} patients.")
    say(f"Modalities: {', '.join(modalities) or 'none'}.")
    _say_some((f"  flag   {case.case_id}: {flag}" for case in cohort.cases for flag in case.flags), "flags")
    for modality, count in sorted(lacking.items()):
        say(f"{count} cases lack '{modality}'.")
    if ignored:
        say(f"{ignored} files and folders that are no volumes of a modality were ignored.")
    if replaced:
        say("Names that are not safe were replaced; case_names.csv holds them and should stay where it is.")
    say(f"Cohort written to '{output}'.")


def _say_some(lines: Iterable[str], what: str, where: str = Cohort.FILE) -> None:
    everything = list(lines)
    for line in everything[:_SHOWN]:
        say(line)
    if len(everything) > _SHOWN:
        say(f"  ... and {len(everything) - _SHOWN} more {what}, see {where}.")


def _raise_for(cohort: Cohort) -> None:
    """Raise DataError naming the cases that were left out."""
    if not cohort.excluded:
        return
    shown = "; ".join(f"case '{e.case_id}': {e.reason}" for e in cohort.excluded[:_SHOWN])
    more = f" ... and {len(cohort.excluded) - _SHOWN} more, see cohort.json" if len(cohort.excluded) > _SHOWN else ""
    total = len(cohort.excluded) + len(cohort.cases)
    raise DataError(
        f"{len(cohort.excluded)} of {total} cases were left out: {shown}{more}",
        remedy="The other cases were written and can be used; repair these, or name them in cohort.exclude",
    )
