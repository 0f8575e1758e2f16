"""Volumes to the target modality.

Reads   checkpoint=RUN    a run folder (its last checkpoint) or a .ckpt file
        input=SHARDS      translates translate.split (train, validation, test or all) of a shard folder
        input=URL         the same of shards on a server (https://, s3://)
        input=FILE|DIR    or any volume, or a folder of volumes (DIR/CASE.nii.gz or DIR/CASE/SOURCE.nii.gz)
        mask=FILE         of a single volume: non-zero is the field of view
Writes  output=DIR        CASE.nii.gz on exactly the source's grid and orientation, and translation.json

Main options
  source_modality=t1n  target_modality=t2w            of a model of many pairs; without them the run's own
  translate.split=test  translate.weights=ema|raw  translate.outside=-1000
  translate.range=normalised|reference                of an MR target: [-1, 1], or between the 0.5 and 99.5 % of the
                                                      case's own target, so that it can be scored (metrics=brats)
  translate.precision=auto|fp32|bf16-mixed|bf16       bf16: weights too, except the heads'
  translate.compile=true                              torch.compile: a slow first volume, faster ones after it

A run of a cross-validation (fold=K) translates the patients of its own fold as the split 'test'.
How an input is prepared, and how the result is turned back, stands in the checkpoint; an input that does not fit
it is refused.

part=K/N translates every N-th case only, beside the other parts; part=join makes translation.json of what they wrote,
and lists the cases that failed without failing itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.artifacts import check_free_space, claim_output, content_hash, file_sha256
from pipeline.errors import CinevoxError, DataError
from pipeline.geometry import Volume
from pipeline.imaging.normalise import restore, window_for
from pipeline.imaging.resample import resample
from pipeline.io import write_volume
from pipeline.locks import lock
from pipeline.networks.cpu_layers import lay_out
from pipeline.parts import JOIN, left_out_by_parts, noted_by_parts, share_of, write_note
from pipeline.preparation.sources import SourceCase, is_shards, run_fold, source_cases
from pipeline.progress import say, track
from pipeline.records import Excluded, TranslatedCase, Translation
from pipeline.settings import Config
from pipeline.stream.remote import open_shards
from pipeline.tracking.stage import track_stage
from pipeline.training.checkpoint import FOLDER, LAST, load_checkpoint, load_method, record_for
from pipeline.training.compilation import check_compiler, compile_for_inference
from pipeline.training.heap import keep_freed_memory
from pipeline.training.precision import autocast, device_for, resolve_precision, round_weights


def run(config: Config) -> None:
    """Translate a split of shards, a volume, or a folder of volumes.

    Raises:
        ConfigError: Another fold than the run's, or a mask for several volumes.
        DataError: No case; or, after all others are written, cases that could not be translated.
        ArtifactError: Shards or an output that do not fit.
    """
    assert config.checkpoint is not None and config.output is not None
    data = load_checkpoint(config.checkpoint)
    data["cinevox"] = record = record_for(data["cinevox"], config.source_modality, config.target_modality)
    output = config.output
    store = open_shards(config) if is_shards(config) else None
    cases = source_cases(store, record, config)
    if not cases:
        raise DataError(f"Nothing to translate: no case in split '{config.translate.split}'")
    say(f"{_label(record, config)}: {len(cases)} case(s), {record['source']} to {record['target']}")
    if config.dry_run:
        names = ", ".join(f"{case.case_id}.nii.gz" for case in cases[:20])
        say(f"Would write {len(cases)} volume(s), at most {_bytes(cases, record) / 1e6:.0f} MB: {names}")
        return
    path = config.checkpoint / FOLDER / LAST if config.checkpoint.is_dir() else config.checkpoint
    sha256 = file_sha256(path)
    settings = {
        "checkpoint": sha256,
        "translate": config.translate.model_dump(exclude=_unused(config)),
        "cases": [case.case_id for case in cases],
        "input": store.index.config_hash if store else _content(cases),
    }
    if config.source_modality or config.target_modality:
        settings["pair"] = [record["source"], record["target"]]
    working = bool(config.part) and config.part != JOIN
    claim = claim_output(output, "translate", settings, wait=working)
    if claim.finished:
        say(f"'{output}' is finished already; nothing to do")
        return
    if working:
        claim.share()
    done, left_out = _made_by_parts(cases, output) if config.part == JOIN else _make(cases, data, config)
    if working:
        write_note(output, config.part, left_out, seconds={case.case_id: case.seconds for case in done})
        _refuse(left_out, len(share_of(cases, config.part)))
        return
    if done:
        Translation(
            method=record["method"],
            label=_label(record, config),
            run=str(config.checkpoint.resolve()),
            checkpoint_sha256=sha256,
            source_modality=record["source"],
            target_modality=record["target"],
            unit=_unit(record, config),
            fold=run_fold(record) if config.translate.split == "test" and store else 0,
            cohort=cases[0].cohort,
            cases=done,
            excluded=[Excluded(case_id=case_id, reason=reason) for case_id, reason in left_out.items()],
            settings=config.translate.model_dump(mode="json"),
        ).save(output)
    seconds = [case.seconds for case in done if case.seconds]  # none where an earlier start translated the case
    counted = {"cases": len(done), "excluded": len(left_out)}
    track_stage(config, "translate", {**counted, "seconds_per_case": sum(seconds) / max(len(seconds), 1)})
    if config.part == JOIN and done:
        for case_id, reason in left_out.items():
            say(f"Left out: {case_id}: {reason}")
    else:
        _refuse(left_out, len(cases))
    if not left_out:  # else not finished: the same command tries them again
        claim.finish(cases=len(done))
    say(f"Translated {len(done)} case(s) into '{output}'")


def _make(cases: list[SourceCase], data: dict[str, Any], config: Config) -> tuple[list[TranslatedCase], dict[str, str]]:
    """Translate the share of ``config.part``; return what is there then, and why the others are not."""
    assert config.output is not None
    record, output = data["cinevox"], config.output
    mine = share_of(cases, config.part)
    todo = [case for case in mine if not _target(output, case).exists()]
    check_free_space(output, _bytes(todo, record))
    translate = _translator(data, config) if todo else None
    done: list[TranslatedCase] = []
    left_out: dict[str, str] = {}
    for case in track(mine, "translate"):
        target, start = _target(output, case), time.perf_counter()
        held = lock(output / f".{case.case_id}.lock", f"Case '{case.case_id}'")
        try:
            if translate is not None and not target.exists():
                write_volume(target, translate(case))
            done.append(_translated(case, target, round(time.perf_counter() - start, 2)))
        except CinevoxError as error:
            left_out[case.case_id] = str(error)
        except torch.OutOfMemoryError:
            left_out[case.case_id] = "it needs more memory than this GPU has"
        finally:
            held.release()
    return done, left_out


def _made_by_parts(cases: list[SourceCase], output: Path) -> tuple[list[TranslatedCase], dict[str, str]]:
    seconds, reasons = noted_by_parts(output, "seconds"), left_out_by_parts(output)
    done: list[TranslatedCase] = []
    left_out: dict[str, str] = {}
    for case in cases:
        if (target := _target(output, case)).exists():
            done.append(_translated(case, target, seconds.get(case.case_id, 0.0)))
        else:
            left_out[case.case_id] = reasons.get(case.case_id, "the part that translates it did not end")
    return done, left_out


def _translated(case: SourceCase, target: Path, seconds: float) -> TranslatedCase:
    return TranslatedCase(
        case_id=case.case_id,
        patient=case.patient,
        prediction=target.name,
        source=case.source,
        reference=case.reference,
        mask=case.mask,
        mask_kind=case.mask_kind,
        seconds=seconds,
    )


def _refuse(left_out: dict[str, str], count: int) -> None:
    if left_out:
        raise DataError(
            f"{len(left_out)} of {count} cases were left out (the others are written): "
            + "; ".join(f"{case_id}: {reason}" for case_id, reason in list(left_out.items())[:10])
        )


def _label(record: dict[str, Any], config: Config) -> str:
    return config.translate.label or record["label"]


def _target(output: Path, case: SourceCase) -> Path:
    return output / f"{case.case_id}.nii.gz"


def _bytes(cases: list[SourceCase], record: dict[str, Any]) -> int:
    """Return the most that the cases' volumes take on disk."""
    return sum(case.voxels for case in cases) * (2 if in_hu(record) else 4)


