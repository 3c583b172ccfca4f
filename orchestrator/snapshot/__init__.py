"""Snapshots: the shared memory that holds them, and the way from there to the disk."""
