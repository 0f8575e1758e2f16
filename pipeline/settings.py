"""The schema of the configuration: one frozen model per section, no defaults (those stand in ``conf/``)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline.cluster_settings import ClusterSettings
from pipeline.dashboard_settings import DashboardSettings
from pipeline.section import Count, Fraction, NotNegative, Positive, Section
from pipeline.stream_settings import StreamSettings
from pipeline.sweep_settings import SweepSettings, ThreeStageSettings

Spacing = tuple[Positive, Positive, Positive]
Size = tuple[Count, Count]


def _auto(value: Any) -> Any:
    return None if value == "auto" else value


# 'auto' in the YAML; the plan of 'cinevox preprocess' takes its place.
AutoSpacing = Annotated[Spacing | None, BeforeValidator(_auto)]
AutoSize = Annotated[Size | None, BeforeValidator(_auto)]
AutoPositive = Annotated[Positive | None, BeforeValidator(_auto)]


class SplitSettings(Section):
    """Fractions of patients, or lists of patients that decide before the fractions do; folds beside them."""

    fractions: dict[Literal["train", "validation", "test"], Fraction]
    train: list[str]
    validation: list[str]
    test: list[str]
    folds: Annotated[int, Field(ge=0)]  # of a cross-validation, which `fold` chooses from; 0: none

    @model_validator(mode="after")
    def _folds_are_possible(self) -> Self:
        if self.folds in (1, 2):
            raise ValueError("folds must be 0 or at least 3: one tests, one validates, the others train")
        if self.folds and (self.train or self.validation or self.test):
            raise ValueError("folds deals every patient, so the lists of train, validation and test must be empty")
        return self

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = sum(self.fractions.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the fractions must sum to 1, they sum to {total:g}")
        listed = [*self.train, *self.validation, *self.test]
        if len(set(listed)) != len(listed):
            raise ValueError("a patient is listed in two splits")
        return self


class PairLimits(Section):
    """Beyond these a pair of volumes is flagged, whatever the other cases are like; docs/how-to/check-pairs.md."""

    shift_mm: Positive  # largest shift of the whole, and largest that is left in its parts
    overlap: Fraction  # smallest Dice of the bodies
    edge_agreement: Fraction  # smallest; 1/3 is chance


class CohortSettings(Section):
    """How patients are found (``folder``) or made (``phantom``), checked and split."""

    layout: Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]  # pipeline/cohorts/NAME.py
    split: SplitSettings
    include: list[str]  # case names to take (folder names or file stems); empty: all
    exclude: list[str]
    # folder
    modality: str | None  # of a flat folder, in which each file is one case
    patient_pattern: str | None  # a regular expression on the case's name; its first group is the patient
    similarity_check: bool  # compare the pairs' contents and flag outliers
    check: bool  # --check: measure how well the volumes of every case fit together
    pair_limits: PairLimits
    # phantom
    patients: Count
    anatomy: Literal["torso", "head", "mixed"]
    size: tuple[Count, Count, Count]  # slices, rows, columns
    spacing_mm: Spacing  # slice, row, column
    modalities: list[str]


class Body(Section):
    """A body that training patients are scanned as."""

    size: Annotated[float, Field(ge=0.5, le=2)] = 1  # in plane, times the patient's own
    soft_tissue_hu: Annotated[float, Field(ge=-50, le=50)] = 0  # added to muscle and organs

    @property
    def as_it_is(self) -> bool:
        """Whether this is the patient unchanged."""
        return self == Body()


class SimulateSettings(Section):
    """CBCT physics and geometry; see docs/explanation/cbct-simulation.md."""

    preset: str
    spacing_mm: Spacing  # of the reconstruction: slice, row, column
    axial: Literal["split", "crop"]
    body_threshold_hu: float
    training_bodies: Annotated[list[Body], Field(min_length=1)]
    fan: Literal["half", "full"]
    arc_degrees: Annotated[float, Field(gt=180, le=360)]
    angles: Annotated[int, Field(ge=8)]  # evenly over the arc
    source_axis_mm: Positive
    source_detector_mm: Positive
    detector_size_mm: tuple[Positive, Positive]  # across, along the axis
    detector_pixel_mm: Positive
    detector_offset_mm: NotNegative
    tube_kv: Annotated[float, Field(ge=40, le=150)]
    filtration_mm: dict[str, NotNegative]  # chemical symbol: thickness
    photons_per_mm2: NotNegative  # on the detector, open beam, one view; 0: no noise
    scatter_to_primary: NotNegative  # behind the centre of the calibration cylinder; 0: no scatter
    scatter_width_mm: Positive  # standard deviation of the kernel on the detector
    scatter_correction: Fraction
    calibration_diameter_mm: Positive  # of the water cylinder
    motion_mm: NotNegative  # breathing amplitude; 0: still
    motion_period_s: Positive
    rotation_s: Positive  # of 360 degrees
    hann_cut_off: Annotated[float, Field(gt=0, le=1)]  # of the Nyquist frequency
    pictures: bool

    @model_validator(mode="after")
    def _geometry_is_possible(self) -> Self:
        if any(body in self.training_bodies[:number] for number, body in enumerate(self.training_bodies)):
            raise ValueError("training_bodies names a body twice")
        half_width = self.detector_size_mm[0] / 2
        fan_degrees = 2 * math.degrees(math.atan(half_width / self.source_detector_mm))
        if self.source_detector_mm <= self.source_axis_mm:
            raise ValueError("source_detector_mm must be larger than source_axis_mm")
        if self.fan == "half" and (self.arc_degrees != 360 or not 0 < self.detector_offset_mm < half_width):
            raise ValueError(
                "a half fan needs arc_degrees 360 and detector_offset_mm between 0 and half the detector "
                f"({half_width:g})"
            )
        if self.fan == "full" and self.detector_offset_mm:
            raise ValueError("a full fan needs detector_offset_mm 0")
        if self.fan == "full" and self.arc_degrees < 180 + fan_degrees:
            raise ValueError(f"a full fan needs arc_degrees of at least {180 + fan_degrees:.1f}")
        reach = (half_width + self.detector_offset_mm) / self.source_detector_mm * self.source_axis_mm
        if 1.35 * self.calibration_diameter_mm / 2 > reach:
            raise ValueError(f"calibration_diameter_mm must be below {2 * reach / 1.35:.0f} for this detector")
        return self


class PreprocessSettings(Section):
    """One spacing and one in-plane size for the whole cohort; all modalities of a case on one grid."""

    spacing_mm: AutoSpacing  # slice, row, column; auto: docs/explanation/plan.md
    size: AutoSize  # rows, columns
    memory_gib: AutoPositive  # for training; auto: the GPU's, else this job's RAM
    resample: bool  # put modalities that lie on another grid onto the target's; else that is an error
    codec: Literal["lz4", "none"]
    store: Literal["tar", "zarr"]
    patients_per_shard: Count
    body_threshold_hu: float
    short_cases: Literal["error", "skip"]
    minimum_slices: Count


class ConvertSettings(Section):
    """Shards to another kind of shards, without loss."""

    store: Literal["tar", "zarr"]


class BudgetSettings(Section):
    """How long to train: batches, minutes, or whichever ends first; 0 is no limit."""

    steps: Annotated[int, Field(ge=0)]
    minutes: NotNegative

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if not self.steps and not self.minutes:
            raise ValueError("trainer.budget needs steps or minutes")
        return self


class TrainerSettings(Section):
    """Hardware, precision, budget, checkpoints and the guard against non-finite losses."""

    budget: BudgetSettings
    accelerator: Literal["auto", "cpu", "gpu"]
    devices: Count  # ranks per node: GPUs, or processes on a CPU
    nodes: Count
    strategy: Literal["ddp", "fsdp"]  # of several ranks
    rank_timeout_s: Positive  # how long a rank waits for the others before it gives up
    precision: Literal["auto", "fp32", "bf16-mixed", "fp16-mixed"]
    compile: bool  # torch.compile
    recompute: bool  # activations of residual blocks are computed again going backward, not kept
    threads: Annotated[int, Field(ge=0)]  # of torch, per rank; 0: its own choice
    validations: Count  # over the budget
    validation_segments: Count  # stretches of neighbouring slices, evenly over the validation films
    validation_slices: Count  # per stretch
    checkpoint_steps: Annotated[int, Field(ge=0)]  # 0: only at validations
    keep_every: Annotated[int, Field(ge=0)]  # keep a checkpoint for good every N steps; 0: none
    nan_limit: Count
    attempts: Annotated[int, Field(ge=0)]  # starts without progress before the run refuses another; 0: no limit
    panels: bool
    resume: bool  # true: a checkpoint must exist
    force: bool
    deterministic: bool
    allow_packages: list[str]  # where else `_target_` may point


class TrackingSettings(Section):
    """W&B offline, online, or none; a CSV is always written."""

    logger: Literal["wandb", "none"]
    mode: Literal["offline", "online"]
    entity: str  # of W&B: a user or a team; empty: your default
    project: str
    group: str  # joins the runs of an experiment's stages; empty: the label, or the method's name
    log_every: Count


class MetricsSettings(Section):
    """A profile: which metrics over which regions, and everything that decides their values."""

    profile: str
    title: str
    note: str  # our choices where the source is silent
    comparable: str  # whose numbers these may stand beside
    metrics: list[str]  # what the source lists
    extra: list[str]  # what Cinevox adds, kept apart in reports
    regions: list[str]
    unit: str  # of the volumes
    clip: tuple[float, float] | None  # for range-bound metrics; null: as the volumes are
    data_range: Positive | Literal["reference_maximum"]
    dimension: Literal["2d", "3d"]  # 2d: slice by slice, then the mean over slices
    normalisation: Literal["none", "percentile"]  # percentile: the reference's 0.5 and 99.5 % become 0 and 1
    outside: Literal["lowest", "keep"]  # what windows see outside the region: the range's lower end, or the volumes
    window: Literal["uniform", "gaussian"]  # of SSIM: 7 voxels and sample covariance; 11, sigma 1.5 and population's
    labels: dict[str, Annotated[int, Field(gt=0)]]  # names of labels that are compared; empty: all of the reference
    weights: dict[str, str]  # metric: file with the weights of its network

    @property
    def names(self) -> list[str]:
        """Every metric, the source's first."""
        return list(dict.fromkeys([*self.metrics, *self.extra]))

    @property
    def scored_unit(self) -> str:
        """Unit of the volumes as they are compared; none after normalisation."""
        return self.unit if self.normalisation == "none" else ""

    @model_validator(mode="after")
    def _range_fits(self) -> Self:
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(f"clip is inverted or empty: [{self.clip[0]:g}, {self.clip[1]:g}]")
        if self.outside == "lowest" and self.clip is None:
            raise ValueError("outside: lowest needs a clip, whose lower end it is")
        if self.normalisation == "percentile" and self.clip != (0, 1):
            raise ValueError("normalisation: percentile needs clip: [0, 1]")
        return self


