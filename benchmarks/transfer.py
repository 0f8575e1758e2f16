"""Does a start from natural images help where patients are few? CycleGAN from such a pair and from noise, side by side.

python benchmarks/transfer.py OUTPUT 1=SHARDS 3=SHARDS ... [--seeds N] [--steps N] [--natural-steps N]
                              [--photographs FOLDER] [NAME=VALUE ...]

N=SHARDS are shards of N training patients and a test split (docs/how-to/transfer-from-natural-images.md says how to
make them). Settings are those of 'cinevox train' (experiment=NAME too). What is finished in OUTPUT is not done again;
the table is also OUTPUT/table.md.

The public generators cannot be had offline, so a pair of one channel is trained first: photographs that ship with
scikit-image ('pip install --no-deps scikit-image'; nothing of it is imported) to their drawings and back, unpaired,
with the generator of the settings. A null result is a result: read the interval.

  difference   natural minus scratch, the mean over test patients of each patient's mean over seeds, with the bootstrap
               95 % interval over patients, and the smallest and largest of the seeds' differences (where test
               patients are too few for an interval, all there is); below 0 the natural start has the smaller error
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.__main__ import main as cinevox
from pipeline.artifacts import atomic_path
from pipeline.config import build, compose
from pipeline.metrics.statistics import bootstrap_interval
from pipeline.models.cyclegan import CycleGAN
from pipeline.records import Scores

# Of scikit-image's pictures those that are photographs, and of nothing medical.
PHOTOGRAPHS = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png"),
    *("grass.png", "gravel.png", "hubble_deep_field.jpg", "moon.png", "motorcycle_left.png", "rocket.jpg"),
)
FORTH, BACK = "photo_to_drawing.pth", "drawing_to_photo.pth"
STARTS = ("scratch", "natural")
REGIONS, METRIC = ("mask", "body"), "mae"  # the first region that is scored


def photographs(folder: Path | None) -> list[NDArray[np.uint8]]:
    """Read grey photographs: those of scikit-image, or every picture of a folder."""
    if folder is None:
        spec = find_spec("skimage")
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit("scikit-image is not installed: 'pip install --no-deps scikit-image', or --photographs")
        files = [Path(spec.submodule_search_locations[0], "data", name) for name in PHOTOGRAPHS]
    else:
        files = sorted(folder.iterdir())
    read = [cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) for file in files]
    return [picture.astype(np.uint8) for picture in read if picture is not None]


def drawing(photograph: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return dark lines on white, where brightness changes."""
    smooth = cv2.GaussianBlur(photograph.astype(np.float32), (0, 0), 1.5)
    strength = np.hypot(cv2.Sobel(smooth, -1, 1, 0), cv2.Sobel(smooth, -1, 0, 1))
    return (255 - np.clip(2 * strength, 0, 255)).astype(np.uint8)


class Crops(torch.utils.data.IterableDataset):
    """Endless random crops: photographs, and drawings of other photographs, as batches of the stream."""

    def __init__(self, pictures: list[NDArray[np.uint8]], size: int, steps: int, seed: int) -> None:
        self.domains = [pictures, [drawing(picture) for picture in pictures]]
        self.size, self.steps, self.draw = size, steps, np.random.default_rng(seed)

    def __iter__(self) -> Any:
        for step in range(self.steps):
            source, target = (self._crop(pictures) for pictures in self.domains)
            mask = torch.ones_like(source)
            yield {"source": source, "target": target, "mask": mask, "sample_index": torch.tensor([step])}

    def _crop(self, pictures: list[NDArray[np.uint8]]) -> torch.Tensor:
        picture = pictures[self.draw.integers(len(pictures))]
        zoom = self.draw.uniform(0.4, 1.0) * min(picture.shape) / self.size
        side = max(int(zoom * self.size), 8)
        top, left = (self.draw.integers(length - side + 1) for length in picture.shape)
        crop = cv2.resize(picture[top : top + side, left : left + side], (self.size, self.size), interpolation=3)
        crop = crop[:, :: int(self.draw.choice([-1, 1]))]
        return torch.from_numpy(crop.astype(np.float32) / 127.5 - 1)[None, None, None]


