"""The checkpoints and snapshots of a running run."""
