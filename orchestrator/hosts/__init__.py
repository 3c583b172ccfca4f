"""The environment of a run: SLURM, systemd, a laptop, preemption and other host events."""
