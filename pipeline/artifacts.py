"""How stages meet on disk: atomic files, hashes, and one claim per output folder.

Every stage writes ``stage.json`` into its output folder before anything else. It states what the folder is
made of, so that a rerun continues, a finished folder is left alone, and another configuration is refused.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.errors import ArtifactError
from pipeline.locks import Lock, lock

STAGE_FILE = "stage.json"
LOCK_FILE = ".stage.lock"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the quota, or a file's largest size


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_hash(data: Any) -> str:
    """Return a SHA-256 over plain data (dicts in any order, lists, numbers, strings)."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield ``NAME.partial`` to write to; on success sync it and rename it to ``path``.

    On an exception the partial file stays behind for inspection and ``path`` is untouched. On a full disk it is
    removed, for it is what fills the disk.

    Raises:
        OSError: Of a full disk also where a library hides it in an error of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept at the end, because writers choose a format by it.
    partial = path.with_name(f".{path.name}.partial" if path.suffix == "" else f".partial.{path.name}")
    with _freeing_a_full_disk(partial):
        yield partial
        _sync(partial)
    partial.replace(path)
    _sync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new, empty ``.partial.NAME`` to fill; on success sync what is in it and rename it to ``path``.

    An older folder at ``path`` is removed just before. Exceptions and full disks are treated as in ``atomic_path``.
    """
    partial = path.with_name(f".partial.{path.name}")
    with _freeing_a_full_disk(partial):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for place in (*partial.rglob("*"), partial):
            _sync(place)
    if path.exists():
        shutil.rmtree(path)
    partial.replace(path)
    _sync(path.parent)


def _sync(place: Path) -> None:
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _freeing_a_full_disk(partial: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = error if isinstance(error, OSError) and error.errno in FULL else None
        if full is None and isinstance(error, RuntimeError):
            full = _found_full(partial)  # torch and ITK say 'RuntimeError' and no number
        if full is None:
            raise
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
        raise full from None


def _found_full(partial: Path) -> OSError | None:
    """Return the error of writing a little more, where that is one of a full disk."""
    if not partial.is_file():
        return None
    size = partial.stat().st_size
    try:
        with partial.open("ab") as stream:
            stream.write(bytes(1 << 20))
    except OSError as error:
        return error if error.errno in FULL else None
    finally:
        os.truncate(partial, size)
    return None


def write_json(path: Path, data: Any) -> None:
    """Write plain data (or a pydantic model) as JSON, atomically."""
    plain = data.model_dump(mode="json", by_alias=True) if hasattr(data, "model_dump") else data
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, *, what: str) -> Any:
    """Read a JSON file; ``what`` names the artifact in the error."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(
            f"No {what} at '{path}'", remedy="Check the path, or run the stage that writes it"
        ) from None
    except OSError as error:
        raise ArtifactError(f"{what} at '{path}' cannot be read", value=error.strerror) from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{what} at '{path}' is damaged", value=str(error)) from None


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List the keys whose values differ, as ``key: old -> new``."""
    lines: list[str] = []
    for key in sorted({*old, *new}):
        before, after = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += difference(before, after, f"{prefix}{key}.")
        # 1, 1.0 and true are equal, and yet not the same.
        elif (key in old) != (key in new) or content_hash(before) != content_hash(after):
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines


class Claim:
    """What a stage found in its output folder: ``finished`` (nothing to do) or ``continued`` (an earlier run)."""

    def __init__(
        self, folder: Path, record: dict[str, Any], held: Lock | None, *, finished: bool, continued: bool
    ) -> None:
        self.folder, self.record, self.finished, self.continued = folder, record, finished, continued
        self._held = held  # for as long as the claim lives

    def share(self) -> None:
        """Let others claim the folder for the same settings: parts of one stage work side by side."""
        if self._held is not None:
            self._held.release()

    def finish(self, **results: Any) -> None:
        """Mark the folder as complete, with plain results worth keeping, and let others have it."""
        write_json(self.folder / STAGE_FILE, {**self.record, "finished": True, "results": results})
        if self._held is not None:
            self._held.release()


def claim_output(
    folder: Path, verb: str, settings: Mapping[str, Any], *, force: bool = False, wait: bool = False
) -> Claim:
    """Claim an output folder for ``verb`` made with ``settings`` (plain data that decides its content).

    No other process can claim it until the claim is finished or shared, or this process is gone, killed or not;
    those that ``wait`` get it then.

    Returns:
        A claim; ``finished`` when the same stage with the same settings is complete there.

    Raises:
        ArtifactError: The folder holds something else, another stage, or the same stage with other settings, or
            another process writes into it.
    """
    settings = json.loads(json.dumps(settings, default=str))
    record = {
        "schema": 1,
        "verb": verb,
        "cinevox": __version__,
        "hash": content_hash(settings),
        "settings": settings,
        "finished": False,
    }
    path = folder / STAGE_FILE
    old = _earlier(folder, record, force=force)
    if old is not None and old.get("hash") == record["hash"] and old.get("finished"):
        # Not locked: nothing is left to write, and the folder may be a read-only one.
        return Claim(folder, old, None, finished=True, continued=True)
    held = lock_output(folder, wait=wait)
    old = _earlier(folder, record, force=force)  # once more: only now nobody else changes it
    if old is not None and old.get("hash") == record["hash"]:
        return Claim(folder, old, held, finished=bool(old.get("finished")), continued=True)
    if old is not None:
        record["forced"] = [*old.get("forced", []), difference(old.get("settings", {}), settings)]
    write_json(path, record)
    return Claim(folder, record, held, finished=False, continued=old is not None)


def is_finished(folder: Path) -> bool:
    """Whether the stage that writes into a folder has finished there."""
    path = folder / STAGE_FILE
    return path.is_file() and bool(read_json(path, what=f"{STAGE_FILE} of '{folder.name}'").get("finished"))


def lock_output(folder: Path, *, wait: bool) -> Lock:
    """Lock an output folder, which is made for it, before it is claimed."""
    folder.mkdir(parents=True, exist_ok=True)
    return lock(folder / LOCK_FILE, f"Output folder '{folder}'", wait=wait)


def _earlier(folder: Path, record: Mapping[str, Any], *, force: bool) -> dict[str, Any] | None:
    """Return what an earlier run of the stage wrote of itself, or None for a new or empty folder."""
    path = folder / STAGE_FILE
    if not path.exists():
        # What a run that was killed in its very first write left behind is no content.
        ours = {f".partial.{STAGE_FILE}", LOCK_FILE}
        if os.path.lexists(folder) and (not folder.is_dir() or any(p.name not in ours for p in folder.iterdir())):
            raise ArtifactError(f"Output '{folder}' is already in use", remedy="Choose a new or empty folder")
        return None
    old = read_json(path, what=f"{STAGE_FILE} of the output folder")
    if not isinstance(old, dict):
        raise ArtifactError(f"{STAGE_FILE} of the output folder at '{path}' is damaged")
    if old.get("verb") != record["verb"]:
        raise ArtifactError(
            f"Output folder '{folder}' belongs to 'cinevox {old.get('verb')}'", remedy="Choose another output folder"
        )
    if old.get("hash") != record["hash"] and not force:
        lines = difference(old.get("settings", {}), record["settings"])
        raise ArtifactError(
            f"Output folder '{folder}' was made with other settings: " + "; ".join(lines[:12]),
            remedy="Choose another output folder, or remove this one",
        )
    return old


def check_free_space(folder: Path, needed_bytes: int) -> None:
    """Raise ArtifactError when the disk below ``folder`` has less than ``needed_bytes`` free."""
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise ArtifactError(
            f"Not enough disk space for '{folder}'",
            value=f"{free / 1e9:.2f} GB free",
            allowed=f"at least {needed_bytes / 1e9:.2f} GB",
            remedy="Free some space or choose an output folder on another disk",
        )
