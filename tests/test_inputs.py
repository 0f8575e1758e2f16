"""No verb changes what it reads: not a byte, not a mode, not a time, whoever runs it ('simulate': in test_demo)."""

import shutil

import torch
from makers import state
from miniatures import MINIATURE

from pipeline.__main__ import VERBS, main
from pipeline.networks.resnet_generator import ResnetGenerator

TRAIN = [
    "model=regression",
    "model.module.network.widths=[4,8]",
    "model.module.network.residual_units=1",
    "tracking=none",
    "trainer.precision=fp32",
    "trainer.budget={steps: 1, minutes: 0}",
    "trainer.validations=1",
    "trainer.threads=1",
    "trainer.panels=false",
    "stream.clip_length=1",
    "stream.clip_growth=1",
]
AUTOENCODER = [
    "model=latent_autoencoder",
    *MINIATURE["latent_autoencoder"],
    "stream.pairing=modalities",
    *(word for word in TRAIN if not word.startswith("model")),
]
JOBS = ("submit", "status", "cancel", "sweep")  # read records alone; what they start is one of the other verbs
REPORT = ["report.films=false", "report.cases=1", "report.panels=1"]  # pictures take most of a report's time


def commands(at):
    """Every verb, and every kind of input that it takes; the last word is the folder that it may write to."""
    volumes, volume = at / "volumes", at / "volumes" / "phantom_000" / "t1n.nii.gz"
    sizes = ["preprocess.spacing_mm=[12,8,8]", "preprocess.size=[32,32]"]
    one, other = at / "single" / "t1n.nii.gz", volume.with_name("ct.nii.gz")
    return [
        ["weights", "add", f"input={at / 'horse2zebra.pth'}", f"output={at / 'weights'}"],
        ["weights", "verify", f"input={at / 'weights'}"],
        ["cohort", "--check", f"input={volumes}", f"output={at / 'cohort'}"],
        ["cohort", "--check", f"input={at / 'cohort'}", f"output={at / 'pairs'}"],
        ["preprocess", *sizes, f"input={at / 'cohort'}", f"output={at / 'shards'}"],
        ["verify", f"input={at / 'shards'}"],
        ["convert", "convert.store=zarr", f"input={at / 'shards'}", f"output={at / 'zarr'}"],
        ["verify", f"input={at / 'zarr'}"],
        ["train", *TRAIN, f"input={at / 'zarr'}", f"output={at / 'run'}"],
        ["train", *AUTOENCODER, f"input={at / 'shards'}", f"output={at / 'autoencoder'}"],
        ["encode", f"checkpoint={at / 'autoencoder'}", f"input={at / 'shards'}", f"output={at / 'latents'}"],
        [
            "translate",
            "translate.split=all",
            f"checkpoint={at / 'run'}",
            f"input={at / 'shards'}",
            f"output={at / 'all'}",
        ],
        ["translate", f"checkpoint={at / 'run'}", f"input={volume}", f"output={at / 'single'}"],
        ["evaluate", f"input={at / 'all'}", f"output={at / 'scores'}"],
        ["evaluate", f"prediction={one}", f"reference={other}", f"output={at / 'other_scores'}"],
        ["report", *REPORT, f"input={at / 'scores'}", f"output={at / 'report'}"],
    ]


def test_no_verb_changes_what_it_reads(tiny_shards, tmp_path):
    ignore = shutil.ignore_patterns("*.json", "checks")
    shutil.copytree(tiny_shards.parent / "cohort", tmp_path / "volumes", ignore=ignore)
    torch.save(ResnetGenerator(width=2, blocks=1).state_dict(), tmp_path / "horse2zebra.pth")
    every = commands(tmp_path)
    assert {command[0] for command in every} == set(VERBS) - {"simulate", "dashboard", *JOBS}
    for command in every:
        before = state(tmp_path)
        assert main([*command, "source=t1n", "workers=1"]) == 0, command
        del before[tmp_path]  # a new folder beside the others changes the time of theirs
        after = state(tmp_path)
        changed = [str(path.relative_to(tmp_path)) for path, was in before.items() if after.get(path) != was]
        assert not changed, (command[0], changed)
