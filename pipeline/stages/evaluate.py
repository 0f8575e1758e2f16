"""Score predictions against references: every case, statistics over patients, comparisons of methods.

With a cohort:    cinevox evaluate input=TRANSLATION [input=ANOTHER ...] output=SCORES
Without a cohort: cinevox evaluate prediction=PLACE [prediction=ANOTHER ...] reference=PLACE [mask=PLACE] output=SCORES

Reads a translation.json and the volumes it names, or volumes: PLACE is a file, a folder of files (CASE.nii.gz) or of
folders with one volume each, or a path with one '*' for the case's name ('data/*/ct.nii.gz', 'out/sct_*.mha'). Cases
are paired by name. prediction_labels=PLACE (once per prediction) and reference_labels=PLACE are label volumes for the
metrics that compare those.

Translations of one label are one method where they are different folds of a cross-validation, or of different
cohorts, else an error. The metrics, their range and the regions come from the group 'metrics'. A reference on another
grid is resampled onto the prediction's grid (with a cohort; the scores say so) or refused (without one, unless
evaluate.resample=true).

Writes scores.json (every score, with the profile that defines it), scores.csv, summary.csv, comparisons.csv and
summary.tex; what they mean stands in docs/how-to/compare-methods.md. A killed run goes on
at the cases that it had not scored.

part=K/N scores every N-th case only, beside the other parts; part=join makes the files of what they scored, with
distances of sets and statistics over all of it, and lists what failed without failing itself.

Main options: metrics=NAME, evaluate.source=false (do not score the untranslated source), evaluate.resample, label
(the method's name without a cohort; of several: evaluate.labels), evaluate.patient_pattern, evaluate.cohort_pattern,
workers, --dry-run.
"""

from __future__ import annotations

import multiprocessing
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.artifacts import claim_output, content_hash, file_sha256, write_json
from pipeline.errors import ConfigError, DataError, nearest
from pipeline.locks import lock
from pipeline.metrics import check_metrics, compare, summarise
from pipeline.metrics.comparison import REGIONS, CaseFiles
from pipeline.metrics.plan import Plan, plan_pairs, plan_translations, volume_records
from pipeline.metrics.profile import describe
from pipeline.metrics.scored import FOLDER as SCORED
from pipeline.metrics.scored import load_result, save_result
from pipeline.metrics.scoring import SOURCE, CaseJob, CaseResult, score_case, score_sets
from pipeline.parts import JOIN, share_of, write_note
from pipeline.progress import say, track
from pipeline.records import Scores, unique
from pipeline.reporting.anonymous import anonymous, mean_values
from pipeline.reporting.latex import write_latex
from pipeline.reporting.tables import print_summary, write_comparisons_csv, write_scores_csv, write_summary_csv
from pipeline.settings import Config
from pipeline.tracking.stage import track_stage
from pipeline.tracking.words import names_to_show

_LISTED = 10  # reasons in the error; the scores hold all


