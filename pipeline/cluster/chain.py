"""From patients to a report as jobs: which there are, what each needs, where its output goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.cluster.job import Job, Task
from pipeline.errors import ConfigError
from pipeline.members import REPORT, Member, fold_members, sweep_members
from pipeline.parts import VERBS as IN_PARTS
from pipeline.settings import Config

# What one job can do for itself; the others read or write no folder of their own.
VERBS = ("cohort", "simulate", "preprocess", "convert", "encode", "train", "translate", "evaluate", "report")
_GPU = ("encode", "train", "translate")
_FROM_A_SERVER = ("train", "translate")
# How what a job needs must have ended, in SLURM's words: well, anyhow (a join lists what failed), or well in the task
# of the same number.
OK, ANY, CORRESPONDING = "afterok", "afterany", "aftercorr"


def chain(config: Config, overrides: Sequence[str]) -> list[Job]:
    """Return the jobs of the whole chain, in order, into folders below ``config.output``.

    With ``cohort.split.folds``, and no ``fold`` that chooses one of them, a training and a translation per fold.

    Args:
        config: ``input`` is the patients' folder, none for phantoms.
        overrides: Settings of the command line, which every verb is given.

    Raises:
        ConfigError: The input is the address of shards, from which a chain does not begin.
    """
    if config.shards_url:
        raise ConfigError(
            "The chain begins with patients, not with shards",
            value="an address",
            remedy="Submit one verb: cinevox submit train input=URL ...",
        )
    assert config.output is not None
    top, jobs = config.output.absolute(), list[Job]()
    source = [f"input={path.absolute()}" for path in config.input]
    place = {name: top / name for name in ("cohort", "simulated", "shards", "run", "translated", "scores", "report")}

    def add(verb: str, words: Sequence[str], output: str, after: Mapping[str, str]) -> None:
        jobs.append(_job(config, verb, [*words, f"output={place[output]}"], overrides, place[output], after))

    def add_parts(verb: str, words: Sequence[str], output: str, after: str) -> str:
        words = [*words, f"output={place[output]}"]
        jobs.extend(_parts(config, verb, words, overrides, place[output], {after: OK}))
        return jobs[-1].name

    add("cohort", source, "cohort", {})
    last, volumes = "cohort", place["cohort"]
    if simulates(config):
        last, volumes = add_parts("simulate", [f"input={volumes}"], "simulated", last), place["simulated"]
    last = add_parts("preprocess", [f"input={volumes}"], "shards", last)
    if config.cohort.split.folds and not config.fold:
        folds = fold_members(config)
        jobs += _each(config, "folds", folds, ("train", "translate"), place["shards"], overrides, {last: OK})
        last, translated = jobs[-1].name, [f"input={fold.translated}" for fold in folds]
    else:
        add("train", [f"input={place['shards']}"], "run", {last: OK})
        paths = [f"checkpoint={place['run']}", f"input={place['shards']}"]
        last, translated = add_parts("translate", paths, "translated", "train"), [f"input={place['translated']}"]
    last = add_parts("evaluate", translated, "scores", last)
    add("report", [f"input={place['scores']}"], "report", {last: OK})
    return jobs


def sweep(config: Config, overrides: Sequence[str]) -> list[Job]:
    """Return an array over the members of a sweep for each verb, and the job that reports those that are scored.

    Raises:
        ConfigError: No input, or members that are not valid.
    """
    if not config.input:
        raise ConfigError("'cinevox submit sweep' needs input=SHARDS")
    assert config.output is not None
    shards, top = config.input[0].absolute(), config.output.absolute()
    members = sweep_members(config, overrides)
    jobs = _each(config, "members", members, ("train", "translate", "evaluate"), shards, (), {})
    words = [f"input={shards}", f"output={top}", "part=join"]
    return [*jobs, _job(config, "sweep", words, overrides, top / REPORT, {jobs[-1].name: ANY}, name="sweep-join")]


def single(config: Config, overrides: Sequence[str]) -> list[Job]:
    """Return the one job of a verb, or its array and join, with the command line's own paths made absolute.

    Raises:
        ConfigError: No output, or a verb that is none.
    """
    if config.work not in VERBS:
        known = ", ".join(("chain", "sweep", *VERBS))
        raise ConfigError("Nothing that can be submitted", value=config.work, allowed=known)
    if config.shards_url and config.work not in _FROM_A_SERVER:
        allowed = ", ".join(_FROM_A_SERVER)
        raise ConfigError(f"'cinevox {config.work}' reads folders only", value="an address", allowed=allowed)
    assert config.output is not None
    words = [
        f"{name}={path.absolute()}"
        for name in ("input", "checkpoint", "prediction", "reference", "mask", "prediction_labels", "reference_labels")
        for path in _paths(config, name)
    ]
    words += [
        f"{name}={getattr(config, name)}" for name in ("source_modality", "target_modality") if getattr(config, name)
    ]
    if config.shards_url:
        words.append(f"input={config.shards_url}")
    output = config.output.absolute()
    words.append(f"output={output}")
    if config.work in IN_PARTS and config.cluster.parts > 1:
        return _parts(config, config.work, words, overrides, output, {})
    return [_job(config, config.work, words, overrides, output, {})]


def simulates(config: Config) -> bool:
    """Whether cone-beam CT has to be simulated: it is the source, and the patients have none."""
    if config.source != "cbct":
        return False
    if not config.input:
        return config.source not in config.cohort.modalities
    if config.cohort.modality is not None:
        return config.cohort.modality != config.source
    return not any(next(path.glob(f"*/{config.source}.*"), None) for path in config.input)


def _parts(
    config: Config, verb: str, words: Sequence[str], overrides: Sequence[str], output: Path, after: Mapping[str, str]
) -> list[Job]:
    """Return an array over the cases, and the job that joins what it made, whichever of its tasks failed."""
    parts = _job(config, verb, words, overrides, output, after, name=f"{verb}-parts", parts=config.cluster.parts)
    waits = {**after, parts.name: ANY}
    join = _job(config, verb, [*words, "part=join"], overrides, output, waits, name=f"{verb}-join", gpu=False)
    return [parts, join]


def _each(
    config: Config,
    what: str,
    members: Sequence[Member],
    verbs: Sequence[str],
    shards: Path,
    overrides: Sequence[str],
    after: Mapping[str, str],
) -> list[Job]:
    """Return an array over the members for each verb; a member's task waits for its own one of the verb before."""
    jobs = list[Job]()
    for verb in verbs:
        tasks = []
        for member in members:
            commands = member.commands(shards)
            output, words = commands[verb]
            tasks.append(Task(member.name, (*member.words, *words), output, last=commands[verbs[-1]][0]))
        place = members[0].folder.parent
        jobs.append(_job(config, verb, (), overrides, place, after, name=f"{verb}-{what}", tasks=tuple(tasks)))
        after = {jobs[-1].name: CORRESPONDING}
    return jobs


def _job(
    config: Config,
    verb: str,
    paths: Sequence[str],
    overrides: Sequence[str],
    output: Path,
    after: Mapping[str, str],
    name: str = "",
    parts: int = 0,
    tasks: tuple[Task, ...] = (),
    gpu: bool | None = None,
) -> Job:
    gpu, trainer = verb in _GPU if gpu is None else gpu, config.trainer
    own = [word for word in overrides if word.partition("=")[0].partition(".")[0].lstrip("+~") != "cluster"]
    cpus = [] if gpu else [f"workers={config.cluster.cpu.cpus}"]  # first: what the user says of it comes later
    return Job(
        name=name or verb,
        verb=verb,
        words=(*cpus, *own, *paths),
        output=output,
        after=after,
        parts=parts,
        tasks=tasks,
        gpu=gpu,
        nodes=trainer.nodes if verb == "train" else 1,
        ranks=trainer.devices if verb == "train" else 1,
    )


def _paths(config: Config, name: str) -> list[Path]:
    found = getattr(config, name)
    return found if isinstance(found, list) else [found] if found is not None else []
