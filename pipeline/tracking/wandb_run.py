"""One W&B run per output folder: numbers, pictures and known words go in, no name of a patient or a place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import public
from pipeline.progress import say
from pipeline.settings import Config
from pipeline.tracking.identity import run_id
from pipeline.tracking.segments import STEP, forget_after
from pipeline.tracking.words import shareable

_NOBODY = "cinevox"  # in the place of the host's, the user's and the program's name
_FLUSH_S = 1.0  # what a killed run may lose of its curves


def tracks(config: Config) -> bool:
    """Return whether W&B is wanted; its own switch ``WANDB_MODE=disabled`` counts as well."""
    return config.tracking.logger == "wandb" and os.environ.get("WANDB_MODE") != "disabled"


class WandbRun:
    """The W&B run of a stage's output folder; a stage that is started again goes on in the same run.

    Offline each start writes a file of its own, and ``wandb sync`` joins them; before that, ``step`` (from which the
    run goes on) drops the rows of earlier files that will come again.
    """

    def __init__(self, config: Config, folder: Path, verb: str, *, step: int | None = None) -> None:
        self.id = run_id(folder)
        if step is not None:
            forget_after(folder, step)
        name = config.label or config.model.name
        self._run = _start(
            folder,
            config.tracking.mode,
            project=config.tracking.project,
            entity=config.tracking.entity or None,
            group=config.tracking.group or name,
            name=name,
            job_type=verb,
            id=self.id,
            dir=str(folder),
            resume="allow",
            config=shareable(public(config)),
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    def log(self, values: Mapping[str, float], step: int = 0) -> None:
        """Add a row at our own step."""
        self._run.log({**{key: float(value) for key, value in values.items()}, STEP: step})

    def log_image(self, key: str, path: Path, step: int = 0) -> None:
        """Add an image file."""
        import wandb

        self._run.log({key: wandb.Image(str(path)), STEP: step})

    def log_film(self, key: str, path: Path, step: int = 0) -> None:
        """Add an animated GIF."""
        import wandb

        self._run.log({key: wandb.Video(str(path), format="gif"), STEP: step})

    def log_page(self, key: str, path: Path) -> None:
        """Add a page of HTML."""
        import wandb

        self._run.log({key: wandb.Html(str(path), inject=False), STEP: 0})

    def log_hash(self, kind: str, sha256: str, **about: float) -> None:
        """Add an artifact that is nothing but a hash and numbers, so that runs on the same data can be found.

        It holds no file: offline, W&B would write the absolute path of one into the run.
        """
        import wandb

        self._run.log_artifact(wandb.Artifact(f"{kind}-{sha256[:12]}", kind, metadata={"sha256": sha256, **about}))

    def finish(self, *, success: bool = True) -> None:
        """Close the run."""
        self._run.finish(exit_code=0 if success else 1)


def _start(folder: Path, mode: str, **about: Any) -> Any:
    import wandb

    # Command line, code and machine would carry paths, and paths carry patients' names.
    settings = wandb.Settings(
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
        x_transaction_log_flush_interval=_FLUSH_S,
        disable_git=True,
        disable_code=True,
        host=_NOBODY,
        username=_NOBODY,
        email="",
        program=_NOBODY,
        symlink=False,
        console="off",
        silent=True,
    )
    try:
        if mode == "online":
            try:
                return wandb.init(mode="online", settings=settings, **about)
            except wandb.errors.Error as error:
                say(f"W&B cannot be reached ({type(error).__name__}): this run is kept offline, 'wandb sync' sends it")
                wandb.teardown()  # the attempt still holds the run's id
        return wandb.init(mode="offline", settings=settings, **about)
    finally:
        # W&B's own debug logs name folders; nobody needs them, and they would stay after a kill.
        for logs in (folder / "wandb").glob("*run-*/logs"):
            shutil.rmtree(logs, ignore_errors=True)
