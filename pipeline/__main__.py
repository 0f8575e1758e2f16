"""The command line: ``cinevox VERB name=value ...``: one table from verb to function, and nothing else."""

import ast
import errno
import importlib
import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path

from pipeline import __version__
from pipeline.arguments import parse
from pipeline.artifacts import FULL
from pipeline.errors import CinevoxError, ConfigError, nearest
from pipeline.parts import VERBS as IN_PARTS
from pipeline.signals import warnings_held

# verb: (module whose `run(config)` does it, paths that it needs, what it does)
VERBS = {
    "cohort": ("pipeline.stages.cohort", ("output",), "find or make patients, check them, split them"),
    "simulate": ("pipeline.stages.simulate", ("input", "output"), "simulate cone-beam CT from CT"),
    "preprocess": ("pipeline.stages.preprocess", ("input", "output"), "volumes to shards of ordered slices"),
    "convert": ("pipeline.stages.convert", ("input", "output"), "tar shards to zarr shards, and back"),
    "verify": ("pipeline.stages.verify", ("input",), "compare shards with their checksums"),
    "encode": ("pipeline.stages.encode", ("checkpoint", "input", "output"), "shards to shards of latents"),
    "train": ("pipeline.stages.train", ("input", "output"), "shards to a trained run"),
    "translate": ("pipeline.stages.translate", ("checkpoint", "input", "output"), "volumes to the target modality"),
    "evaluate": ("pipeline.stages.evaluate", ("output",), "predictions and references to scores"),
    "report": ("pipeline.stages.report", ("input", "output"), "scores to a page"),
    "sweep": ("pipeline.workflows.sweep", ("input", "output"), "several trainings, and one report of them"),
    "weights": ("pipeline.stages.weights", (), "a local folder of pretrained generators: list, add, verify"),
    "dashboard": ("pipeline.stages.dashboard", ("output",), "W&B workspaces from conf/dashboard/"),
    "submit": ("pipeline.cluster.submit", ("output",), "the chain, or a verb, as SLURM jobs"),
    "status": ("pipeline.cluster.status", ("input",), "how submitted jobs stand"),
    "cancel": ("pipeline.cluster.cancel", ("input",), "end submitted jobs"),
}
MANY_INPUTS = ("evaluate", "report", "train")
# The machine's limits, not a fault of ours: one line says enough (and no path, which may name a patient).
MACHINE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.EIO, errno.ESTALE, errno.ELOOP, *FULL)
USAGE = """cinevox VERB [name=value ...] [-i INPUT] [-o OUTPUT] [--dry-run] [--debug] [--help]

  name=value   any setting of conf/ (Hydra's grammar): experiment=..., model=..., preprocess.size=[128,128]
  input, output, checkpoint, prediction, reference, mask   paths, taken as they stand (some may be repeated)
  --dry-run    print the resolved configuration and what would be done; write nothing
  --debug      show a traceback with an error
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; return 0, 2 (the user's error) or 1 (ours)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # Threads that wait spin for a moment: endless spinning slows a busy machine's steps, none those of a quiet one.
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    debug = "--debug" in arguments
    try:
        with warnings_held():  # imports alone take seconds, in which it would kill
            return _dispatch([a for a in arguments if a != "--debug"])
    except CinevoxError as error:
        if debug:
            traceback.print_exc()
        sys.stderr.write(f"Error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("Stopped. What was written stays; the same command continues.\n")
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, OSError) and error.errno in MACHINE:
            remedy = "Free some space or choose an output on another disk. " if error.errno in FULL else ""
            sys.stderr.write(f"Error: {error.strerror}. {remedy}What was written stays; the same command continues.\n")
            return 2
        sys.stderr.write(f"Internal error ({type(error).__name__}). Run again with --debug and report the traceback.\n")
        return 1


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        verbs = "\n".join(f"  {verb:<11}{text}" for verb, (_, _, text) in VERBS.items())
        sys.stdout.write(f"{USAGE}\nVerbs:\n{verbs}\n\n'cinevox VERB --help' says what a verb reads and writes.\n")
        return 0
    if arguments[0] == "--version":
        sys.stdout.write(f"cinevox {__version__}\n")
        return 0
    if (verb := arguments[0]) not in VERBS:
        raise ConfigError(f"Unknown verb '{verb}'. {nearest(verb, VERBS)}".strip(), allowed=", ".join(VERBS))
    (module, needed, _), rest = VERBS[verb], arguments[1:]
    if "-h" in rest or "--help" in rest:
        sys.stdout.write(f"cinevox {verb}\n\n{_docstring(module)}\n\n{USAGE}")
        return 0
    overrides, paths, dry_run = parse(rest, verb)
    from pipeline.config import compose, plain

    config = compose(overrides, paths, dry_run=dry_run)
    if verb == "train" and config.three_stage is not None:
        module = "pipeline.workflows.three_stage"
    for name in needed:
        if not getattr(config, name) and not (name == "input" and config.shards_url):
            raise ConfigError(f"'cinevox {verb}' needs {name}=PATH")
    if len(config.input) > 1 and (config.work or verb) not in MANY_INPUTS:
        raise ConfigError(f"'cinevox {verb}' takes one input", value=len(config.input))
    if config.part and verb not in IN_PARTS:
        raise ConfigError(f"'cinevox {verb}' does not work in parts", allowed=", ".join(IN_PARTS))
    if dry_run:
        sys.stdout.write(json.dumps(plain(config), indent=1) + "\n")
    importlib.import_module(module).run(config.model_copy(update={"command": arguments}))
    return 0


def _docstring(module: str) -> str:
    """Read a stage's docstring without importing it (torch takes seconds)."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""


if __name__ == "__main__":
    sys.exit(main())
