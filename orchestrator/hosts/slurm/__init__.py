"""What SLURM says of our job, and the batch scripts that suit it; no torch."""
