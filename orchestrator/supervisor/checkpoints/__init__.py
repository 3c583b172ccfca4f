"""The run's checkpoints and snapshots, as the supervisor keeps them."""
