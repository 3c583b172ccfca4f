"""Checkpoints as files: writing, verifying, choosing, deleting them. Does not import torch."""
