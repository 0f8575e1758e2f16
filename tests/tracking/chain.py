"""The chain from simulation to report with W&B offline, in a process of its own that is full of names to keep.

Run as ``python chain.py FOLDER anything``; the volumes are random, and a stand-in scanner keeps it fast.
"""

import platform
import socket
import sys
from pathlib import Path

import numpy as np
from makers import body, write_cohort

from pipeline.__main__ import main
from pipeline.geometry import Volume
from pipeline.simulation.calibration import Calibration
from pipeline.simulation.scan import Scan
from pipeline.stages import simulate

HOST, PATIENT, LEFT_OUT = "ward-7-console", "Mustermann_Erika", "Abwesend_Anna"
COMMON = ["tracking=offline", "tracking.log_every=1", "workers=1", "cohort.exclude=[Abwesend_Anna]"]
SECRETS = {
    "USER": "dr_geheimrat",
    "LOGNAME": "dr_geheimrat",
    "HOME": "/tmp/home_of_geheimrat",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
}
STAGES = ("simulated", "shards", "run", "translated", "scores", "report")


class Scanner:
    """Takes the place of the simulator: the CT minus 10 HU, everything in the field of view."""

    def __init__(self, settings, seed, threads, calibration=None):
        self.calibration = calibration or Calibration(0.1, 1.0, 0.0, 1.0, -1000.0, 20.0, 15.0, -30.0)

    def scan(self, film, mask, extent, case_id, number):
        ct = Volume(np.rint(film.array[extent]).astype(np.int16), film.affine)
        return Scan(ct.with_array(ct.array - 10), ct, ct.with_array(np.ones(ct.array.shape, np.uint8), "a.u."))


def run(work: Path) -> None:
    """Run every stage that W&B hears of."""
    simulate.Simulator = Scanner
    shape = (16, 32, 32)
    cases = {name: {"ct": body(seed, shape)} for seed, name in enumerate([PATIENT, f"{PATIENT}_2", f"{PATIENT}_3"])}
    splits = dict(zip(cases, ("train", "validation", "test"), strict=True))
    write_cohort(work / "cohort", cases, patients={name: f"{name}_19500101" for name in cases}, splits=splits)
    simulated, shards, trained, translated, scores, report = (work / name for name in STAGES)
    training = [
        *("trainer.precision=fp32", "trainer.threads=1", "trainer.budget.minutes=0", "trainer.budget.steps=2"),
        *("trainer.validations=2", "trainer.validation_segments=1", "trainer.validation_slices=4"),
        *("stream.clip_length=3", "stream.clip_growth=1", "model.module.temporal_scales=1"),
        *(
            "model.module.generator.width=4",
            "model.module.generator.downsamplings=2",
            "model.module.generator.blocks=2",
        ),
        *("model.module.image_discriminator.width=4", "model.module.temporal_discriminator.width=4"),
    ]
    scanning = ["simulate=demo", "simulate.spacing_mm=[4,5,5]", "simulate.pictures=false"]
    for words in (
        ["simulate", f"input={work / 'cohort'}", f"output={simulated}", *scanning],
        ["preprocess", f"input={simulated}", f"output={shards}", "preprocess.size=[32,32]"],
        ["train", f"input={shards}", f"output={trained}", *training],
        ["translate", f"checkpoint={trained}", f"input={shards}", f"output={translated}"],
        ["evaluate", f"input={translated}", f"output={scores}"],
        ["report", f"input={scores}", f"output={report}", f"report.title={PATIENT}"],
    ):
        code = main([*words, *COMMON])
        if code:
            sys.exit(f"{words[0]}: {code}")


if __name__ == "__main__":
    socket.gethostname = platform.node = lambda: HOST
    run(Path(sys.argv[1]))
