r"""Every pair of modalities that runs were trained on, translated and scored on the test patients, as one table.

    python benchmarks/every_pair.py input=SHARDS [input=SHARDS] output=FOLDER NAME=RUN [NAME=RUN ...] \
        [pairs=t1n:t2w,cbct:ct] [KEY=VALUE ...]

NAME is what the table calls a run; a run of one pair adds its rows to that pair. An autoencoder's pairs are what it
gives back (t1n:t1n). CT and CBCT are scored in HU (metrics=synthrad2025); MR between the reference's percentiles, where
translate.range=reference puts it (metrics=brats). Keys with a dot are settings of 'cinevox translate'. What is
finished is not done again.

Writes FOLDER/SOURCE-TARGET/{NAME,scores,report}, FOLDER/report-hu, FOLDER/report-mr (all pairs in one page each,
without pictures: a pair's are held against its own target) and FOLDER/table.md. A pair's region is the first
that it has of mask, body and whole.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from methods import cinevox

from pipeline.records import Scores, ShardIndex
from pipeline.training.checkpoint import load_checkpoint

REGIONS = ("mask", "body", "whole")
# Unit of the target: the words of the verbs, and the columns with their digits.
HU = (["metrics=synthrad2025"], {"mae": 1, "psnr": 2, "ssim": 4, "slice_continuity": 1})
MR = (["metrics=brats"], {"mae": 4, "psnr": 2, "ssim": 4, "slice_continuity": 4})
HEAD = ("pair", "region", "model", "MAE", "PSNR (dB)", "SSIM", "slice continuity")


def main(words: list[str]) -> None:
    """Translate and score every pair, and print the table."""
    own = [word.partition("=")[::2] for word in words if "." not in word.partition("=")[0]]
    settings = [word for word in words if "." in word.partition("=")[0]]
    folders = [Path(value) for key, value in own if key == "input"]
    runs = {key: Path(value) for key, value in own if key not in ("input", "output", "pairs")}
    (output,) = [Path(value) for key, value in own if key == "output"]
    wanted = [pair for key, value in own if key == "pairs" for pair in value.split(",")]
    indices = {folder: ShardIndex.load(folder) for folder in folders}
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    scored: dict[bool, list[Path]] = {True: [], False: []}
    trained = {name: {tuple(pair) for pair in load_checkpoint(run)["cinevox"]["pairs"]} for name, run in runs.items()}
    for source, target in sorted(set().union(*trained.values())):
        if wanted and f"{source}:{target}" not in wanted:
            continue
        holding = [folder for folder, index in indices.items() if {source, target} <= set(index.modalities)]
        if len(holding) != 1:
            raise SystemExit(f"{len(holding)} of the shard folders hold {source} and {target}: one is wanted")
        folder = holding[0]
        in_hu = indices[folder].modalities[target].unit == "HU"
        (profile, columns), place = (HU if in_hu else MR), output / f"{source}-{target}"
        able = {name: run for name, run in runs.items() if (source, target) in trained[name]}
        ranges = [] if in_hu else ["translate.range=reference"]
        for name, run in able.items():
            cinevox(
                *("translate", *settings, *ranges, f"translate.label={source} to {target}: {name}"),
                *(f"source_modality={source}", f"target_modality={target}"),
                *(f"checkpoint={run}", f"input={folder}", f"output={place / name}"),
            )
        scores = place / "scores"
        shutil.rmtree(scores, ignore_errors=True)  # another run may have come to it
        cinevox(
            "evaluate", *profile, "evaluate.source=false", *(f"input={place / n}" for n in able), f"output={scores}"
        )
        scored[in_hu].append(scores)
        lines += rows(f"{source} to {target}", list(able), columns, Scores.load(scores))
    (output / "table.md").write_text("\n".join(lines) + "\n")
    for in_hu, places in scored.items():
        if places:
            report(places, output / ("report-hu" if in_hu else "report-mr"), "report.cases=0")
        for place in places:
            report([place], place.with_name("report"))
    print("\n".join(lines))


def report(scores: list[Path], output: Path, *settings: str) -> None:
    """Write a report anew: another run may have come to it."""
    shutil.rmtree(output, ignore_errors=True)
    cinevox("report", *settings, *(f"input={place}" for place in scores), f"output={output}")


def rows(pair: str, names: list[str], columns: dict[str, int], scores: Scores) -> Iterator[str]:
    """Yield the pair's rows: the mean over test patients."""
    region = next(r for r in REGIONS if any(summary.region == r for summary in scores.summary))
    for name in names:
        means = {
            summary.metric: summary.mean
            for summary in scores.summary
            if summary.method == f"{pair}: {name}" and summary.region == region and not summary.cohort
        }
        cells = (f"{means[metric]:.{digits}f}" for metric, digits in columns.items())
        yield "| " + " | ".join([pair, region, name, *cells]) + " |"


if __name__ == "__main__":
    main(sys.argv[1:])
