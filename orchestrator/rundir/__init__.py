"""The run directory: its paths, its lock and its journal."""
