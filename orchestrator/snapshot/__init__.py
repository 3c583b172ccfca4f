"""Snapshots: the shared memory that holds them, and the writer that brings them to the disk."""
