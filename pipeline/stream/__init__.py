"""Shards of ordered slices: how they are written, sampled, read and handed to Lightning."""
