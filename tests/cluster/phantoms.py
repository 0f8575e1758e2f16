"""Words of a chain that takes seconds: four phantom heads, T1 to CT, a U-Net of a few weights."""

PHANTOMS = [
    "cohort=phantom",
    "cohort.patients=4",
    "cohort.anatomy=head",
    "cohort.modalities=[t1n,ct]",
    "cohort.size=[14,32,32]",
    "cohort.spacing_mm=[12,8,8]",
    "cohort.split.fractions={train: 0.5, validation: 0.25, test: 0.25}",
    "preprocess.spacing_mm=[12,8,8]",
    "preprocess.size=[32,32]",
    "source=t1n",
]
TRAINING = [
    "source=t1n",
    "model=regression",
    "model.module.network.widths=[4,8]",
    "model.module.network.residual_units=1",
    "tracking=none",
    "trainer.precision=fp32",
    "trainer.threads=1",
    "trainer.budget.minutes=0",
    "trainer.validations=1",
    "trainer.validation_segments=2",
    "trainer.validation_slices=4",
    "stream.clip_length=3",
    "stream.clip_growth=1",
    "stream.global_batch=4",
    "stream.threads=1",
]
