"""What tests need from outside, and a visible reason where it is missing."""

import importlib.util
import os
import shutil
from functools import cache
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share two cores; before torch is imported
os.environ["WANDB_MODE"] = "disabled"  # stages track by default; tests/tracking/ switches it on

# A busy machine is no failure.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def _missing(marker: str) -> str:
    if marker == "real" and not Path(os.environ.get("CINEVOX_DATA", "/nonexistent")).is_dir():
        return "CINEVOX_DATA does not point to the real volumes"
    if marker == "browser" and CHROMIUM is None:
        return "no Chromium on this machine"
    if marker == "slurm" and getattr(os, "geteuid", lambda: 1)() != 0:
        return "a SLURM of our own needs root"
    if marker == "slurm" and shutil.which("sbatch") is None and not os.environ.get("CINEVOX_INSTALL_SLURM"):
        return "no SLURM on this machine; 'make test-cluster' installs it"
    if marker == "gpu" and not _has_gpu():
        return "no GPU on this machine"
    if marker == "simulate" and importlib.util.find_spec("itk") is None:
        return "the extra 'simulate' is not installed"
    return ""


@cache
def _has_gpu() -> bool:
    import torch  # slow to import: only where a test asks

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items):
    for item in items:
        for marker in ("real", "browser", "slurm", "simulate", "gpu"):
            if item.get_closest_marker(marker) and (reason := _missing(marker)):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def real_data() -> Path:
    """The folder of real volumes (tests that use it are marked 'real')."""
    return Path(os.environ["CINEVOX_DATA"])


@pytest.fixture(scope="session")
def chromium() -> str:
    """A headless browser's command (tests that use it are marked 'browser')."""
    assert CHROMIUM is not None
    return CHROMIUM


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory) -> Path:
    """Shards of four phantom heads (T1 and CT, 14 slices of 32 x 32), made by the stages themselves."""
    from makers import PHANTOMS

    from pipeline.__main__ import main

    folder = tmp_path_factory.mktemp("tiny")
    common = [*PHANTOMS, "workers=1"]
    assert main(["cohort", *common, f"output={folder / 'cohort'}"]) == 0
    assert main(["preprocess", *common, f"input={folder / 'cohort'}", f"output={folder / 'shards'}"]) == 0
    return folder / "shards"
