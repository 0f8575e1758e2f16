"""What is on disk between stages: cohort, shard index, translations, scores, pretrained weights; versioned schemas."""

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
from pipeline.records.weights import WeightsFile, WeightsFolder

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
    "WeightsFile",
    "WeightsFolder",
    "split_in",
    "unique",
]
