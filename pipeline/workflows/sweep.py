"""Several trainings one after another, and one report of all.

    cinevox sweep sweep=NAME input=SHARDS output=SWEEP experiment=...
    cinevox sweep '+sweep.members={a: ["seed=1"], b: ["model=regression"]}' input=SHARDS output=SWEEP

Reads   input=SHARDS
Writes  SWEEP/MEMBER/{run,translated,scores} and a log of each command (SWEEP/MEMBER/VERB.log), SWEEP/report;
        SWEEP/report-incomplete while members are missing; SWEEP/sweep.json (what each member is)

A member's settings stand in place of those of the command line, its experiments are added to theirs, and its name is
its label. All are checked before the first one starts. A member that fails, or whose process dies, is listed, and the
others go on; the same command does what is missing, and a list with more members adds to the report.

part=K/N does every N-th member only, on one of several machines; part=join makes the report of what they did.
'cinevox submit sweep' does the same as arrays of SLURM.

Main options: sweep=NAME (conf/sweep/NAME.yaml), --dry-run (prints every command).
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from pipeline.arguments import parse
from pipeline.artifacts import STAGE_FILE, difference, file_sha256, is_finished, read_json
from pipeline.errors import ArtifactError, DataError
from pipeline.locks import lock
from pipeline.members import INCOMPLETE, REPORT, Member, shared, sweep_members
from pipeline.parts import JOIN, share_of
from pipeline.progress import say
from pipeline.records import Record, Scores, ShardIndex
from pipeline.settings import Config
from pipeline.workflows.command import TO_BE_CONTINUED, ended, start


class Sweep(Record):
    """``sweep.json``: the settings of every member that was ever begun, and which shards it reads."""

    FILE: ClassVar[str] = "sweep.json"
    WHAT: ClassVar[str] = "record of the sweep"
    schema_version: Literal[1] = Field(default=1, alias="schema")
    shards: str  # the index's configuration hash
    members: dict[str, list[str]]
    reported: dict[str, str] = Field(default_factory=dict)  # whose scores, by their SHA-256, are in the report


def run(config: Config) -> None:
    """Train, translate and score every member of ``config.sweep``, and report those that are scored.

    Raises:
        ConfigError: A member is not valid.
        ArtifactError: The folder holds a sweep whose members were something else, or of other shards.
        DataError: Members that failed, after all others are done.
    """
    assert config.output is not None
    shards, output = config.input[0].absolute(), config.output.absolute()
    overrides, _, _ = parse(config.command[1:], "sweep")
    members = sweep_members(config, overrides)
    mine = share_of(members, config.part)
    if config.dry_run:
        for member in mine:
            for verb, (_, words) in member.commands(shards).items():
                sys.stdout.write(shlex.join(["cinevox", verb, *member.words, *words]) + "\n")
        return
    _remember(output, ShardIndex.load(shards).config_hash, members)
    failed = {}
    for number, member in enumerate(mine, start=1):
        if reason := _work(member, shards, f"[{number}/{len(mine)}] {member.name}"):
            failed[member.name] = reason
            say(f"{member.name}: {reason}")
    missing = [member for member in members if not is_finished(member.scores)]
    if config.part in ("", JOIN):
        _report(config, members, missing, shared(overrides))
        for member in missing:
            say(f"Left out: {member.name}: {failed.get(member.name, _stage(member) + ' has not finished')}")
    if failed or len(missing) == len(members):
        raise DataError(
            f"{len(failed or missing)} of {len(members)} members were not finished: "
            + ", ".join(failed or [member.name for member in missing]),
            remedy="The same command tries them again; the others are done",
        )


def _remember(output: Path, shards: str, members: Sequence[Member]) -> None:
    """Note what the members are, those of an earlier call too.

    Raises:
        ArtifactError: One of them was something else.
    """
    output.mkdir(parents=True, exist_ok=True)
    held = lock(output / ".sweep.lock", "The sweep's record", wait=True)
    given = {member.name: [word for word in member.words if not word.startswith("workers=")] for member in members}
    new = Sweep(schema=1, shards=shards, members=given)
    if (output / Sweep.FILE).is_file():
        old = Sweep.load(output)
        changed = difference({"shards": old.shards}, {"shards": shards})
        for name in old.members.keys() & given.keys():
            lines = difference(dict.fromkeys(old.members[name], "given"), dict.fromkeys(given[name], "given"))
            changed += [f"{name}: {line}" for line in lines]
        if changed:
            raise ArtifactError(
                f"'{output}' holds a sweep with other settings: " + "; ".join(sorted(changed)[:6]),
                remedy="Choose another output, or give the same settings; members may be added",
            )
        new = old.model_copy(update={"members": {**old.members, **given}})
    new.save(output)
    held.release()


def _work(member: Member, shards: Path, title: str) -> str:
    """Do what is missing of a member; return why it could not be done, or nothing."""
    member.folder.mkdir(parents=True, exist_ok=True)
    for verb, (output, words) in member.commands(shards).items():
        if is_finished(output):
            continue
        say(f"{title}: {verb}")
        log = member.folder / f"{verb}.log"
        before = log.stat().st_size if log.exists() else 0
        code = start([verb, *member.words, *words], log)
        if code == TO_BE_CONTINUED:
            say("Stopped; the same command continues")
            raise SystemExit(code)
        if code and not is_finished(output):
            return f"{verb} {ended(code, log, before)}"
        if code:  # scores are there, but for cases that could not be scored
            say(f"{member.name}: {verb} {ended(code, log, before)}")
    return ""


def _stage(member: Member) -> str:
    """Return the verb that a member has come to."""
    places = {"train": member.run, "translate": member.translated, "evaluate": member.scores}
    return next(verb for verb, place in places.items() if not is_finished(place))


def _report(config: Config, members: Sequence[Member], missing: Sequence[Member], words: Sequence[str]) -> None:
    """Make one report of all that are scored, anew where they are not those of the last one."""
    assert config.output is not None
    top = config.output.absolute()
    scored = {m.name: file_sha256(m.scores / Scores.FILE) for m in members if m not in missing}
    if not scored:
        return
    place, record = top / (INCOMPLETE if missing else REPORT), Sweep.load(top)
    if is_finished(place) and record.reported == scored:
        say(f"'{place}' is finished already; nothing to do")
        return
    for folder in (top / INCOMPLETE, top / REPORT):
        _remove(folder)
    names = ", ".join(member.name for member in missing)
    note = [f"report.notes=['{len(missing)} of {len(members)} members are missing: {names}']"] if missing else []
    inputs = [f"input={member.scores}" for member in members if member.name in scored]
    log = top / f"{REPORT}.log"
    before = log.stat().st_size if log.exists() else 0
    if code := start(["report", *words, *note, *inputs, f"output={place}"], log):
        raise DataError(f"The report {ended(code, log, before)}", remedy="The same command makes it again")
    record.model_copy(update={"reported": scored}).save(top)
    say(f"Report of {len(scored)} members in '{place / 'report.html'}'")


def _remove(folder: Path) -> None:
    """Remove an older report; what is none stays."""
    path = folder / STAGE_FILE
    if path.is_file() and read_json(path, what=f"{STAGE_FILE} of the report").get("verb") == "report":
        shutil.rmtree(folder)
