"""Export of checkpoints whose tensors are in pieces, one tensor at a time."""
