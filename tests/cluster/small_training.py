"""Words of a training that takes seconds: a U-Net of a few weights."""

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
