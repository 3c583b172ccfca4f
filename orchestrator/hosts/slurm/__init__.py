"""SLURM: the current job, its time limit and its requeue, and batch scripts; no torch."""
