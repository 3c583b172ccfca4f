"""The parent process: owns signals, the run lock, the journal and the trainer. Knows no torch."""
