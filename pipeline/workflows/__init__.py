"""Chains of verbs: each step is a command of its own, with its own folder."""