class TranslateSettings(Section):
    """What is translated and with which weights."""

    split: Literal["train", "validation", "test", "all"]
    weights: Literal["ema", "raw"]
    label: str  # shown in tables; empty: the run's label
    outside: float  # value outside the film and outside the mask, of a target in HU
    range: Literal["normalised", "reference"]  # of an MR target; reference: as the case's own target was normalised
    precision: Literal["auto", "fp32", "bf16-mixed", "fp16-mixed", "bf16"]  # bf16: weights too, except the heads'
    compile: bool  # torch.compile


class EvaluateSettings(Section):
    """Scoring options."""

    source: bool  # also score the untranslated source
    resample: bool  # put a reference on another grid onto the prediction's
    labels: list[str]  # names of the methods where prediction=... is repeated; empty: their folders' names
    patient_pattern: str | None  # a regular expression on the case's name; its group is the patient; null: the case
    cohort_pattern: str | None  # likewise the cohort; null: the translation's own


class ReportSettings(Section):
    """What the page shows."""

    title: str
    notes: list[str]  # remarks, beside those of the scores
    cases: Annotated[int, Field(ge=0)]  # that are drawn; 0: none
    panels: Count  # slices per case
    windows: Annotated[dict[str, tuple[float, Positive]], Field(min_length=1, max_length=6)]  # name: level, width in HU
    difference: Positive  # end of the symmetric difference scale
    films: bool
    megabytes: Positive  # what pictures and films may take in the page; films get what pictures leave


