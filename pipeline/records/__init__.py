"""What is on disk between stages: the cohort, the shard index, translations and scores, each with a schema version."""

from pipeline.records.base import (
    CASE_ID,
    MODALITY,
    CaseId,
    Excluded,
    GridRecord,
    Modality,
    Record,
    Split,
    VolumeFile,
    unique,
)
from pipeline.records.cohort import Case, Cohort
from pipeline.records.pairs import PairQualities, PairQuality
from pipeline.records.scores import Comparison, Score, Scores, SetScore, Summary, TranslatedCase, Translation
from pipeline.records.shards import (
    CaseFingerprint,
    Fingerprint,
    Latents,
    Plan,
    ShardCase,
    ShardFile,
    ShardIndex,
    ShardModality,
    StoredFile,
    split_in,
)

__all__ = [
    "CASE_ID",
    "MODALITY",
    "Case",
    "CaseFingerprint",
    "CaseId",
    "Cohort",
    "Comparison",
    "Excluded",
    "Fingerprint",
    "GridRecord",
    "Latents",
    "Modality",
    "PairQualities",
    "PairQuality",
    "Plan",
    "Record",
    "Score",
    "Scores",
    "SetScore",
    "ShardCase",
    "ShardFile",
    "ShardIndex",
    "ShardModality",
    "Split",
    "StoredFile",
    "Summary",
    "TranslatedCase",
    "Translation",
    "VolumeFile",
    "split_in",
    "unique",
]