def train_natural(place: Path, settings: list[str], pictures: list[NDArray[np.uint8]], steps: int, size: int) -> None:
    """Train the pair and write both generators, averaged, as files that model.init takes."""
    import pytorch_lightning as pl

    if (place / BACK).is_file():
        return
    pl.seed_everything(0, verbose=False)
    method = build(compose(settings).model.module)
    assert isinstance(method, CycleGAN)

    class Share(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, index: int) -> None:
            module.budget_share = index / steps

    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[Share()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = torch.utils.data.DataLoader(Crops(pictures, size, steps, seed=0), batch_size=None)
    with warnings.catch_warnings():
        # Lightning's advice on worker processes does not apply to crops in memory.
        warnings.filterwarnings("ignore", module=r"pytorch_lightning\..*")
        trainer.fit(method, loader)
    both = method.averaged(method.generators)
    place.mkdir(parents=True, exist_ok=True)
    for name, network in zip((FORTH, BACK), both.children(), strict=True):
        with atomic_path(place / name) as partial:
            torch.save(network.state_dict(), partial)


def stage(*words: str) -> None:
    """Run one verb, or end as it does."""
    if code := cinevox(list(words)):
        raise SystemExit(code)


def errors(place: Path, settings: list[str], start: list[str], shards: Path) -> dict[str, float]:
    """Train, translate and score; return the error of each test patient."""
    words = [*settings, *start, "tracking=none"]
    run, translated, scores = (place / name for name in ("run", "translated", "scores"))
    stage("train", *words, f"input={shards}", f"output={run}")
    stage("translate", *words, f"checkpoint={run}", f"input={shards}", f"output={translated}")
    stage("evaluate", *words, f"input={translated}", f"output={scores}")
    found = [s for s in Scores.load(scores).scores if s.metric == METRIC and s.value is not None]
    region = next((r for r in REGIONS if any(score.region == r for score in found)), None)
    if region is None:
        raise SystemExit(f"No {METRIC} among the scores: choose a profile that has it, for instance metrics=cinevox")
    return {score.patient: float(score.value) for score in found if score.region == region}


def main(arguments: list[str]) -> int:
    """Train all, and print one row per number of patients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("words", nargs="+", metavar="N=SHARDS or NAME=VALUE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--natural-steps", type=int, default=4000)
    parser.add_argument("--natural-size", type=int, default=64, help="pixels of a crop's side")
    parser.add_argument("--photographs", type=Path)
    given = parser.parse_intermixed_args(arguments)
    pairs = [word.partition("=")[::2] for word in given.words]
    shards = {int(name): Path(value) for name, value in pairs if name.isdigit()}
    settings = [word for word in given.words if not word.partition("=")[0].isdigit()]
    if not shards:
        parser.error("no N=SHARDS")
    natural = given.output / "natural"
    train_natural(natural, settings, photographs(given.photographs), given.natural_steps, given.natural_size)
    budget = [f"trainer.budget.steps={given.steps}", "trainer.budget.minutes=0"]
    starts = {
        "scratch": ["model.init="],
        "natural": [f"model.init='{natural / FORTH}'", f"model.init_reverse='{natural / BACK}'"],
    }
    titles = ("training patients", "test patients", *STARTS, "difference", "95 % interval", "seeds")
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for patients, place in sorted(shards.items()):
        means: dict[str, dict[str, float]] = {}  # of a start, per patient
        ends: dict[str, list[float]] = {}  # of a start, per seed
        for start in STARTS:
            seeds = [
                errors(
                    given.output / f"{patients}-{start}-{seed}",
                    [*settings, *budget, f"seed={seed}"],
                    starts[start],
                    place,
                )
                for seed in range(given.seeds)
            ]
            means[start] = {name: statistics.fmean(seed[name] for seed in seeds) for name in seeds[0]}
            ends[start] = [statistics.fmean(seed.values()) for seed in seeds]
        differences = [means["natural"][name] - value for name, value in means["scratch"].items()]
        interval = bootstrap_interval(differences)
        shown = "too few patients" if interval is None else f"{interval[0]:+.3g} to {interval[1]:+.3g}"
        cells = [f"{statistics.fmean(means[start].values()):.4g}" for start in STARTS]
        by_seed = sorted(natural - scratch for scratch, natural in zip(*ends.values(), strict=True))
        spread = f"{by_seed[0]:+.3g} to {by_seed[-1]:+.3g}"
        row = [str(patients), str(len(differences)), *cells, f"{statistics.fmean(differences):+.3g}", shown, spread]
        lines.append(f"| {' | '.join(row)} |")
    table = "\n".join(lines)
    (given.output / "table.md").write_text(table + "\n")
    print(f"{given.steps} steps, {given.seeds} seed(s); natural pair: {given.natural_steps} steps\n{table}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
