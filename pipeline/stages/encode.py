"""Shards of slices to shards of latents.

Reads   input=SHARDS      a folder of 'cinevox preprocess' or 'cinevox convert'
        checkpoint=RUN    a trained autoencoder (model=latent_autoencoder): its last checkpoint, or a .ckpt file
Writes  output=LATENTS    the same index over shards of latents, with the hash of the encoder's weights

Main options
  translate.weights=ema|raw                  of the autoencoder
  translate.precision=auto|fp32|bf16-mixed

Every modality of every case is encoded once: the posterior's mean, no sample of it. A training on latents
(stream=latents) refuses those of another encoder. Killed and started again it redoes only unfinished shards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline.artifacts import check_free_space, claim_output, content_hash, read_json, write_json
from pipeline.errors import ArtifactError, ConfigError
from pipeline.imaging.normalise import normalise, window_for
from pipeline.networks.cpu_layers import lay_out
from pipeline.preparation.sources import check_prepared
from pipeline.progress import say, track
from pipeline.records import Latents, ShardCase, ShardFile, ShardIndex, ShardModality
from pipeline.settings import Config
from pipeline.stream.codec import MASK
from pipeline.stream.shard import Film
from pipeline.stream.store import SliceStore, is_whole, write_shard
from pipeline.tracking.stage import track_stage
from pipeline.training.checkpoint import load_checkpoint, load_method
from pipeline.training.precision import Precision, autocast, device_for, resolve_precision

_LARGEST = 32000  # of int16, as for MR


def run(config: Config) -> None:
    """Encode a folder of shards."""
    assert config.checkpoint is not None and config.output is not None
    folder, output = config.input[0], config.output
    data = load_checkpoint(config.checkpoint)
    method: Any = load_method(data)
    if not hasattr(method, "encode_slices"):
        raise ConfigError(
            "The checkpoint's method has no encoder", value=data["cinevox"]["method"], allowed="latent_autoencoder"
        )
    method.use_ema = config.translate.weights == "ema"
    with SliceStore(folder) as store:
        index = store.index
        if index.latents is not None:
            raise ArtifactError("These shards hold latents already", remedy="Give the shards of slices")
        check_prepared(data["cinevox"], index, list(index.modalities))
        channels, size = _latent_shape(method, index)
        count = sum(len(case.modalities) * case.slices for case in index.cases)
        bytes_ = 2 * count * channels * math.prod(size) + 10_000_000
        say(
            f"{len(index.cases)} cases, {count} slices of {index.size[0]} x {index.size[1]} to latents of "
            f"{channels} x {size[0]} x {size[1]}, at most {bytes_ / 1e6:.0f} MB"
        )
        if config.dry_run:
            return
        encoder = method.encoder_hash()
        device = device_for(config.trainer.accelerator)
        precision = resolve_precision(config.translate.precision, device)
        decides = {"encoder": encoder, "shards": index.config_hash, "precision": precision}
        claim = claim_output(output, "encode", decides)
        names = [Path(shard.file).stem for shard in index.shards]
        if claim.finished and (output / ShardIndex.FILE).is_file() and all(_note(output, n, quick=True) for n in names):
            say(f"'{output}' is finished already; nothing to do")
            return
        check_free_space(output, bytes_)
        encode = _Encoder(method, data["cinevox"], device, precision)
        for number, name in enumerate(track(names, "encode")):
            if _note(output, name) is None:
                _write(store, number, name, output, encode, channels)
        notes = [note for name in names if (note := _note(output, name)) is not None]
        latents = Latents(
            channels=channels,
            size=size,
            std=_spread(notes),
            encoder=encoder,
            shards=index.config_hash,
            folder=str(store.folders[0]),
            window=data["cinevox"]["preprocessing"]["window"],
            outside_mask=data["cinevox"]["preprocessing"]["outside_mask"],
        )
        _index(index, notes, latents, decides).save(output)
        claim.finish(cases=len(index.cases))
    track_stage(config, "encode", {"cases": len(index.cases), "slices": count})
    say(f"Latents of {len(index.cases)} cases in '{output}'")


def _latent_shape(method: Any, index: ShardIndex) -> tuple[int, tuple[int, int]]:
    """Return channels and (rows, columns) of a slice's latent."""
    latent = method.encode_slices(torch.full((1, 1, *index.size), -1.0))
    return int(latent.shape[1]), (int(latent.shape[2]), int(latent.shape[3]))


