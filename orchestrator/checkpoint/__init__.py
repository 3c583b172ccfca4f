"""Checkpoints as bytes and names: writing, verifying, choosing, deleting. Knows no torch."""
