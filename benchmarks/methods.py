r"""Train, translate and score a list of methods on the same shards, and print one table.

    python benchmarks/methods.py input=SHARDS output=FOLDER data=cbct_ct minutes=20 \
        [methods=identity,small_regression,...] [minutes.METHOD=60] [steps=N] [steps.METHOD=N] [KEY=VALUE ...]

Every method is one command per verb, ``experiment=[DATA,METHOD]``; ``identity`` is ``experiment=DATA model=identity``.
``steps=N`` or ``steps.METHOD=N`` sets a budget of batches instead of minutes: it gives the same weights on a loaded
machine. All other words go to every method as they stand. What is finished is not done again, so the same command
continues, and a longer list adds to the table.

Writes FOLDER/METHOD/{run,translated,scores,cost.json}, FOLDER/report and FOLDER/table.md.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from pipeline.records import Scores
from pipeline.training.checkpoint import load_checkpoint

METHODS = (
    "identity",
    "small_regression",
    "small_regression_neighbours",
    "small_vid2vid",
    "small_vid2vid_l1",
    "small_vid2vid_l1_slice",
)
COLUMNS = {"mae": "MAE (HU)", "psnr": "PSNR (dB)", "ssim": "SSIM", "slice_continuity": "slice continuity (HU)"}
REGION, SOURCE = "mask", "source"


def main(words: list[str]) -> None:
    """Run every method, then print the table."""
    own = {key: value for key, _, value in (w.partition("=") for w in words) if _own(key)}
    rest = [w for w in words if not _own(w.partition("=")[0])]
    data, shards, folder = own.get("data", "cbct_ct"), own["input"], Path(own["output"])
    methods = own["methods"].split(",") if "methods" in own else list(METHODS)
    for method in methods:
        chosen = [f"experiment={data}", "model=identity", "label=identity"]
        if method != "identity":
            chosen = [f"experiment=[{data},{method}]", *_budget(own, method)]
        place = folder / method
        place.mkdir(parents=True, exist_ok=True)
        train(place, [*chosen, *rest, f"input={shards}", f"output={place / 'run'}"])
        cinevox(
            "translate",
            *chosen,
            *rest,
            f"checkpoint={place / 'run'}",
            f"input={shards}",
            f"output={place / 'translated'}",
        )
        cinevox("evaluate", *chosen, *rest, f"input={place / 'translated'}", f"output={place / 'scores'}")
    found = {method: folder / method for method in METHODS if (folder / method / "scores" / Scores.FILE).is_file()}
    found |= {method: folder / method for method in methods}
    shutil.rmtree(folder / "report", ignore_errors=True)  # made anew from all methods that are finished
    inputs = [f"input={place / 'scores'}" for place in found.values()]
    cinevox("report", f"experiment={data}", *inputs, f"output={folder / 'report'}")
    lines = table(found)
    (folder / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _own(key: str) -> bool:
    return key in ("input", "output", "data", "methods") or key.split(".")[0] in ("minutes", "steps")


def _budget(own: dict[str, str], method: str) -> list[str]:
    """Return the budget of a method: its own steps or minutes, else everyone's, else the experiment's."""
    for name in (f"steps.{method}", f"minutes.{method}", "steps", "minutes"):
        if name in own:
            steps, minutes = (own[name], 0) if name.startswith("steps") else (0, own[name])
            return [f"trainer.budget.steps={steps}", f"trainer.budget.minutes={minutes}"]
    return []


def train(place: Path, words: list[str]) -> None:
    """Train in a process of its own, whose peak memory is kept beside the run."""
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "pipeline", "train", *words])
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(code)
    cost = place / "cost.json"
    record = json.loads(cost.read_text()) if cost.exists() else {"peak_gb": 0.0, "wall_seconds": 0.0, "finished": False}
    if not record["finished"]:  # a run that was finished before says nothing about its cost
        record["peak_gb"] = max(record["peak_gb"], usage.ru_maxrss / 1e6)
        record["wall_seconds"] += time.monotonic() - start
        record["cpu_seconds"] = record.get("cpu_seconds", 0.0) + usage.ru_utime + usage.ru_stime
        cost.write_text(json.dumps(record | {"finished": True}, indent=1) + "\n")


def cinevox(verb: str, *words: str) -> None:
    """Run one command; end with its exit code where it fails."""
    if code := subprocess.run([sys.executable, "-m", "pipeline", verb, *words], check=False).returncode:
        raise SystemExit(code)


def table(found: dict[str, Path]) -> list[str]:
    """Return the lines of a Markdown table: mean and sample standard deviation over cases, and what it cost."""
    head = ["method", *COLUMNS.values(), "MAE / CBCT's", "continuity / CBCT's", "steps", "minutes", "peak (GB)"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for number, place in enumerate(found.values()):
        scores = Scores.load(place / "scores")
        means = {(s.method, s.metric): (s.mean, s.sd) for s in scores.summary if s.region == REGION and not s.cohort}
        (method,) = [name for name in scores.methods() if name != SOURCE]
        if not number:
            lines.append(_row(SOURCE, "CBCT itself", means, []))
        lines.append(_row(method, method, means, _cost(place)))
    return lines


def _row(method: str, title: str, means: dict, cost: list[str]) -> str:
    cells = [title]
    for metric in COLUMNS:
        mean, sd = means[method, metric]
        cells.append(f"{mean:.4f}" if metric == "ssim" else f"{mean:.1f}" + ("" if sd is None else f" ± {sd:.1f}"))
    ratios = [means[method, metric][0] / means[SOURCE, metric][0] for metric in ("mae", "slice_continuity")]
    return "| " + " | ".join([*cells, *(f"{ratio:.3f}" for ratio in ratios), *(cost or ["", "", ""])]) + " |"


def _cost(place: Path) -> list[str]:
    progress = load_checkpoint(place / "run").get("progress", {"step": 0, "seconds": 0.0})
    peak = json.loads((place / "cost.json").read_text())["peak_gb"]
    return [str(progress["step"]), f"{progress['seconds'] / 60:.1f}", f"{peak:.2f}"]


if __name__ == "__main__":
    main(sys.argv[1:])