def run(config: Config) -> None:
    """Score what ``config.input``, or ``config.prediction`` and ``config.reference``, name.

    Raises:
        ConfigError: Inputs do not fit together, or a metric or region is unknown.
        GeometryError: A single pair of files lies on two grids.
        DataError: Cases were left out; everything else has been written by then.
    """
    _check(config)
    assert config.output is not None
    plan = plan_pairs(config) if config.prediction else plan_translations(config)
    jobs = _jobs(config, plan)
    if config.dry_run:
        for method, cases in plan.methods.items():
            say(f"Would score {len(cases)} cases of '{method}': {', '.join(c.case for c in cases)}")
        for line in [*plan.notes, *(f"Left out: {reason}" for reason in plan.excluded)]:
            say(line)
        say(f"Metrics {', '.join(config.metrics.names)}; regions {', '.join(config.metrics.regions)}; nothing written.")
        return
    if not jobs:
        raise DataError("There is nothing to score: " + "; ".join(plan.excluded or ["no case is listed"]))
    working, joining = bool(config.part) and config.part != JOIN, config.part == JOIN
    claim = claim_output(config.output, "evaluate", _settings(config, plan), wait=working)
    if claim.finished:
        say(f"'{config.output}' is finished already; nothing to do.")
        scores, left_out = Scores.load(config.output), int(claim.record["results"]["excluded"])
    elif working:
        claim.share()
        _score_part(config, jobs)
        return
    else:
        results, whole = _joined(config.output, jobs) if joining else (_results(config, jobs), True)
        scores, left_out = _collect(config, plan, results)
        if plan.pairs:
            for name, record in volume_records(config, plan).items():
                write_json(config.output / name, record)
        scores.save(config.output)
        write_scores_csv(config.output / "scores.csv", scores.scores)
        write_summary_csv(config.output / "summary.csv", scores.summary)
        write_comparisons_csv(config.output / "comparisons.csv", scores.comparisons)
        write_latex(config.output / "summary.tex", scores)
        if whole:
            claim.finish(excluded=left_out)
            shutil.rmtree(config.output / SCORED, ignore_errors=True)
        track_stage(config, "evaluate", {"excluded": left_out, **mean_values(anonymous(scores, names_to_show(config)))})
    print_summary(Console(file=sys.stdout), scores)
    reasons = [note for note in scores.notes if note.startswith("Left out: ")]
    if joining and scores.scores:
        for reason in reasons:
            say(reason)
    elif left_out:
        listed = "; ".join(reasons[:_LISTED]) + f"; and {len(reasons) - _LISTED} more" * (len(reasons) > _LISTED)
        raise DataError(
            f"{left_out} comparison{'s' if left_out != 1 else ''} could not be scored. {listed}",
            remedy=f"The others are in '{config.output}'; mend or remove these and score again into a new folder",
        )


def _check(config: Config) -> None:
    if config.output is None:
        raise ConfigError("evaluate needs an output folder", remedy="Add output=FOLDER")
    if bool(config.input) == bool(config.prediction):
        raise ConfigError(
            "evaluate compares either translations or pairs of files",
            value="both" if config.input else "neither",
            allowed="input=TRANSLATION, or prediction=... reference=...",
        )
    if config.prediction and not config.reference:
        raise ConfigError("prediction=PLACE needs reference=PLACE")
    if config.input and (config.reference or config.mask or config.prediction_labels or config.reference_labels):
        raise ConfigError("reference=... and mask=... belong to prediction=...; a translation record names its own")
    if bool(config.prediction_labels) != bool(config.reference_labels):
        raise ConfigError("prediction_labels=... and reference_labels=... go together")
    if config.prediction_labels and len(config.prediction_labels) != len(config.prediction):
        raise ConfigError(
            "prediction_labels=... is given once per prediction=..., in the same order",
            value=len(config.prediction_labels),
            allowed=len(config.prediction),
        )
    check_metrics(config.metrics, labels=bool(config.prediction_labels))
    for region in config.metrics.regions:
        if region not in REGIONS:
            raise ConfigError(
                f"Unknown region '{region}' in metrics.regions",
                allowed=", ".join(REGIONS),
                remedy=nearest(region, REGIONS),
            )


def _jobs(config: Config, plan: Plan) -> list[CaseJob]:
    by_case: dict[str, dict[str, CaseFiles]] = {}
    for method, cases in plan.methods.items():
        for files in cases:
            by_case.setdefault(files.case, {})[method] = files
    return [
        CaseJob(
            case=case,
            methods=methods,
            metrics=config.metrics,
            body_threshold_hu=config.preprocess.body_threshold_hu,
            score_source=plan.score_source,
            may_resample=config.evaluate.resample or not plan.pairs,
        )
        for case, methods in by_case.items()
    ]


def _settings(config: Config, plan: Plan) -> dict[str, Any]:
    sums: dict[Path, str] = {}  # methods share their references
    files = {
        f"{method}/{case.case}": content_hash([_fingerprint(p, sums) for p in _paths(case)])
        for method, cases in plan.methods.items()
        for case in cases
    }
    return {
        "metrics": config.metrics.model_dump(mode="json"),
        "evaluate": config.evaluate.model_dump(mode="json"),
        "body_threshold_hu": config.preprocess.body_threshold_hu,
        "inputs": files,
        "excluded": plan.excluded,
    }


def _paths(case: CaseFiles) -> list[Path | None]:
    return [
        case.prediction,
        case.reference,
        case.source,
        case.mask,
        case.prediction_labels,
        case.reference_labels,
    ]


