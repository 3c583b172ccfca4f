"""When checkpoints and snapshots are due: for a session, or for the supervisor of several ranks."""
