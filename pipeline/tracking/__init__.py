"""Run identity and loggers; the only place that imports wandb."""
