"""Exchange with other programs: classic checkpoint files, safetensors, export and import."""
