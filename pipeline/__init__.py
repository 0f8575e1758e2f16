"""Cinevox: from patient volumes to metric reports, a volume played as a film of ordered slices."""

__version__ = "0.1.0"
