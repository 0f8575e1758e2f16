"""The check of a cohort's pairs: measure every case, compare the cases, write record, table and sheet."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pipeline.artifacts import LOCK_FILE, content_hash
from pipeline.cohorts.pair_outliers import flag_pairs
from pipeline.cohorts.pair_quality import METHOD, check_case_pairs
from pipeline.cohorts.pair_sheet import write_csv, write_sheet
from pipeline.locks import lock
from pipeline.processes import parallel
from pipeline.records import Cohort, Excluded, PairQualities
from pipeline.settings import Config


def check_pairs(config: Config, cohort: Cohort, output: Path, workers: int) -> PairQualities:
    """Measure every pair of volumes of every case, or return the record of the same check where it is there.

    Returns:
        The record, written to ``output`` beside a table, a sheet and pictures; with cases that could not be read it is
        not written, so that the same command tries them again.
    """
    settings, content = pair_settings(config), pairs_hash(cohort)
    if (output / PairQualities.FILE).is_file():
        record = PairQualities.load(output)
        if (record.cohort_hash, record.settings) == (content, settings):
            return record
    held = lock(output / LOCK_FILE, f"Output folder '{output}'")
    job = partial(
        check_case_pairs,
        cohort=cohort.model_copy(update={"cases": [], "excluded": [], "made_by": {}}),
        folder=output,
        source=config.source,
        target=config.target,
        body_threshold_hu=config.preprocess.body_threshold_hu,
    )
    cases = [case for case in cohort.cases if len(case.volumes) > 1]
    found = list(parallel(job, cases, workers, "Checking pairs"))
    pairs = [pair for case in found if not isinstance(case, Excluded) for pair in case]
    flag_pairs(pairs, config.cohort.pair_limits)
    record = PairQualities(
        schema=1,
        cohort_hash=content,
        settings=settings,
        method=METHOD,
        pairs=pairs,
        excluded=[case for case in found if isinstance(case, Excluded)],
    )
    write_csv(output, record)
    write_sheet(output, record, cohort.name)
    if not record.excluded:
        record.save(output)
    del held  # not released: the claim of the folder may go on holding it
    return record


def pair_settings(config: Config) -> dict[str, Any]:
    """Return what decides the result besides the volumes."""
    return {
        "source": config.source,
        "target": config.target,
        "body_threshold_hu": config.preprocess.body_threshold_hu,
        "limits": config.cohort.pair_limits.model_dump(mode="json"),
    }


def pairs_hash(cohort: Cohort) -> str:
    """Return a hash of what is compared, wherever it lies."""
    return content_hash(
        {
            case.case_id: {name: file.sha256 for name, file in {**case.volumes, **case.masks}.items()}
            for case in cohort.cases
        }
    )
