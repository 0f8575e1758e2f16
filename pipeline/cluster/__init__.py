"""SLURM: the jobs of a chain, what is submitted of them, and how they stand."""