def _content(cases: list[SourceCase]) -> dict[str, str]:
    """Return what of volumes decides the result: another one under the same name is another translation."""
    return {case.case_id: content_hash([file_sha256(Path(f)) for f in (case.source, case.mask) if f]) for case in cases}


def _unused(config: Config) -> set[str]:
    """Return what is left out of a claim, so that those of before there was a choice hold."""
    return {"range"} if config.translate.range == "normalised" else set()


def in_hu(record: dict[str, Any]) -> bool:
    """Whether the target is in HU."""
    return bool(record["preprocessing"]["modalities"][record["target"]]["unit"] == "HU")


def _unit(record: dict[str, Any], config: Config) -> str:
    if in_hu(record):
        return "HU"
    return "a.u." if config.translate.range == "reference" else "normalised"


# --- There and back ----------------------------------------------------------------------------------------------


def _translator(data: dict[str, Any], config: Config) -> Callable[[SourceCase], Volume]:
    """Return the function from a case to its volume on the source's grid."""
    record = data["cinevox"]
    device = device_for(config.trainer.accelerator)
    precision = resolve_precision(config.translate.precision, device)
    keep_freed_memory(device)
    method = lay_out(load_method(data, config.trainer.allow_packages).to(device), device)
    method.use_ema = config.translate.weights == "ema"  # type: ignore[assignment]
    if precision == "bf16":
        round_weights(method)
    if config.translate.compile:
        check_compiler(device)
        compile_for_inference(method)
    masked = record["preprocessing"]["outside_mask"] == "lowest"
    hu, target = in_hu(record), record["target"]

    def translate(case: SourceCase) -> Volume:
        prepared = case.open()
        frames = prepared.frames.copy()
        if masked:
            frames[prepared.mask == 0] = -1.0
        generator = torch.Generator(device).manual_seed(config.seed)
        with torch.inference_mode(), autocast(precision, device):
            predicted = method.translate(  # type: ignore[operator]
                torch.from_numpy(frames).unsqueeze(1).to(device),
                torch.from_numpy(prepared.mask.astype(np.float32)).unsqueeze(1).to(device),
                source_modality=record["source"],
                target_modality=record["target"],
                generator=generator,
            )
        values = predicted.squeeze(1).float().cpu().numpy()
        outside = config.translate.outside if hu else -1.0
        if hu or config.translate.range == "reference":
            if not hu and target not in prepared.percentiles:
                raise DataError(
                    f"Nothing is known of the range of '{target}' of this case",
                    remedy="Set translate.range=normalised, or translate shards whose cases have the target too",
                )
            window = window_for(target, record["preprocessing"]["window"], prepared.percentiles)
            values = restore(values, window)
            outside = outside if hu else record["preprocessing"]["modalities"][target]["padding"]
        volume = resample(Volume(values, prepared.film.affine), prepared.native, outside=outside)
        array = volume.array
        if masked:
            # The mask is put on at full resolution, so that skin is not mixed with air by the resampling.
            film_mask = Volume(prepared.mask, prepared.film.affine)
            inside = resample(film_mask, prepared.native, outside=0, order="nearest").array
            array = np.where(inside > 0, array, np.float32(outside))
        if hu:
            array = np.clip(np.rint(array), -32768, 32767).astype(np.int16)
        return Volume(array, prepared.native.affine, "HU" if hu else "a.u.")

    return translate
