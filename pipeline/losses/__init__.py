"""Losses, one family per file: functions of tensors, or small modules."""
