"""Where a run lives: SLURM, systemd, a laptop; preemption and other events of the host."""
