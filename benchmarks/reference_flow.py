"""Which reference flow serves vid2vid best: none, DIS, or one that is learned beside it?

python benchmarks/reference_flow.py SHARDS OUTPUT [--steps N] [--seeds N] [NAME=VALUE ...]

Trains vid2vid once per kind and seed, for an equal number of steps, and walks the films of the test split. Settings
are those of 'cinevox train' (experiment=NAME too). What is trained already in OUTPUT is not trained again.

  MAE, continuity   of the prediction, inside the mask
  flow error        mean absolute difference between a real frame and the real frame before it, warped by the
                    generator's flow, inside both masks
  reference error   the same of the reference flow itself; for 'none' that of no flow at all
  s/step            of training, a step being a clip; its wall time, so keep the machine quiet
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.__main__ import main as cinevox
from pipeline.config import compose
from pipeline.imaging.normalise import restore, window_for
from pipeline.imaging.optical_flow import dis_flow
from pipeline.metrics.continuity import slice_continuity
from pipeline.metrics.intensity import mae
from pipeline.metrics.pair import Pair
from pipeline.models.film_walk import walk
from pipeline.models.vid2vid import Vid2Vid
from pipeline.networks.vid2vid_generator import Vid2VidGenerator
from pipeline.networks.warp import warp
from pipeline.settings import Config
from pipeline.stream.loader import physical_frames
from pipeline.stream.store import SliceStore
from pipeline.training.checkpoint import load_checkpoint, load_method
from pipeline.training.precision import device_for

KINDS = {
    "none": ["model=vid2vid", "model.module.reference_flow=none", "model.module.temporal_discriminator.channels=3"],
    "dis": ["model=vid2vid"],
    "learned": ["model=vid2vid_learned_flow"],
}
TITLES = ("MAE", "continuity", "flow error", "reference error", "s/step")


class Film(NamedTuple):
    """A test film: normalised frames (slices, 1, rows, columns), mask (slices, rows, columns), the target's window."""

    source: torch.Tensor
    target: torch.Tensor
    mask: NDArray[np.bool_]
    window: tuple[float, float]


class Row(NamedTuple):
    """What one training reached, means over the test films; all but the last in the target's unit."""

    mae: float
    continuity: float
    flow_error: float
    reference_error: float
    seconds_per_step: float


def read_films(store: SliceStore, config: Config) -> list[Film]:
    """Read the test split as a training would see it."""
    films: list[Film] = []
    for case in store.index.select("test", config.fold):
        if not {config.source, config.target} <= {*case.modalities}:
            continue
        shape = (case.slices, *store.index.size)
        stored = {name: np.empty(shape, np.int16) for name in (config.source, config.target)}
        mask = np.empty(shape, np.uint8)
        store.read(case.case_id, 0, case.slices, {**stored, "mask": mask})
        frames = {name: np.empty(shape, np.float32) for name in stored}
        for name, out in frames.items():
            physical_frames(store, case.case_id, name, config.stream, stored[name], out)
            if config.stream.outside_mask == "lowest":
                out[mask == 0] = -1
        source, target = (torch.from_numpy(frames[name]).unsqueeze(1) for name in (config.source, config.target))
        window = window_for(config.target, config.stream.window, case.percentiles)
        films.append(Film(source, target, mask > 0, window))
    return films


def photometric_error(film: Film, flow: torch.Tensor) -> float:
    """Return the error of warping each frame to the next by flow (slices - 1, 2, rows, columns), in target units."""
    both = film.mask[1:] & film.mask[:-1]
    difference = (warp(film.target[:-1], flow) - film.target[1:]).abs().squeeze(1).numpy()
    return float(difference[both].mean()) * (film.window[1] - film.window[0]) / 2


def reference_flow(method: Vid2Vid, film: Film) -> torch.Tensor:
    """Return the flow that the method was held against (slices - 1, 2, rows, columns); zeros without one."""
    current, previous = film.target[1:], film.target[:-1]
    if method.reference_flow == "dis":
        return torch.from_numpy(dis_flow(current.squeeze(1).numpy(), previous.squeeze(1).numpy()))
    if method.flow_network is None:
        return torch.zeros(len(current), 2, *current.shape[-2:])
    pairs = zip(current.to(method.device).split(1), previous.to(method.device).split(1), strict=True)
    return torch.cat([method.flow_network(*pair).cpu() for pair in pairs])


@torch.no_grad()
def measure(run: Path, films: list[Film], spacing_mm: tuple[float, float, float]) -> Row:
    """Translate the test films with a finished run's averaged weights, and walk them up once more for the flow."""
    data = load_checkpoint(run)
    method = load_method(data).to(device_for("auto"))
    assert isinstance(method, Vid2Vid)
    network = method.averaged(method.generator)
    pair = {f"{name}_modality": data["cinevox"][name] for name in ("source", "target")}
    assert isinstance(network, Vid2VidGenerator)
    values: list[tuple[float, ...]] = []
    for film in films:
        predicted = method.translate(film.source, torch.from_numpy(film.mask).unsqueeze(1).float(), **pair)
        flow = torch.cat([f.flow.cpu() for f in walk(network, film.source[None], method.device) if f.flow is not None])
        prediction, target = (restore(images.squeeze(1).numpy(), film.window) for images in (predicted, film.target))
        scored = Pair(prediction, target, film.mask, spacing_mm)
        scores = (metric(scored) for metric in (mae, slice_continuity))
        errors = (photometric_error(film, field) for field in (flow, reference_flow(method, film)))
        values.append((*scores, *errors))
    progress = data["progress"]
    means = [statistics.fmean(column) for column in zip(*values, strict=True)]
    return Row(*means, progress["seconds"] / progress["step"])


def show(rows: list[Row]) -> str:
    """Return mean and, of several seeds, spread of each column."""
    cells = []
    for column in zip(*rows, strict=True):
        spread = f" +- {statistics.stdev(column):.2f}" if len(column) > 1 else ""
        cells.append(f"{statistics.fmean(column):.2f}{spread}")
    return "".join(f"{cell:>18}" for cell in cells)


def main(arguments: list[str]) -> int:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    given = parser.parse_intermixed_args(arguments)
    for seed in range(given.seeds):
        for kind, settings in KINDS.items():
            wanted = [
                *given.settings,
                *settings,
                f"seed={seed}",
                f"trainer.budget.steps={given.steps}",
                "trainer.budget.minutes=0",
                "trainer.validations=1",  # its time is in s/step, the same for all
                "tracking=none",
            ]
            code = cinevox(["train", *wanted, f"input={given.shards}", f"output={given.output / f'{kind}-{seed}'}"])
            if code:
                return code
    with SliceStore(given.shards) as store:
        config = compose([*given.settings, *KINDS["dis"]])
        films = read_films(store, config)
        if not films:
            print("The shards hold no test case", file=sys.stderr)
            return 2
        spacing = store.index.spacing_mm
        unit = store.index.modalities[config.target].unit
        print(f"{len(films)} test films, {given.steps} steps, {given.seeds} seed(s), {unit}, {device_for('auto').type}")
        print(f"{'reference':<12}" + "".join(f"{name:>18}" for name in TITLES))
        for kind in KINDS:
            runs = [given.output / f"{kind}-{seed}" for seed in range(given.seeds)]
            print(f"{kind:<12}{show([measure(run, films, spacing) for run in runs])}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