def _fingerprint(path: Path | None, sums: dict[Path, str]) -> str:
    if path is None:
        return ""
    # A missing file is met again, with its reason, when the case is scored.
    if not path.is_file():
        return "missing"
    if path not in sums:
        # A MetaImage header may keep its voxels in a file beside it.
        beside = [path.with_suffix(".raw"), path.with_suffix(".zraw")] * (path.suffix == ".mhd")
        sums[path] = "".join(file_sha256(p) for p in (path, *beside) if p.is_file())
    return sums[path]


def _results(config: Config, jobs: list[CaseJob]) -> list[CaseResult]:
    """Score cases, but for those that an earlier start scored; what is found waits on disk until all is there."""
    assert config.output is not None
    found: dict[str, CaseResult] = {}
    for job in jobs:
        earlier = load_result(config.output, job.case)
        if earlier is not None and not earlier.excluded:
            found[job.case] = earlier
    todo = [job for job in jobs if job.case not in found]
    for job, result in zip(todo, track(_score(todo, config.workers), "Scoring", len(todo)), strict=True):
        save_result(config.output, job.case, result)
        found[job.case] = result
    return [found[job.case] for job in jobs]


def _score_part(config: Config, jobs: list[CaseJob]) -> None:
    assert config.output is not None
    mine = share_of(jobs, config.part)
    name = config.part.replace("/", "-of-")
    held = lock(config.output / f".part-{name}.lock", f"Part {config.part}")
    left_out = {
        job.case: "; ".join(result.excluded)
        for job, result in zip(mine, _results(config, mine), strict=True)
        if result.excluded
    }
    write_note(config.output, config.part, left_out)
    held.release()
    if left_out:
        raise DataError(
            f"{len(left_out)} of {len(mine)} cases could not be scored (the others are): "
            + "; ".join(list(left_out.values())[:_LISTED]),
            remedy="The same command tries them again",
        )


def _joined(output: Path, jobs: list[CaseJob]) -> tuple[list[CaseResult], bool]:
    """Return what parts scored, and whether that is everything: what failed may be tried again."""
    results = []
    for job in jobs:
        result = load_result(output, job.case)
        if result is None:
            reason = "the part that scores it did not end"
            result = CaseResult(excluded=[f"case '{job.case}' ({method}): {reason}" for method in job.methods])
        results.append(result)
    return results, not any(result.excluded for result in results)


def _score(jobs: list[CaseJob], workers: int) -> Iterator[CaseResult]:
    if workers == 1 or len(jobs) <= 1:
        yield from map(score_case, jobs)
        return
    # Spawned, not forked: the parent may hold threads (numerics, progress bar).
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        futures: list[Future[CaseResult]] = [pool.submit(score_case, job) for job in jobs]
        for job, future in zip(jobs, futures, strict=True):
            try:
                yield future.result()
            except BrokenProcessPool:
                reason = "a worker process was killed (perhaps out of memory; try workers=1)"
                yield CaseResult(excluded=[f"case '{job.case}' ({m}): {reason}" for m in job.methods])


def _collect(config: Config, plan: Plan, results: list[CaseResult]) -> tuple[Scores, int]:
    order = {method: rank for rank, method in enumerate([SOURCE, *plan.methods])}
    scores = sorted(
        (s for r in results for s in r.scores), key=lambda s: order[s.method]
    )  # stable: cases stay in order
    excluded = [*plan.excluded, *(e for r in results for e in r.excluded)]
    notes = plan.notes + [note[0].upper() + note[1:] for r in results for note in r.notes]
    notes += [f"Left out: {reason}" for reason in excluded]
    cases_of = {m: {s.case for s in scores if s.method == m} for m in unique(s.method for s in scores)}
    if len({frozenset(c) for c in cases_of.values()}) > 1:
        counts = ", ".join(f"{method} {len(cases)}" for method, cases in cases_of.items())
        notes.append(f"The methods were scored on different cases ({counts}); their means are not comparable.")
    record = Scores(
        schema=1,
        profile=describe(config.metrics, config.preprocess.body_threshold_hu),
        scores=scores,
        summary=summarise(scores),
        comparisons=compare(scores),
        sets=score_sets(results, config.metrics),
        translations=plan.translations,
        notes=notes,
    )
    return record, len(excluded)
