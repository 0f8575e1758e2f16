"""What goes around a method while it trains: budget, checkpoints, validation, the line per epoch."""
