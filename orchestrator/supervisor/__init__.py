"""The supervisor process: it owns signals, run lock, journal and trainer, and imports no torch."""
