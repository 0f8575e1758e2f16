"""The W&B run of a stage that is done: what it counted, the cohort's hash, and a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.settings import Config
from pipeline.tracking.wandb_run import WandbRun, tracks


def track_stage(
    config: Config, verb: str, values: Mapping[str, float | None], *, cohort: str = "", page: Path | None = None
) -> None:
    """Log what a stage did into the W&B run of its output folder, where tracking is wanted.

    Args:
        config: Of the stage, which has finished or is about to say what it left out.
        verb: Name of the stage; keys of its own numbers become ``VERB/KEY`` unless they have a slash.
        values: Numbers; None is left out.
        cohort: SHA-256 of the cohort's content, or empty.
        page: A page of HTML to show, which must name no patient.
    """
    if not tracks(config):
        return
    assert config.output is not None
    run = WandbRun(config, config.output, verb)
    run.log({k if "/" in k else f"{verb}/{k}": value for k, value in values.items() if value is not None})
    if cohort:
        run.log_hash("cohort", cohort)
    if page is not None:
        run.log_page(f"{verb}/page", page)
    run.finish()
