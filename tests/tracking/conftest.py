"""One tracked chain for all tests here, and W&B switched on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from chain import SECRETS, STAGES

from pipeline.tracking.segments import logged, offline_files, read_records


@pytest.fixture(autouse=True)
def _on(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture(scope="session")
def chain(tmp_path_factory) -> Path:
    """The folder of a chain whose every stage was tracked; its name is a patient's."""
    work = tmp_path_factory.mktemp("Mustermann_Erika_19500101")
    here = Path(__file__).parent
    home = tmp_path_factory.mktemp("home_of_geheimrat")
    path = os.pathsep.join([str(here.parents[1]), str(here.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **SECRETS, "HOME": str(home), "PYTHONPATH": path, "WANDB_MODE": "offline"}
    command = [sys.executable, str(here / "chain.py"), str(work), "--wandb-key=argv_geheimnis"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return work


@pytest.fixture(scope="session")
def keys(chain) -> dict[str, set[str]]:
    """Keys that each stage logged; of media the key itself."""
    found: dict[str, set[str]] = {}
    for stage in STAGES:
        rows = [logged(record) for file in offline_files(chain / stage) for record in read_records(file)]
        found[stage] = {key.removesuffix("._type") for row in rows for key in row}
    return found
