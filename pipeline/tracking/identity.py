"""Who a run is: an id that survives restarts, so that its curves stay one curve."""

from __future__ import annotations

import secrets
from pathlib import Path

from pipeline.artifacts import read_json, write_json

FILE = "run.json"


def run_id(folder: Path) -> str:
    """Return the id of the run in ``folder``; made once, then kept."""
    path = folder / FILE
    if not path.exists():
        write_json(path, {"schema": 1, "id": secrets.token_hex(4)})
    return str(read_json(path, what="run identity")["id"])
