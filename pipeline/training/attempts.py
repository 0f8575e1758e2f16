"""How often a run was started without getting further: what fails every time must not be requeued for ever."""

from __future__ import annotations

from pathlib import Path

from pipeline.artifacts import read_json, write_json
from pipeline.errors import TrainingError
from pipeline.settings import TrainerSettings

FILE = "attempts.json"


def count_attempt(run: Path, step: int, settings: TrainerSettings) -> None:
    """Note that the run starts at ``step``; ``trainer.force`` begins to count anew.

    Raises:
        TrainingError: It started there ``trainer.attempts`` times already.
    """
    path, attempts = run / FILE, 1
    if path.exists() and not settings.force:
        last = read_json(path, what="record of attempts")
        attempts = int(last["attempts"]) + 1 if last["step"] == step else 1
    if settings.attempts and attempts > settings.attempts:
        raise TrainingError(
            f"The run was started {settings.attempts} times at step {step} and never wrote a later checkpoint",
            remedy="Look for the cause in its log, or save more often (trainer.checkpoint_steps); "
            "trainer.force=true tries again",
        )
    write_json(path, {"schema": 1, "step": step, "attempts": attempts})