class _Encoder:
    """Turns stored slices of a case into latents, prepared as those that the autoencoder was trained on."""

    def __init__(self, method: Any, record: dict[str, Any], device: torch.device, precision: Precision) -> None:
        self.device, self.precision = device, precision
        self.method = lay_out(method.to(device), device)
        self.preparation = record["preprocessing"]

    def __call__(self, film: NDArray[np.int16], mask: NDArray, modality: str, case: ShardCase) -> NDArray[np.float32]:
        """Return (slices, channels, rows, columns)."""
        window = window_for(modality, self.preparation["window"], case.percentiles)
        frames = normalise(film.astype(np.float32) * np.float32(case.scale.get(modality, 1.0)), window)
        if self.preparation["outside_mask"] == "lowest":
            frames[mask == 0] = -1
        with torch.inference_mode(), autocast(self.precision, self.device):
            latents = self.method.encode_slices(torch.from_numpy(frames).unsqueeze(1).to(self.device))
        return np.asarray(latents.float().cpu().numpy())


def _write(store: SliceStore, number: int, name: str, output: Path, encode: _Encoder, channels: int) -> None:
    """Write one shard and, last, the note that it is complete: scales, and the moments of the training's latents."""
    shard, scales, moments = store.index.shards[number], dict[str, dict[str, float]](), np.zeros(3)

    def films() -> Iterator[Film]:
        for case_id in shard.cases:
            case = store.cases[case_id]
            film = store.film(case_id, *store.parts[case_id])
            stored, scales[case_id] = {}, {}
            for modality in case.modalities:
                latents = encode(film[modality], film[MASK], modality, case)
                scale = max(float(np.abs(latents).max()), 1e-6) / _LARGEST
                scales[case_id][modality] = scale
                stored[modality] = np.rint(latents / scale).astype(np.int16).reshape(len(latents), -1, latents.shape[3])
                if case.split == "train":
                    moments[:] += (
                        latents.size,
                        latents.sum(dtype=np.float64),
                        np.square(latents, dtype=np.float64).sum(),
                    )
            yield Film(case_id, stored, _tokens(film[MASK], latents.shape[2:], channels))

    written = write_shard(output, name, films(), store.index.codec, "tar" if shard.file.endswith(".tar") else "zarr")
    write_json(output / f"{name}.json", {"shard": written.model_dump(), "scales": scales, "moments": moments.tolist()})


def _tokens(mask: NDArray[np.uint8], size: tuple[int, ...], channels: int) -> NDArray[np.uint8]:
    """Return the mask of the latents' places: those that see any of the mask's pixels, the same for each channel."""
    edges = [(small * -(-full // small) - full) for full, small in zip(mask.shape[1:], size, strict=True)]
    padded = np.pad(mask, ((0, 0), (0, edges[0]), (0, edges[1])))
    blocks = padded.reshape(len(mask), size[0], padded.shape[1] // size[0], size[1], padded.shape[2] // size[1])
    return np.tile(blocks.any(axis=(2, 4)).astype(np.uint8), (1, channels, 1))


def _note(output: Path, name: str, *, quick: bool = False) -> dict[str, Any] | None:
    """Return what is noted of a shard that is whole; ``quick`` compares sizes only."""
    try:
        note = read_json(output / f"{name}.json", what="shard note")
        shard = ShardFile.model_validate(note["shard"])
    except (ArtifactError, ValidationError, LookupError, TypeError):
        return None
    return {**note, "shard": shard} if is_whole(output, shard, quick=quick) else None


def _spread(notes: list[dict[str, Any]]) -> float:
    """Return the standard deviation of the training cases' latents, 1 where there is no training case."""
    count, total, squares = np.sum([note["moments"] for note in notes], axis=0)
    return float(np.sqrt(squares / count - (total / count) ** 2)) if count else 1.0


def _index(index: ShardIndex, notes: list[dict[str, Any]], latents: Latents, decides: dict[str, Any]) -> ShardIndex:
    """Return the index of the slices' shards over those of latents."""
    scales = {case_id: own for note in notes for case_id, own in note["scales"].items()}
    return index.model_copy(
        update={
            "config_hash": content_hash(decides),
            "size": (latents.channels * latents.size[0], latents.size[1]),
            "modalities": {n: ShardModality(unit="latent", dtype="int16", padding=0.0) for n in index.modalities},
            "cases": [case.model_copy(update={"scale": scales[case.case_id]}) for case in index.cases],
            "shards": [note["shard"] for note in notes],
            "latents": latents,
        }
    )
