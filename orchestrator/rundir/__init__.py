"""The run directory: its paths, its lock, its journal."""
