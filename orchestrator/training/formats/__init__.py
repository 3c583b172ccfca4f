"""Checkpoints in other forms: classic files, safetensors, export and import."""