class ModelMemory(Section):
    """What a training step holds, in bytes per pixel of the picture: whatever the clip's length, and for each slice."""

    step: NotNegative
    frame: NotNegative


class ModelSettings(Section):
    """A method: ``name`` and its constructor as a node with ``_target_``."""

    name: str
    memory: ModelMemory | None = None  # measured with benchmarks/training_memory.py; null: not known
    init: str = (
        ""  # short words for settings of the module that begin with pretrained weights: conf/model/cyclegan.yaml
    )
    init_reverse: str = ""
    weights: str = ""  # a folder of 'cinevox weights'
    module: dict[str, Any]


class Config(Section):
    """The whole configuration of one command."""

    seed: int
    label: str  # of the experiment, shown in tables
    source: str
    target: str
    fold: Annotated[int, Field(ge=0)]  # which of cohort.split.folds is tested; 0: the cohort's own split
    workers: Count
    cohort: CohortSettings
    simulate: SimulateSettings
    preprocess: PreprocessSettings
    convert: ConvertSettings
    stream: StreamSettings
    model: ModelSettings
    trainer: TrainerSettings
    tracking: TrackingSettings
    cluster: ClusterSettings
    sweep: SweepSettings
    three_stage: ThreeStageSettings | None  # null: 'train' is one training
    dashboard: dict[str, DashboardSettings]
    metrics: MetricsSettings
    translate: TranslateSettings
    evaluate: EvaluateSettings
    report: ReportSettings
    # Free text, taken from the command line as it stands; several inputs only where a verb allows it.
    input: list[Path] = Field(default_factory=list)
    shards_url: str = ""  # input=URL: shards on a server
    output: Path | None = None
    checkpoint: Path | None = None
    prediction: list[Path] = Field(default_factory=list)
    reference: Path | None = None
    mask: Path | None = None
    prediction_labels: list[Path] = Field(default_factory=list)  # one per prediction
    reference_labels: Path | None = None
    source_modality: Annotated[str, Field(pattern=r"^[a-z0-9]*$")] = ""  # of a model of many pairs; empty: the run's
    target_modality: Annotated[str, Field(pattern=r"^[a-z0-9]*$")] = ""
    part: Annotated[str, Field(pattern=r"^(join|[1-9]\d*/[1-9]\d*)?$")] = ""  # of a stage's cases; empty: all
    work: str = ""  # a word of 'cinevox submit' (a verb, or the chain) or of 'cinevox weights'
    dry_run: bool = False
    command: list[str] = Field(default_factory=list)  # the words of the command line, for the ranks that it starts
